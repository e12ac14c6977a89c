package datapath

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/undermesh/undermesh/nodeagent/netns"
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
