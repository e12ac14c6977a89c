package datapath

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/undermesh/undermesh/bpf/types"
	"github.com/undermesh/undermesh/controller/api/reason"
)

func TestConfigValidate(t *testing.T) {
	if err := (Config{}).Validate(); err != nil {
		t.Errorf("defaults: %v", err)
	}
	for field, c := range map[string]Config{
		"Mark":    {Mark: 0x1111},
		"Build":   {Build: strings.Repeat("x", 56)},
		"Table":   {Table: 254},
		"PinDir":  {BPFFS: "/sys/fs/bpf", PinDir: "/run/pins"},
		"DNSPort": {DNSPort: 15001},
	} {
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestPodValidate(t *testing.T) {
	ip := []netip.Addr{netip.MustParseAddr("10.0.0.1")}
	if err := (Pod{UID: "a-1", IPs: ip}).Validate(); err != nil {
		t.Errorf("good pod: %v", err)
	}
	for field, p := range map[string]Pod{
		"UID":             {UID: "../x", IPs: ip},
		"IPs has 0":       {UID: "a"},
		"IPs has \"127":   {UID: "a", IPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}},
		"ExcludeOutCIDRs": {UID: "a", IPs: ip, ExcludeOutCIDRs: []netip.Prefix{{}}},
		"ExcludeInPorts":  {UID: "a", IPs: ip, ExcludeInPorts: []uint16{0}},
		"Probes":          {UID: "a", IPs: ip, Probes: []Probe{{}}},
	} {
		if err := p.Validate(); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestPodEntries(t *testing.T) {
	p := Pod{ExcludeOutCIDRs: []netip.Prefix{netip.MustParsePrefix("10.1.2.3/8"), netip.MustParsePrefix("fd00::/8")},
		ExcludeOutPorts: []uint16{80}, Probes: []Probe{{Port: 80, HTTP: true}, {Port: 81}}}
	cidrs := p.cidrEntries(7)
	for want, addr := range map[uint32]string{64 + 96 + 8: "::ffff:10.0.0.0", 64 + 8: "fd00::"} {
		k := types.BPFMeshCidrKey{PrefixLen: want, Cookie: cookieBytes(7), Addr: netip.MustParseAddr(addr).As16()}
		family := types.BPFMeshCidrFlagsMESH_CIDR_IPV6
		if want > 64+96 {
			family = types.BPFMeshCidrFlagsMESH_CIDR_IPV4
		}
		if cidrs[k] != uint32(family) {
			t.Errorf("entry %v is not of family %d in %v", k, family, cidrs)
		}
	}
	ports := p.portEntries(7)
	if v := ports[types.BPFMeshPortKey{Cookie: 7, Port: 80}]; v != 1|8|16 {
		t.Errorf("port 80: flags %d", v)
	}
	if v := ports[types.BPFMeshPortKey{Cookie: 7, Port: 81}]; v != 8 {
		t.Errorf("port 81: flags %d", v)
	}
}

// The numbers of enum mesh_reason are those of the registry.
func TestReasonsAreRegistered(t *testing.T) {
	for want, number := range map[string]types.BPFMeshReason{
		"none":              types.BPFMeshReasonMESH_REASON_NONE,
		"listener_missing":  types.BPFMeshReasonMESH_REASON_LISTENER_MISSING,
		"config_missing":    types.BPFMeshReasonMESH_REASON_CONFIG_MISSING,
		"loop_port":         types.BPFMeshReasonMESH_REASON_LOOP_PORT,
		"assign_failed":     types.BPFMeshReasonMESH_REASON_ASSIGN_FAILED,
		"flow_budget":       types.BPFMeshReasonMESH_REASON_FLOW_BUDGET,
		"storage_exhausted": types.BPFMeshReasonMESH_REASON_STORAGE_EXHAUSTED,
		"mark_failed":       types.BPFMeshReasonMESH_REASON_MARK_FAILED,
		"bound_device":      types.BPFMeshReasonMESH_REASON_BOUND_DEVICE,
		"flow_table_full":   types.BPFMeshReasonMESH_REASON_FLOW_TABLE_FULL,
		"probe_payload":     types.BPFMeshReasonMESH_REASON_PROBE_PAYLOAD,
	} {
		if got := Reason(number).String(); got != want {
			t.Errorf("reason %d is %s in the registry, %s in the kernel", number, got, want)
		}
	}
	kernel := 0
	for _, r := range reason.All() {
		if r.Kernel() {
			kernel++
		}
	}
	if want := int(types.BPFMeshReasonMESH_REASON_COUNT) - 1; kernel != want {
		t.Errorf("the registry has %d kernel reasons, the kernel %d", kernel, want)
	}
	for e := range Event(types.BPFMeshEventMESH_EVENT_COUNT) {
		if e.String() == "" {
			t.Errorf("event %d has no name", e)
		}
	}
}

func TestFindCgroup2(t *testing.T) {
	const v1 = "30 25 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755\n31 30 0:27 / /sys/fs/cgroup/cpu rw shared:10 - cgroup cgroup rw,cpu\n"
	for _, c := range []struct{ name, in, want string }{
		{"version 1 only", v1, ""},
		{"hybrid", v1 + "32 30 0:28 / /sys/fs/cgroup/unified rw shared:11 - cgroup2 cgroup2 rw\n", "/sys/fs/cgroup/unified"},
		{"unified", "30 25 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "/sys/fs/cgroup"},
		{"a part of the hierarchy only", "30 25 0:26 /pod /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", ""},
		{"space in the path", "30 25 0:26 / /a\\040b rw - cgroup2 cgroup2 rw\n", "/a b"},
		{"torn", "30 25", ""},
	} {
		if got := findCgroup2(c.in); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestParseDecision(t *testing.T) {
	in := types.BPFMeshDecision{Time: 5, Cookie: 6, Sport: 7, Dport: 8, Reason: 1, Layer: 2, Verdict: 2, Detail: 1,
		Saddr: netip.MustParseAddr("10.0.0.1").As16(), Daddr: netip.MustParseAddr("fd00::1").As16()}
	var b bytes.Buffer
	if err := binary.Write(&b, binary.NativeEndian, in); err != nil {
		t.Fatal(err)
	}
	d, err := parseDecision(b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if d.Src.String() != "10.0.0.1:7" || d.Dst.String() != "[fd00::1]:8" || d.Reason.String() != "listener_missing" ||
		d.Layer.String() != "sk_lookup" || d.Verdict.String() != "drop" || d.Detail != uint32(KindInbound) || d.Cookie != 6 || d.Time != 5 {
		t.Errorf("decoded %+v", d)
	}
	if _, err := parseDecision(b.Bytes()[:40]); err == nil {
		t.Error("a torn record is taken")
	}
}

func FuzzParseDecision(f *testing.F) {
	f.Add(make([]byte, binary.Size(types.BPFMeshDecision{})))
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, err := parseDecision(b); err == nil {
			_ = d.Layer.String() + d.Verdict.String() + d.Reason.String() + d.Src.String()
		}
	})
}

// diagSocket is one answer of sock_diag.
func diagSocket(local, remote netip.AddrPort, mark uint32) []byte {
	b := make([]byte, unix.NLMSG_HDRLEN+diagMessageLen+8)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], diagByFamily)
	m := b[unix.NLMSG_HDRLEN:]
	m[0] = unix.AF_INET
	binary.BigEndian.PutUint16(m[4:], local.Port())
	binary.BigEndian.PutUint16(m[6:], remote.Port())
	copy(m[8:], local.Addr().AsSlice())
	copy(m[24:], remote.Addr().AsSlice())
	binary.NativeEndian.PutUint16(m[diagMessageLen:], 8)
	binary.NativeEndian.PutUint16(m[diagMessageLen+2:], diagAttrMark)
	binary.NativeEndian.PutUint32(m[diagMessageLen+4:], mark)
	return b
}

// diagTaken is a socket that a listener with IP_TRANSPARENT accepted.
func diagTaken(local, remote netip.AddrPort) []byte {
	b := append(diagSocket(local, remote, 0), 6, 0, diagAttrOptions, 0, diagTransparent, 0, 0, 0)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	return b
}

func TestParseDiag(t *testing.T) {
	c := Config{}.withDefaults()
	x, y := netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2")
	z, tunnel := netip.MustParseAddrPort("10.0.0.2:3"), netip.MustParseAddrPort("10.0.0.2:15008")
	var b []byte
	for _, s := range [][]byte{diagSocket(x, y, 0x111), diagSocket(y, x, 0xabc111), diagSocket(x, z, 0), diagSocket(x, z, 0x1112), diagTaken(z, y), diagTaken(tunnel, y)} {
		b = append(b, s...)
	}
	seen := map[[2]netip.AddrPort]bool{}
	if done, err := parseDiag(b, held{c, c.TunnelPort, seen}.add); done || err != nil {
		t.Fatal(done, err)
	}
	if len(seen) != 2 || !seen[[2]netip.AddrPort{x, y}] || !seen[[2]netip.AddrPort{y, z}] {
		t.Errorf("captured connections: %v", seen)
	}
}

func FuzzParseDiag(f *testing.F) {
	f.Add(diagTaken(netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2")))
	f.Add(diagSocket(netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:2"), 0x111))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = parseDiag(b, held{Config{}.withDefaults(), 15008, map[[2]netip.AddrPort]bool{}}.add)
	})
}
