package hbone

import (
	"encoding/binary"
	"math"
)

// lookup finds the stream of a frame; nil when it has ended. The error is a frame on a stream that was never opened.
func (c *conn) lookup(h frameHeader) (*Stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.streams[h.id]; s != nil {
		return s, nil
	}
	idle := h.id%2 == 0 || c.client && h.id >= c.nextID || !c.client && h.id > c.lastID
	if idle {
		return nil, connErr(CodeProtocol, "frame of type %d on idle stream %d", h.typ, h.id)
	}
	return nil, nil
}

// control handles a frame of fixed size. Called by the read loop.
func (c *conn) control(h frameHeader, p []byte) error {
	switch h.typ {
	case frameRST:
		s, err := c.lookup(h)
		if s != nil {
			s.gone.Store(true)
			s.terminate(&StreamError{Code: ErrCode(binary.BigEndian.Uint32(p)), Remote: true})
		}
		return err
	case frameSettings:
		if h.has(flagAck) {
			return nil
		}
		return c.gotSettings(p)
	case framePing:
		data := [8]byte(p)
		if !h.has(flagAck) {
			return c.w.post(appendPing(make([]byte, 0, 17), flagAck, data))
		}
		if c.onPingAck != nil {
			c.onPingAck(data)
		}
	case frameWindow:
		return c.windowUpdate(h, int64(binary.BigEndian.Uint32(p)&maxWindow))
	}
	return nil // PRIORITY says nothing that we use
}

// gotSettings applies the peer's settings and acknowledges them.
func (c *conn) gotSettings(p []byte) error {
	table := int64(-1)
	c.mu.Lock()
	for ; len(p) >= 6; p = p[6:] {
		id, v := binary.BigEndian.Uint16(p), binary.BigEndian.Uint32(p[2:])
		if id == settingHeaderTable {
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
	return c.w.post(appendFrameHeader(nil, 0, frameSettings, flagAck, 0))
}

func (c *conn) setLocked(id uint16, v uint32) error {
	switch id {
	case settingEnablePush:
		if v > 1 {
			return connErr(CodeProtocol, "ENABLE_PUSH of %d", v)
		}
	case settingMaxStreams:
		c.peer.maxStreams = int(min(v, math.MaxInt32))
	case settingInitialWindow:
		return c.setInitialWindowLocked(v)
	case settingMaxFrame:
		if v < minMaxFrame || v > maxMaxFrame {
			return connErr(CodeProtocol, "MAX_FRAME_SIZE of %d", v)
		}
		c.peer.maxFrame = int(v)
	case settingMaxHeaderList:
		c.peer.maxHeaderList = int64(v)
	}
	return nil
}

// gotGoAway fails the streams that the peer will not process; the others go on.
func (c *conn) gotGoAway(last uint32, code ErrCode, debug string) error {
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
	if code != CodeNo {
		return &ConnError{Code: code, Reason: debug, Remote: true}
	}
	if c.client && idle {
		c.end(ErrGoAway)
	}
	c.notify()
	return nil
}

// headerFrames appends a header block as HEADERS and, when the peer's frames are small, CONTINUATION frames.
func headerFrames(b, block []byte, frame int, flags byte, id uint32) []byte {
	typ := byte(frameHeaders)
	for {
		k := min(len(block), frame)
		fl := byte(0)
		if typ == frameHeaders {
			fl = flags
		}
		if k == len(block) {
			fl |= flagEndHeaders
		}
		b = append(appendFrameHeader(b, k, typ, fl, id), block[:k]...)
		if block = block[k:]; len(block) == 0 {
			return b
		}
		typ = frameContinuation
	}
}
