package hbone

import (
	"sync"

	"github.com/undermesh/undermesh/ztunnel/http/frame"
)

// minCredit is the smallest connection credit worth a frame, in bytes.
const minCredit = 16 << 10

// recvWindow is the connection's receive side. Credit goes back when bytes arrive, not when they are read, so that a
// slow reader does not stop the other streams; but credit plus what is held never exceeds the budget.
type recvWindow struct {
	window int64 // the credit that the peer has at most
	budget int64
	shared *Budget

	mu       sync.Mutex // protects below
	avail    int64      // the peer's credit
	buffered int64      // received and neither consumed nor thrown away
}

func (r *recvWindow) init(cfg Config) {
	r.window, r.budget = int64(cfg.ConnWindow), int64(cfg.MaxBuffered)
	r.shared = cfg.Budget
	r.avail = max(r.window, frame.DefaultWindow)
}

// take accounts a DATA frame of n bytes: they are held from here on, so that a frame that is still arriving counts.
// It reports false when the peer had no such credit.
func (r *recvWindow) take(n int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.avail -= int64(n)
	r.buffered += int64(n)
	return r.avail >= 0
}

// release lets go of n held bytes and returns the credit to give to the peer, 0 when it is not worth a frame.
func (r *recvWindow) release(n int) uint32 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.buffered -= int64(n)
	want := min(r.window, r.budget-r.buffered)
	if r.shared.tight() {
		want = min(want, minWindow)
	}
	inc := want - r.avail
	if inc < max(minCredit, want/4) {
		return 0
	}
	r.avail += inc
	return uint32(inc)
}

// credit lets go of n held bytes and tells the peer when that is worth it. Without locks.
func (c *conn) credit(n int) {
	if inc := c.recv.release(n); inc > 0 {
		c.postOrEnd(frame.AppendWindow(make([]byte, 0, 13), 0, inc))
	}
}

// postOrEnd queues frames; a peer that does not read its answers loses the connection.
func (c *conn) postOrEnd(b []byte) {
	if err := c.w.post(b); err != nil {
		c.end(err)
	}
}

// reserve waits for credit to send up to n bytes on s and takes it. It returns the bytes granted and the frame size.
func (s *Stream) reserve(n int) (granted, size int, err error) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		switch {
		case s.err != nil:
			return 0, 0, s.err
		case s.localDone:
			return 0, 0, ErrClosed
		case s.writeLate:
			return 0, 0, errDeadline
		case s.sendWin > 0 && c.sendWin > 0:
			k := min(int64(n), s.sendWin, c.sendWin)
			s.sendWin -= k
			c.sendWin -= k
			return int(k), min(c.peer.maxFrame, largeFrame), nil
		case s.sendWin > 0 && !s.starving:
			s.starving = true
			c.starved = append(c.starved, s)
		}
		s.sendCond.Wait()
	}
}

// refundLocked gives back connection credit of bytes that were not sent.
func (c *conn) refundLocked(n int) { c.addSendWindowLocked(int64(n)) }

func (c *conn) addSendWindowLocked(n int64) {
	c.sendWin += n
	if c.sendWin <= 0 {
		return
	}
	for _, s := range c.starved {
		s.starving = false
		s.sendCond.Broadcast()
	}
	c.starved = c.starved[:0]
}

// windowUpdate handles a WINDOW_UPDATE of the peer.
func (c *conn) windowUpdate(h frame.Header, inc int64) error {
	if h.ID == 0 {
		if inc == 0 {
			return frame.Errorf(frame.CodeProtocol, "WINDOW_UPDATE of 0")
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.sendWin+inc > frame.MaxWindow {
			return frame.Errorf(frame.CodeFlowControl, "connection window exceeds 2^31-1")
		}
		c.addSendWindowLocked(inc)
		return nil
	}
	s, err := c.lookup(h)
	if err != nil || s == nil {
		return err
	}
	if inc == 0 {
		s.Reset(frame.CodeProtocol)
		return nil
	}
	c.mu.Lock()
	over := s.sendWin+inc > frame.MaxWindow
	if !over {
		s.sendWin += inc
		s.sendCond.Broadcast()
	}
	c.mu.Unlock()
	if over {
		s.Reset(frame.CodeFlowControl)
	}
	return nil
}

// setInitialWindowLocked applies a change of SETTINGS_INITIAL_WINDOW_SIZE to all streams; windows may become negative.
func (c *conn) setInitialWindowLocked(v uint32) error {
	if v > frame.MaxWindow {
		return frame.Errorf(frame.CodeFlowControl, "initial window of %d", v)
	}
	delta := int64(v) - c.peer.initialWindow
	c.peer.initialWindow = int64(v)
	for _, s := range c.streams {
		if s.sendWin+delta > frame.MaxWindow {
			return frame.Errorf(frame.CodeFlowControl, "initial window of %d overflows stream %d", v, s.id)
		}
		s.sendWin += delta
		s.sendCond.Broadcast()
	}
	return nil
}
