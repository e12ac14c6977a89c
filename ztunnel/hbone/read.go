package hbone

import (
	"encoding/binary"
	"io"

	"github.com/undermesh/undermesh/ztunnel/http/frame"
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
	blockH frame.Header // the HEADERS frame of the block that is open; length unused
	open   bool         // only CONTINUATION may come
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
		p, err := r.need(len(frame.Preface))
		if err != nil {
			return err
		}
		if string(p) != frame.Preface {
			return frame.Errorf(frame.CodeProtocol, "client preface is missing")
		}
	}
	for {
		b, err := r.need(frame.HeaderLen)
		if err != nil {
			return err
		}
		if err := r.frame(frame.Parse(b)); err != nil {
			return err
		}
	}
}

func (r *reader) frame(h frame.Header) error {
	if h.Length > r.c.cfg.MaxFrame {
		return frame.Errorf(frame.CodeFrameSize, "frame of %d bytes exceeds %d", h.Length, r.c.cfg.MaxFrame)
	}
	if r.first && (h.Type != frame.Settings || h.Has(frame.Ack)) {
		return frame.Errorf(frame.CodeProtocol, "first frame is of type %d, not SETTINGS", h.Type)
	}
	r.first = false
	if r.open && (h.Type != frame.Continuation || h.ID != r.blockH.ID) {
		return frame.Errorf(frame.CodeProtocol, "frame of type %d inside the header block of stream %d", h.Type, r.blockH.ID)
	}
	if h.Type != frame.Data {
		r.empty = 0
	}
	switch h.Type {
	case frame.Data:
		return r.data(h)
	case frame.Headers, frame.Continuation:
		return r.headers(h)
	case frame.GoAway:
		return r.goAway(h)
	case frame.Priority, frame.RST, frame.Settings, frame.Ping, frame.Window:
		return r.fixed(h)
	case frame.PushPromise:
		return frame.Errorf(frame.CodeProtocol, "PUSH_PROMISE is not allowed")
	}
	return r.skip(h.Length)
}

// headers gathers HEADERS and CONTINUATION frames up to END_HEADERS.
func (r *reader) headers(h frame.Header) error {
	if h.ID == 0 || (h.Type == frame.Continuation) != r.open {
		return frame.Errorf(frame.CodeProtocol, "frame of type %d on stream %d out of place", h.Type, h.ID)
	}
	limit := maxBlock(r.c.cfg.MaxHeaderList)
	if r.frags++; r.frags > maxFragments || len(r.block)+h.Length > limit {
		return frame.Errorf(frame.CodeCalm, "header block of more than %d bytes or %d frames", limit, maxFragments)
	}
	start := len(r.block)
	for n := h.Length; n > 0; {
		p, err := r.need(min(n, readBuf))
		if err != nil {
			return err
		}
		r.block = append(r.block, p...)
		n -= len(p)
	}
	if h.Type == frame.Headers {
		p, err := frame.Unpad(h, r.block[start:])
		if err != nil {
			return err
		}
		if h.Has(frame.HasPriority) {
			if len(p) < 5 {
				return frame.Errorf(frame.CodeFrameSize, "HEADERS with priority of %d bytes", len(p))
			}
			p = p[5:]
		}
		r.block, r.blockH, r.open = p, h, true
	}
	if !h.Has(frame.EndHeaders) {
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
func (r *reader) data(h frame.Header) error {
	if h.ID == 0 {
		return frame.Errorf(frame.CodeProtocol, "DATA on stream 0")
	}
	c := r.c
	n, pad := h.Length, 0
	if h.Has(frame.Padded) {
		if n == 0 {
			return frame.Errorf(frame.CodeFrameSize, "padded frame without pad length")
		}
		b, err := r.need(1)
		if err != nil {
			return err
		}
		n, pad = n-1, int(b[0])
		if pad > n {
			return frame.Errorf(frame.CodeProtocol, "padding of %d exceeds frame of %d", pad, h.Length)
		}
		n -= pad
	}
	if n == 0 && !h.Has(frame.EndStream) {
		if r.empty++; r.empty > maxEmptyData {
			return frame.Errorf(frame.CodeCalm, "more than %d DATA frames without data", maxEmptyData)
		}
	} else {
		r.empty = 0
	}
	if !c.recv.take(h.Length) {
		c.recv.release(h.Length)
		return frame.Errorf(frame.CodeFlowControl, "DATA of %d bytes exceeds the connection window", h.Length)
	}
	s, err := c.lookup(h)
	if err != nil {
		c.recv.release(h.Length)
		return err
	}
	done := h.Length - n // padding
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
	if err == nil && s != nil && h.Has(frame.EndStream) {
		s.deliverEOF()
	}
	c.credit(done)
	return err
}

// accountData checks a DATA frame against its stream. It returns nil when the payload is to be thrown away.
func (c *conn) accountData(s *Stream, h frame.Header, n int) *Stream {
	if s == nil {
		return nil
	}
	c.mu.Lock()
	half := s.remoteDone
	early := c.client && s.resp == nil
	c.mu.Unlock()
	switch {
	case half:
		s.Reset(frame.CodeStreamClosed)
		return nil
	case early:
		s.Reset(frame.CodeProtocol)
		return nil
	case !s.take(h.Length):
		s.Reset(frame.CodeFlowControl)
		return nil
	}
	if over := h.Length - n; over > 0 {
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
func (r *reader) goAway(h frame.Header) error {
	if h.ID != 0 {
		return frame.Errorf(frame.CodeProtocol, "GOAWAY on stream %d", h.ID)
	}
	if h.Length < 8 {
		return frame.Errorf(frame.CodeFrameSize, "GOAWAY of %d bytes", h.Length)
	}
	k := min(h.Length, 8+maxGoAwayDebug)
	p, err := r.need(k)
	if err != nil {
		return err
	}
	last := binary.BigEndian.Uint32(p) & frame.MaxStreamID
	code := frame.Code(binary.BigEndian.Uint32(p[4:]))
	debug := string(p[8:])
	if err := r.skip(h.Length - k); err != nil {
		return err
	}
	return r.c.gotGoAway(last, code, debug)
}

// fixed reads the frames whose size is known and handles them.
func (r *reader) fixed(h frame.Header) error {
	want, onStream := 0, false
	switch h.Type {
	case frame.Priority:
		want, onStream = 5, true
	case frame.RST:
		want, onStream = 4, true
	case frame.Ping:
		want = 8
	case frame.Window:
		want, onStream = 4, h.ID != 0
	case frame.Settings:
		if want = h.Length; h.Length%6 != 0 || h.Has(frame.Ack) && h.Length != 0 {
			return frame.Errorf(frame.CodeFrameSize, "SETTINGS of %d bytes", h.Length)
		}
		if h.Length > 6*settingsPerFrame {
			return frame.Errorf(frame.CodeCalm, "SETTINGS of %d bytes", h.Length)
		}
	}
	if (h.ID != 0) != onStream {
		return frame.Errorf(frame.CodeProtocol, "frame of type %d on stream %d", h.Type, h.ID)
	}
	if h.Length != want {
		return frame.Errorf(frame.CodeFrameSize, "frame of type %d has %d bytes", h.Type, h.Length)
	}
	p, err := r.need(want)
	if err != nil {
		return err
	}
	return r.c.control(h, p)
}
