package memnet

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

var (
	addrA = netip.MustParseAddr("10.0.0.1")
	addrB = netip.MustParseAddr("10.0.1.1")
)

// lab is two hosts in zones a and b; b listens on port 80.
type lab struct {
	t    *testing.T
	net  *Network
	a, b *Host
	l    *Listener
	srv  *Process
}

func inLab(t *testing.T, cfg Config, f func(l *lab)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := New(cfg)
		l := &lab{t: t, net: n, srv: NewProcess()}
		var err error
		if l.a, err = n.AddHost("a", addrA); err != nil {
			t.Fatal(err)
		}
		if l.b, err = n.AddHost("b", addrB); err != nil {
			t.Fatal(err)
		}
		s, err := l.b.Listen(80)
		if err != nil {
			t.Fatal(err)
		}
		l.l = s.Open(l.srv)
		f(l)
		l.a.Remove()
		l.b.Remove()
	})
}

// dial makes a connection from a to b and returns both ends.
func (l *lab) dial(d Dialer) (near, far *Conn) {
	l.t.Helper()
	d.Host = l.a
	near, err := d.Dial(l.t.Context(), netip.AddrPortFrom(addrB, 80))
	if err != nil {
		l.t.Fatal(err)
	}
	c, err := l.l.Accept()
	if err != nil {
		l.t.Fatal(err)
	}
	return near, c.(*Conn)
}

func (l *lab) write(c *Conn, text string) {
	l.t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) wantErr(what string, err, want error) {
	l.t.Helper()
	if !errors.Is(err, want) {
		l.t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func TestHalfClose(t *testing.T) {
	inLab(t, Config{}, func(l *lab) {
		near, far := l.dial(Dialer{})
		l.write(near, "ask")
		_ = near.CloseWrite()
		if b, err := io.ReadAll(far); string(b) != "ask" || err != nil {
			t.Errorf("%q, %v", b, err)
		}
		_, err := near.Write([]byte("more"))
		l.wantErr("write after CloseWrite", err, syscall.EPIPE)
		l.write(far, "answer")
		_ = far.Close()
		if b, err := io.ReadAll(near); string(b) != "answer" || err != nil {
			t.Errorf("%q, %v", b, err)
		}
		_ = near.Close()
		_, err = near.Read(make([]byte, 1))
		l.wantErr("read after Close", err, net.ErrClosed)
		synctest.Wait()
		l.net.mu.Lock()
		defer l.net.mu.Unlock()
		if len(l.net.conns) != 0 {
			t.Errorf("%d connections are remembered", len(l.net.conns))
		}
	})
}

func TestResets(t *testing.T) {
	one := make([]byte, 1)
	for name, end := range map[string]func(l *lab, far *Conn){
		"linger 0":       func(_ *lab, far *Conn) { _ = far.SetLinger(0); _ = far.Close() },
		"unread bytes":   func(_ *lab, far *Conn) { time.Sleep(10 * time.Millisecond); _ = far.Close() },
		"process killed": func(l *lab, _ *Conn) { l.srv.Kill() },
		"host removed":   func(l *lab, _ *Conn) { l.b.Remove() },
	} {
		t.Run(name, func(t *testing.T) {
			inLab(t, Config{}, func(l *lab) {
				near, far := l.dial(Dialer{})
				l.write(near, "never read")
				end(l, far)
				_, err := near.Read(one)
				l.wantErr("read", err, syscall.ECONNRESET)
				_, err = near.Write(one)
				l.wantErr("write", err, syscall.ECONNRESET)
				_ = near.Close()
			})
		})
	}
	t.Run("bytes for a closed socket", func(t *testing.T) {
		inLab(t, Config{}, func(l *lab) {
			near, far := l.dial(Dialer{})
			_ = far.Close()
			if _, err := near.Read(one); err != io.EOF {
				t.Errorf("read %v", err)
			}
			l.write(near, "late")
			time.Sleep(10 * time.Millisecond)
			_, err := near.Write(one)
			l.wantErr("write", err, syscall.ECONNRESET)
			_ = near.Close()
		})
	})
}

func TestDialErrors(t *testing.T) {
	inLab(t, Config{DialTimeout: 3 * time.Second}, func(l *lab) {
		d := Dialer{Host: l.a}
		_, err := d.Dial(l.t.Context(), netip.AddrPortFrom(addrB, 81))
		l.wantErr("closed port", err, syscall.ECONNREFUSED)
		_, err = d.Dial(l.t.Context(), netip.MustParseAddrPort("10.9.9.9:80"))
		l.wantErr("nobody", err, ErrNoHost)
		l.net.Cut("b", "a")
		begin := time.Now()
		_, err = d.Dial(l.t.Context(), netip.AddrPortFrom(addrB, 80))
		l.wantErr("cut", err, syscall.ETIMEDOUT)
		if took := time.Since(begin); took != 3*time.Second {
			t.Errorf("it took %s", took)
		}
		ctx, cancel := context.WithCancelCause(l.t.Context())
		time.AfterFunc(time.Second, func() { cancel(io.ErrNoProgress) })
		_, err = d.Dial(ctx, netip.AddrPortFrom(addrB, 80))
		l.wantErr("context", err, io.ErrNoProgress)
		l.net.Heal("a", "b")
		near, far := l.dial(d)
		_, _ = near.Close(), far.Close()
		dead := NewProcess()
		dead.Kill()
		_, err = Dialer{Host: l.a, Process: dead}.Dial(l.t.Context(), netip.AddrPortFrom(addrB, 80))
		l.wantErr("dead process", err, net.ErrClosed)
		l.a.Remove()
		_, err = d.Dial(l.t.Context(), netip.AddrPortFrom(addrB, 80))
		l.wantErr("removed host", err, syscall.ENETDOWN)
	})
}

func TestCutHoldsAndHealSends(t *testing.T) {
	inLab(t, Config{}, func(l *lab) {
		near, far := l.dial(Dialer{})
		patient, _ := l.dial(Dialer{UserTimeout: 2 * time.Second})
		l.net.Cut("a", "b")
		l.write(near, "held")
		_ = far.SetReadDeadline(time.Now().Add(time.Minute))
		_, err := far.Read(make([]byte, 4))
		l.wantErr("read while cut", err, os.ErrDeadlineExceeded)
		_, err = patient.Read(make([]byte, 1))
		l.wantErr("user timeout", err, syscall.ETIMEDOUT)
		_ = far.SetReadDeadline(time.Time{})
		begin := time.Now()
		time.AfterFunc(time.Second, func() { l.net.Heal("a", "b") })
		b := make([]byte, 4)
		if n, err := far.Read(b); string(b[:n]) != "held" || err != nil || time.Since(begin) != time.Second {
			t.Errorf("%q, %v after %s", b[:n], err, time.Since(begin))
		}
	})
}

func TestWindowHoldsTheWriter(t *testing.T) {
	inLab(t, Config{Window: 100}, func(l *lab) {
		near, far := l.dial(Dialer{})
		_ = near.SetWriteDeadline(time.Now().Add(time.Second))
		n, err := near.Write(make([]byte, 250))
		if n != 100 {
			t.Errorf("%d bytes were taken", n)
		}
		l.wantErr("write", err, os.ErrDeadlineExceeded)
		_ = near.SetWriteDeadline(time.Time{})
		done := make(chan error, 1)
		go func() {
			_, err := near.Write(make([]byte, 150))
			done <- errors.Join(err, near.CloseWrite())
		}()
		b, err := io.ReadAll(far)
		if len(b) != 250 || err != nil || <-done != nil {
			t.Errorf("%d bytes, %v", len(b), err)
		}
	})
}

// TestSocketOutlivesListener: what waits is taken by the next process, and only a closed socket resets it.
func TestSocketOutlivesListener(t *testing.T) {
	inLab(t, Config{}, func(l *lab) {
		_ = l.l.Close()
		if _, err := l.l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		near, err := Dialer{Host: l.a}.Dial(l.t.Context(), netip.AddrPortFrom(addrB, 80))
		if err != nil {
			l.t.Fatal(err)
		}
		s := l.b.Socket(80)
		if s.Waiting() != 1 {
			t.Errorf("%d wait", s.Waiting())
		}
		next := s.Open(NewProcess())
		c, err := next.Accept()
		if err != nil || c.RemoteAddr().String() != near.LocalAddr().String() {
			l.t.Fatal(c, err)
		}
		waits, err := Dialer{Host: l.a}.Dial(l.t.Context(), netip.AddrPortFrom(addrB, 80))
		if err != nil {
			l.t.Fatal(err)
		}
		s.Close()
		_, err = waits.Read(make([]byte, 1))
		l.wantErr("read", err, syscall.ECONNRESET)
	})
}

func TestSteerAndCapture(t *testing.T) {
	inLab(t, Config{}, func(l *lab) {
		out, err := l.a.Listen(0)
		if err != nil {
			l.t.Fatal(err)
		}
		mine := NewProcess()
		l.a.Capture = func(syn SYN) *Socket {
			if syn.Process == mine {
				return nil
			}
			return out
		}
		to := netip.AddrPortFrom(addrB, 4711)
		c, err := Dialer{Host: l.a}.Dial(l.t.Context(), to)
		if err != nil || out.Waiting() != 1 || !c.SYN().Captured {
			l.t.Fatal(err, out.Waiting())
		}
		got, err := out.Open(mine).Accept()
		if err != nil || got.LocalAddr().String() != to.String() || got.RemoteAddr().String() != c.LocalAddr().String() {
			t.Errorf("captured %v -> %v, %v", got.RemoteAddr(), got.LocalAddr(), err)
		}
		var seen SYN
		l.b.Steer = func(syn SYN) *Socket { seen = syn; return l.b.Socket(80) }
		leg, err := Dialer{Host: l.a, Process: mine}.Dial(l.t.Context(), to)
		if err != nil || seen.Process != mine || seen.From != l.a || seen.To != l.b || seen.Dst != to || seen.Captured {
			t.Errorf("%+v, %v", seen, err)
		}
		_ = leg.Close()
		loop, err := Dialer{Host: l.b, Process: mine, Source: addrA, Loop: true}.Dial(l.t.Context(), netip.AddrPortFrom(addrB, 80))
		if err != nil || loop.LocalAddr().(*net.TCPAddr).IP.String() != addrA.String() || seen.From != l.b {
			t.Errorf("loop: %v", err)
		}
	})
}

// TestLatencyIsTheSeeds: bytes arrive after a time that depends on seed and addresses only, not on how they were written.
func TestLatencyIsTheSeeds(t *testing.T) {
	measure := func(seed uint64, writes ...string) (took time.Duration) {
		inLab(t, Config{Seed: seed}, func(l *lab) {
			near, far := l.dial(Dialer{})
			begin := time.Now()
			for _, w := range writes {
				l.write(near, w)
			}
			if _, err := io.ReadFull(far, make([]byte, 6)); err != nil {
				t.Error(err)
			}
			took = time.Since(begin)
		})
		return took
	}
	one := measure(1, "abcdef")
	if one < time.Millisecond || one > 2*time.Millisecond {
		t.Errorf("latency %s", one)
	}
	if two := measure(1, "abc", "def"); two != one {
		t.Errorf("in two writes %s, in one %s", two, one)
	}
	if other := measure(2, "abcdef"); other == one {
		t.Errorf("seeds 1 and 2 both have %s", one)
	}
}

func TestTapSeesTheWire(t *testing.T) {
	var seen []string
	inLab(t, Config{Tap: func(_ SYN, b []byte) { seen = append(seen, string(b)) }}, func(l *lab) {
		near, far := l.dial(Dialer{})
		l.write(near, "ping")
		l.write(far, "pong")
		loop, err := Dialer{Host: l.b, Loop: true}.Dial(l.t.Context(), netip.AddrPortFrom(addrB, 80))
		if err != nil {
			l.t.Fatal(err)
		}
		l.write(loop, "inside")
		if len(seen) != 2 || seen[0] != "ping" || seen[1] != "pong" {
			t.Errorf("seen %q", seen)
		}
	})
}
