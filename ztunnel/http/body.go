package http

import "sync/atomic"

// body is the body of a request while it is read. What was read is kept for another try, as long as it fits.
type body struct {
	done     atomic.Bool // it was read to its end
	received int64
	replay   []byte
	held     int64 // bytes of replay that the tenant is charged with
	lost     bool  // not all of it is in replay
	keep     bool  // it may be needed again

	pumping bool          // the goroutine of pump runs
	halted  atomic.Bool   // it is to end
	ended   chan struct{} // it has ended
	broken  bool          // it could not write: the upstream ended
}

func (b *body) reset(x *exchange) {
	if b.held > 0 {
		x.f.Workload.bytes.Add(-b.held)
		b.held = 0
	}
	if cap(b.replay) > largeBuffer {
		b.replay = nil
	}
	b.replay = b.replay[:0]
}

// take notes a piece that was read.
func (b *body) take(x *exchange, p []byte, end bool) {
	b.received += int64(len(p))
	b.done.Store(end)
	if b.lost || len(p) == 0 {
		return
	}
	n := int64(len(b.replay) + len(p))
	switch {
	case !b.keep, n > x.replayLimit():
		b.lost = true
	case n > b.held:
		more := max(n, smallBuffer) - b.held
		if t := x.f.Workload; reserve(&t.bytes, more, t.limits.Bytes) {
			b.held += more
		} else {
			b.lost = true
		}
	}
	if b.lost {
		b.replay = b.replay[:0]
		return
	}
	b.replay = append(b.replay, p...)
}

// replayLimit is how many bytes of a body may be kept.
func (x *exchange) replayLimit() int64 {
	limit := int64(x.e.cfg.Limits.ReplayBytes)
	if r := x.entry.Route; r != nil && r.Forward != nil && r.Forward.BufferLimit >= 0 {
		limit = min(limit, r.Forward.BufferLimit)
	}
	return limit
}

// pump reads the rest of the body and writes it to the host.
func (b *body) pump(x *exchange, up upstream) {
	e, f, g := x.e, x.f, x.g
	defer func() {
		if p := recover(); p != nil {
			e.panicked(f, p)
			g.stop(stopped)
		}
		b.ended <- struct{}{}
	}()
	for !b.done.Load() && !b.halted.Load() {
		p, end, err := x.down.next()
		if err != nil {
			if !b.halted.Load() {
				x.g.stop(x.bodyCause(err))
			}
			return
		}
		b.take(x, p, end)
		x.touch()
		switch {
		case end && x.tunnel: // the other direction may last, but not for ever
			x.g.after(slowClose, x.e.now(), x.e.cfg.Limits.Idle)
		case end:
			x.requested()
			x.mirror()
		}
		if err := b.pass(x, up, p, end); err != nil {
			b.broken = true
			return
		}
	}
}

// pass writes a piece to the host.
func (b *body) pass(x *exchange, up upstream, p []byte, end bool) error {
	if end {
		if t := x.down.trailers(); t != nil {
			if len(p) > 0 {
				if err := up.write(p, false); err != nil {
					return err
				}
			}
			return up.finish(t)
		}
	}
	return up.write(p, end)
}

// begin starts the pump, if there is something left to read and none runs.
func (b *body) begin(x *exchange, up upstream) {
	if b.done.Load() || b.broken || b.pumping {
		return
	}
	b.halted.Store(false)
	b.pumping = true
	go b.pump(x, up)
}

// stop ends the pump and waits for it. The upstream is not used again: a host that does not read must not hold the request.
func (b *body) stop(x *exchange) {
	if !b.pumping {
		return
	}
	x.rest()
	b.halted.Store(true)
	if x.up != nil {
		x.up.interrupt()
	}
	x.down.pause()
	<-b.ended
	x.down.resume()
	b.pumping = false
}

// settle is stop when the host has answered to the end. Where all of the body was read, the host has a moment to take what is left, so
// that its connection can be used again.
func (b *body) settle(x *exchange) {
	wait := x.e.cfg.Limits.DelayedClose
	if !b.pumping || !b.done.Load() || wait <= 0 || x.g.why() != noCause {
		b.stop(x)
		return
	}
	select {
	case <-b.ended:
	default:
		x.g.after(slowClose, x.e.now(), wait)
		<-b.ended
		x.g.set(slowClose, 0)
	}
	b.pumping = false
}
