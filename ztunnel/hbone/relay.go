package hbone

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"

	"github.com/undermesh/undermesh/ztunnel/http/frame"
)

// inlineMax is the largest payload that the read loop writes to an application's socket itself, in bytes; what the
// socket does not take at once is left to the stream's drainer.
const inlineMax = largeChunk

// Relay copies between a stream and an application's socket until both directions have ended, and closes both. A
// half-close travels either way; an application's RST or error becomes RST_STREAM (CONNECT_ERROR), an RST_STREAM or a
// lost tunnel becomes a TCP RST. The end of ctx resets both. It returns nil when both directions ended by half-close.
//
// On a *net.TCPConn the tunnel's read loop writes payloads straight to the socket without blocking, and an idle
// stream holds one goroutine (the caller's) and no buffer. s.Stats() counts while it runs.
func Relay(ctx context.Context, s *Stream, app net.Conn) (Stats, error) {
	k := newSink(s, app)
	stop := context.AfterFunc(ctx, func() {
		k.fail(context.Cause(ctx))
		s.Reset(frame.CodeCancel)
		k.abort(context.Cause(ctx))
	})
	defer stop()
	if !s.attach(k) {
		k.abort(s.endError())
	}
	err := pump(s, app)
	if err != nil {
		k.fail(err)
		s.Reset(frame.CodeConnect)
		k.abort(err)
	}
	<-k.done
	k.wg.Wait()
	_ = s.Close()
	_ = app.Close()
	if first := k.firstError(); first != nil {
		return s.Stats(), fmt.Errorf("relay tunnel stream to %s: %w", s.authority, first)
	}
	return s.Stats(), nil
}

func (s *Stream) endError() error {
	s.rmu.Lock()
	defer s.rmu.Unlock()
	return s.rerr
}

// attach makes k the receiver of the stream. It reports false when the stream has already failed.
func (s *Stream) attach(k *sink) bool {
	s.rmu.Lock()
	defer s.rmu.Unlock()
	if s.rerr != nil {
		return false
	}
	s.sink = k
	if s.q.size > 0 || s.eof {
		k.drainLocked()
	}
	return true
}

// sink is the application's side of a relayed stream.
type sink struct {
	s   *Stream
	app net.Conn
	raw syscall.RawConn // nil: no non-blocking writes
	wg  sync.WaitGroup  // the drainer

	draining bool // protected by s.rmu: a drainer runs, only it writes

	// arguments of the preallocated non-blocking write; protected by s.rmu
	wp  []byte
	wn  int
	we  error
	wfn func(fd uintptr) bool

	once sync.Once
	done chan struct{} // the receive direction has ended
	mu   sync.Mutex    // protects err
	err  error
}

func newSink(s *Stream, app net.Conn) *sink {
	k := &sink{s: s, app: app, done: make(chan struct{})}
	tc, ok := app.(*net.TCPConn)
	if !ok {
		return k
	}
	raw, err := tc.SyscallConn()
	if err != nil {
		return k
	}
	k.raw = raw
	k.wfn = func(fd uintptr) bool {
		for {
			n, e := syscall.Write(int(fd), k.wp)
			if e == syscall.EINTR {
				continue
			}
			k.wn, k.we = max(n, 0), e
			return true
		}
	}
	return k
}

// try writes what the socket takes without blocking. s.rmu is held and no drainer runs.
func (k *sink) try(p []byte) (int, error) {
	if k.raw == nil || len(p) > inlineMax {
		return 0, nil
	}
	k.wp, k.wn, k.we = p, 0, nil
	err := k.raw.Write(k.wfn)
	k.wp = nil
	if err == nil && k.we != nil && k.we != syscall.EAGAIN {
		err = k.we
	}
	return k.wn, err
}

// drainLocked starts the drainer. s.rmu is held.
func (k *sink) drainLocked() {
	if k.draining {
		return
	}
	if k.s.q.size == 0 { // END_STREAM with nothing before it
		k.closeWrite()
		return
	}
	k.draining = true
	k.wg.Go(k.drain)
}

// drain writes the backlog until it is empty.
func (k *sink) drain() {
	s := k.s
	s.rmu.Lock()
	for {
		ch := s.q.take()
		if ch == nil {
			break
		}
		s.rmu.Unlock()
		n := len(ch.bytes())
		_, err := k.app.Write(ch.bytes())
		s.q.done(ch)
		s.c.credit(n)
		s.rmu.Lock()
		if err != nil {
			s.rmu.Unlock()
			k.failed(err)
			return
		}
		s.received.Add(uint64(n))
		s.consumedLocked(n)
	}
	k.draining = false
	if s.eof && s.rerr == nil {
		k.closeWrite()
	}
	s.rmu.Unlock()
}

// closeWrite passes the peer's half-close on.
func (k *sink) closeWrite() {
	if cw, ok := k.app.(interface{ CloseWrite() error }); ok {
		_ = cw.CloseWrite() // a socket that is gone shows in pump
	}
	k.finish()
}

// failed: the application's socket takes no more.
func (k *sink) failed(err error) {
	k.fail(err)
	k.s.Reset(frame.CodeConnect) // comes back by abort
	k.abort(err)
}

// abort resets the application's socket. Safe from any goroutine, more than once.
func (k *sink) abort(err error) {
	k.fail(err)
	if l, ok := k.app.(interface{ SetLinger(int) error }); ok {
		_ = l.SetLinger(0)
	}
	_ = k.app.Close()
	k.finish()
}

func (k *sink) finish() { k.once.Do(func() { close(k.done) }) }

func (k *sink) fail(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err == nil {
		k.err = err
	}
}

func (k *sink) firstError() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.err
}

// pump copies from the application to the stream until EOF, which it passes on.
func pump(s *Stream, app net.Conn) error {
	p := &pumper{app: app}
	if tc, ok := app.(*net.TCPConn); ok {
		if raw, err := tc.SyscallConn(); err == nil {
			p.raw = raw
			p.fn = p.readRaw
		}
	}
	for {
		b, n, err := p.read()
		if n > 0 {
			werr := s.sendBuffer(b.b, n)
			p.put(b)
			if werr != nil {
				return werr
			}
			continue
		}
		if b != nil {
			p.put(b)
		}
		if errors.Is(err, io.EOF) {
			return s.CloseWrite()
		}
		return err
	}
}
