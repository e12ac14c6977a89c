package datapath

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/undermesh/undermesh/bpf/types"
	"github.com/undermesh/undermesh/nodeagent/maps"
	"github.com/undermesh/undermesh/nodeagent/netns"
	"github.com/undermesh/undermesh/test/netnstest"
)

// dials is the number of ztunnel's own connections that the kernel side knows of.
func (l *lab) dials() int {
	l.t.Helper()
	all, err := maps.NewTable[types.BPFMeshFlowKey, types.BPFMeshFlow](mapDials, l.d.maps[mapDials]).All()
	if err != nil {
		l.t.Fatal(err)
	}
	return len(all)
}

// An address that the pod has on lo, and the mesh does not know, sends ztunnel's own SYN back over lo. Were that captured,
// one connect() of an application would make ztunnel connect to itself until nothing is left.
func TestOwnDialIsNotCapturedAgain(t *testing.T) {
	l := newLab(t)
	l.cfg.FlowBudget = 1
	_ = l.d.Close()
	l.d = l.open()
	a := l.pod("a", 2)
	l.app(a, 9000)
	l.enrol(a)
	err := a.ns.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		for _, addr := range []string{"10.99.99.99/32", "fd99::99/128"} {
			parsed, err := netlink.ParseAddr(addr)
			if err == nil {
				parsed.Flags = unix.IFA_F_NODAD
				err = netlink.AddrAdd(lo, parsed)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, ip := range []string{"10.99.99.99", "fd99::99"} {
		dst := func(port string) string { return net.JoinHostPort(ip, port) }
		l.join("app")
		l.want("application", l.dial(a.ns, dst("9000"), netns.Options{}), "OUTBOUND", dst("9000"))
		l.join("proxy")
		own := l.dial(a.ns, dst("9000"), netns.Options{})
		l.want("ztunnel's dial", own, "APP", dst("9000"))
		l.want("ztunnel's judged leg", l.dial(a.ns, dst("9000"), judged), "APP", dst("9000"))
		l.refused("ztunnel's dial to a port of the mesh", l.dial(a.ns, dst("15001"), netns.Options{}))
		l.refused("ztunnel's dial to a closed port", l.dial(a.ns, dst("9999"), netns.Options{}))
		held, err := netns.Socket(a.ns, unix.AF_INET, judged) // takes the whole budget
		if err != nil {
			t.Fatal(err)
		}
		_ = netns.Connect(held, unix.AF_INET, netip.MustParseAddrPort("10.95.0.77:9000"))
		leg := l.dial(a.ns, dst("9000"), judged)
		l.want("ztunnel's judged leg beyond the budget", leg, "APP", dst("9000"))
		_ = unix.Close(held)
		for _, c := range []*net.TCPConn{own.conn, leg.conn} {
			_ = c.SetLinger(0)
			_ = c.Close()
		}
	}
	if n, m := l.dials(), len(l.flows()); n+m != 0 {
		t.Errorf("%d dials and %d flows are left", n, m)
	}
}

// What leaves the node, or the mesh, is forgotten as soon as it is established: the budget is for handshakes.
func TestEntryEndsWithTheHandshake(t *testing.T) {
	l := newLab(t)
	a, plain := l.pod("a", 2), l.pod("plain", 3)
	l.enrol(a)
	l.groups["outside"] = netnstest.Cgroup(t, netnstest.Cgroup2(t), "dpt") // no hook sees the receivers
	l.join("outside")
	t.Cleanup(func() { l.join("app") })
	l.app(plain, 9000)
	l.app(&labPod{ns: l.node}, 9000)
	l.join("proxy")
	for _, dst := range []string{"10.95.0.3:9000", "[fd95::3]:9000", "10.95.0.1:9000"} {
		added := l.event("flow_added")
		l.want("judged", l.dial(a.ns, dst, judged), "APP", dst)
		l.want("not judged", l.dial(a.ns, dst, netns.Options{}), "APP", dst)
		if l.event("flow_added") != added+1 {
			t.Error("the leg was not recorded")
		}
		if n, m := l.dials(), len(l.flows()); n+m != 0 || l.used(a) != 0 {
			t.Errorf("%s: %d dials and %d flows of live connections, %d of the budget", dst, n, m, l.used(a))
		}
	}
}
