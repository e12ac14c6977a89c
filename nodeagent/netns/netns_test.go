package netns_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/undermesh/undermesh/nodeagent/netns"
	"github.com/undermesh/undermesh/test/netnstest"
)

func TestOpenRefusesOtherFiles(t *testing.T) {
	for _, path := range []string{"/proc/self/ns/mnt", "/proc/self/status", t.TempDir()} {
		if ns, err := netns.OpenPath(path); !errors.Is(err, netns.ErrNotNetns) {
			t.Errorf("%s: %v, %v", path, ns, err)
		}
	}
	if _, err := netns.OpenPath("/nonexistent"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nothing there: %v", err)
	}
}

func TestIdentity(t *testing.T) {
	a, err := netns.OpenPID(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	b, err := netns.FromFD(a.FD())
	if err != nil {
		t.Fatal(err)
	}
	if a.ID() != b.ID() || a.ID() == (netns.ID{}) {
		t.Errorf("identities %v and %v of one namespace", a.ID(), b.ID())
	}
	if err := errors.Join(a.Close(), a.Close()); err != nil {
		t.Errorf("close twice: %v", err)
	}
	if err := a.Do(func() error { return nil }); !errors.Is(err, netns.ErrClosed) {
		t.Errorf("use after close: %v", err)
	}
	if _, err := b.Cookie(); err != nil {
		t.Errorf("cookie of a duplicate: %v", err)
	}
	_ = b.Close()
}

func inode(t *testing.T) uint64 {
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		t.Error(err)
	}
	return st.Ino
}

func TestDoEntersAndReturns(t *testing.T) {
	netnstest.Require(t)
	ns := netnstest.Netns(t)
	home := inode(t)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			err := ns.Do(func() error {
				if got := inode(t); got != ns.ID().Inode {
					t.Errorf("inside: namespace %d, want %d", got, ns.ID().Inode)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			if got := inode(t); got != home {
				t.Errorf("outside: namespace %d, want %d", got, home)
			}
		})
	}
	wg.Wait()
	failure := errors.New("inner")
	if err := ns.Do(func() error { return failure }); !errors.Is(err, failure) {
		t.Errorf("error of fn: %v", err)
	}
	other := netnstest.Netns(t)
	a, errA := ns.Cookie()
	b, errB := other.Cookie()
	if errA != nil || errB != nil || a == b || a == 0 {
		t.Errorf("cookies %d %v, %d %v", a, errA, b, errB)
	}
}

func TestSockets(t *testing.T) {
	netnstest.Require(t)
	ns := netnstest.Netns(t)
	f, err := netns.Listen(ns, 0, 16, netns.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ln, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	port := uint16(ln.Addr().(*net.TCPAddr).Port)
	for _, ip := range []string{"127.0.0.1", "::1"} {
		dst := netip.AddrPortFrom(netip.MustParseAddr(ip), port)
		o := netns.Options{Mark: 0x42, Transparent: true, BindIfindex: 1, NoDelay: true, ReuseAddr: true, KeepAlive: time.Second,
			UserTimeout: time.Second, Bind: netip.AddrPortFrom(dst.Addr(), 20001)}
		c, err := netns.Dial(t.Context(), ns, dst, o)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.LocalAddr().(*net.TCPAddr).AddrPort(); got != o.Bind {
			t.Errorf("bound to %s, want %s", got, o.Bind)
		}
		raw, _ := c.SyscallConn()
		_ = raw.Control(func(fd uintptr) {
			for opt, want := range map[int]int{unix.SO_MARK: 0x42, unix.SO_BINDTOIFINDEX: 1, unix.SO_KEEPALIVE: 1, unix.SO_PROTOCOL: unix.IPPROTO_TCP} {
				if v, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, opt); v != want || err != nil {
					t.Errorf("option %d is %d, want %d, %v", opt, v, want, err)
				}
			}
		})
		_ = c.Close()
	}
}

func TestDialErrors(t *testing.T) {
	netnstest.Require(t)
	ns := netnstest.Netns(t)
	for dst, want := range map[string]error{"127.0.0.1:1": unix.ECONNREFUSED, "[::1]:1": unix.ECONNREFUSED, "192.0.2.1:1": unix.ENETUNREACH} {
		if _, err := netns.Dial(t.Context(), ns, netip.MustParseAddrPort(dst), netns.Options{}); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", dst, err, want)
		}
	}
	// An address on a link where nobody answers.
	br := netnstest.Bridge(t, ns, "dpt", netip.MustParsePrefix("192.0.2.9/24"))
	pod := netnstest.Netns(t)
	netnstest.Veth(t, ns, br, "dpt", pod, nil)
	cause := errors.New("given up")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, cause)
	defer cancel()
	if _, err := netns.Dial(ctx, ns, netip.MustParseAddrPort("192.0.2.1:1"), netns.Options{}); !errors.Is(err, cause) {
		t.Errorf("context ended: %v", err)
	}
}

func BenchmarkSocket(b *testing.B) {
	netnstest.Require(b)
	ns := netnstest.Netns(b)
	for b.Loop() {
		fd, err := netns.Socket(ns, unix.AF_INET, netns.Options{})
		if err != nil {
			b.Fatal(err)
		}
		_ = unix.Close(fd)
	}
}
