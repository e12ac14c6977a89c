package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/undermesh/undermesh/test/sim/memnet"
)

// A stream begins with its marker, its number and its length: "simconn-" + 16 hex digits + 8 hex digits.
const (
	marker     = "simconn-"
	headerSize = len(marker) + 16 + 8
)

// stream is one connection of a client's process with what is known about it.
type stream struct {
	w      *world
	id     uint64
	from   *pod
	to     netip.AddrPort // as dialled
	begin  time.Time
	chunks []int         // sizes of what is sent
	gap    time.Duration // between them
	quirk  quirk
	at     int // bytes after which the quirk shows

	plain atomic.Bool // the wire showed it in plain text, not from a ztunnel that had judged it
	leg   atomic.Bool // the wire showed it between ztunnel and application on one node

	// Protected by world.mu; final once done is set.
	src      netip.AddrPort
	captured bool // by its own pod
	done     bool
	err      error
	echoed   int  // bytes that came back
	server   *pod // that read its header
	end      time.Time
}

// quirk is how one side of a stream misbehaves.
type quirk int

const (
	proper      quirk = iota
	clientReset       // the client resets after so many bytes came back
	serverReset       // the application resets after so many bytes
	serverSlow        // the application waits before each read
)

func (q quirk) String() string {
	return [...]string{"proper", "the client resets", "the server resets", "the server is slow"}[q]
}

var errQuirk = errors.New("reset on purpose")

func (s *stream) total() (n int) {
	for _, c := range s.chunks {
		n += c
	}
	return n
}

func (s *stream) String() string {
	return fmt.Sprintf("stream %d %s (%s) -> %s", s.id, s.from, s.src, s.to)
}

func (s *stream) doneLocked() bool { return s.done }

func (s *stream) stateLocked() string {
	return fmt.Sprintf("%v, %d of %d bytes came back", s, s.echoed, s.total())
}

// body is what one direction of a stream consists of after the header.
func body(id uint64, direction byte) *rand.ChaCha8 {
	var seed [32]byte
	copy(seed[:], strconv.FormatUint(id, 16))
	seed[31] = direction
	return rand.NewChaCha8(seed)
}

// verifier checks that bytes are those of a body.
type verifier struct {
	want *rand.ChaCha8
	n    int
	buf  []byte
}

func (v *verifier) check(got []byte) error {
	if cap(v.buf) < len(got) {
		v.buf = make([]byte, len(got))
	}
	want := v.buf[:len(got)]
	_, _ = v.want.Read(want) // never fails
	if !bytes.Equal(want, got) {
		for i := range got {
			if got[i] != want[i] {
				return fmt.Errorf("byte %d differs", v.n+i)
			}
		}
	}
	v.n += len(got)
	return nil
}

// run is the client's process: it sends its chunks and reads as many bytes back.
func (s *stream) run(ctx context.Context) {
	conn, err := memnet.Dialer{Host: s.from.host}.Dial(ctx, s.to)
	if err != nil {
		s.finish(err)
		return
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetLinger(0); _ = conn.Close() })
	defer stop()
	s.w.mu.Lock()
	s.src, s.captured = conn.SYN().Src, conn.SYN().Captured
	s.w.mu.Unlock()
	sent := make(chan error, 1)
	s.w.apps.Go(func() { sent <- s.send(ctx, conn) })
	err = s.receive(conn)
	if err != nil {
		_ = conn.SetLinger(0)
		_ = conn.Close()
	}
	err = errors.Join(err, <-sent)
	s.finish(err)
}

func (s *stream) send(ctx context.Context, conn *memnet.Conn) error {
	if _, err := fmt.Fprintf(conn, "%s%016x%08x", marker, s.id, s.total()); err != nil {
		return err
	}
	out := body(s.id, 'c')
	for _, size := range s.chunks {
		b := make([]byte, size)
		_, _ = out.Read(b) // never fails
		if _, err := conn.Write(b); err != nil {
			return err
		}
		if s.gap > 0 && !pause(ctx, s.gap) {
			return context.Cause(ctx)
		}
	}
	return conn.CloseWrite()
}

func (s *stream) receive(conn *memnet.Conn) error {
	v := verifier{want: body(s.id, 's')}
	buf := make([]byte, 32<<10)
	for {
		n, err := conn.Read(buf)
		if bad := v.check(buf[:n]); bad != nil {
			s.w.violate("integrity", "%v: at the client: %v", s, bad)
			return bad
		}
		s.w.mu.Lock()
		s.echoed += n
		s.w.mu.Unlock()
		switch {
		case s.quirk == clientReset && v.n >= s.at:
			return errQuirk
		case errors.Is(err, io.EOF):
			if v.n != s.total() {
				s.w.violate("integrity", "%v: an end without an error after %d of %d bytes", s, v.n, s.total())
			}
			return nil
		case err != nil:
			return err
		}
	}
}

func (s *stream) finish(err error) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.done, s.err, s.end = true, err, time.Now()
	s.w.open--
	if s.from.died.IsZero() {
		s.w.ended = append(s.w.ended, s)
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// serveApp is the application of a pod on one port: it answers each byte with one.
func (w *world) serveApp(p *pod, port uint16, l net.Listener) {
	w.accept(l, func(c *memnet.Conn) error { return w.echo(p, port, c) })
}

// accept gives each connection to serve, and resets those that it ends with an error.
func (w *world) accept(l net.Listener, serve func(*memnet.Conn) error) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		w.apps.Go(func() {
			defer c.Close()
			mc := c.(*memnet.Conn) //nolint:forcetypeassert // memnet's
			if err := serve(mc); err != nil {
				_ = mc.SetLinger(0)
			}
		})
	}
}

func (w *world) echo(p *pod, port uint16, c *memnet.Conn) error {
	head := make([]byte, headerSize)
	if _, err := io.ReadFull(c, head); err != nil {
		return err
	}
	s, total := w.parse(head)
	if s == nil {
		w.violate("integrity", "pod %s: %q is no stream's header", p, head)
		return errors.New("bad header")
	}
	w.mu.Lock()
	s.server = p
	w.mu.Unlock()
	w.delivered(s, p, port, c.SYN())
	in, out := verifier{want: body(s.id, 'c')}, body(s.id, 's')
	buf, reply := make([]byte, 32<<10), make([]byte, 32<<10)
	for {
		switch {
		case s.quirk == serverReset && in.n >= s.at:
			return errQuirk
		case s.quirk == serverSlow && !pause(w.traffic, 30*time.Millisecond):
			return context.Cause(w.traffic)
		}
		n, err := c.Read(buf)
		if n > 0 {
			w.delivered(s, p, port, c.SYN())
			if bad := in.check(buf[:n]); bad != nil {
				w.violate("integrity", "%v: at the server %s: %v", s, p, bad)
				return bad
			}
			_, _ = out.Read(reply[:n]) // never fails
			if _, err := c.Write(reply[:n]); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			if in.n != total {
				w.violate("integrity", "%v: at the server %s: an end without an error after %d of %d bytes", s, p, in.n, total)
			}
			return nil
		case err != nil:
			return err
		}
	}
}

// parse finds the stream that data names, nil when it is none.
func (w *world) parse(data []byte) (*stream, int) {
	if len(data) < headerSize || string(data[:len(marker)]) != marker {
		return nil, 0
	}
	id, err := strconv.ParseUint(string(data[len(marker):len(marker)+16]), 16, 64)
	total, err2 := strconv.ParseUint(string(data[len(marker)+16:headerSize]), 16, 32)
	if err != nil || err2 != nil {
		return nil, 0
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.streams[id], int(total)
}

// tap sees all that is on the wire between two pods.
func (w *world) tap(syn memnet.SYN, data []byte) {
	if w.opt.Requests {
		w.tapRequest(syn, data)
		return
	}
	i := bytes.Index(data, []byte(marker))
	if i < 0 {
		return
	}
	s, _ := w.parse(data[i:])
	if s == nil {
		return
	}
	to := w.podOf(syn.To)
	if to == nil || !to.node.owns(syn.Process) {
		s.plain.Store(true)
		return
	}
	if !s.leg.Swap(true) {
		w.legBegins(s, s.from, to, syn.Dst.Port())
	}
}
