package datapath

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/undermesh/undermesh/bpf/types"
	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/nodeagent/maps"
	"github.com/undermesh/undermesh/nodeagent/netns"
	"github.com/undermesh/undermesh/test/netnstest"
)

// judged is what ztunnel sets on a leg whose destination's policies it has asked.
var judged = netns.Options{Mark: uint32(types.BPFMeshMarkMESH_MARK_JUDGED)}

// flows is the content of the flow table.
func (l *lab) flows() map[types.BPFMeshFlowKey]types.BPFMeshFlow {
	l.t.Helper()
	all, err := l.flowTable().All()
	if err != nil {
		l.t.Fatal(err)
	}
	return all
}

func (l *lab) flowTable() maps.Table[types.BPFMeshFlowKey, types.BPFMeshFlow] {
	return maps.NewTable[types.BPFMeshFlowKey, types.BPFMeshFlow](mapFlows, l.d.maps[mapFlows])
}

func (l *lab) used(p *labPod) uint32 {
	l.t.Helper()
	n, _, err := p.h.tables.usage.Lookup(p.h.cookie)
	if err != nil {
		l.t.Fatal(err)
	}
	return n
}

func TestLegPassesOnceAndIsConsumed(t *testing.T) {
	l := newLab(t)
	a, b := l.pod("a", 2), l.pod("b", 3)
	l.app(b, 9000)
	l.enrol(a)
	l.enrol(b)
	// the application of a pod, and a client outside the mesh, are not judged
	l.want("captured at the source", l.dial(a.ns, "10.95.0.3:9000", netns.Options{}), "OUTBOUND", "10.95.0.3:9000")
	l.want("client outside the mesh", l.dial(l.node, "10.95.0.3:9000", netns.Options{}), "INBOUND", "10.95.0.3:9000")
	l.want("client outside the mesh, v6", l.dial(l.node, "[fd95::3]:9000", netns.Options{}), "INBOUND", "[fd95::3]:9000")

	l.join("proxy")
	for _, dst := range []string{"10.95.0.3:9000", "[fd95::3]:9000"} {
		added, consumed, passed := l.event("flow_added"), l.event("flow_consumed"), l.event("leg_passed")
		got := l.dial(a.ns, dst, judged)
		l.want("judged leg", got, "APP", dst)
		if ip := got.peer.Addr(); ip != a.v4 && ip != a.v6 {
			t.Errorf("leg comes from %s", ip)
		}
		if l.event("flow_added") != added+1 || l.event("flow_consumed") != consumed+1 || l.event("leg_passed") != passed+1 {
			t.Errorf("leg to %s: added, consumed, passed rose by %d, %d, %d", dst, l.event("flow_added")-added, l.event("flow_consumed")-consumed, l.event("leg_passed")-passed)
		}
	}
	if n := len(l.flows()); n != 0 || l.used(a) != 0 {
		t.Errorf("%d entries are left, %d of the budget used", n, l.used(a))
	}
	// a leg that nobody answers goes with its socket
	fd, err := netns.Socket(a.ns, unix.AF_INET, judged)
	if err != nil {
		t.Fatal(err)
	}
	if err := netns.Connect(fd, unix.AF_INET, netip.MustParseAddrPort("10.95.0.77:9000")); err != nil {
		t.Fatal(err)
	}
	if n := len(l.flows()); n != 1 || l.used(a) != 1 {
		t.Errorf("%d entries while the SYN waits, %d used, want 1", n, l.used(a))
	}
	_ = unix.Close(fd)
	if n := len(l.flows()); n != 0 || l.used(a) != 0 {
		t.Errorf("%d entries after close, %d used, want 0", n, l.used(a))
	}
	// a tunnel and a delivery over lo are no legs
	added := l.event("flow_added")
	l.want("tunnel", l.dial(a.ns, "10.95.0.3:15008", netns.Options{}), "TUNNEL", "10.95.0.3:15008")
	// what ztunnel does not say to have judged is judged by the receiver, and an application cannot say so
	l.want("unjudged leg", l.dial(a.ns, "10.95.0.3:9000", netns.Options{}), "INBOUND", "10.95.0.3:9000")
	l.join("app")
	l.want("application with the mark", l.dial(a.ns, "10.95.0.3:9000", judged), "OUTBOUND", "10.95.0.3:9000")
	l.join("proxy")
	if l.event("flow_added") != added {
		t.Error("a tunnel was recorded as a leg")
	}
}

// Delivery with the client's own address, over lo, and its way back.
func TestDeliveryKeepsClientAddress(t *testing.T) {
	l := newLab(t)
	b := l.pod("b", 3)
	l.app(b, 9000)
	l.enrol(b)
	l.join("proxy")
	for _, c := range []struct{ client, dst string }{{"192.0.2.9:12345", "10.95.0.3:9000"}, {"[2001:db8::9]:12345", "[fd95::3]:9000"}} {
		o := netns.Options{Transparent: true, Mark: 0x111, BindIfindex: 1, Bind: netip.MustParseAddrPort(c.client), ReuseAddr: true}
		got := l.dial(b.ns, c.dst, o)
		l.want("delivery", got, "APP", c.dst)
		if got.peer.String() != c.client {
			t.Errorf("application sees %s, want %s", got.peer, c.client)
		}
		o.Bind = netip.AddrPortFrom(o.Bind.Addr(), 12347)
		l.refused("delivery to a mesh port", l.dial(b.ns, netip.AddrPortFrom(netip.MustParseAddrPort(c.dst).Addr(), 15006).String(), o))
		o.Bind = netip.AddrPortFrom(o.Bind.Addr(), 12346)
		if refused := l.dial(b.ns, netip.AddrPortFrom(netip.MustParseAddrPort(c.dst).Addr(), 9999).String(), o); refused.err == nil || !strings.Contains(refused.err.Error(), "refused") {
			t.Errorf("delivery to a closed port: %v, want connection refused", refused.err)
		}
	}
	if len(l.flows()) != 0 {
		t.Error("a delivery was recorded as a leg")
	}
}

func TestLegBudget(t *testing.T) {
	l := newLab(t)
	l.cfg.FlowBudget = 3
	_ = l.d.Close()
	l.d = l.open()
	a, b := l.pod("a", 2), l.pod("b", 3)
	l.app(b, 9000)
	l.enrol(a)
	l.enrol(b)
	l.join("proxy")
	var fds []int
	for range 3 {
		fd, err := netns.Socket(a.ns, unix.AF_INET, judged)
		if err != nil {
			t.Fatal(err)
		}
		_ = netns.Connect(fd, unix.AF_INET, netip.MustParseAddrPort("10.95.0.77:9000"))
		fds = append(fds, fd)
	}
	l.want("beyond the budget", l.dial(a.ns, "10.95.0.3:9000", judged), "INBOUND", "10.95.0.3:9000")
	if n := l.reason(reason.FlowBudget); n != 1 {
		t.Errorf("flow_budget counted %d times, want 1", n)
	}
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
	l.want("budget given back", l.dial(a.ns, "10.95.0.3:9000", judged), "APP", "10.95.0.3:9000")
}

// A container of the source pod with raw sockets must not pass for a judged leg.
func TestRawSYNIsNoLeg(t *testing.T) {
	l := newLab(t)
	a, b, c := l.pod("a", 2), l.pod("b", 3), l.pod("c", 4)
	l.app(b, 9000)
	l.app(c, 9000)
	for _, p := range []*labPod{a, b, c} {
		l.enrol(p)
	}
	l.join("proxy")
	live := l.dial(a.ns, "10.95.0.3:9000", judged)
	l.want("leg", live, "APP", "10.95.0.3:9000")
	l.join("app")
	src := live.conn.LocalAddr().(*net.TCPAddr).AddrPort()

	passed, inbound := l.event("leg_passed"), l.event("inbound")
	l.rawSYN(a.ns, src, netip.MustParseAddrPort("10.95.0.3:9000")) // the live socket takes it
	l.rawSYN(a.ns, src, netip.MustParseAddrPort("10.95.0.4:9000"))
	l.eventually("raw SYN arrives", func() bool { return l.event("inbound") > inbound })
	if n := l.event("leg_passed") - passed; n != 0 {
		t.Errorf("raw SYN from the port of a live leg was taken for a leg %d times", n)
	}
	l.control(a, src, netip.MustParseAddrPort("10.95.0.4:9000"))

	// The receiver's half is gone, the proxy's half still there.
	half := l.halfClosed(a, b)
	passed, inbound = l.event("leg_passed"), l.event("inbound")
	l.rawSYN(a.ns, half, netip.MustParseAddrPort("10.95.0.3:9010"))
	l.eventually("raw SYN arrives", func() bool { return l.event("inbound") > inbound })
	if n := l.event("leg_passed") - passed; n != 0 {
		t.Errorf("raw SYN on a half-closed leg was taken for a leg %d times", n)
	}
	l.control(a, half, netip.MustParseAddrPort("10.95.0.3:9010"))
}

// control shows that the same SYN passes while the table has the entry, so that the refusals above mean something.
func (l *lab) control(from *labPod, src, dst netip.AddrPort) {
	l.t.Helper()
	k := types.BPFMeshFlowKey{Saddr: src.Addr().As16(), Daddr: dst.Addr().As16(), Sport: src.Port(), Dport: dst.Port()}
	if err := l.flowTable().Update(k, types.BPFMeshFlow{Cookie: from.h.cookie, Who: uint32(types.BPFMeshWhoMESH_WHO_LEG)}); err != nil {
		l.t.Fatal(err)
	}
	passed := l.event("leg_passed")
	// Again and again: a half-open connection of the SYN before may still take it.
	l.eventually("control: SYN with an entry passes", func() bool { l.rawSYN(from.ns, src, dst); return l.event("leg_passed") > passed })
	if err := l.flowTable().Delete(k); err != nil {
		l.t.Fatal(err)
	}
}

// halfClosed makes a leg to port 9010 whose receiver has forgotten it, and gives its source.
func (l *lab) halfClosed(a, b *labPod) netip.AddrPort {
	l.t.Helper()
	if err := b.ns.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/tcp_fin_timeout", []byte("1"), 0) }); err != nil {
		l.t.Fatal(err)
	}
	f, err := netns.Listen(b.ns, 9010, 1, netns.Options{})
	if err != nil {
		l.t.Fatal(err)
	}
	defer f.Close()
	ln, err := net.FileListener(f)
	if err != nil {
		l.t.Fatal(err)
	}
	defer ln.Close()
	l.join("proxy")
	defer l.join("app")
	fd, err := netns.Socket(a.ns, unix.AF_INET, judged)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = unix.Close(fd) }) // stays in CLOSE_WAIT
	if err := netns.Connect(fd, unix.AF_INET, netip.MustParseAddrPort("10.95.0.3:9010")); err != nil {
		l.t.Fatal(err)
	}
	conn, err := ln.Accept()
	if err != nil {
		l.t.Fatal(err)
	}
	_ = conn.Close()
	l.eventually("receiver forgets the connection", func() bool {
		var table []byte
		err := b.ns.Do(func() (err error) { table, err = os.ReadFile("/proc/thread-self/net/tcp6"); return err })
		return err == nil && strings.Count(string(table), fmt.Sprintf(":%04X", 9010)) == 1 // the listener alone
	})
	sa, err := unix.Getsockname(fd)
	if err != nil {
		l.t.Fatal(err)
	}
	return netip.AddrPortFrom(a.v4, uint16(sa.(*unix.SockaddrInet4).Port))
}

// rawSYN sends a bare SYN by a raw IP socket: no connect hook sees it.
func (l *lab) rawSYN(ns *netns.NetNS, src, dst netip.AddrPort) {
	l.t.Helper()
	src, dst = unmap(src), unmap(dst)
	t := make([]byte, 20)
	binary.BigEndian.PutUint16(t, src.Port())
	binary.BigEndian.PutUint16(t[2:], dst.Port())
	binary.BigEndian.PutUint32(t[4:], 0x12345678)
	t[12], t[13] = 5<<4, 2
	binary.BigEndian.PutUint16(t[14:], 65535)
	s4, d4 := src.Addr().As4(), dst.Addr().As4()
	pseudo := append(append(append([]byte{}, s4[:]...), d4[:]...), 0, unix.IPPROTO_TCP, 0, 20)
	binary.BigEndian.PutUint16(t[16:], checksum(append(pseudo, t...)))
	err := ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: s4}); err != nil {
			return err
		}
		return unix.Sendto(fd, t, 0, &unix.SockaddrInet4{Addr: d4})
	})
	if err != nil {
		l.t.Fatalf("send raw SYN: %v", err)
	}
}

func checksum(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		s += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return ^uint16(s)
}

func TestKubeletProbes(t *testing.T) {
	l := newLab(t)
	b := l.pod("b", 3)
	for _, port := range []uint16{8080, 8081, 8082} {
		l.app(b, port)
	}
	l.enrol(b, func(p *Pod) { p.Probes = []Probe{{Port: 8080, HTTP: true}, {Port: 8081}} })
	host, err := l.node.Cookie()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.d.SetKubelet(netnstest.CgroupID(t, l.groups["kubelet"]), host); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ group, dst, tag string }{
		{"kubelet", "10.95.0.3:8080", "PROBE"},
		{"kubelet", "[fd95::3]:8080", "PROBE"},
		{"kubelet", "10.95.0.3:8081", "APP"},
		{"kubelet", "[fd95::3]:8081", "APP"},
		{"kubelet", "10.95.0.3:8082", "INBOUND"}, // not declared
		{"app", "10.95.0.3:8080", "INBOUND"},     // another process of the node
		{"app", "10.95.0.3:8081", "INBOUND"},
		{"proxy", "10.95.0.3:8081", "INBOUND"}, // ztunnel judges from a pod's namespace only
	} {
		l.join(c.group)
		l.want(c.group+" to "+c.dst, l.dial(l.node, c.dst, netns.Options{}), c.tag, c.dst)
	}
	l.join("kubelet") // in another namespace kubelet's cgroup means nothing
	other := l.pod("other", 9)
	l.want("kubelet's cgroup in a pod", l.dial(other.ns, "10.95.0.3:8081", netns.Options{}), "INBOUND", "10.95.0.3:8081")
	if n := len(l.flows()); n != 0 {
		t.Errorf("%d entries are left", n)
	}
	if err := l.d.SetKubelet(0, host); err != nil {
		t.Fatal(err)
	}
	l.want("kubelet no longer known", l.dial(l.node, "10.95.0.3:8081", netns.Options{}), "INBOUND", "10.95.0.3:8081")
}

// A leg that outlives its pod's stay in the mesh gives back nothing to the next one: below 0 every leg would be refused.
func TestBudgetOutlivesEnrolment(t *testing.T) {
	l := newLab(t)
	a, b := l.pod("a", 2), l.pod("b", 3)
	l.app(b, 9000)
	l.enrol(a)
	l.enrol(b)
	l.join("proxy")
	var fds []int
	for _, o := range []netns.Options{judged, {}} {
		fd, err := netns.Socket(a.ns, unix.AF_INET, o)
		if err != nil {
			t.Fatal(err)
		}
		_ = netns.Connect(fd, unix.AF_INET, netip.MustParseAddrPort("10.95.0.77:9000"))
		fds = append(fds, fd)
	}
	if n, m := len(l.flows()), l.dials(); n != 1 || m != 1 {
		t.Fatalf("%d flows and %d dials, want one of each", n, m)
	}
	for _, stop := range a.stop {
		stop()
	}
	cookie := a.h.cookie
	if err := a.h.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, m := len(l.flows()), l.dials(); n+m != 0 {
		t.Errorf("%d flows and %d dials are left of a pod that is not in the mesh", n, m)
	}
	l.enrol(a)
	// An entry that came beside the cleaning is the same to the count.
	k := types.BPFMeshFlowKey{Saddr: a.v4.As16(), Daddr: b.v4.As16(), Sport: 1, Dport: 9000}
	if err := l.flowTable().Update(k, types.BPFMeshFlow{Cookie: cookie, Who: uint32(types.BPFMeshWhoMESH_WHO_LEG)}); err != nil {
		t.Fatal(err)
	}
	fd, err := netns.Socket(a.ns, unix.AF_INET, netns.Options{Bind: netip.AddrPortFrom(a.v4, 1), Mark: judged.Mark})
	if err != nil {
		t.Fatal(err)
	}
	if err := netns.Connect(fd, unix.AF_INET, netip.MustParseAddrPort("10.95.0.3:9000")); err != nil { // pushes the entry out
		t.Fatal(err)
	}
	l.want("leg", l.firstLine(fd), "APP", "10.95.0.3:9000")
	_ = unix.Close(fd)
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
	if n := l.used(a); n != 0 {
		t.Errorf("the count is %d, want 0", int32(n))
	}
	l.want("judged leg", l.dial(a.ns, "10.95.0.3:9000", judged), "APP", "10.95.0.3:9000")
}
