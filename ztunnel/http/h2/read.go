package h2

import (
	"encoding/binary"
	"io"
	"sync"
	"syscall"

	"github.com/undermesh/undermesh/ztunnel/http/frame"
)

const (
	readSize   = 64 << 10 // a read of a busy connection
	batchBytes = 64 << 10 // read without a flush
)

// readPool holds the buffers of readers, while nothing is to be read.
var readPool = sync.Pool{New: func() any { b := make([]byte, readSize); return &b }}

// reader is the state of the goroutine that reads; only that touches it.
type reader struct {
	c     *Conn
	buf   *[]byte // nil: nothing is buffered
	r, w  int
	rest  []byte  // a frame that is cut off, while there is nothing else; its capacity is its length
	batch int     // bytes since the last flush
	dirty []*Conn // others that were written to since then
	once  func(fd uintptr) bool
	n     int
	err   error

	frames uint64 // so far
	began  uint64 // the frame that the open header block began with
	first  bool   // nothing but SETTINGS may come
	block  []byte
	frags  int
	head   frame.Header // the HEADERS frame of the block that is open
	open   bool         // only CONTINUATION may come

	farewell *frame.ConnError // what the peer's GOAWAY said, when that was an error

	dec  decoder
	list list

	nuisances, wasted bucket
	windows           int  // WINDOW_UPDATE frames beyond ten for each DATA frame sent
	self              bool // the HEADERS frame depends on its own stream
}

func (r *reader) init(c *Conn) {
	r.c, r.first = c, true
	r.nuisances = bucket{tokens: c.cfg.Burst, refills: c.cfg.Clock.Now().UnixNano()}
	r.wasted = r.nuisances
	r.dec = decoder{table: table{max: frame.DefaultTable, limit: frame.DefaultTable}, maxList: c.cfg.MaxHeaderList, maxFields: c.cfg.MaxFields}
	r.once = func(fd uintptr) bool {
		b := r.room()
		for {
			r.n, r.err = syscall.Read(int(fd), b)
			switch r.err {
			case nil:
				if r.n == 0 {
					r.err = io.EOF
				}
				return true
			case syscall.EINTR:
			case syscall.EAGAIN:
				r.drained()
				return false
			default:
				r.n = 0
				return true
			}
		}
	}
}

// room returns where the next bytes go: at least one frame of the largest size fits behind r.r.
func (r *reader) room() []byte {
	if r.buf == nil {
		r.buf = readPool.Get().(*[]byte)
		r.r, r.w = 0, copy(*r.buf, r.rest)
		r.rest = nil
	}
	b := *r.buf
	if r.r == r.w {
		r.r, r.w = 0, 0
	} else if len(b)-r.r < frame.HeaderLen+r.c.cfg.MaxFrame {
		r.w = copy(b, b[r.r:r.w])
		r.r = 0
	}
	return b[r.w:]
}

// drained flushes what this batch has produced, and holds no more of a buffer than what is in it.
func (r *reader) drained() {
	r.flush()
	r.free()
}

func (r *reader) free() {
	if r.buf == nil {
		return
	}
	if r.w > r.r {
		r.rest = append([]byte(nil), (*r.buf)[r.r:r.w]...)
	}
	if len(*r.buf) == readSize {
		readPool.Put(r.buf)
	}
	r.buf, r.r, r.w = nil, 0, 0
}

func (r *reader) flush() {
	r.batch = 0
	c := r.c
	c.mu.Lock()
	switch {
	case r.open:
		c.watch.begun = r.began
	case r.w > r.r || r.first && !c.client:
		c.watch.begun = r.frames + 1
	default:
		c.watch.begun = 0
	}
	if c.watch.begun != 0 {
		c.rearmLocked()
	}
	c.flushLocked()
	c.mu.Unlock()
	for i, d := range r.dirty {
		d.mu.Lock()
		d.flushLocked()
		d.mu.Unlock()
		r.dirty[i] = nil
	}
	r.dirty = r.dirty[:0]
}

// fill reads at least one byte.
func (r *reader) fill() error {
	c := r.c
	if r.batch > batchBytes {
		r.flush()
	}
	if c.raw != nil {
		if err := c.raw.Read(r.once); err != nil {
			return err
		}
	} else {
		r.flush() // a read may wait
		r.n, r.err = c.nc.Read(r.room())
		if r.n > 0 {
			r.err = nil
		} else if r.err == nil {
			r.err = io.ErrNoProgress
		}
	}
	if r.err != nil {
		return r.err
	}
	r.w += r.n
	r.batch += r.n
	c.reads.Add(1)
	return nil
}

// need makes n bytes be there.
func (r *reader) need(n int) error {
	for r.w-r.r < n {
		if err := r.fill(); err != nil {
			if err == io.EOF && (r.w > r.r || len(r.rest) > 0) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		if r.c.over.Load() {
			return ErrClosed
		}
	}
	return nil
}

// take returns n bytes that are there; they are valid until the next need.
func (r *reader) take(n int) []byte {
	b := (*r.buf)[r.r : r.r+n]
	r.r += n
	return b
}

// loop reads frames until the connection ends.
func (r *reader) loop(early []byte) error {
	if len(early) > 0 {
		if len(early) > readSize-frame.HeaderLen-r.c.cfg.MaxFrame {
			b := make([]byte, len(early)+readSize)
			r.buf = &b
		}
		r.w = copy(r.room(), early)
	}
	if err := r.preface(); err != nil {
		return err
	}
	for {
		if err := r.need(frame.HeaderLen); err != nil {
			return err
		}
		h := frame.Parse((*r.buf)[r.r:])
		if h.Length > r.c.cfg.MaxFrame {
			return frame.Errorf(frame.CodeFrameSize, "frame of %d bytes exceeds %d", h.Length, r.c.cfg.MaxFrame)
		}
		if err := r.need(frame.HeaderLen + h.Length); err != nil {
			return err
		}
		r.r += frame.HeaderLen
		if err := r.frame(h, r.take(h.Length)); err != nil {
			return err
		}
	}
}

// preface refuses what is not HTTP/2 at its first byte that tells.
func (r *reader) preface() error {
	if r.c.client {
		return nil
	}
	for n := 1; n <= len(frame.Preface); n = r.w - r.r + 1 {
		if err := r.need(n); err != nil {
			return err
		}
		k := min(r.w-r.r, len(frame.Preface))
		if string((*r.buf)[r.r:r.r+k]) != frame.Preface[:k] {
			return frame.Errorf(frame.CodeProtocol, "client preface is missing")
		}
		if k == len(frame.Preface) {
			break
		}
	}
	r.r += len(frame.Preface)
	return nil
}

// maxDropped bounds what is read from a peer that does not hear that the connection is over, in bytes.
const maxDropped = 1 << 20

// drop reads on until the peer closes, the socket is closed, or too much has come.
func (r *reader) drop() {
	for n := 0; n < maxDropped; n += r.n {
		r.r, r.w, r.rest = 0, 0, nil
		if err := r.fill(); err != nil {
			return
		}
	}
}

// frame handles a whole frame.
func (r *reader) frame(h frame.Header, p []byte) error {
	if r.first && (h.Type != frame.Settings || h.Has(frame.Ack)) {
		return frame.Errorf(frame.CodeProtocol, "first frame is of type %d, not SETTINGS", h.Type)
	}
	r.first = false
	r.frames++
	if r.open && (h.Type != frame.Continuation || h.ID != r.head.ID) {
		return frame.Errorf(frame.CodeProtocol, "frame of type %d inside the header block of stream %d", h.Type, r.head.ID)
	}
	switch h.Type {
	case frame.Data:
		return r.data(h, p)
	case frame.Headers, frame.Continuation:
		return r.fragment(h, p)
	case frame.PushPromise:
		return frame.Errorf(frame.CodeProtocol, "PUSH_PROMISE is not allowed")
	case frame.Priority, frame.RST, frame.Settings, frame.Ping, frame.Window, frame.GoAway:
		if err := checkSize(h); err != nil {
			return err
		}
		return r.c.control(h, p)
	}
	return r.nuisance("frames of unknown types")
}

// checkSize checks the frames whose size and stream are known.
func checkSize(h frame.Header) error {
	want, onStream, exact := 4, true, true
	switch h.Type {
	case frame.Priority:
		want = 5
	case frame.Ping:
		want, onStream = 8, false
	case frame.Window:
		onStream = h.ID != 0
	case frame.GoAway:
		want, onStream, exact = 8, false, false
	case frame.Settings:
		onStream, want = false, h.Length/6*6
		if h.Has(frame.Ack) {
			want = 0
		}
	}
	if (h.ID != 0) != onStream {
		return frame.Errorf(frame.CodeProtocol, "frame of type %d on stream %d", h.Type, h.ID)
	}
	if h.Length < want || exact && h.Length != want {
		return frame.Errorf(frame.CodeFrameSize, "frame of type %d has %d bytes", h.Type, h.Length)
	}
	return nil
}

// fragment gathers HEADERS and CONTINUATION frames up to END_HEADERS.
func (r *reader) fragment(h frame.Header, p []byte) error {
	if h.ID == 0 || (h.Type == frame.Continuation) != r.open {
		return frame.Errorf(frame.CodeProtocol, "frame of type %d on stream %d out of place", h.Type, h.ID)
	}
	var err error
	if h.Type == frame.Headers {
		if p, err = frame.Unpad(h, p); err != nil {
			return err
		}
		if h.Has(frame.HasPriority) {
			if len(p) < 5 {
				return frame.Errorf(frame.CodeFrameSize, "HEADERS with priority of %d bytes", len(p))
			}
			r.self = binary.BigEndian.Uint32(p)&frame.MaxStreamID == h.ID // depends on itself
			p = p[5:]
		}
		r.head, r.began = h, r.frames
		if h.Has(frame.EndHeaders) {
			return r.c.headers(h, p)
		}
	}
	limit := maxBlock(r.c.cfg.MaxHeaderList)
	if r.frags++; r.frags > r.c.cfg.MaxFragments || len(r.block)+len(p) > limit {
		return frame.Errorf(frame.CodeCalm, "header block of more than %d bytes or %d frames", limit, r.c.cfg.MaxFragments)
	}
	r.block = append(r.block, p...)
	if r.open = !h.Has(frame.EndHeaders); r.open {
		return nil
	}
	err = r.c.headers(r.head, r.block)
	r.block, r.frags = nil, 0
	return err
}

// maxBlock is the number of bytes of a header block that are taken, for a limit of the list: a block of that size is decoded
// and the request refused; beyond it the connection ends.
func maxBlock(limit int) int { return 2*limit + 4096 }

// bucket bounds what brings nothing: Config.Burst at once, then Config.Rate a second.
type bucket struct {
	tokens  int
	refills int64 // when tokens were given last, in nanoseconds
}

// spend takes one token; the error ends the connection.
func (r *reader) spend(b *bucket, what string) error {
	if b.tokens > 0 {
		b.tokens--
		return nil
	}
	cfg := &r.c.cfg
	now := cfg.Clock.Now().UnixNano()
	n := (now - b.refills) / (1e9 / int64(cfg.Rate))
	if n <= 0 {
		return frame.Errorf(frame.CodeCalm, "too many %s", what)
	}
	b.refills = now
	b.tokens = int(min(n, int64(cfg.Burst))) - 1
	return nil
}

// earn gives tokens back for something useful.
func (r *reader) earn(b *bucket, n int) { b.tokens = min(b.tokens+n, r.c.cfg.Burst) }

// nuisance counts a frame that brings nothing. DATA in either direction and answered requests make up for it.
func (r *reader) nuisance(what string) error {
	c := r.c
	c.mu.Lock()
	n := c.useful
	c.useful = 0
	c.mu.Unlock()
	r.earn(&r.nuisances, n)
	return r.spend(&r.nuisances, what)
}

// waste counts a request that was for nothing. Only requests that were answered make up for it.
func (r *reader) waste(what string) error {
	c := r.c
	c.mu.Lock()
	n := c.completed
	c.completed = 0
	c.mu.Unlock()
	r.earn(&r.wasted, n)
	return r.spend(&r.wasted, what)
}

// farewellError is what the peer's GOAWAY said, nil when there was none or it was no error.
func (r *reader) farewellError() error {
	if r.farewell == nil {
		return nil
	}
	return r.farewell
}
