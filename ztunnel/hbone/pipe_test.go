package hbone

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// bufPipe is an in-memory connection whose writes do not wait for the reader, up to 64 KiB a direction.
func bufPipe() (a, b *memConn) {
	x, y := newMemDir(), newMemDir()
	return &memConn{in: x, out: y}, &memConn{in: y, out: x}
}

type memDir struct {
	mu     sync.Mutex
	cond   *sync.Cond
	buf    []byte
	eof    bool // the writer is done
	closed bool // the reader is gone
}

func newMemDir() *memDir {
	d := &memDir{}
	d.cond = sync.NewCond(&d.mu)
	return d
}

type memConn struct{ in, out *memDir }

func (c *memConn) Read(p []byte) (int, error) {
	d := c.in
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(d.buf) == 0 && !d.eof && !d.closed {
		d.cond.Wait()
	}
	if d.closed {
		return 0, net.ErrClosed
	}
	if len(d.buf) == 0 {
		return 0, io.EOF
	}
	n := copy(p, d.buf)
	d.buf = d.buf[n:]
	d.cond.Broadcast()
	return n, nil
}

func (c *memConn) Write(p []byte) (int, error) {
	d := c.out
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for n < len(p) {
		for len(d.buf) >= 64<<10 && !d.closed && !d.eof {
			d.cond.Wait()
		}
		if d.closed || d.eof {
			return n, errors.New("write on closed memory pipe")
		}
		k := min(len(p)-n, 64<<10-len(d.buf))
		d.buf = append(d.buf, p[n:n+k]...)
		n += k
		d.cond.Broadcast()
	}
	return n, nil
}

func (c *memConn) CloseWrite() error { c.out.end(false); return nil }

func (d *memDir) end(reader bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.eof = true
	d.closed = d.closed || reader
	d.cond.Broadcast()
}

func (c *memConn) Close() error {
	c.out.end(false)
	c.in.end(true)
	return nil
}

type memAddr struct{}

func (memAddr) Network() string { return "mem" }
func (memAddr) String() string  { return "mem" }

func (c *memConn) LocalAddr() net.Addr                { return memAddr{} }
func (c *memConn) RemoteAddr() net.Addr               { return memAddr{} }
func (c *memConn) SetDeadline(time.Time) error        { return os.ErrNoDeadline }
func (c *memConn) SetReadDeadline(t time.Time) error  { return os.ErrNoDeadline }
func (c *memConn) SetWriteDeadline(t time.Time) error { return os.ErrNoDeadline }
