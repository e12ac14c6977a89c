package http

import (
	"container/list"
	"context"
	"maps"
	"sync"
	"sync/atomic"
)

// turns lets so many requests at once do what takes a processor for long, and as many others as there are wait: they own no thread
// and are in nobody's way. While requests wait, the next turn is that of the workload that has had the least time, so that none gets
// more than its share because its requests are more, or longer; those of one workload come in the order of their arrival. A turn that
// nobody waits for costs an atomic operation. All methods are safe for concurrent use.
type turns struct {
	most  int64
	now   func() int64
	state atomic.Int64 // those that have a turn, and someWait

	mu      sync.Mutex // protects below
	lines   map[*Tenant]*line
	waiting []*line // those with somebody in them, in the order in which they came to be
	floor   int64   // time of the workload whose turn came last: who comes anew has had as much
}

// someWait is set in the state while anybody waits: all turns are taken then, and those that end are handed on under the lock.
const someWait = 1 << 32

// maxLines is from how many lines on those in which nobody waits are forgotten, with the time that they have had.
const maxLines = 1024

// line is a workload while it is known to turns.
type line struct {
	had int64     // nanoseconds
	of  list.List // of *waiting
}

// waiting is one who waits for a turn.
type waiting struct {
	come chan struct{} // closed when it has come
	has  bool          // protected by turns.mu
}

func newTurns(most int, now func() int64) *turns {
	return &turns{most: int64(most), now: now, lines: map[*Tenant]*line{}}
}

// try takes a turn if there is one that nobody waits for.
func (t *turns) try() bool {
	for {
		n := t.state.Load()
		if n >= t.most {
			return false
		}
		if t.state.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// wait takes a turn when it comes. False: ctx ended before, and none was taken.
func (t *turns) wait(ctx context.Context, w *Tenant) bool {
	t.mu.Lock()
	for {
		n := t.state.Load()
		if n < t.most && t.state.CompareAndSwap(n, n+1) {
			t.mu.Unlock()
			return true
		}
		if n >= someWait || n >= t.most && t.state.CompareAndSwap(n, n|someWait) {
			break
		}
	}
	l := t.lineLocked(w)
	if l.of.Len() == 0 {
		l.had = max(l.had, t.floor)
		t.waiting = append(t.waiting, l)
	}
	me := &waiting{come: make(chan struct{})}
	at := l.of.PushBack(me)
	t.mu.Unlock()
	select {
	case <-me.come:
		return true
	case <-ctx.Done():
	}
	t.mu.Lock()
	if me.has {
		t.mu.Unlock()
		t.end(w, t.now())
		return false
	}
	t.removeLocked(l, at)
	t.mu.Unlock()
	return false
}

// end gives a turn back that was taken at the time since.
func (t *turns) end(w *Tenant, since int64) {
	for {
		n := t.state.Load()
		if n >= someWait {
			if t.handOn(w, since) {
				return
			}
		} else if t.state.CompareAndSwap(n, n-1) {
			return
		}
	}
}

// handOn makes the turn that of the next. False: nobody waits any longer.
func (t *turns) handOn(w *Tenant, since int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.waiting) == 0 {
		return false
	}
	l := t.lineLocked(w)
	l.had = max(l.had, t.floor) + t.now() - since
	next := t.waiting[0]
	for _, l := range t.waiting {
		if l.had < next.had {
			next = l
		}
	}
	t.floor = max(t.floor, next.had)
	first := next.of.Front()
	me := first.Value.(*waiting)
	me.has = true
	close(me.come)
	t.removeLocked(next, first)
	return true
}

func (t *turns) lineLocked(w *Tenant) *line {
	l := t.lines[w]
	if l == nil {
		if len(t.lines) >= maxLines {
			maps.DeleteFunc(t.lines, func(_ *Tenant, l *line) bool { return l.of.Len() == 0 })
		}
		l = &line{had: t.floor}
		t.lines[w] = l
	}
	return l
}

// removeLocked takes one out of a line.
func (t *turns) removeLocked(l *line, at *list.Element) {
	if l.of.Remove(at); l.of.Len() > 0 {
		return
	}
	for i := range t.waiting {
		if t.waiting[i] == l {
			t.waiting = append(t.waiting[:i], t.waiting[i+1:]...)
			break
		}
	}
	if len(t.waiting) == 0 {
		t.state.Add(-someWait)
		clear(t.lines)
		t.waiting, t.floor = nil, 0
	}
}

// toil takes a turn for what costs much, and keeps it until the request rests. False: the request came to its end meanwhile.
func (x *exchange) toil() bool { return x.turn == x.e.toils || x.takeTurn(x.e.toils) }

// takeTurn takes a turn in place of that which the request has. False: the request came to its end meanwhile.
func (x *exchange) takeTurn(of *turns) bool {
	x.rest()
	if !of.try() {
		x.f.Workload.counts.turnsAwaited.Add(1)
		if !x.awaitTurn(of) {
			return false
		}
	}
	x.turn, x.turnFrom = of, x.e.now()
	return true
}

func (x *exchange) awaitTurn(of *turns) bool {
	ctx, cancel := context.WithCancel(x.ctx)
	defer cancel()
	before, c := x.g.swap(canceler(cancel))
	if c != noCause {
		cancel()
	}
	has := of.wait(ctx, x.f.Workload)
	if c = x.g.aim(before); has && c != noCause {
		of.end(x.f.Workload, x.e.now())
		return false
	}
	return has
}

// rest gives the turn back that the request has. It comes before everything that waits: for a client, a host, a time.
func (x *exchange) rest() {
	if of := x.turn; of != nil {
		x.turn = nil
		of.end(x.f.Workload, x.turnFrom)
	}
}
