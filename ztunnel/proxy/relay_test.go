package proxy

import (
	"bytes"
	"context"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/telemetry"
)

// tcpPair is a connection over loopback.
func tcpPair(t *testing.T) (near, far *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(); _ = a.Close() })
	return c.(*net.TCPConn), a.(*net.TCPConn)
}

// relayed is a relay between two loopback connections; wait returns how it ended.
func relayed(t *testing.T) (cl, server *net.TCPConn, s *session, wait func() error) {
	t.Helper()
	p := New(Config{
		Snapshot: func() *client.Snapshot { return nil },
		Changed:  func() (<-chan struct{}, func()) { return nil, func() {} },
		Identity: noIdentity{}, Clock: clock.System(), Telemetry: telemetry.New(telemetry.Config{Clock: clock.System()}),
	})
	t.Cleanup(p.pipes.drop)
	c, in := tcpPair(t)
	out, srv := tcpPair(t)
	pod := p.NewPod(PodConfig{Name: "x", Namespace: "y"})
	s = pod.session(t.Context(), addrPort(in.RemoteAddr()), addrPort(in.LocalAddr()))
	s.client = in
	done := make(chan error, 1)
	go func() { done <- s.relay(out) }()
	return c, srv, s, func() error {
		select {
		case err := <-done:
			return err
		case <-time.After(10 * time.Second):
			t.Fatal("the relay did not end within 10 s")
			return nil
		}
	}
}

type noIdentity struct{ Identity }

func TestRelayCarriesBulkAndHalfCloseBothWays(t *testing.T) {
	c, srv, s, wait := relayed(t)
	data := make([]byte, 16<<20+12345)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(data)
	var wg sync.WaitGroup
	send := func(to *net.TCPConn) {
		for rest := data; len(rest) > 0; {
			n := min(len(rest), 1+rand.IntN(300<<10))
			if _, err := to.Write(rest[:n]); err != nil {
				t.Errorf("write: %v", err)
				return
			}
			rest = rest[n:]
		}
		_ = to.CloseWrite()
	}
	recv := func(from *net.TCPConn) {
		h := crc32.NewIEEE()
		n, err := io.Copy(h, from)
		if err != nil || n != int64(len(data)) || h.Sum32() != crc32.ChecksumIEEE(data) {
			t.Errorf("received %d bytes, sum %x, %v; want %d bytes, sum %x", n, h.Sum32(), err, len(data), crc32.ChecksumIEEE(data))
		}
	}
	wg.Go(func() { send(c) })
	wg.Go(func() { send(srv) })
	wg.Go(func() { recv(c) })
	wg.Go(func() { recv(srv) })
	wg.Wait()
	if err := wait(); err != nil {
		t.Fatal(err)
	}
	if received, sent := s.bytes(); received != uint64(len(data)) || sent != uint64(len(data)) {
		t.Errorf("counted %d and %d bytes, want %d", received, sent, len(data))
	}
	if len(s.p.pipes.idle) == 0 {
		t.Error("bulk was not spliced")
	}
}

func TestRelayAnswersAfterHalfClose(t *testing.T) {
	c, srv, _, wait := relayed(t)
	_, _ = c.Write([]byte("question"))
	_ = c.CloseWrite()
	if got, err := io.ReadAll(srv); err != nil || string(got) != "question" {
		t.Fatalf("server: %q, %v", got, err)
	}
	_, _ = srv.Write([]byte("answer"))
	_ = srv.Close()
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, []byte("answer")) {
		t.Fatalf("client: %q, %v", got, err)
	}
	if err := wait(); err != nil {
		t.Fatal(err)
	}
}

func TestRelayMapsResets(t *testing.T) {
	for _, clientResets := range []bool{true, false} {
		c, srv, _, wait := relayed(t)
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(srv, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		near, far, want := srv, c, reason.UpstreamReset
		if clientResets {
			near, far, want = c, srv, reason.DownstreamReset
		}
		reset(near)
		if _, err := far.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("client resets %v: the other side got %v, want a reset", clientResets, err)
		}
		if r := refusalOf(wait()); r == nil || r.Reason != want {
			t.Errorf("client resets %v: ended with %v, want %v", clientResets, r, want)
		}
	}
}

func TestEndOfTheContextResetsBoth(t *testing.T) {
	c, srv, s, wait := relayed(t)
	s.kill(refused(reason.PolicyChanged, nil))
	for _, side := range []*net.TCPConn{c, srv} {
		if _, err := side.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("got %v, want a reset", err)
		}
	}
	if r := refusalOf(wait()); r == nil || r.Reason != reason.PolicyChanged {
		t.Errorf("ended with %v, want policy_changed", r)
	}
}

func TestRefuseOverTCPIsAResetAfterTheAccept(t *testing.T) {
	p := New(Config{
		Snapshot: func() *client.Snapshot { return nil },
		Changed:  func() (<-chan struct{}, func()) { return nil, func() {} },
		Identity: noIdentity{}, Clock: clock.System(), Telemetry: telemetry.New(telemetry.Config{Clock: clock.System()}),
	})
	for _, talk := range []bool{true, false} {
		c, in := tcpPair(t)
		begin := time.Now()
		if talk {
			_, _ = c.Write(bytes.Repeat([]byte("GET / "), 1000))
		}
		p.refuse(context.WithoutCancel(t.Context()), in)
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("talking %v: %v, want a reset", talk, err)
		}
		if d := time.Since(begin); !talk && d < 100*time.Millisecond {
			t.Errorf("a silent client was reset after %v", d)
		}
	}
}

// awaitReadable returns when c has bytes or has ended.
func awaitReadable(t *testing.T, c *net.TCPConn) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var peeked [1]byte
	_ = raw.Read(func(fd uintptr) bool {
		_, _, err := syscall.Recvfrom(int(fd), peeked[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		return err != syscall.EAGAIN
	})
}

func TestReadNowDoesNotWait(t *testing.T) {
	c, in := tcpPair(t)
	buf := make([]byte, 16)
	if b, err := readNow(in, buf); len(b) != 0 || err != nil {
		t.Fatalf("nothing sent: %q, %v", b, err)
	}
	if _, err := c.Write([]byte("early")); err != nil {
		t.Fatal(err)
	}
	awaitReadable(t, in)
	if b, err := readNow(in, buf); string(b) != "early" || err != nil {
		t.Fatalf("got %q, %v", b, err)
	}
	_ = c.CloseWrite()
	awaitReadable(t, in)
	if b, err := readNow(in, buf); len(b) != 0 || err != nil {
		t.Fatalf("at the end: %q, %v", b, err)
	}
	if _, err := in.Read(buf); !errors.Is(err, io.EOF) {
		t.Errorf("the end was lost: %v", err)
	}
}

func FuzzParseProbe(f *testing.F) {
	for _, s := range []string{
		"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", "GET / HTTP/1.0\r\n\r\n", "POST /x?y HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
		"GET /a b HTTP/1.1\r\n\r\n", "GET /a HTTP/1.1\r\n folded\r\n\r\n", "\r\n\r\n", "",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		method, target, err := parseProbe(b)
		if err != nil {
			return
		}
		if !bytes.HasPrefix(b, []byte(method+" "+target+" HTTP/1.")) || bytes.Count(b, []byte("\r\n\r\n")) != 1 {
			t.Errorf("%q was taken for %s %s", b, method, target)
		}
		for _, line := range bytes.Split(b, []byte("\r\n")) {
			if bytes.ContainsAny(line, "\r\n\x00") {
				t.Errorf("%q has a control character in %q", b, line)
			}
		}
	})
}
