package proxy

import (
	"net"
	"sync"
	"time"

	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/cluster"
)

// idleLooks is how often within its time a connection is looked at: it ends at most that part of the time late, and never early.
const idleLooks = 8

// idleWatch ends a connection that carries nothing either way for s.idle. It looks at what the connection counts anyway, so that
// bytes cost nothing.
type idleWatch struct {
	s       *session
	up      net.Conn
	carried func() uint64

	mu    sync.Mutex // protects below
	timer clock.Timer
	last  uint64
	since time.Time // last is as it is
	done  bool
}

// endIdle watches the connection to up, of which carried counts the bytes both ways and is safe for concurrent use. The function
// returned ends the watch.
func (s *session) endIdle(up net.Conn, carried func() uint64) (stop func()) {
	if s.idle <= 0 {
		return func() {}
	}
	w := &idleWatch{s: s, up: up, carried: carried, since: s.p.cfg.Clock.Now()}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer = s.p.cfg.Clock.AfterFunc(w.step(), w.look)
	return w.stop
}

func (w *idleWatch) step() time.Duration { return max(w.s.idle/idleLooks, time.Millisecond) }

func (w *idleWatch) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done {
		return
	}
	now := w.s.p.cfg.Clock.Now()
	if n := w.carried(); n != w.last {
		w.last, w.since = n, now
	}
	if rest := w.s.idle - now.Sub(w.since); rest > 0 {
		w.timer.Reset(min(w.step(), rest))
		return
	}
	w.done = true
	w.end()
}

// end closes the connection as who has nothing more to say: sides that are sockets read its end before it is reset.
func (w *idleWatch) end() {
	closeWrite(w.s.client)
	if tc, ok := w.up.(*net.TCPConn); ok {
		closeWrite(tc)
	}
	name := "none"
	if c := w.s.called; c != nil {
		c.Inc(cluster.CxIdleTimeout)
		name = c.Name()
	}
	w.s.kill(refusedf(reason.ConnectionIdle, "cluster %s: a connection carried nothing for %s", name, w.s.idle))
}

func (w *idleWatch) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done = true
	w.timer.Stop()
}
