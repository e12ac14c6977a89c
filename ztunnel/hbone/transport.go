package hbone

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
)

const (
	readChunk = 128 << 10 // one read(2) of a bulk tunnel
)

// readPool holds the buffers between the socket and crypto/tls: taken when bytes are there, given back when drained.
var readPool = sync.Pool{New: func() any { b := make([]byte, readChunk); return &b }}

// Transport goes between a socket and crypto/tls. The records of one flush leave in one write(2), a read(2) takes up to
// 128 KiB, and no buffer is held while nothing is to be read. Give it to tls.Client or tls.Server; NewClient and
// NewServer find it through tls.Conn.NetConn. One goroutine may read while others write, as crypto/tls does.
type Transport struct {
	net.Conn
	raw syscall.RawConn // nil: the conn has none

	head   []byte  // Read returns it first
	buf    *[]byte // of readPool, nil when drained
	rp, re int
	poll   bool // Read does not wait

	mu   sync.Mutex // protects below; never held across I/O of the reader
	hold bool
	out  []byte
}

// NewTransport wraps conn, which must not be used directly afterwards except to close it or set its options.
func NewTransport(conn net.Conn) *Transport {
	t := &Transport{Conn: conn}
	if tc, ok := conn.(*net.TCPConn); ok {
		if raw, err := tc.SyscallConn(); err == nil {
			t.raw = raw
		}
	}
	return t
}

// Prepend makes b what Read returns first: bytes that were read from the connection before. It must precede every Read.
func (t *Transport) Prepend(b []byte) { t.head = b }

// Read returns what is buffered, or reads once from the socket.
func (t *Transport) Read(p []byte) (int, error) {
	if t.head != nil {
		n := copy(p, t.head)
		if t.head = t.head[n:]; len(t.head) == 0 {
			t.head = nil
		}
		return n, nil
	}
	if t.rp == t.re {
		if t.poll && t.raw == nil && silent(t.Conn) {
			return 0, errNothing
		}
		if err := t.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, (*t.buf)[t.rp:t.re])
	t.rp += n
	if t.rp == t.re {
		readPool.Put(t.buf)
		t.buf, t.rp, t.re = nil, 0, 0
	}
	return n, nil
}

func (t *Transport) fill() error {
	var n int
	var err error
	if t.raw == nil {
		t.buf = readPool.Get().(*[]byte)
		n, err = t.Conn.Read(*t.buf)
	} else {
		rerr := t.raw.Read(func(fd uintptr) bool {
			t.buf = readPool.Get().(*[]byte)
			for {
				n, err = syscall.Read(int(fd), *t.buf)
				if err != syscall.EINTR {
					break
				}
			}
			if err == syscall.EAGAIN {
				readPool.Put(t.buf)
				t.buf = nil
				return t.poll
			}
			return true
		})
		if err == syscall.EAGAIN {
			err = errNothing
		}
		if err == nil && n <= 0 {
			err = io.EOF
		}
		if rerr != nil {
			err = rerr
		}
	}
	if n > 0 {
		t.rp, t.re = 0, n
		return nil
	}
	if t.buf != nil {
		readPool.Put(t.buf)
		t.buf = nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// errNothing is what Read says in place of waiting: crypto/tls goes on after it as after a deadline.
var errNothing net.Error = nothing{}

type nothing struct{}

func (nothing) Error() string   { return "nothing to read" }
func (nothing) Timeout() bool   { return true }
func (nothing) Temporary() bool { return true }

// silent reports that a read of c would wait, as far as c can tell.
func silent(c net.Conn) bool {
	q, ok := c.(interface{ Quiet() bool })
	return !ok || q.Quiet()
}

// Quiet reports that on over, which is the TLS on this transport, neither bytes nor the end of the connection wait to be read. What
// carries neither, as a session ticket, is taken in. It does not wait. Nobody else may read meanwhile.
func (t *Transport) Quiet(over *tls.Conn) bool {
	t.poll = true
	defer func() { t.poll = false }()
	var b [1]byte
	n, err := over.Read(b[:])
	return n == 0 && errors.Is(err, errNothing)
}

// buffered reports whether a Read would return without a system call.
func (t *Transport) buffered() bool { return t.rp < t.re || t.head != nil }

// Write sends p, or keeps it until release while a flush gathers.
func (t *Transport) Write(p []byte) (int, error) {
	t.mu.Lock()
	if t.hold {
		t.out = append(getOut(t.out), p...)
		t.mu.Unlock()
		return len(p), nil
	}
	t.mu.Unlock()
	return t.Conn.Write(p)
}

// gather makes the following writes wait for release.
func (t *Transport) gather() {
	t.mu.Lock()
	t.hold = true
	t.mu.Unlock()
}

// release writes what has gathered. The caller is the only one between gather and release; a record that crypto/tls
// writes for itself meanwhile (a KeyUpdate's answer) waits for its turn in the same buffer.
func (t *Transport) release() error {
	for {
		t.mu.Lock()
		if len(t.out) == 0 {
			t.hold = false
			t.mu.Unlock()
			return nil
		}
		b := t.out
		t.out = nil
		t.mu.Unlock()
		if _, err := t.Conn.Write(b); err != nil {
			t.mu.Lock()
			t.hold = false
			t.mu.Unlock()
			return err
		}
		b = putOut(b)
		t.mu.Lock()
		if t.out == nil && b != nil {
			t.out = b[:0]
		}
		t.mu.Unlock()
	}
}
