package hbone

import (
	"encoding/binary"
	"math"

	"github.com/undermesh/undermesh/ztunnel/http/frame"
)

// lookup finds the stream of a frame; nil when it has ended. The error is a frame on a stream that was never opened.
func (c *conn) lookup(h frame.Header) (*Stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.streams[h.ID]; s != nil {
		return s, nil
	}
	idle := h.ID%2 == 0 || c.client && h.ID >= c.nextID || !c.client && h.ID > c.lastID
	if idle {
		return nil, frame.Errorf(frame.CodeProtocol, "frame of type %d on idle stream %d", h.Type, h.ID)
	}
	return nil, nil
}

// control handles a frame of fixed size. Called by the read loop.
func (c *conn) control(h frame.Header, p []byte) error {
	switch h.Type {
	case frame.RST:
		s, err := c.lookup(h)
		if s != nil {
			s.gone.Store(true)
			s.terminate(&StreamError{Code: frame.Code(binary.BigEndian.Uint32(p)), Remote: true})
		}
		return err
	case frame.Settings:
		if h.Has(frame.Ack) {
			return nil
		}
		return c.gotSettings(p)
	case frame.Ping:
		data := [8]byte(p)
		if !h.Has(frame.Ack) {
			return c.w.post(frame.AppendPing(make([]byte, 0, 17), frame.Ack, data))
		}
		if c.onPingAck != nil {
			c.onPingAck(data)
		}
	case frame.Window:
		return c.windowUpdate(h, int64(binary.BigEndian.Uint32(p)&frame.MaxWindow))
	}
	return nil // PRIORITY says nothing that we use
}

// gotSettings applies the peer's settings and acknowledges them.
func (c *conn) gotSettings(p []byte) error {
	table := int64(-1)
	c.mu.Lock()
	for ; len(p) >= 6; p = p[6:] {
		id, v := binary.BigEndian.Uint16(p), binary.BigEndian.Uint32(p[2:])
		if id == frame.HeaderTable {
			table = int64(v)
		} else if err := c.setLocked(id, v); err != nil {
			c.mu.Unlock()
			return err
		}
	}
	c.mu.Unlock()
	if table >= 0 {
		c.w.mu.Lock()
		c.hdr.enc.SetMaxDynamicTableSize(uint32(min(table, 4096)))
		c.w.mu.Unlock()
	}
	c.notify() // there may be more streams now
	return c.w.post(frame.Append(nil, 0, frame.Settings, frame.Ack, 0))
}

func (c *conn) setLocked(id uint16, v uint32) error {
	switch id {
	case frame.EnablePush:
		if v > 1 {
			return frame.Errorf(frame.CodeProtocol, "ENABLE_PUSH of %d", v)
		}
	case frame.MaxStreams:
		c.peer.maxStreams = int(min(v, math.MaxInt32))
	case frame.InitialWindow:
		return c.setInitialWindowLocked(v)
	case frame.MaxFrame:
		if v < frame.MinMaxFrame || v > frame.MaxMaxFrame {
			return frame.Errorf(frame.CodeProtocol, "MAX_FRAME_SIZE of %d", v)
		}
		c.peer.maxFrame = int(v)
	case frame.MaxHeaderList:
		c.peer.maxHeaderList = int64(v)
	}
	return nil
}

// gotGoAway fails the streams that the peer will not process; the others go on.
func (c *conn) gotGoAway(last uint32, code frame.Code, debug string) error {
	c.mu.Lock()
	c.goneAway = true
	var lost []*Stream
	if c.client {
		c.draining = true
		for id, s := range c.streams {
			if id > last {
				lost = append(lost, s)
			}
		}
	}
	idle := len(c.streams) == len(lost)
	c.mu.Unlock()
	for _, s := range lost {
		s.terminate(ErrGoAway)
	}
	if code != frame.CodeNo {
		return &frame.ConnError{Code: code, Reason: debug, Remote: true}
	}
	if f := c.cfg.onDepart; f != nil && debug == departed {
		f()
	}
	if c.client && idle {
		c.end(ErrGoAway)
	}
	c.notify()
	return nil
}
