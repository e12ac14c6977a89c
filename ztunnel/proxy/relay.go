package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/undermesh/undermesh/controller/api/reason"
)

const (
	copyBuffer = 64 << 10 // bytes that one read of a relay takes
	fullReads  = 2        // reads of that size in a row after which a relay splices
)

// buffers are shared by the relays of the process; a relay has one only while bytes are under way.
type buffers struct{ pool sync.Pool }

func (b *buffers) get() *[]byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return p
	}
	p := make([]byte, copyBuffer)
	return &p
}

func (b *buffers) put(p *[]byte) { b.pool.Put(p) }

// copyBoth copies between client and up until both directions have ended, and closes both. What was read of the client early goes first. A half-close travels either way,
// and so does a reset, which is what the end of s.ctx does to both. It returns nil when both directions ended by a
// half-close, else the Refusal that the connection ended with, or one for the side that reset it.
func (s *session) copyBoth(client, up net.Conn) error {
	stop := context.AfterFunc(s.ctx, func() { reset(client); reset(up) })
	defer stop()
	var once sync.Once
	var why error
	half := func(dst, src net.Conn, first []byte, count *atomic.Int64, readSide, writeSide reason.Reason) {
		err := s.guard(func() error {
			rerr, werr := s.p.copyHalf(dst, src, first, count)
			switch {
			case rerr != nil:
				return ended(s.ctx, readSide, rerr)
			case werr != nil:
				return ended(s.ctx, writeSide, werr)
			}
			return nil
		})
		if err != nil {
			once.Do(func() { why = err })
			reset(client)
			reset(up)
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() { half(client, up, nil, &s.sent, reason.UpstreamReset, reason.DownstreamReset) })
	half(up, client, s.early, &s.received, reason.DownstreamReset, reason.UpstreamReset)
	wg.Wait()
	_ = up.Close()
	_ = client.Close()
	return why
}

// copyHalf copies first, and then from src, to dst until src ends, and passes the end on. It tells whose error stopped it.
func (p *Proxy) copyHalf(dst, src net.Conn, first []byte, count *atomic.Int64) (rerr, werr error) {
	if len(first) > 0 {
		n, err := dst.Write(first)
		count.Add(int64(n))
		if err != nil {
			return nil, err
		}
	}
	r := newIdleReader(src, &p.buffers)
	sp := newSplicer(dst, src, &p.pipes)
	full := 0 // reads in a row that filled the buffer
	for {
		if sp != nil && full >= fullReads {
			n, rerr, werr := sp.round()
			count.Add(int64(n))
			switch {
			case werr != nil:
				return nil, werr
			case errors.Is(rerr, io.EOF):
				closeWrite(dst)
				return nil, nil
			case errors.Is(rerr, errNoPipe):
				full = 0
			case rerr != nil:
				return rerr, nil
			case n < copyBuffer/4:
				full = 0 // small messages: one system call less without the pipe
			}
			continue
		}
		b, n, err := r.read()
		if n == copyBuffer {
			full++
		} else {
			full = 0
		}
		if n > 0 {
			w, werr := dst.Write((*b)[:n])
			p.buffers.put(b)
			count.Add(int64(w))
			if werr != nil {
				return nil, werr
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			closeWrite(dst)
			return nil, nil
		default:
			return err, nil
		}
	}
}

// closeWrite passes a half-close on. A socket that is gone shows in the other direction.
func closeWrite(c net.Conn) {
	if cw, ok := c.(interface{ CloseWrite() error }); ok {
		_ = cw.CloseWrite()
		return
	}
	_ = c.Close()
}

// idleReader reads into a buffer that it takes when bytes are there.
type idleReader struct {
	src     net.Conn
	raw     syscall.RawConn // nil: the connection cannot tell
	buffers *buffers

	b   *[]byte
	n   int
	err error
	try func(fd uintptr) bool
}

func newIdleReader(src net.Conn, b *buffers) *idleReader {
	r := &idleReader{src: src, buffers: b}
	if tc, ok := src.(*net.TCPConn); ok {
		if raw, err := tc.SyscallConn(); err == nil {
			r.raw, r.try = raw, r.readNow
		}
	}
	return r
}

// read returns a buffer of the pool with n bytes; the caller puts it back when n > 0. io.EOF at the end.
func (r *idleReader) read() (b *[]byte, n int, err error) {
	if r.raw == nil {
		b = r.buffers.get()
		n, err = r.src.Read(*b)
	} else {
		r.b, r.n, r.err = nil, 0, nil
		if werr := r.raw.Read(r.try); werr != nil && r.err == nil {
			r.err = werr
		}
		b, n, err = r.b, r.n, r.err
		if err == nil && n == 0 {
			err = io.EOF
		}
	}
	if n <= 0 && b != nil {
		r.buffers.put(b)
		b = nil
	}
	return b, max(n, 0), err
}

// readNow is one read(2); false waits until the socket is readable.
func (r *idleReader) readNow(fd uintptr) bool {
	r.b = r.buffers.get()
	for {
		if r.n, r.err = syscall.Read(int(fd), *r.b); r.err != syscall.EINTR {
			break
		}
	}
	if r.err == syscall.EAGAIN {
		r.buffers.put(r.b)
		r.b, r.n, r.err = nil, 0, nil
		return false
	}
	return true
}

// readNow reads what a TCP socket has, without waiting: bytes that may leave together with the CONNECT. Nothing at the end of
// the stream, which the relay meets again.
func readNow(c net.Conn, p []byte) ([]byte, error) {
	tc, ok := c.(*net.TCPConn)
	if !ok {
		return nil, nil
	}
	raw, err := tc.SyscallConn()
	if err != nil {
		return nil, err
	}
	var n int
	var rerr error
	err = raw.Read(func(fd uintptr) bool {
		n, _, rerr = syscall.Recvfrom(int(fd), p, syscall.MSG_DONTWAIT)
		return true
	})
	switch {
	case err != nil:
		return nil, err
	case rerr == syscall.EAGAIN || rerr == syscall.EINTR:
		return nil, nil
	case rerr != nil:
		return nil, rerr
	}
	return p[:max(n, 0)], nil
}
