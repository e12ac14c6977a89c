package http

import (
	"bytes"
	"errors"
	"io"

	"github.com/undermesh/undermesh/ztunnel/http/h1"
)

// reader is the reading half of an HTTP/1.1 connection, of either role: heads, then bodies.
//
// The head's text stays where it was read (buf) until the message is over; the body's first bytes are behind it, and what is
// read later goes into a buffer of its own.
type reader struct {
	sock    *socket
	free    *buffers
	tenant  *Tenant
	buf     *buffer // nil while nothing is waited for or held
	body    *buffer // of a body that is longer than what came with its head
	held    int64   // bytes accounted to the tenant for a head beyond the first buffer
	framing h1.Framing
	left    int64 // of a body with a length
	chunks  h1.Chunks
	done    bool // the body was read to its end
	fast    bool // the last piece was a full one: more will be there at once
}

var (
	errMemory = errors.New("the workload holds as many bytes as it may")
	errEarly  = errors.New("the connection ended within a message")
)

// head reads until parse takes the beginning of what is there. parse returns h1.ErrMore for more. io.EOF: the connection ended
// before the first byte. started is called once, when the first bytes are there.
func (r *reader) head(limit int, parse func(b []byte) (int, error), started func()) error {
	searched := 0
	for try := 0; ; try++ {
		if r.buf == nil || r.buf.empty() {
			if err := r.await(); err != nil {
				return err
			}
		}
		if try == 0 && started != nil {
			started()
		}
		b := r.buf.bytes()
		if try == 0 || len(b) >= limit || bytes.Contains(b[max(searched-3, 0):], []byte("\r\n\r\n")) {
			n, err := parse(b)
			if err == nil {
				r.buf.r += n
				return nil
			}
			if !errors.Is(err, h1.ErrMore) {
				return err
			}
		}
		searched = len(b)
		if err := r.more(limit); err != nil {
			return err
		}
	}
}

// await waits for bytes, without a buffer where the socket can.
func (r *reader) await() error {
	b, err := r.sock.readIdle(r.free, r.buf)
	r.buf = b
	return err
}

// more reads behind what is there.
func (r *reader) more(limit int) error {
	if len(r.buf.room()) == 0 {
		if err := r.grow(limit); err != nil {
			return err
		}
	}
	n, err := r.sock.Read(r.buf.room())
	r.buf.w += n
	if n > 0 {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return errEarly
	}
	return err
}

// grow makes room behind a head that is not complete yet: nothing refers to it.
func (r *reader) grow(limit int) error {
	old := r.buf
	if old.r > 0 {
		old.w = copy(old.b, old.bytes())
		old.r = 0
		return nil
	}
	size := min(len(old.b)*4, limit+1)
	if size <= len(old.b) {
		return h1.ErrLarge
	}
	if !reserve(&r.tenant.bytes, int64(size), r.tenant.limits.Bytes) {
		return errMemory
	}
	r.tenant.bytes.Add(-r.held)
	r.held = int64(size)
	b := &buffer{b: make([]byte, size)}
	b.w = copy(b.b, old.bytes())
	r.free.put(old)
	r.buf = b
	return nil
}

// begin tells how the body ends that follows the head.
func (r *reader) begin(framing h1.Framing, length int64) {
	r.framing, r.left, r.chunks, r.fast = framing, length, h1.Chunks{}, false
	r.done = framing == h1.None || framing == h1.Length && length == 0
	if r.done {
		r.framing = h1.None
	}
}

// ready reports whether next returns without waiting.
func (r *reader) ready() bool {
	return r.done || !r.buf.empty() || r.body != nil && !r.body.empty()
}

// next returns the next piece of the body, valid until the next call, and whether it is the last. The piece may be empty.
func (r *reader) next() ([]byte, bool, error) {
	if r.done {
		return nil, true, nil
	}
	b := r.buf
	if r.body != nil {
		b = r.body
	}
	if b.empty() {
		r.body = r.free.piece(r.tenant, r.body, r.fast && (r.framing != h1.Length || r.left > smallBuffer))
		b = r.body
		room := b.room()
		if r.framing == h1.Length && r.left < int64(len(room)) {
			room = room[:r.left]
		}
		n, err := r.sock.Read(room)
		b.w, r.fast = n, n >= smallBuffer
		if n == 0 && err != nil {
			return r.ended(err)
		}
	}
	return r.take(b)
}

// ended judges the end of the connection within a body.
func (r *reader) ended(err error) ([]byte, bool, error) {
	if !errors.Is(err, io.EOF) {
		return nil, false, err
	}
	if r.framing == h1.UntilClose {
		r.done = true
		return nil, true, nil
	}
	return nil, false, errEarly
}

// take returns what b holds of the body.
func (r *reader) take(b *buffer) ([]byte, bool, error) {
	switch r.framing {
	case h1.Length:
		n := int(min(r.left, int64(b.w-b.r)))
		p := b.b[b.r : b.r+n]
		b.r += n
		r.left -= int64(n)
		r.done = r.left == 0
		return p, r.done, nil
	case h1.Chunked:
		p, used, err := r.chunks.Next(b.bytes())
		b.r += used
		r.done = r.chunks.Done()
		return p, r.done, err
	default:
		p := b.bytes()
		b.r = b.w
		return p, false, nil
	}
}

// rest reports whether bytes behind the message were read.
func (r *reader) rest() bool {
	return r.buf != nil && !r.buf.empty() || r.body != nil && !r.body.empty()
}

// end lets go of the message: what is behind it is kept, and a buffer that is empty is not.
func (r *reader) end() {
	if r.body != nil && !r.body.empty() { // the head's buffer was read to its end before
		r.free.put(r.buf)
		r.buf, r.body = r.body, nil
	}
	r.free.put(r.body)
	r.body = nil
	if r.buf != nil && r.buf.empty() {
		r.free.put(r.buf)
		r.buf = nil
	}
	r.account()
}

// account gives the tenant back what is not held any longer.
func (r *reader) account() {
	if r.held > 0 && (r.buf == nil || len(r.buf.b) <= smallBuffer) {
		r.tenant.bytes.Add(-r.held)
		r.held = 0
	}
}

// drop lets go of everything.
func (r *reader) drop() {
	r.free.put(r.buf)
	r.free.put(r.body)
	r.buf, r.body = nil, nil
	r.account()
}
