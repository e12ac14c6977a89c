package datapath

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/undermesh/undermesh/nodeagent/netns"
	"github.com/undermesh/undermesh/test/netnstest"
)

func TestCaptureOutbound(t *testing.T) {
	l := newLab(t)
	a, b := l.pod("a", 2), l.pod("b", 3)
	l.app(b, 9000)
	l.enrol(a)
	for _, c := range []struct {
		name, dst string
		o         netns.Options
	}{
		{"v4", "10.95.0.3:9000", netns.Options{}},
		{"v6", "[fd95::3]:9000", netns.Options{}},
		{"nobody there", "10.95.0.77:1", netns.Options{}},
		{"off link", "198.51.100.7:443", netns.Options{}},
		{"off link v6", "[2001:db8::7]:443", netns.Options{}},
		{"bound to the pod's address", "10.95.0.3:9000", netns.Options{Bind: netip.MustParseAddrPort("10.95.0.2:0")}},
		{"bound to a port", "10.95.0.3:9000", netns.Options{Bind: netip.MustParseAddrPort("10.95.0.2:23456"), ReuseAddr: true}},
		{"bound to eth0", "10.95.0.3:9000", netns.Options{BindIfindex: 2}},
		{"bound to lo", "10.95.0.3:9000", netns.Options{BindIfindex: 1}},
		{"mark 0x539", "10.95.0.3:9000", netns.Options{Mark: 0x539}},
		{"capture mark", "10.95.0.3:9000", netns.Options{Mark: 0x111}},
		{"mark with other bits", "10.95.0.3:9000", netns.Options{Mark: 0xabc539}},
	} {
		if c.o.BindIfindex > 1 {
			c.o.BindIfindex = ifindex(t, a.ns, "eth0")
		}
		got := l.dial(a.ns, c.dst, c.o)
		l.want(c.name, got, "OUTBOUND", c.dst)
		if got.err != nil {
			continue
		}
		if ip := got.peer.Addr(); ip != a.v4 && ip != a.v6 {
			t.Errorf("%s: source is %s, not the pod's address", c.name, ip)
		}
		if m := mark(t, got.conn); m&0xfff != 0x111 || m&^0xfff != int(c.o.Mark)&^0xfff {
			t.Errorf("%s: mark is %#x", c.name, m)
		}
	}
}

// A multipath socket is captured by the address that it connects to first; the listener speaks plain TCP with it.
func TestCaptureMPTCP(t *testing.T) {
	l := newLab(t)
	a := l.pod("a", 2)
	l.enrol(a)
	fd := -1
	err := a.ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
		return err
	})
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ENOPROTOOPT) {
		t.Logf("this kernel has no MPTCP: %v", err)
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := netns.Connect(fd, unix.AF_INET, netip.MustParseAddrPort("10.95.0.77:9000")); err != nil {
		t.Fatal(err)
	}
	l.want("MPTCP", l.firstLine(fd), "OUTBOUND", "10.95.0.77:9000")
}

func ifindex(t *testing.T, ns *netns.NetNS, name string) int {
	t.Helper()
	var i int
	err := ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		r, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, r); err != nil {
			return err
		}
		i = int(r.Uint32())
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func TestCaptureLeavesAlone(t *testing.T) {
	l := newLab(t)
	a, b := l.pod("a", 2), l.pod("b", 3)
	for _, port := range []uint16{9000, 9001, 9002} {
		l.app(b, port)
		l.app(a, port)
	}
	l.enrol(a, func(p *Pod) {
		p.ExcludeOutCIDRs = []netip.Prefix{netip.MustParsePrefix("10.95.0.3/32"), netip.MustParsePrefix("fd95::/120")}
		p.IncludeOutPorts = []uint16{9002}
		p.ExcludeOutPorts = []uint16{9001}
	})
	for _, c := range []struct{ name, dst, tag string }{
		{"loopback", "127.0.0.1:9000", "APP"},
		{"loopback v6", "[::1]:9000", "APP"},
		{"own address", "10.95.0.2:9000", "APP"},
		{"own address v6", "[fd95::2]:9000", "APP"},
		{"excluded address", "10.95.0.3:9000", "APP"},
		{"excluded prefix v6", "[fd95::3]:9000", "APP"},
		{"excluded port", "10.95.0.3:9001", "APP"},
		{"port included in spite of its excluded address", "10.95.0.3:9002", "OUTBOUND"},
		{"other address", "10.95.0.4:9000", "OUTBOUND"},
		{"other prefix v6", "[fd95::100]:9000", "OUTBOUND"},
	} {
		got := l.dial(a.ns, c.dst, netns.Options{Mark: 0x111111})
		l.want(c.name, got, c.tag, c.dst)
		wantMark := 0x111000
		if c.tag == "OUTBOUND" {
			wantMark = 0x111111
		}
		if got.err == nil && mark(t, got.conn) != wantMark {
			t.Errorf("%s: mark is %#x, want %#x", c.name, mark(t, got.conn), wantMark)
		}
	}
	l.want("a pod that is not enrolled", l.dial(b.ns, "10.95.0.3:9000", netns.Options{}), "APP", "10.95.0.3:9000")

	p := a.spec() // exclusions are taken back
	if err := a.h.UpdateConfig(p); err != nil {
		t.Fatal(err)
	}
	l.want("address no longer excluded", l.dial(a.ns, "10.95.0.3:9000", netns.Options{}), "OUTBOUND", "10.95.0.3:9000")
	l.want("port no longer excluded", l.dial(a.ns, "10.95.0.3:9001", netns.Options{}), "OUTBOUND", "10.95.0.3:9001")
	if err := a.h.CaptureOutbound(false); err != nil {
		t.Fatal(err)
	}
	l.want("capture off", l.dial(a.ns, "10.95.0.3:9000", netns.Options{}), "APP", "10.95.0.3:9000")
}

func TestCaptureMappedAndReused(t *testing.T) {
	l := newLab(t)
	a, b := l.pod("a", 2), l.pod("b", 3)
	l.app(b, 9000)
	l.enrol(a, func(p *Pod) { p.ExcludeOutCIDRs = []netip.Prefix{netip.MustParsePrefix("10.95.0.3/32")} })
	connect := func(fd int, dst string) answer {
		d := netip.MustParseAddrPort(dst)
		if err := netns.Connect(fd, unix.AF_INET6, d); err != nil {
			t.Fatal(err)
		}
		return l.firstLine(fd)
	}
	for _, c := range []struct{ dst, tag, local string }{
		{"[::ffff:10.95.0.4]:9000", "OUTBOUND", "10.95.0.4:9000"},
		{"[::ffff:10.95.0.3]:9000", "APP", "10.95.0.3:9000"},
	} {
		fd, err := netns.Socket(a.ns, unix.AF_INET6, netns.Options{})
		if err != nil {
			t.Fatal(err)
		}
		l.want("v4-mapped "+c.dst, connect(fd, c.dst), c.tag, c.local)
		_ = unix.Close(fd)
	}
	// One socket: captured, dissolved, to an excluded address, dissolved, captured again.
	fd, err := netns.Socket(a.ns, unix.AF_INET6, netns.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for i, c := range []struct {
		dst  string
		mark int
	}{{"[::ffff:10.95.0.4]:9000", 0x111}, {"[::ffff:10.95.0.3]:9000", 0}, {"[::ffff:10.95.0.9]:9000", 0x111}} {
		if i > 0 {
			dissolve(t, fd)
		}
		if got := connect(fd, c.dst); got.err != nil {
			t.Errorf("%s: %v", c.dst, got.err)
		}
		if m, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK); m != c.mark {
			t.Errorf("%s: mark %#x, want %#x", c.dst, m, c.mark)
		}
	}
}

// firstLine waits for the server's line on a socket and leaves the socket to the caller.
func (l *lab) firstLine(fd int) answer {
	l.t.Helper()
	dup, err := unix.Dup(fd)
	if err != nil {
		l.t.Fatal(err)
	}
	if err := wait(dup, unix.POLLOUT); err != nil {
		return answer{err: err}
	}
	if code, _ := unix.GetsockoptInt(dup, unix.SOL_SOCKET, unix.SO_ERROR); code != 0 {
		return answer{err: unix.Errno(code)}
	}
	f := os.NewFile(uintptr(dup), "tcp")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return answer{err: err}
	}
	a := l.read(c.(*net.TCPConn))
	_ = c.Close()
	return a
}

func wait(fd int, events int16) error {
	p := []unix.PollFd{{Fd: int32(fd), Events: events}}
	for {
		n, err := unix.Poll(p, 3000)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && n == 0 {
			err = unix.ETIMEDOUT
		}
		return err
	}
}

// dissolve is connect(AF_UNSPEC).
func dissolve(t *testing.T, fd int) {
	t.Helper()
	var b [16]byte
	if _, _, e := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b))); e != 0 {
		t.Fatalf("dissolve: %v", e)
	}
}

// A captured SYN that got no answer is repeated. Whatever the application does to its socket in between, the repetition
// must not leave by eth0.
func TestCaptureKeepsUnansweredSYN(t *testing.T) {
	l := newLab(t)
	a, b := l.pod("a", 2), l.pod("b", 3)
	l.app(b, 9000)
	spec := a.spec()
	h, err := l.d.PreparePod(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	eth0 := ifindex(t, a.ns, "eth0")
	// Without the sk_lookup program the SYN finds nobody on lo, and IPv4 is silent there.
	if err := h.CaptureOutbound(true); err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name  string
		after func(fd int) error
		err   error // of TCP; a multipath socket takes none of them
	}{
		{"mark cleared", func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 0) }, nil},
		{"other mark", func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 0x539) }, nil},
		{"bound to eth0", func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, eth0) }, unix.EPERM},
		{"bound to the device eth0", func(fd int) error { return unix.BindToDevice(fd, "eth0") }, unix.EPERM},
		{"untouched", nil, nil},
	}
	fds := map[string]int{}
	for _, protocol := range []int{unix.IPPROTO_MPTCP, unix.IPPROTO_TCP} {
		for _, c := range cases {
			name, want, fd := fmt.Sprintf("protocol %d, %s", protocol, c.name), c.err, -1
			err := a.ns.Do(func() (err error) {
				fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
				return err
			})
			if protocol == unix.IPPROTO_MPTCP {
				if want = unix.EPERM; errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ENOPROTOOPT) {
					t.Logf("this kernel has no MPTCP: %v", err)
					break
				}
				if err == nil {
					err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 0x539) // it is closed
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			if err := netns.Connect(fd, unix.AF_INET, netip.MustParseAddrPort("10.95.0.3:9000")); err != nil {
				t.Fatal(err)
			}
			if c.after != nil {
				if err := c.after(fd); !errors.Is(err, want) {
					t.Errorf("%s: %v, want %v", name, err, want)
				}
			}
			fds[name] = fd
		}
	}
	// The first repetition is sent after 1 s. IPv4 SYNs without a listener stay unanswered.
	if err := wait(fds["protocol 6, untouched"], unix.POLLIN|unix.POLLOUT); !errors.Is(err, unix.ETIMEDOUT) {
		t.Fatalf("the untouched socket got an answer: %v", err)
	}
	for name, fd := range fds {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		if n, err := unix.Poll(p, 0); n != 0 || err != nil {
			t.Errorf("%s: the repeated SYN was answered", name)
		}
	}
	if n := l.dial(a.ns, "[fd95::3]:9000", netns.Options{}); n.err == nil {
		t.Error("IPv6 without a listener reached the destination")
	}
	// Control: without capture the same wait sees the connection come up.
	if err := h.CaptureOutbound(false); err != nil {
		t.Fatal(err)
	}
	l.want("control", l.dial(a.ns, "10.95.0.3:9000", netns.Options{}), "APP", "10.95.0.3:9000")
}

func TestCaptureUDPUntouched(t *testing.T) {
	l := newLab(t)
	a, b := l.pod("a", 2), l.pod("b", 3)
	l.enrol(a)
	udp := func(ns *netns.NetNS) (fd int) {
		err := ns.Do(func() (err error) {
			fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		return fd
	}
	server, client := udp(b.ns), udp(a.ns)
	if err := unix.Bind(server, &unix.SockaddrInet4{Port: 5353}); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptInt(client, unix.SOL_SOCKET, unix.SO_MARK, 0x111); err != nil {
		t.Fatal(err)
	}
	if err := unix.Connect(client, &unix.SockaddrInet4{Port: 5353, Addr: b.v4.As4()}); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(client, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := wait(server, unix.POLLIN); err != nil {
		t.Errorf("datagram of an enrolled pod: %v", err)
	}
}

func TestExempt(t *testing.T) {
	l := newLab(t)
	a, b := l.pod("a", 2), l.pod("b", 3)
	l.app(b, 9000)
	l.enrol(a)
	for _, c := range []struct{ group, tag string }{{"app", "OUTBOUND"}, {"proxy", "APP"}, {"child", "APP"}, {"kubelet", "OUTBOUND"}} {
		l.join(c.group)
		l.want("process in cgroup "+c.group, l.dial(a.ns, "10.95.0.3:9000", netns.Options{}), c.tag, "10.95.0.3:9000")
	}
	if err := l.d.Unexempt(netnstest.CgroupID(t, l.groups["proxy"])); err != nil {
		t.Fatal(err)
	}
	l.join("child")
	l.want("permission taken back", l.dial(a.ns, "10.95.0.3:9000", netns.Options{}), "OUTBOUND", "10.95.0.3:9000")
}

// The prefix of all IPv6 destinations covers the v4-mapped range in the map, and must not speak for IPv4.
func TestExcludedFamily(t *testing.T) {
	l := newLab(t)
	a, b := l.pod("a", 2), l.pod("b", 3)
	l.app(b, 9000)
	for _, c := range []struct{ excluded, v4, v6 string }{
		{"::/0", "OUTBOUND", "APP"},
		{"::/80", "OUTBOUND", "OUTBOUND"},
		{"0.0.0.0/0", "APP", "OUTBOUND"},
	} {
		spec := a.spec()
		spec.ExcludeOutCIDRs = []netip.Prefix{netip.MustParsePrefix(c.excluded)}
		if a.h == nil {
			l.enrol(a, func(p *Pod) { *p = spec })
		} else if err := a.h.UpdateConfig(spec); err != nil {
			t.Fatal(err)
		}
		l.want(c.excluded+" excluded, v4", l.dial(a.ns, "10.95.0.3:9000", netns.Options{}), c.v4, "10.95.0.3:9000")
		l.want(c.excluded+" excluded, v6", l.dial(a.ns, "[fd95::3]:9000", netns.Options{}), c.v6, "[fd95::3]:9000")
		fd, err := netns.Socket(a.ns, unix.AF_INET6, netns.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := netns.Connect(fd, unix.AF_INET6, netip.MustParseAddrPort("[::ffff:10.95.0.3]:9000")); err != nil {
			t.Fatal(err)
		}
		l.want(c.excluded+" excluded, v4-mapped", l.firstLine(fd), c.v4, "10.95.0.3:9000")
		_ = unix.Close(fd)
	}
}

// A connected socket of another protocol keeps its way: no listener of ours would take what is looped to lo.
func TestOtherProtocolsAreNotCaptured(t *testing.T) {
	l := newLab(t)
	a := l.pod("a", 2)
	l.pod("b", 3)
	l.enrol(a)
	fd := -1
	err := a.ns.Do(func() (err error) {
		if err = os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0); err == nil {
			fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{10, 95, 0, 3}}); err != nil {
		t.Fatal(err)
	}
	if m, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK); err != nil || m != 0 {
		t.Errorf("mark of a ping socket is %#x: %v", m, err)
	}
	if _, err := unix.Write(fd, []byte{8, 0, 0, 0, 0, 1, 0, 1}); err != nil {
		t.Fatal(err)
	}
	if err := wait(fd, unix.POLLIN); err != nil {
		t.Errorf("echo reply: %v", err)
	}
}
