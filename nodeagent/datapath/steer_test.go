package datapath

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/undermesh/undermesh/bpf/types"
	"github.com/undermesh/undermesh/nodeagent/netns"
)

// lookupContext is struct bpf_sk_lookup of linux/bpf.h.
type lookupContext struct {
	Cookie           uint64 // out: of the selected socket
	Family, Protocol uint32
	Remote4          uint32
	Remote6          [16]byte
	RemotePortBE     [2]byte
	Pad              uint16
	Local4           uint32
	Local6           [16]byte
	LocalPort        uint32
	Ifindex          uint32 // must be 0
	Tail             uint32
}

func newContext(protocol uint32, src, dst string) lookupContext {
	s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	c := lookupContext{Family: unix.AF_INET6, Protocol: protocol, LocalPort: uint32(d.Port())}
	binary.BigEndian.PutUint16(c.RemotePortBE[:], s.Port())
	if s.Addr().Is4() {
		s4, d4 := s.Addr().As4(), d.Addr().As4()
		c.Family, c.Remote4, c.Local4 = unix.AF_INET, binary.NativeEndian.Uint32(s4[:]), binary.NativeEndian.Uint32(d4[:])
	} else {
		c.Remote6, c.Local6 = s.Addr().As16(), d.Addr().As16()
	}
	return c
}

// Every way of a connection from outside through the sk_lookup program, run by the kernel without a packet. It cannot run
// it with an interface, so what arrives on lo is tested with sockets.
func TestSteering(t *testing.T) {
	l := newLab(t)
	a, b := l.pod("a", 2), l.pod("b", 3)
	l.enrol(a)
	l.enrol(b, func(p *Pod) {
		p.TunnelPort = 12345
		p.ExcludeInPorts = []uint16{2222}
		p.Probes = []Probe{{Port: 8080, HTTP: true}, {Port: 8081}}
	})
	record := func(who types.BPFMeshWho, src, dst string) {
		s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
		k := types.BPFMeshFlowKey{Saddr: s.Addr().As16(), Daddr: d.Addr().As16(), Sport: s.Port(), Dport: d.Port()}
		if err := l.flowTable().Update(k, types.BPFMeshFlow{Cookie: a.h.cookie, Who: uint32(who)}); err != nil {
			t.Fatal(err)
		}
	}
	record(types.BPFMeshWhoMESH_WHO_LEG, "10.95.0.2:1000", "10.95.0.3:80")
	record(types.BPFMeshWhoMESH_WHO_LEG, "[fd95::2]:1000", "[fd95::3]:80")
	for _, port := range []string{"80", "8080", "8081"} {
		record(types.BPFMeshWhoMESH_WHO_KUBELET, "10.95.0.1:1000", "10.95.0.3:"+port)
	}
	defer func() {
		f := l.flows()[types.BPFMeshFlowKey{Saddr: netip.MustParseAddr("10.95.0.1").As16(), Daddr: b.v4.As16(), Sport: 1000, Dport: 8081}]
		if want := uint32(types.BPFMeshSeenMESH_SEEN) | uint32(types.BPFMeshPortFlagsMESH_PORT_PROBE); f.Seen != want {
			t.Errorf("the entry of a TCP probe says %#x to kubelet's side, want %#x", f.Seen, want)
		}
	}()
	prog, err := b.h.load(b.h.config, b.h.listeners)
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	const tcp, udp = unix.IPPROTO_TCP, unix.IPPROTO_UDP
	for _, c := range []struct {
		name     string
		protocol uint32
		src, dst string
		want     string // a listener, pass or drop
	}{
		{"own address", tcp, "10.95.0.3:1000", "10.95.0.3:80", "pass"},
		{"own address v6", tcp, "[fd95::3]:1000", "[fd95::3]:80", "pass"},
		{"own address to a mesh port", tcp, "10.95.0.3:1000", "10.95.0.3:15001", "drop"},
		{"tunnel port of this pod", tcp, "10.95.0.9:1000", "10.95.0.3:12345", "tunnel"},
		{"tunnel port of other pods", tcp, "10.95.0.9:1000", "10.95.0.3:15008", "inbound"},
		{"outbound port", tcp, "10.95.0.9:1000", "10.95.0.3:15001", "drop"},
		{"inbound port", tcp, "10.95.0.9:1000", "10.95.0.3:15006", "drop"},
		{"probe port", tcp, "10.95.0.9:1000", "10.95.0.3:15007", "drop"},
		{"resolver port", tcp, "10.95.0.9:1000", "10.95.0.3:15053", "drop"},
		{"leg", tcp, "10.95.0.2:1000", "10.95.0.3:80", "pass"},
		{"leg v6", tcp, "[fd95::2]:1000", "[fd95::3]:80", "pass"},
		{"other source port than the leg's", tcp, "10.95.0.2:1001", "10.95.0.3:80", "inbound"},
		{"other source than the leg's", tcp, "10.95.0.9:1000", "10.95.0.3:80", "inbound"},
		{"other destination port than the leg's", tcp, "10.95.0.2:1000", "10.95.0.3:81", "inbound"},
		{"kubelet, HTTP probe", tcp, "10.95.0.1:1000", "10.95.0.3:8080", "probe"},
		{"kubelet, TCP probe", tcp, "10.95.0.1:1000", "10.95.0.3:8081", "pass"},
		{"kubelet, not declared", tcp, "10.95.0.1:1000", "10.95.0.3:80", "inbound"},
		{"another client at a probe port", tcp, "10.95.0.1:1001", "10.95.0.3:8081", "inbound"},
		{"excluded port", tcp, "10.95.0.9:1000", "10.95.0.3:2222", "pass"},
		{"link-local neighbour", tcp, "[fe80::9]:1000", "[fd95::3]:80", "inbound"},
		{"client", tcp, "10.95.0.9:1000", "10.95.0.3:80", "inbound"},
		{"client v6", tcp, "[fd95::9]:1000", "[fd95::3]:80", "inbound"},
		{"UDP", udp, "10.95.0.9:1000", "10.95.0.3:80", "pass"},
	} {
		if got := steer(t, b, prog, newContext(c.protocol, c.src, c.dst)); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
	if err := b.h.config.Put(uint32(0), types.BPFMeshPod{}); err != nil {
		t.Fatal(err)
	}
	if got := steer(t, b, prog, newContext(tcp, "10.95.0.9:1000", "10.95.0.3:80")); got != "drop" {
		t.Errorf("configuration missing: %s, want drop", got)
	}
}

// steer runs the program inside the pod's namespace and says what it chose.
func steer(t *testing.T, p *labPod, prog *ebpf.Program, c lookupContext) string {
	t.Helper()
	var out lookupContext
	var verdict uint32
	err := p.ns.Do(func() (err error) {
		verdict, err = prog.Run(&ebpf.RunOptions{Context: c, ContextOut: &out})
		return err
	})
	if err != nil {
		t.Fatalf("run: %v", err)
	}
	const pass = 1 // SK_PASS
	switch {
	case verdict != pass:
		return "drop"
	case out.Cookie == 0:
		return "pass"
	}
	for _, k := range Kinds() {
		var cookie uint64
		if err := p.h.listeners.Lookup(uint32(k), &cookie); err == nil && cookie == out.Cookie {
			return k.String()
		}
	}
	return "unknown socket"
}

// A leg may be a v4-mapped socket.
func TestMappedClientOfLeg(t *testing.T) {
	l := newLab(t)
	a, b := l.pod("a", 2), l.pod("b", 3)
	l.app(b, 9000)
	l.enrol(a)
	l.enrol(b)
	l.join("proxy")
	fd, err := netns.Socket(a.ns, unix.AF_INET6, judged)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := netns.Connect(fd, unix.AF_INET6, netip.MustParseAddrPort("[::ffff:10.95.0.3]:9000")); err != nil {
		t.Fatal(err)
	}
	l.want("leg by a v4-mapped socket", l.firstLine(fd), "APP", "10.95.0.3:9000")
	if n := l.event("leg_passed"); n != 1 {
		t.Errorf("leg_passed is %d, want 1", n)
	}
}
