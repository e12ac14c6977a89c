package h2

import (
	"slices"

	"github.com/undermesh/undermesh/ztunnel/http/frame"
)

// largeFrame is the largest DATA frame that is sent, in bytes.
const largeFrame = 16 << 10

// dataLocked queues as much of p as windows and room allow. done: END_STREAM is queued as well.
func (s *Stream) dataLocked(p []byte, end bool) (n int, done bool) {
	c := s.c
	for len(p) > 0 {
		k := int(min(int64(len(p)), s.sendWin, c.sendWin, int64(c.cfg.MaxQueued-len(c.q)), int64(min(c.peer.maxFrame, largeFrame))))
		if k <= 0 {
			s.starveLocked()
			return n, false
		}
		flags := byte(0)
		if end && k == len(p) {
			flags = frame.EndStream
		}
		c.q = append(frame.Append(c.q, k, frame.Data, flags, s.id), p[:k]...)
		s.sendWin -= int64(k)
		c.sendWin -= int64(k)
		c.sentData++
		c.useful++
		p, n = p[k:], n+k
		if flags != 0 {
			s.endSentLocked()
			return n, true
		}
	}
	if n == 0 && end {
		c.q = frame.Append(c.q, 0, frame.Data, frame.EndStream, s.id)
		s.endSentLocked()
		return 0, true
	}
	return n, false
}

// starveLocked has s woken when the connection has window or room again. Its own window wakes it in any case.
func (s *Stream) starveLocked() {
	if !s.starving && s.sendWin > 0 {
		s.starving = true
		s.c.starved = append(s.c.starved, s)
	}
}

// wakeStarvedLocked wakes those that wait for the connection's window or for room, when there is both.
func (c *Conn) wakeStarvedLocked() {
	if c.sendWin <= 0 || len(c.q) >= c.cfg.MaxQueued {
		return
	}
	for i, s := range c.starved {
		s.starving = false
		s.wcond.Broadcast()
		c.starved[i] = nil
	}
	c.starved = c.starved[:0]
}

// consumedLocked gives the peer credit back for n bytes of the stream that were passed on. A stream whose reader keeps up
// gets a larger window.
func (s *Stream) consumedLocked(n int64) {
	c := s.c
	c.consumedLocked(n)
	if s.remoteEnd || s.err != nil {
		return
	}
	s.owed += n
	s.kept += n
	if limit := int64(c.cfg.StreamWindowMax); s.kept >= s.window && s.window < limit {
		grown := min(2*s.window, limit)
		s.owed += grown - s.window
		s.window, s.kept = grown, 0
	}
	if s.owed >= s.window/2 {
		c.q = frame.AppendWindow(c.q, s.id, uint32(s.owed))
		s.recvWin += s.owed
		s.owed = 0
		c.flushLocked()
	}
}

// consumedLocked gives the peer credit back for n bytes on the connection.
func (c *Conn) consumedLocked(n int64) {
	if c.owed += n; c.owed < int64(c.cfg.ConnWindow)/4 || c.dead != nil {
		return
	}
	c.q = frame.AppendWindow(c.q, 0, uint32(c.owed))
	c.recvWin += c.owed
	c.owed = 0
}

// data handles a DATA frame. Called by the goroutine that reads.
func (r *reader) data(h frame.Header, p []byte) error {
	if h.ID == 0 {
		return frame.Errorf(frame.CodeProtocol, "DATA on stream 0")
	}
	p, err := frame.Unpad(h, p)
	if err != nil {
		return err
	}
	end := h.Has(frame.EndStream)
	if len(p) > 0 {
		r.earn(&r.nuisances, 1)
	} else if !end {
		if err := r.nuisance("DATA frames without data"); err != nil {
			return err
		}
	}
	c := r.c
	c.mu.Lock()
	if c.recvWin -= int64(h.Length); c.recvWin < 0 {
		c.mu.Unlock()
		return frame.Errorf(frame.CodeFlowControl, "DATA of %d bytes exceeds the window of the connection", h.Length)
	}
	s := c.streams[h.ID]
	if s == nil {
		c.consumedLocked(int64(h.Length))
		err := c.closedLocked(h)
		c.mu.Unlock()
		return err
	}
	var after func()
	wasted := false
	if code, reason := s.takeLocked(h, p); reason != "" {
		c.consumedLocked(int64(h.Length))
		after = c.resetLocked(s, code, &StreamError{Code: code, Reason: reason})
		wasted = true
	} else {
		s.consumedLocked(int64(h.Length - len(p))) // padding
		s.in.add(p)
		if int64(s.in.size) > s.window/2 {
			s.kept = 0
		}
		if end {
			s.endReceivedLocked()
		}
		s.rcond.Broadcast()
	}
	over := c.drainedLocked()
	c.mu.Unlock()
	if after != nil {
		after()
	}
	if over {
		c.end(ErrClosed)
	}
	if wasted {
		return r.waste("streams with errors")
	}
	return nil
}

// takeLocked accounts a DATA frame against its stream. The reason is that of a stream error.
func (s *Stream) takeLocked(h frame.Header, p []byte) (code frame.Code, reason string) {
	s.recvWin -= int64(h.Length)
	n := int64(len(p))
	switch {
	case s.remoteEnd:
		return frame.CodeStreamClosed, "DATA after END_STREAM"
	case s.c.client && !s.gotHead:
		return frame.CodeProtocol, "DATA before the head of the response"
	case s.recvWin < 0:
		return frame.CodeFlowControl, "DATA exceeds the window of the stream"
	case s.noBody && n > 0:
		return frame.CodeProtocol, "DATA in a response without a body"
	case s.expect >= 0 && (n > s.expect || h.Has(frame.EndStream) && n != s.expect):
		return frame.CodeProtocol, "DATA does not have the announced length"
	}
	if s.expect >= 0 {
		s.expect -= n
	}
	return 0, ""
}

// endReceivedLocked notes END_STREAM of the peer.
func (s *Stream) endReceivedLocked() {
	s.remoteEnd = true
	if s.localEnd {
		s.c.removeLocked(s)
	}
}

// maxGone is how many streams that we reset are remembered.
const maxGone = 1024

func (c *Conn) goneLocked(id uint32) {
	if len(c.gone) < maxGone {
		c.gone = append(c.gone, id)
		return
	}
	c.gone[c.goneAt%maxGone] = id
	c.goneAt++
}

// closedLocked handles DATA or HEADERS for a stream that is not open. What was on its way when we reset the stream passes.
func (c *Conn) closedLocked(h frame.Header) error {
	switch {
	case slices.Contains(c.gone, h.ID):
		return nil
	case c.idleLocked(h.ID):
		return frame.Errorf(frame.CodeProtocol, "frame of type %d on idle stream %d", h.Type, h.ID)
	case !c.client && uint64(c.lastID) != 2*c.requests-1: // it may be one that the client never opened (RFC 9113 §5.1.1)
		return frame.Errorf(frame.CodeProtocol, "frame of type %d on stream %d after stream %d", h.Type, h.ID, c.lastID)
	}
	return frame.Errorf(frame.CodeStreamClosed, "frame of type %d on closed stream %d", h.Type, h.ID)
}

func (c *Conn) idleLocked(id uint32) bool {
	return id%2 == 0 || c.client && id >= c.nextID || !c.client && id > c.lastID
}

// windowUpdate handles a WINDOW_UPDATE of the peer.
func (c *Conn) windowUpdate(h frame.Header, inc int64) error {
	r := &c.rd
	c.mu.Lock()
	r.windows = max(0, r.windows-10*c.sentData) + 1
	c.sentData = 0
	c.mu.Unlock()
	if r.windows > c.cfg.Burst {
		if err := r.nuisance("WINDOW_UPDATE frames"); err != nil {
			return err
		}
	}
	if h.ID == 0 {
		return c.connWindow(inc)
	}
	c.mu.Lock()
	s := c.streams[h.ID]
	if s == nil {
		idle := c.idleLocked(h.ID)
		c.mu.Unlock()
		if idle {
			return frame.Errorf(frame.CodeProtocol, "WINDOW_UPDATE on idle stream %d", h.ID)
		}
		return nil
	}
	s.sendWin += inc
	var after func()
	wrong := true
	switch {
	case inc == 0:
		after = c.resetLocked(s, frame.CodeProtocol, &StreamError{Code: frame.CodeProtocol, Reason: "WINDOW_UPDATE of 0"})
	case s.sendWin > frame.MaxWindow:
		after = c.resetLocked(s, frame.CodeFlowControl, &StreamError{Code: frame.CodeFlowControl, Reason: "window exceeds 2^31-1"})
	default:
		wrong = false
		s.wcond.Broadcast()
	}
	over := c.drainedLocked()
	c.mu.Unlock()
	if !wrong {
		return nil
	}
	if after != nil {
		after()
	}
	if over {
		c.end(ErrClosed)
	}
	return r.waste("streams with errors")
}

// connWindow handles a WINDOW_UPDATE of the connection.
func (c *Conn) connWindow(inc int64) error {
	if inc == 0 {
		return frame.Errorf(frame.CodeProtocol, "WINDOW_UPDATE of 0")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sendWin += inc; c.sendWin > frame.MaxWindow {
		return frame.Errorf(frame.CodeFlowControl, "window of the connection exceeds 2^31-1")
	}
	c.wakeStarvedLocked()
	return nil
}
