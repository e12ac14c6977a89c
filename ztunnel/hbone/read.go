package hbone

import (
	"encoding/binary"
	"io"
)

const (
	readBuf          = 8 << 10
	maxFragments     = 32   // HEADERS and CONTINUATION frames of one block
	maxEmptyData     = 1000 // DATA frames without a byte or END_STREAM, between useful frames
	maxGoAwayDebug   = 256
	settingsPerFrame = readBuf / 6
)

// reader is the read loop's state; only the read loop touches it.
type reader struct {
	c      *conn
	buf    []byte
	r, w   int
	empty  int
	first  bool // nothing but SETTINGS may come
	block  []byte
	frags  int
	blockH frameHeader // the HEADERS frame of the block that is open; length unused
	open   bool        // only CONTINUATION may come
}

func (r *reader) init(c *conn) {
	r.c, r.buf, r.first = c, make([]byte, readBuf), true
}

// read reads at least once from the connection into p.
func (r *reader) read(p []byte) (int, error) {
	n, err := r.c.nc.Read(p)
	if n > 0 {
		r.c.reads.Add(1)
		return n, nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return 0, err
}

// need returns the next n bytes, n <= readBuf; they are valid until the next call.
func (r *reader) need(n int) ([]byte, error) {
	if r.w-r.r < n && len(r.buf)-r.r < n {
		r.w = copy(r.buf, r.buf[r.r:r.w])
		r.r = 0
	}
	for r.w-r.r < n {
		if r.r == r.w {
			r.r, r.w = 0, 0
		}
		k, err := r.read(r.buf[r.w:])
		if err != nil {
			if err == io.EOF && r.w > r.r {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		r.w += k
	}
	b := r.buf[r.r : r.r+n]
	r.r += n
	return b, nil
}

func (r *reader) skip(n int) error {
	for n > 0 {
		k := min(n, readBuf)
		if _, err := r.need(k); err != nil {
			return err
		}
		n -= k
	}
	return nil
}

// loop reads frames until the connection ends.
func (r *reader) loop() error {
	if !r.c.client {
		p, err := r.need(len(clientPreface))
		if err != nil {
			return err
		}
		if string(p) != clientPreface {
			return connErr(CodeProtocol, "client preface is missing")
		}
	}
	for {
		b, err := r.need(frameHeaderLen)
		if err != nil {
			return err
		}
		if err := r.frame(parseFrameHeader(b)); err != nil {
			return err
		}
	}
}

func (r *reader) frame(h frameHeader) error {
	if h.length > r.c.cfg.MaxFrame {
		return connErr(CodeFrameSize, "frame of %d bytes exceeds %d", h.length, r.c.cfg.MaxFrame)
	}
	if r.first && (h.typ != frameSettings || h.has(flagAck)) {
		return connErr(CodeProtocol, "first frame is of type %d, not SETTINGS", h.typ)
	}
	r.first = false
	if r.open && (h.typ != frameContinuation || h.id != r.blockH.id) {
		return connErr(CodeProtocol, "frame of type %d inside the header block of stream %d", h.typ, r.blockH.id)
	}
	if h.typ != frameData {
		r.empty = 0
	}
	switch h.typ {
	case frameData:
		return r.data(h)
	case frameHeaders, frameContinuation:
		return r.headers(h)
	case frameGoAway:
		return r.goAway(h)
	case framePriority, frameRST, frameSettings, framePing, frameWindow:
		return r.fixed(h)
	case framePushPromise:
		return connErr(CodeProtocol, "PUSH_PROMISE is not allowed")
	}
	return r.skip(h.length)
}

// headers gathers HEADERS and CONTINUATION frames up to END_HEADERS.
func (r *reader) headers(h frameHeader) error {
	if h.id == 0 || (h.typ == frameContinuation) != r.open {
		return connErr(CodeProtocol, "frame of type %d on stream %d out of place", h.typ, h.id)
	}
	limit := maxBlock(r.c.cfg.MaxHeaderList)
	if r.frags++; r.frags > maxFragments || len(r.block)+h.length > limit {
		return connErr(CodeCalm, "header block of more than %d bytes or %d frames", limit, maxFragments)
	}
	start := len(r.block)
	for n := h.length; n > 0; {
		p, err := r.need(min(n, readBuf))
		if err != nil {
			return err
		}
		r.block = append(r.block, p...)
		n -= len(p)
	}
	if h.typ == frameHeaders {
		p, err := unpad(h, r.block[start:])
		if err != nil {
			return err
		}
		if h.has(flagPriority) {
			if len(p) < 5 {
				return connErr(CodeFrameSize, "HEADERS with priority of %d bytes", len(p))
			}
			p = p[5:]
		}
		r.block, r.blockH, r.open = p, h, true
	}
	if !h.has(flagEndHeaders) {
		return nil
	}
	m, err := r.c.hdr.decode(r.block, r.c.cfg.MaxHeaderList)
	r.block, r.frags, r.open = nil, 0, false
	if err != nil {
		return err
	}
	return r.c.onHeaders(r.blockH, m)
}

// data reads a DATA frame and delivers its payload as it comes.
func (r *reader) data(h frameHeader) error {
	if h.id == 0 {
		return connErr(CodeProtocol, "DATA on stream 0")
	}
	c := r.c
	n, pad := h.length, 0
	if h.has(flagPadded) {
		if n == 0 {
			return connErr(CodeFrameSize, "padded frame without pad length")
		}
		b, err := r.need(1)
		if err != nil {
			return err
		}
		n, pad = n-1, int(b[0])
		if pad > n {
			return connErr(CodeProtocol, "padding of %d exceeds frame of %d", pad, h.length)
		}
		n -= pad
	}
	if n == 0 && !h.has(flagEndStream) {
		if r.empty++; r.empty > maxEmptyData {
			return connErr(CodeCalm, "more than %d DATA frames without data", maxEmptyData)
		}
	} else {
		r.empty = 0
	}
	if !c.recv.take(h.length) {
		c.recv.release(h.length)
		return connErr(CodeFlowControl, "DATA of %d bytes exceeds the connection window", h.length)
	}
	s, err := c.lookup(h)
	if err != nil {
		c.recv.release(h.length)
		return err
	}
	done := h.length - n // padding
	s = c.accountData(s, h, n)
	if s == nil {
		err = r.skip(n)
		done += n
	} else {
		var k int
		k, err = r.payload(s, n)
		done += k
	}
	if err == nil {
		err = r.skip(pad)
	}
	if err == nil && s != nil && h.has(flagEndStream) {
		s.deliverEOF()
	}
	c.credit(done)
	return err
}

// accountData checks a DATA frame against its stream. It returns nil when the payload is to be thrown away.
func (c *conn) accountData(s *Stream, h frameHeader, n int) *Stream {
	if s == nil {
		return nil
	}
	c.mu.Lock()
	half := s.remoteDone
	early := c.client && s.resp == nil
	c.mu.Unlock()
	switch {
	case half:
		s.Reset(CodeStreamClosed)
		return nil
	case early:
		s.Reset(CodeProtocol)
		return nil
	case !s.take(h.length):
		s.Reset(CodeFlowControl)
		return nil
	}
	if over := h.length - n; over > 0 {
		s.rmu.Lock()
		s.consumedLocked(over)
		s.rmu.Unlock()
	}
	return s
}

// payload delivers n bytes to s: from the buffer when they are there, else in chunks as large as what has arrived. It
// returns how many bytes are not held any more.
func (r *reader) payload(s *Stream, n int) (done int, err error) {
	for n > 0 {
		if have := r.w - r.r; have >= n || n <= smallChunk {
			p, err := r.need(n)
			if err != nil {
				return done + n, err
			}
			k, _ := s.deliver(p, nil)
			return done + k, nil
		}
		ch := largePool.Get().(*chunk)
		goal := min(n, len(ch.b))
		ch.w = copy(ch.b[:goal], r.buf[r.r:r.w])
		r.r += ch.w
		for ch.w < goal && (ch.w == 0 || r.more()) {
			k, err := r.read(ch.b[ch.w:goal])
			if err != nil {
				ch.free()
				return done + n, err
			}
			ch.w += k
		}
		n -= ch.w
		k, kept := s.deliver(ch.bytes(), ch)
		if !kept {
			ch.free()
		}
		done += k
	}
	return done, nil
}

// more reports whether a read would find bytes that have already left the socket.
func (r *reader) more() bool { return r.c.tr != nil && r.c.tr.buffered() }

// goAway reads a GOAWAY; of its debug data only the beginning is kept.
func (r *reader) goAway(h frameHeader) error {
	if h.id != 0 {
		return connErr(CodeProtocol, "GOAWAY on stream %d", h.id)
	}
	if h.length < 8 {
		return connErr(CodeFrameSize, "GOAWAY of %d bytes", h.length)
	}
	k := min(h.length, 8+maxGoAwayDebug)
	p, err := r.need(k)
	if err != nil {
		return err
	}
	last := binary.BigEndian.Uint32(p) & maxStreamID
	code := ErrCode(binary.BigEndian.Uint32(p[4:]))
	debug := string(p[8:])
	if err := r.skip(h.length - k); err != nil {
		return err
	}
	return r.c.gotGoAway(last, code, debug)
}

// fixed reads the frames whose size is known and handles them.
func (r *reader) fixed(h frameHeader) error {
	want, onStream := 0, false
	switch h.typ {
	case framePriority:
		want, onStream = 5, true
	case frameRST:
		want, onStream = 4, true
	case framePing:
		want = 8
	case frameWindow:
		want, onStream = 4, h.id != 0
	case frameSettings:
		if want = h.length; h.length%6 != 0 || h.has(flagAck) && h.length != 0 {
			return connErr(CodeFrameSize, "SETTINGS of %d bytes", h.length)
		}
		if h.length > 6*settingsPerFrame {
			return connErr(CodeCalm, "SETTINGS of %d bytes", h.length)
		}
	}
	if (h.id != 0) != onStream {
		return connErr(CodeProtocol, "frame of type %d on stream %d", h.typ, h.id)
	}
	if h.length != want {
		return connErr(CodeFrameSize, "frame of type %d has %d bytes", h.typ, h.length)
	}
	p, err := r.need(want)
	if err != nil {
		return err
	}
	return r.c.control(h, p)
}
