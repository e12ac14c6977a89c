package datapath

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/undermesh/undermesh/bpf/types"
	"github.com/undermesh/undermesh/nodeagent/maps"
	"github.com/undermesh/undermesh/nodeagent/netns"
)

func cidrs(format string, n int) []netip.Prefix {
	var all []netip.Prefix
	for i := range n {
		all = append(all, netip.MustParsePrefix(fmt.Sprintf(format, i)))
	}
	return all
}

func TestPodBounds(t *testing.T) {
	ip := []netip.Addr{netip.MustParseAddr("10.0.0.1")}
	ports := make([]uint16, MaxPorts)
	for i := range ports {
		ports[i] = uint16(i + 1)
	}
	fits := Pod{UID: "a", IPs: ip, ExcludeOutCIDRs: cidrs("10.0.0.%d/32", 56), IncludeOnly: true, IncludeOutCIDRs: cidrs("fd00::%x/128", 200),
		ExcludeInPorts: ports, ExcludeOutPorts: ports, Probes: []Probe{{Port: 1}}}
	if err := fits.Validate(); err != nil {
		t.Error(err)
	}
	more, probes := fits, fits
	more.ExcludeOutCIDRs = cidrs("10.0.0.%d/32", 57)
	probes.Probes = []Probe{{Port: MaxPorts + 1}}
	for what, p := range map[string]Pod{"IncludeOutCIDRs": more, "Probes": probes} {
		if err := p.Validate(); err == nil || !strings.Contains(err.Error(), "pod a") || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Only what is included is captured, less what is excluded; each family for itself.
func TestCaptureIncludeOnly(t *testing.T) {
	l := newLab(t)
	a, b := l.pod("a", 2), l.pod("b", 3)
	l.app(b, 9000)
	l.enrol(a)
	for _, c := range []struct{ include, exclude, v4, v6 string }{
		{"10.95.0.0/24", "", "OUTBOUND", "APP"},
		{"fd95::/64", "", "APP", "OUTBOUND"},
		{"10.96.0.0/16 fd96::/64", "", "APP", "APP"},
		{"", "", "APP", "APP"},
		{"0.0.0.0/0 ::/0", "", "OUTBOUND", "OUTBOUND"},
		{"10.0.0.0/8 fd95::/64", "10.95.0.3/32 fd95::/64", "APP", "APP"},
		{"10.95.0.3/32 fd95::3/128", "10.95.0.0/24 ::/0", "APP", "APP"}, // exclusion wins over a longer prefix
		{"10.95.0.0/24", "10.95.0.4/30", "OUTBOUND", "APP"},
	} {
		spec := a.spec()
		spec.IncludeOnly = true
		for list, into := range map[string]*[]netip.Prefix{c.include: &spec.IncludeOutCIDRs, c.exclude: &spec.ExcludeOutCIDRs} {
			for p := range strings.FieldsSeq(list) {
				*into = append(*into, netip.MustParsePrefix(p))
			}
		}
		if err := a.h.UpdateConfig(spec); err != nil {
			t.Fatal(err)
		}
		what := fmt.Sprintf("include %q, exclude %q", c.include, c.exclude)
		l.want(what+", v4", l.dial(a.ns, "10.95.0.3:9000", netns.Options{}), c.v4, "10.95.0.3:9000")
		l.want(what+", v6", l.dial(a.ns, "[fd95::3]:9000", netns.Options{}), c.v6, "[fd95::3]:9000")
	}
	if err := a.h.UpdateConfig(a.spec()); err != nil {
		t.Fatal(err)
	}
	l.want("no list any more", l.dial(a.ns, "10.95.0.3:9000", netns.Options{}), "OUTBOUND", "10.95.0.3:9000")
}

// A full map fails the pod and leaves none of its entries behind; entries of nobody go when the agent starts.
func TestFullMapLeavesNothing(t *testing.T) {
	l := newLab(t)
	old, fresh := l.pod("old", 2), l.pod("fresh", 3)
	l.enrol(old)
	table := func() maps.Table[types.BPFMeshCidrKey, uint32] {
		return maps.NewTable[types.BPFMeshCidrKey, uint32](mapExcluded, l.d.maps[mapExcluded])
	}
	const foreign = 1 << 40
	fill := table()
	for i := range uint32(65536 - 5) {
		k := types.BPFMeshCidrKey{PrefixLen: 64 + 128, Cookie: cookieBytes(foreign)}
		binary.BigEndian.PutUint32(k.Addr[:], i)
		if err := fill.Update(k, 4); err != nil {
			t.Fatal(err)
		}
	}
	spec := fresh.spec()
	spec.ExcludeOutCIDRs = cidrs("192.0.2.%d/32", 20)
	if _, err := l.d.PreparePod(t.Context(), spec); err == nil || !strings.Contains(err.Error(), mapExcluded) {
		t.Errorf("fresh pod in a full map: %v", err)
	}
	spec = old.spec()
	spec.ExcludeOutCIDRs = cidrs("192.0.2.%d/32", 20)
	if err := old.h.UpdateConfig(spec); err == nil {
		t.Error("update in a full map succeeded")
	}
	if err := old.h.UpdateConfig(old.spec()); err != nil {
		t.Errorf("back to what fits: %v", err)
	}
	if err := old.h.UpdateConfig(spec); err == nil {
		t.Error("update in a full map succeeded")
	}
	if err := old.h.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	all, err := table().All()
	if err != nil || len(all) != 65536-5 {
		t.Errorf("%d entries after every pod went, want %d: %v", len(all), 65536-5, err)
	}
	ports := maps.NewTable[types.BPFMeshPortKey, uint32](mapPorts, l.d.maps[mapPorts])
	if err := ports.Update(types.BPFMeshPortKey{Cookie: foreign, Port: 1}, 1); err != nil {
		t.Fatal(err)
	}
	k := types.BPFMeshFlowKey{Sport: 1}
	if err := l.flowTable().Update(k, types.BPFMeshFlow{Cookie: foreign}); err != nil {
		t.Fatal(err)
	}
	if err := l.d.Close(); err != nil {
		t.Fatal(err)
	}
	l.d = l.open()
	if n := len(l.flows()); n != 0 {
		t.Errorf("%d flows of nobody after a restart", n)
	}
	all, err = table().All()
	left, perr := maps.NewTable[types.BPFMeshPortKey, uint32](mapPorts, l.d.maps[mapPorts]).All()
	if err != nil || perr != nil || len(all)+len(left) != 0 {
		t.Errorf("%d prefixes and %d ports of nobody after a restart: %v %v", len(all), len(left), err, perr)
	}
}

// A pod is looked at again and again; its program is loaded once by each agent.
func TestInboundIsLoadedOnce(t *testing.T) {
	l := newLab(t)
	a := l.pod("a", 2)
	l.enrol(a)
	program := func() uint32 {
		t.Helper()
		info, err := a.h.link.Info()
		if err != nil {
			t.Fatal(err)
		}
		return uint32(info.Program)
	}
	attach := func() uint32 {
		t.Helper()
		if err := a.h.AttachInbound(); err != nil {
			t.Fatal(err)
		}
		return program()
	}
	first := program()
	if again := attach(); again != first {
		t.Errorf("program %d became %d", first, again)
	}
	if err := l.d.Close(); err != nil {
		t.Fatal(err)
	}
	l.d = l.open()
	pods, err := l.d.Pods()
	if err != nil || len(pods) != 1 {
		t.Fatalf("%d pods: %v", len(pods), err)
	}
	a.h = pods[0]
	next := attach()
	if next == first {
		t.Error("the next agent kept the program of the one before")
	}
	if again := attach(); again != next {
		t.Errorf("program %d became %d", next, again)
	}
	if err := a.h.DetachInbound(); err != nil {
		t.Fatal(err)
	}
	if again := attach(); again == next {
		t.Error("attached again with the program that was taken off")
	}
}
