package http

import (
	"sync"
	"time"

	"github.com/undermesh/undermesh/ztunnel/clock"
)

// cause is why something that blocks was made to return. Those up to lastTimer are deadlines that passed.
type cause uint8

const (
	noCause      cause = iota
	slowResponse       // the route's timeout
	slowTry            // the timeout of one try
	idleTry            // its idle timeout
	longTry            // its stream took too long
	idleStream         // no byte in either direction
	longStream         // the whole took too long
	slowRequest        // the request's body did not come in time
	slowHead           // its head did not
	idleClient         // no request came
	watchTimer         // not a cause: time to wait for the client to leave
	lookTimer          // not a cause: time to look whether it has left, where nobody can wait for it
	slowClose          // the client did not read the last answer
	lastTimer          = slowClose
	clientGone   cause = iota // it closed the connection, or reset the stream
	badRequest                // the request's body is malformed
	draining                  // the connection was idle and is not to be used longer
	stopped                   // the flow's context ended
)

// ofTry reports whether it ends one try, and perhaps not the request.
func (c cause) ofTry() bool { return c == slowTry || c == idleTry || c == longTry }

// interrupter makes what blocks return with an error. It is called from any goroutine, with the guard's lock held, so that it
// is not called once something else is aimed at: it must not block.
type interrupter interface{ interrupt() }

// guard interrupts one goroutine: when a deadline passes, or because somebody says so. There is one timer, which is set only when
// an earlier deadline comes, so that a deadline that is taken back before costs two stores.
type guard struct {
	e     *Engine
	timer clock.Timer
	watch func() // at watchTimer
	look  func() // at lookTimer

	mu     sync.Mutex // protects below
	life   uint64     // how often it was begun
	fires  int64      // when the timer does; 0: it does not
	at     [lastTimer + 1]int64
	cause  cause
	idle   bool        // what blocks waits for a request
	target interrupter // what blocks; nil: nothing does
}

// set puts a deadline, in the engine's time; 0: none.
func (g *guard) set(c cause, at int64) {
	g.mu.Lock()
	g.at[c] = at
	if at != 0 && (g.fires == 0 || at < g.fires) {
		g.armLocked(at)
	}
	g.mu.Unlock()
}

// after is set with a duration from now; one of 0 or less is none.
func (g *guard) after(c cause, now int64, d time.Duration) {
	g.set(c, deadline(now, d))
}

// deadline is d from now, 0 for none: where d is 0 or less, and where it is later than time can be told.
func deadline(now int64, d time.Duration) int64 {
	if at := now + int64(d); at > now {
		return at
	}
	return 0
}

func (g *guard) armLocked(at int64) {
	g.fires = at
	d := time.Duration(at - g.e.now())
	if g.timer == nil {
		g.timer = g.e.cfg.Clock.AfterFunc(d, g.fire)
	} else {
		g.timer.Reset(d)
	}
}

func (g *guard) fire() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.fires = 0
	now, next := g.e.now(), int64(0)
	for c := range g.at {
		switch at := g.at[c]; {
		case at == 0:
		case at > now:
			if next == 0 || at < next {
				next = at
			}
		default:
			g.at[c] = 0
			g.dueLocked(cause(c), now)
			if at := g.at[c]; at != 0 && (next == 0 || at < next) {
				next = at
			}
		}
	}
	if next != 0 {
		g.armLocked(next)
	}
}

// dueLocked does what is due at a deadline that has passed.
func (g *guard) dueLocked(c cause, now int64) {
	switch {
	case c == watchTimer && g.watch != nil:
		g.watch()
	case c == lookTimer && g.look != nil:
		g.at[c] = now + int64(lookAgain)
		g.look()
	case c != watchTimer && c != lookTimer:
		g.stopLocked(c)
	}
}

// When a client is looked for: first, and then again and again. A request that is answered before costs nothing.
const (
	lookFirst = 100 * time.Millisecond
	lookAgain = time.Second
)

// stop interrupts; the first cause stays.
func (g *guard) stop(c cause) {
	g.mu.Lock()
	g.stopLocked(c)
	g.mu.Unlock()
}

func (g *guard) stopLocked(c cause) {
	if g.cause != noCause {
		return
	}
	g.cause = c
	if g.target != nil {
		g.target.interrupt()
	}
}

// aim says what is to be interrupted from now on; nil: nothing. It returns the cause when there is one already: then nothing
// may block any more.
func (g *guard) aim(t interrupter) cause {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.target, g.idle = t, false
	return g.cause
}

// swap is aim for a while; before is what is to be aimed at again.
func (g *guard) swap(t interrupter) (before interrupter, c cause) {
	g.mu.Lock()
	defer g.mu.Unlock()
	before, g.target = g.target, t
	return before, g.cause
}

// aimIdle is aim for what waits for a request: stopIdle ends it, unless it is the first one, which may be on its way.
func (g *guard) aimIdle(t interrupter, idle bool) {
	g.mu.Lock()
	g.target, g.idle = t, idle
	g.mu.Unlock()
}

// begin is reset, for what is used again by others: stopOf with what it returns does nothing after the next one.
func (g *guard) begin() uint64 {
	g.reset()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.life++
	return g.life
}

// stopOf is stop, in one life.
func (g *guard) stopOf(life uint64, c cause) {
	g.mu.Lock()
	if g.life == life {
		g.stopLocked(c)
	}
	g.mu.Unlock()
}

// stopIdle is stop, unless a request is under way.
func (g *guard) stopIdle(c cause) {
	g.mu.Lock()
	if g.idle {
		g.stopLocked(c)
	}
	g.mu.Unlock()
}

// why returns the cause.
func (g *guard) why() cause {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.cause
}

// retry forgets the cause, if it concerned one try only.
func (g *guard) retry() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.at[slowTry], g.at[idleTry], g.at[longTry] = 0, 0, 0
	if g.cause.ofTry() {
		g.cause = noCause
	}
	return g.cause == noCause
}

// reset forgets everything, at the end of a request, and returns the cause.
func (g *guard) reset() cause {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.cause
	g.cause, g.target, g.idle = noCause, nil, false
	g.at = [lastTimer + 1]int64{}
	return c
}

// closed stops the timer, for good.
func (g *guard) closed() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.at, g.target = [lastTimer + 1]int64{}, nil
	if g.timer != nil {
		g.timer.Stop()
		g.fires = 0
	}
}

// both interrupts two.
type both [2]interrupter

func (b both) interrupt() {
	b[0].interrupt()
	b[1].interrupt()
}

// canceler interrupts what waits for a context.
type canceler func()

func (c canceler) interrupt() { c() }

// rearmLocked sets the timer to the next deadline, if it does not fire before.
func (g *guard) rearmLocked() {
	next := int64(0)
	for _, at := range g.at {
		if at != 0 && (next == 0 || at < next) {
			next = at
		}
	}
	if next != 0 && (g.fires == 0 || next < g.fires) {
		g.armLocked(next)
	}
}
