package h2

import (
	"encoding/binary"
	"errors"

	"github.com/undermesh/undermesh/ztunnel/http/frame"
)

const (
	maxDebug = 256 // bytes kept of what a GOAWAY says
	// maxLimit bounds what a peer's SETTINGS_MAX_CONCURRENT_STREAMS is taken for.
	maxLimit = 1 << 30
)

// control handles the frames that are neither DATA nor a part of a header block. Their size and stream were checked. Called by
// the goroutine that reads.
func (c *Conn) control(h frame.Header, p []byte) error {
	switch h.Type {
	case frame.Priority:
		return c.priority(h, p)
	case frame.RST:
		return c.gotRST(h, frame.Code(binary.BigEndian.Uint32(p)))
	case frame.Settings:
		if h.Has(frame.Ack) {
			c.mu.Lock()
			c.acked = true
			c.mu.Unlock()
			return c.rd.nuisance("SETTINGS")
		}
		return c.gotSettings(p)
	case frame.Ping:
		return c.gotPing(h, [8]byte(p))
	case frame.Window:
		return c.windowUpdate(h, int64(binary.BigEndian.Uint32(p)&frame.MaxWindow))
	}
	return c.gotGoAway(binary.BigEndian.Uint32(p)&frame.MaxStreamID, frame.Code(binary.BigEndian.Uint32(p[4:])),
		string(p[8:min(len(p), 8+maxDebug)]))
}

// priority says nothing that is used, but one that depends on itself is an error (RFC 7540 §5.3.1).
func (c *Conn) priority(h frame.Header, p []byte) error {
	if err := c.rd.nuisance("PRIORITY"); err != nil {
		return err
	}
	if binary.BigEndian.Uint32(p)&frame.MaxStreamID != h.ID {
		return nil
	}
	return c.streamError(h.ID, frame.CodeProtocol, "stream depends on itself")
}

// streamError resets a stream, whether it is open or not.
func (c *Conn) streamError(id uint32, code frame.Code, reason string) error {
	c.mu.Lock()
	var after func()
	if s := c.streams[id]; s != nil {
		after = c.resetLocked(s, code, &StreamError{Code: code, Reason: reason})
	} else {
		c.q = frame.AppendRST(c.q, id, code)
	}
	err := c.answerLocked(13)
	over := c.drainedLocked()
	c.mu.Unlock()
	if after != nil {
		after()
	}
	c.changed()
	if err != nil {
		return err
	}
	if over {
		c.end(ErrClosed)
	}
	return c.rd.waste("streams with errors")
}

func (c *Conn) gotRST(h frame.Header, code frame.Code) error {
	c.mu.Lock()
	s := c.streams[h.ID]
	if s == nil {
		idle := c.idleLocked(h.ID)
		c.mu.Unlock()
		if idle {
			return frame.Errorf(frame.CodeProtocol, "RST_STREAM on idle stream %d", h.ID)
		}
		return c.rd.waste("resets")
	}
	var after func()
	if c.client && code == frame.CodeNo && s.remoteEnd {
		// the server has answered all, and does not want the rest of the request (RFC 9113 §8.1)
		s.localEnd = true
		s.wcond.Broadcast()
		c.removeLocked(s)
	} else {
		after = s.endLocked(&StreamError{Code: code, Remote: true})
	}
	over := c.drainedLocked()
	c.mu.Unlock()
	if after != nil {
		after()
	}
	c.changed()
	if over {
		c.end(ErrClosed)
	}
	if c.client {
		return nil
	}
	return c.rd.waste("resets")
}

// gotSettings applies the peer's settings and acknowledges them.
func (c *Conn) gotSettings(p []byte) error {
	if err := c.rd.nuisance("SETTINGS"); err != nil {
		return err
	}
	c.mu.Lock()
	for ; len(p) >= 6; p = p[6:] {
		if err := c.setLocked(binary.BigEndian.Uint16(p), binary.BigEndian.Uint32(p[2:])); err != nil {
			c.mu.Unlock()
			return err
		}
	}
	c.q = frame.Append(c.q, 0, frame.Settings, frame.Ack, 0)
	err := c.answerLocked(frame.HeaderLen)
	c.mu.Unlock()
	c.changed()
	return err
}

func (c *Conn) setLocked(id uint16, v uint32) error {
	switch id {
	case frame.EnablePush:
		if v > 1 || c.client && v != 0 {
			return frame.Errorf(frame.CodeProtocol, "ENABLE_PUSH of %d", v)
		}
	case frame.MaxStreams:
		c.peer.maxStreams = int(min(v, maxLimit))
	case frame.InitialWindow:
		return c.setInitialWindowLocked(v)
	case frame.MaxFrame:
		if v < frame.MinMaxFrame || v > frame.MaxMaxFrame {
			return frame.Errorf(frame.CodeProtocol, "MAX_FRAME_SIZE of %d", v)
		}
		c.peer.maxFrame = int(v)
	case frame.MaxHeaderList:
		c.peer.maxHeaderList = int64(v)
	case frame.ConnectProtocol:
		if v > 1 || v == 0 && c.peer.connectProtocol {
			return frame.Errorf(frame.CodeProtocol, "ENABLE_CONNECT_PROTOCOL of %d", v)
		}
		c.peer.connectProtocol = v == 1
	}
	return nil // HEADER_TABLE_SIZE: our encoder has no table
}

// setInitialWindowLocked applies a change of SETTINGS_INITIAL_WINDOW_SIZE to all streams; windows may become negative.
func (c *Conn) setInitialWindowLocked(v uint32) error {
	if v > frame.MaxWindow {
		return frame.Errorf(frame.CodeFlowControl, "initial window of %d", v)
	}
	delta := int64(v) - c.peer.initialWindow
	c.peer.initialWindow = int64(v)
	for _, s := range c.streams {
		if s.sendWin += delta; s.sendWin > frame.MaxWindow {
			return frame.Errorf(frame.CodeFlowControl, "initial window of %d overflows stream %d", v, s.id)
		}
		s.wcond.Broadcast()
	}
	return nil
}

func (c *Conn) gotPing(h frame.Header, data [8]byte) error {
	if err := c.rd.nuisance("PING"); err != nil {
		return err
	}
	if h.Has(frame.Ack) {
		if data == pingDrain {
			c.exclude()
		}
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.q = frame.AppendPing(c.q, frame.Ack, data)
	return c.answerLocked(frame.HeaderLen + len(data))
}

// gotGoAway fails the streams that the peer will not process; the others go on, whatever the code: unknown ones mean nothing
// special (RFC 9113 §7), and a peer that cannot go on closes the connection.
func (c *Conn) gotGoAway(last uint32, code frame.Code, debug string) error {
	if err := c.rd.nuisance("GOAWAY"); err != nil {
		return err
	}
	if code != frame.CodeNo {
		c.rd.farewell = &frame.ConnError{Code: code, Reason: debug, Remote: true}
	}
	if !c.client {
		return nil // it opens no more streams, and names ours, of which there are none
	}
	if over := c.failAbove(last); over {
		c.end(errors.Join(ErrGoAway, c.rd.farewellError()))
	}
	c.changed()
	return nil
}

// failAbove ends the streams above the last one that the peer may have processed. It reports whether none is left.
func (c *Conn) failAbove(last uint32) (over bool) {
	c.mu.Lock()
	c.goneAway = c.client
	var done []func()
	for id, s := range c.streams {
		if c.client && id > last {
			if f := s.endLocked(ErrGoAway); f != nil {
				done = append(done, f)
			}
		}
	}
	over = len(c.streams) == 0
	c.mu.Unlock()
	for _, f := range done {
		f()
	}
	return over
}
