package h2

import (
	"time"

	"github.com/undermesh/undermesh/ztunnel/http/frame"
)

// watch is what the one timer of a connection looks at. A condition is timed from the first look that finds it, so that nothing
// on the way of a request asks the clock; each limit holds to within one look. Conn.mu protects it.
type watch struct {
	settings time.Time // begin of the connection, until the peer has acknowledged
	drain    time.Time // since when the peer is asked whether it saw GOAWAY
	begun    uint64    // number of the frame that is cut off, or that a header block began with; 0: nothing is open
	seen     uint64
	seenAt   time.Time
	writing  time.Time // since when wrote has not moved
	wrote    uint64
	idle     time.Time // since when no stream was opened or open
	opened   uint64
	read     time.Time // since when reads has not moved
	reads    uint64
	pinged   bool
	slow     bool // the timer is set far ahead: only idleness is awaited
}

// look is the time between two looks while anything goes on.
const look = 5 * time.Second

// drainTimeout is how long a server waits for the answer to the PING of its first GOAWAY.
const drainTimeout = 5 * time.Second

func (c *Conn) startWatchLocked() {
	now := c.cfg.Clock.Now()
	c.watch.settings, c.watch.idle, c.watch.read = now, now, now
	c.timer = c.cfg.Clock.AfterFunc(c.pace(), c.tick)
}

// pace is the time to the next look.
func (c *Conn) pace() time.Duration {
	d := look
	for _, t := range []time.Duration{c.cfg.SettingsTimeout, c.cfg.HeadTimeout, c.cfg.WriteTimeout, c.cfg.IdleTimeout,
		c.cfg.PingInterval, c.cfg.PingTimeout} {
		if t > 0 {
			d = min(d, t)
		}
	}
	return d
}

// rearmLocked brings the next look near: something goes on that has a limit.
func (c *Conn) rearmLocked() {
	if c.watch.slow && c.dead == nil {
		c.watch.slow = false
		c.timer.Reset(c.pace())
	}
}

func (c *Conn) tick() {
	now := c.cfg.Clock.Now()
	c.mu.Lock()
	if c.dead != nil {
		c.mu.Unlock()
		return
	}
	err := c.lookLocked(now)
	drain := !c.watch.drain.IsZero() && now.Sub(c.watch.drain) >= drainTimeout
	w := &c.watch
	idle := err == nil && c.cfg.IdleTimeout > 0 && len(c.streams) == 0 && now.Sub(w.idle) >= c.cfg.IdleTimeout
	if err == nil {
		next := c.pace()
		quiet := len(c.streams) == 0 && c.acked && !c.writing && w.begun == 0 && w.drain.IsZero() && c.cfg.PingInterval == 0
		if w.slow = quiet && !idle; w.slow {
			next = time.Hour
			if c.cfg.IdleTimeout > 0 {
				next = max(next, 0)
				next = min(next, c.cfg.IdleTimeout-now.Sub(w.idle))
			}
		}
		c.timer.Reset(next)
		c.flushLocked()
	}
	c.mu.Unlock()
	switch {
	case err != nil:
		c.end(err)
	case drain:
		c.exclude()
	case idle:
		c.Drain()
	}
}

// lookLocked returns the error of what has taken too long.
func (c *Conn) lookLocked(now time.Time) error {
	w, cfg := &c.watch, &c.cfg
	if !c.acked && now.Sub(w.settings) >= cfg.SettingsTimeout {
		return frame.Errorf(frame.CodeSettingsTimeout, "SETTINGS are not acknowledged")
	}
	if w.begun == 0 || w.begun != w.seen {
		w.seen, w.seenAt = w.begun, now
	} else if now.Sub(w.seenAt) >= cfg.HeadTimeout {
		return frame.Errorf(frame.CodeCalm, "frame or header block does not end")
	}
	if !c.writing || w.wrote != c.wrote {
		w.wrote, w.writing = c.wrote, now
	} else if now.Sub(w.writing) >= cfg.WriteTimeout {
		return ErrSlow
	}
	if len(c.streams) > 0 || w.opened != c.opened {
		w.opened, w.idle = c.opened, now
	}
	if reads := c.reads.Load(); reads != w.reads {
		w.reads, w.read, w.pinged = reads, now, false
	}
	if cfg.PingInterval == 0 {
		return nil
	}
	switch silent := now.Sub(w.read); {
	case w.pinged && silent >= cfg.PingInterval+cfg.PingTimeout:
		return ErrPeerDead
	case !w.pinged && silent >= cfg.PingInterval:
		w.pinged = true
		c.q = frame.AppendPing(c.q, 0, pingKeepalive)
	}
	return nil
}
