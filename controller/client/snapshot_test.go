package client

import (
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/securityapi"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
)

func pod(ns, n, ip string, edit ...func(*workloadapi.Workload)) Resource {
	w := &workloadapi.Workload{
		Uid: "Kubernetes//Pod/" + ns + "/" + n, Namespace: ns, Name: n, ServiceAccount: n,
		Addresses: [][]byte{netip.MustParseAddr(ip).AsSlice()}, Services: map[string]*workloadapi.PortList{},
	}
	for _, e := range edit {
		e(w)
	}
	return Resource{Message: w}
}

func in(services ...string) func(*workloadapi.Workload) {
	return func(w *workloadapi.Workload) {
		for _, s := range services {
			w.Services[s] = &workloadapi.PortList{Ports: []*workloadapi.Port{{ServicePort: 80, TargetPort: 8080}}}
		}
	}
}

func withSettings(t testing.TB, n string) func(*workloadapi.Workload) {
	ref, err := anypb.New(&settings.SettingsRef{Name: n})
	if err != nil {
		t.Fatal(err)
	}
	return func(w *workloadapi.Workload) {
		w.Extensions = []*workloadapi.Extension{{Name: api.WorkloadSettingsExtension, Config: ref}}
	}
}

func service(ns, host string, vips ...string) Resource {
	s := &workloadapi.Service{Namespace: ns, Hostname: host, Name: host}
	for _, v := range vips {
		a := &workloadapi.NetworkAddress{}
		if p, err := netip.ParsePrefix(v); err == nil {
			a.Address, a.Length = p.Addr().AsSlice(), wrapperspb.UInt32(uint32(p.Bits()))
		} else {
			a.Address = netip.MustParseAddr(v).AsSlice()
		}
		s.Addresses = append(s.Addresses, a)
	}
	return Resource{Message: &workloadapi.Address{Type: &workloadapi.Address_Service{Service: s}}}
}

func mustSnapshot(t testing.TB, rs ...Resource) *Snapshot {
	t.Helper()
	s, err := NewSnapshot(rs...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustWith(t testing.TB, s *Snapshot, up []Resource, rm ...Key) *Snapshot {
	t.Helper()
	next, err := s.With(s.Generation()+1, up, rm)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

func TestSnapshotIndexes(t *testing.T) {
	const a = "foo/a.foo.svc.cluster.local"
	s := mustSnapshot(t,
		pod("foo", "p1", "10.0.0.1", in(a)), pod("foo", "p2", "::ffff:10.0.0.2", in(a)),
		pod("foo", "host", "10.9.9.9", func(w *workloadapi.Workload) { w.NetworkMode = workloadapi.NetworkMode_HOST_NETWORK }),
		service("foo", "a.foo.svc.cluster.local", "10.96.0.1", "fd00::1"),
		service("foo", "wide", "10.96.0.0/16"), service("foo", "narrow", "10.96.0.0/24"),
	)
	ip := netip.MustParseAddr
	if w := s.WorkloadByIP("", ip("10.0.0.2")); w == nil || w.GetName() != "p2" {
		t.Errorf("a mapped address is not found: %v", w)
	}
	if w := s.WorkloadByIP("other", ip("10.0.0.2")); w != nil {
		t.Errorf("found in a foreign network: %v", w)
	}
	if w := s.WorkloadByIP("", ip("10.9.9.9")); w != nil {
		t.Errorf("a node's address belongs to %v", w)
	}
	if w := s.WorkloadByName("foo", "host"); w == nil || w != s.WorkloadByUID("Kubernetes//Pod/foo/host") {
		t.Errorf("by name: %v", w)
	}
	for addr, host := range map[string]string{
		"10.96.0.1": "a.foo.svc.cluster.local", "fd00::1": "a.foo.svc.cluster.local", "::ffff:10.96.0.1": "a.foo.svc.cluster.local",
		"10.96.0.2": "narrow", "10.96.1.2": "wide",
	} {
		if svc := s.ServiceByIP("", ip(addr)); svc.GetHostname() != host || svc == nil {
			t.Errorf("%s: got %v, want %s", addr, svc, host)
		}
	}
	if svc := s.ServiceByIP("", ip("10.97.0.1")); svc != nil {
		t.Errorf("10.97.0.1: got %v", svc)
	}
	svc := s.ServiceByHost("foo", "a.foo.svc.cluster.local")
	if eps := s.Endpoints(svc); len(eps) != 2 || eps[0].GetName() != "p1" || eps[1].GetName() != "p2" {
		t.Errorf("endpoints %v", eps)
	}
	if id := s.WorkloadByName("foo", "p1").Identity.String(); id != "spiffe://cluster.local/ns/foo/sa/p1" {
		t.Errorf("identity %s", id)
	}
}

func TestSnapshotIsImmutable(t *testing.T) {
	const a = "foo/a"
	old := mustSnapshot(t, pod("foo", "p1", "10.0.0.1", in(a)), service("foo", "a", "10.96.0.1"))
	next := mustWith(t, old, []Resource{pod("foo", "p1", "10.0.0.7"), pod("foo", "p2", "10.0.0.2", in(a))},
		Key{api.AddressType, "foo/a"})
	ip := netip.MustParseAddr
	if w := old.WorkloadByIP("", ip("10.0.0.1")); w == nil || old.WorkloadByIP("", ip("10.0.0.7")) != nil {
		t.Error("the old snapshot changed")
	}
	if eps := old.Endpoints(old.ServiceByHost("foo", "a")); len(eps) != 1 || eps[0].GetName() != "p1" {
		t.Errorf("the old snapshot's endpoints changed: %v", eps)
	}
	if next.WorkloadByIP("", ip("10.0.0.1")) != nil || next.WorkloadByIP("", ip("10.0.0.7")) == nil {
		t.Error("the new address is not in force")
	}
	if next.ServiceByHost("foo", "a") != nil || next.ServiceByIP("", ip("10.96.0.1")) != nil {
		t.Error("the removed service is still there")
	}
	next = mustWith(t, next, []Resource{service("foo", "a")}) // members were known before their service
	if eps := next.Endpoints(next.ServiceByHost("foo", "a")); len(eps) != 1 || eps[0].GetName() != "p2" {
		t.Errorf("endpoints %v", eps)
	}
	next = mustWith(t, next, nil, Key{api.AddressType, "Kubernetes//Pod/foo/p2"})
	if eps := next.Endpoints(next.ServiceByHost("foo", "a")); len(eps) != 0 {
		t.Errorf("endpoints %v", eps)
	}
}

func TestSharedAddressPrefersHealthy(t *testing.T) {
	gone := func(w *workloadapi.Workload) { w.Status = workloadapi.WorkloadStatus_UNHEALTHY }
	s := mustSnapshot(t, pod("foo", "a", "10.0.0.1", gone), pod("foo", "b", "10.0.0.1"))
	if w := s.WorkloadByIP("", netip.MustParseAddr("10.0.0.1")); w.GetName() != "b" {
		t.Errorf("got %s", w.GetName())
	}
	s = mustWith(t, s, nil, Key{api.AddressType, "Kubernetes//Pod/foo/b"})
	if w := s.WorkloadByIP("", netip.MustParseAddr("10.0.0.1")); w.GetName() != "a" {
		t.Errorf("got %s", w.GetName())
	}
}

func TestAZ07PoliciesInForce(t *testing.T) {
	pol := func(ns, n string, scope securityapi.Scope) Resource {
		return Resource{Message: &securityapi.Authorization{Namespace: ns, Name: n, Scope: scope}}
	}
	names := func(w *workloadapi.Workload) { w.AuthorizationPolicies = []string{"foo/sel", "istio-system/sel"} }
	s := mustSnapshot(t, pod("foo", "p", "10.0.0.1", names), pod("bar", "q", "10.0.0.2"),
		pol("foo", "ns", securityapi.Scope_NAMESPACE), pol("istio-system", "mesh", securityapi.Scope_GLOBAL),
		pol("foo", "sel", securityapi.Scope_WORKLOAD_SELECTOR), pol("foo", "other", securityapi.Scope_WORKLOAD_SELECTOR))
	list := func(s *Snapshot, w *Workload) string {
		var out []string
		for _, p := range s.Policies(w) {
			out = append(out, p.GetNamespace()+"/"+p.GetName())
		}
		return strings.Join(out, " ")
	}
	p, q := s.WorkloadByName("foo", "p"), s.WorkloadByName("bar", "q")
	if got := list(s, p); got != "foo/sel foo/ns istio-system/mesh" || s.PoliciesComplete(p) {
		t.Errorf("foo/p: %q, complete %v", got, s.PoliciesComplete(p))
	}
	if got := list(s, q); got != "istio-system/mesh" || !s.PoliciesComplete(q) {
		t.Errorf("bar/q: %q, complete %v", got, s.PoliciesComplete(q))
	}
	s = mustWith(t, s, []Resource{pol("istio-system", "sel", securityapi.Scope_WORKLOAD_SELECTOR)}, Key{api.AuthorizationType, "foo/ns"})
	if got := list(s, p); got != "foo/sel istio-system/sel istio-system/mesh" || !s.PoliciesComplete(p) {
		t.Errorf("foo/p: %q, complete %v", got, s.PoliciesComplete(p))
	}
	s = mustWith(t, s, []Resource{pol("istio-system", "mesh", securityapi.Scope_WORKLOAD_SELECTOR)})
	if got := list(s, q); got != "" {
		t.Errorf("a policy that changed its scope still applies: %q", got)
	}
}

func TestSettingsArriveLater(t *testing.T) {
	s := mustSnapshot(t, pod("foo", "p", "10.0.0.1", in("foo/a"), withSettings(t, "h1")), service("foo", "a"))
	check := func(s *Snapshot, complete bool, port uint32) {
		t.Helper()
		for _, w := range append(s.Endpoints(s.ServiceByHost("foo", "a")), s.WorkloadByName("foo", "p"), s.WorkloadByIP("", netip.MustParseAddr("10.0.0.1"))) {
			if s.PoliciesComplete(w) != complete || w.Settings.GetTunnelPort() != port {
				t.Errorf("complete %v, port %d; want %v, %d", s.PoliciesComplete(w), w.Settings.GetTunnelPort(), complete, port)
			}
		}
	}
	check(s, false, 0)
	s = mustWith(t, s, []Resource{{Name: "h1", Message: &settings.WorkloadSettings{TunnelPort: 7}}})
	check(s, true, 7)
	s = mustWith(t, s, nil, Key{api.WorkloadSettingsType, "h1"})
	check(s, false, 0)
	s = mustWith(t, s, nil, Key{api.AddressType, "Kubernetes//Pod/foo/p"})
	if s.bySettings.size != 0 || s.members.size != 0 || s.byIP.size != 0 || s.byName.size != 0 {
		t.Errorf("indexes keep what was removed: %d %d %d %d", s.bySettings.size, s.members.size, s.byIP.size, s.byName.size)
	}
}

func TestMT22TrustDomainChanges(t *testing.T) {
	s := mustSnapshot(t, pod("foo", "p", "10.0.0.1"), pod("foo", "q", "10.0.0.2", func(w *workloadapi.Workload) { w.TrustDomain = "own" }),
		Resource{Message: &settings.MeshSettings{TrustDomain: "old-td"}})
	s = mustWith(t, s, []Resource{{Message: &settings.MeshSettings{TrustDomain: "new-td"}}})
	if got := s.WorkloadByName("foo", "p").Identity.TrustDomain; got != "new-td" {
		t.Errorf("got %q", got)
	}
	if got := s.WorkloadByName("foo", "q").Identity.TrustDomain; got != "own" {
		t.Errorf("got %q", got)
	}
}

func TestBadResourcesAreNamed(t *testing.T) {
	edit := func(f func(*workloadapi.Workload)) Resource { return pod("foo", "p", "10.0.0.1", f) }
	for want, r := range map[string]Resource{
		"addresses[0]: 3 bytes":      edit(func(w *workloadapi.Workload) { w.Addresses[0] = []byte{1, 2, 3} }),
		"uid: empty":                 edit(func(w *workloadapi.Workload) { w.Uid = "" }),
		"namespace, service_account": edit(func(w *workloadapi.Workload) { w.ServiceAccount = "a/sa/b" }),
		`services: key "x"`:          edit(func(w *workloadapi.Workload) { w.Services["x"] = nil }),
		"services[a/b]: 70000":       edit(func(w *workloadapi.Workload) { in("a/b")(w); w.Services["a/b"].Ports[0].ServicePort = 70000 }),
		"extensions[undermesh.v1.WorkloadSett": edit(func(w *workloadapi.Workload) {
			w.Extensions = []*workloadapi.Extension{{Name: api.WorkloadSettingsExtension}}
		}),
		"neither workload nor service":             {Message: &workloadapi.Address{}},
		"hostname: empty":                          {Message: &workloadapi.Service{Namespace: "foo"}},
		`differs from the resource name "foo/b"`:   {Name: "foo/b", Message: &workloadapi.Service{Namespace: "foo", Hostname: "a"}},
		"length 33 is more than 32":                service("foo", "a", "10.0.0.0/8"),
		`parse workload settings ""`:               {Message: &settings.WorkloadSettings{}},
		"tunnel_port 70000":                        {Name: "h", Message: &settings.WorkloadSettings{TunnelPort: 70000}},
		`parse policy "foo/"`:                      {Message: &securityapi.Authorization{Namespace: "foo"}},
		"unknown message *settings.SettingsRef":    {Message: &settings.SettingsRef{}},
		`parse mesh settings "x": the name must b`: {Name: "x", Message: &settings.MeshSettings{}},
	} {
		if a, ok := r.Message.(*workloadapi.Address); ok && a.GetService() != nil {
			a.GetService().Addresses[0].Length = wrapperspb.UInt32(33)
		}
		if _, err := NewSnapshot(r); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

// TestSnapshotAgainstRebuild applies random changes one by one and compares with a snapshot built from what is left.
func TestSnapshotAgainstRebuild(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	s, live := mustSnapshot(t), map[string]Resource{}
	for range 3000 {
		n, ip := fmt.Sprintf("p%d", r.IntN(60)), fmt.Sprintf("10.0.0.%d", r.IntN(30))
		switch r.IntN(5) {
		case 0:
			uid := "Kubernetes//Pod/foo/" + n
			s = mustWith(t, s, nil, Key{api.AddressType, uid})
			delete(live, uid)
		case 1:
			host := fmt.Sprintf("s%d", r.IntN(8))
			if r.IntN(2) == 0 {
				s = mustWith(t, s, nil, Key{api.AddressType, "foo/" + host})
				delete(live, "foo/"+host)
				continue
			}
			live["foo/"+host] = service("foo", host, ip, fmt.Sprintf("10.%d.0.0/%d", r.IntN(3), 8+r.IntN(16)))
			s = mustWith(t, s, []Resource{live["foo/"+host]})
		default:
			p := pod("foo", n, ip, in(fmt.Sprintf("foo/s%d", r.IntN(8)), fmt.Sprintf("foo/s%d", r.IntN(8))))
			if r.IntN(2) == 0 {
				withSettings(t, fmt.Sprintf("h%d", r.IntN(3)))(p.Message.(*workloadapi.Workload))
			}
			live["Kubernetes//Pod/foo/"+n] = p
			s = mustWith(t, s, []Resource{p})
		}
	}
	all := make([]Resource, 0, len(live))
	for _, l := range live {
		all = append(all, l)
	}
	want := mustSnapshot(t, all...)
	compare(t, want, s)
	compare(t, s, want)
}

func compare(t *testing.T, want, got *Snapshot) {
	t.Helper()
	if len(want.Workloads()) != len(got.Workloads()) || len(want.Services()) != len(got.Services()) {
		t.Fatalf("%d workloads, %d services; want %d, %d", len(got.Workloads()), len(got.Services()), len(want.Workloads()), len(want.Services()))
	}
	for k, list := range want.byIP.all() {
		if w := got.WorkloadByIP(k.network, k.ip); w.GetUid() != list[0].GetUid() {
			t.Errorf("%v: got %s, want %s", k, w.GetUid(), list[0].GetUid())
		}
	}
	for k, list := range want.byVIP.all() {
		if svc := got.ServiceByIP(k.network, k.ip); svc.GetHostname() != list[0].GetHostname() {
			t.Errorf("%v: got %s, want %s", k, svc.GetHostname(), list[0].GetHostname())
		}
	}
	if fmt.Sprint(prefixNames(want)) != fmt.Sprint(prefixNames(got)) {
		t.Errorf("prefixes %v, want %v", prefixNames(got), prefixNames(want))
	}
	for _, svc := range want.Services() {
		a, b := want.Endpoints(svc), got.Endpoints(svc)
		if len(a) != len(b) {
			t.Fatalf("%s: %d endpoints, want %d", svc.GetHostname(), len(b), len(a))
		}
		for i := range a {
			if !proto.Equal(a[i].Workload, b[i].Workload) {
				t.Errorf("%s: endpoint %v, want %v", svc.GetHostname(), b[i], a[i])
			}
		}
	}
	for n, users := range want.bySettings.all() {
		if g := got.bySettings.at(n); g.size != users.size {
			t.Errorf("settings %s: %d users, want %d", n, g.size, users.size)
		}
	}
}

func prefixNames(s *Snapshot) (out []string) {
	for k, list := range s.networks.all() {
		for _, svc := range list {
			out = append(out, k.prefix.String()+" "+svc.GetHostname())
		}
	}
	slices.Sort(out)
	return append(out, fmt.Sprint(s.lengths))
}

func TestPmap(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	m, want := newPmap[int, int](maphash.MakeSeed()), map[int]int{}
	for range 20000 {
		k, v := r.IntN(3000), r.Int()
		before, had := m, m.at(k)
		if r.IntN(3) == 0 {
			m = m.delete(new(owner), k)
			delete(want, k)
		} else {
			m = m.set(new(owner), k, v)
			want[k] = v
		}
		if before.at(k) != had {
			t.Fatal("an old map changed")
		}
	}
	if m.size != len(want) {
		t.Fatalf("size %d, want %d", m.size, len(want))
	}
	n := 0
	for k, v := range m.all() {
		if n++; want[k] != v || m.at(k) != v {
			t.Fatalf("%d: got %d, want %d", k, v, want[k])
		}
	}
	if n != len(want) {
		t.Fatalf("visited %d, want %d", n, len(want))
	}
}

// TestPmapCollisions drives the lists at the bottom of the trie directly: equal hashes cannot be had from outside.
func TestPmapCollisions(t *testing.T) {
	e := new(owner)
	root := &trie[string, int]{edit: e}
	for i := range 40 {
		root, _ = root.set(e, 0, slot[string, int]{hash: 42, key: fmt.Sprint(i), val: i})
	}
	frozen := root
	for i := range 40 {
		if i%2 == 0 {
			root = root.delete(new(owner), 0, 42, fmt.Sprint(i))
		}
	}
	count := func(n *trie[string, int]) (c int) {
		n.visit(func(string, int) bool { c++; return true })
		return c
	}
	if count(root) != 20 || count(frozen) != 40 {
		t.Errorf("%d and %d entries, want 20 and 40", count(root), count(frozen))
	}
	for i := 1; i < 40; i += 2 {
		root = root.delete(new(owner), 0, 42, fmt.Sprint(i))
	}
	if root != nil {
		t.Error("the last deletion left a node")
	}
}

func BenchmarkDeltaOfOneIn100k(b *testing.B) {
	rs := make([]Resource, 0, 100_000)
	for i := range cap(rs) {
		rs = append(rs, pod("foo", fmt.Sprint(i), netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}).String(), in(fmt.Sprintf("foo/s%d", i%10))))
	}
	s := mustSnapshot(b, rs...)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		s = mustWith(b, s, rs[i%len(rs):i%len(rs)+1])
	}
}

func FuzzSnapshot(f *testing.F) {
	good, err := proto.Marshal(&workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: pod("a", "b", "10.0.0.1", in("a/b")).Message.(*workloadapi.Workload)}})
	if err != nil {
		f.Fatal(err)
	}
	svc, err := proto.Marshal(service("a", "b", "10.0.0.0/8", "::1").Message)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, svc)
	f.Fuzz(func(t *testing.T, a, b []byte) {
		s := empty()
		for _, raw := range [][]byte{a, b, a} {
			var m workloadapi.Address
			if proto.Unmarshal(raw, &m) != nil {
				return
			}
			next, err := s.With(1, []Resource{{Message: &m}}, nil)
			if err != nil {
				continue
			}
			s = next
		}
		var keys []Key
		for _, w := range s.Workloads() {
			if _, err := api.ParseIdentity(w.Identity.String()); err != nil {
				t.Errorf("identity: %v", err)
			}
			for _, k := range ipKeys(w) {
				if s.WorkloadByIP(k.network, k.ip) == nil {
					t.Errorf("%v is not found", k)
				}
			}
			keys = append(keys, Key{api.AddressType, w.GetUid()})
		}
		for _, svc := range s.Services() {
			s.Endpoints(svc)
			keys = append(keys, Key{api.AddressType, svc.GetNamespace() + "/" + svc.GetHostname()})
		}
		end, err := s.With(2, nil, keys)
		if err != nil {
			t.Fatal(err)
		}
		if n := end.workloads.size + end.services.size + end.byIP.size + end.byVIP.size + end.byName.size + end.members.size + end.bySettings.size + end.networks.size + len(end.lengths); n > 0 && len(keys) == s.workloads.size+s.services.size {
			for _, k := range keys {
				if s.WorkloadByUID(k.Name) != nil && s.ServiceByHost(parseName(k.Name).namespace, parseName(k.Name).name) != nil {
					return // a uid that is also a service's name: the first removal is the workload's
				}
			}
			t.Errorf("%d entries are left after everything was removed", n)
		}
	})
}

// TestScopeOf: what a workload sees is not known until the settings that name its scope, and the scope, are there.
func TestScopeOf(t *testing.T) {
	scope := func(hosts ...string) Resource {
		return Resource{Name: "s", Message: &settings.Scope{Egress: []*settings.Egress{{Hosts: hosts}}}}
	}
	look := func(s *Snapshot, name string) string {
		got, ok := s.ScopeOf(s.WorkloadByName("foo", name))
		if !ok {
			return "not known"
		}
		return fmt.Sprint(got.GetEgress())
	}
	s := mustSnapshot(t, pod("foo", "free", "10.0.0.1"), pod("foo", "limited", "10.0.0.2", withSettings(t, "h")))
	for i, step := range []struct {
		up   []Resource
		rm   []Key
		want string
	}{
		{nil, nil, "not known"},
		{[]Resource{{Name: "h", Message: &settings.WorkloadSettings{Scope: "s"}}}, nil, "not known"},
		{[]Resource{scope("./*")}, nil, `[hosts:"./*"]`},
		{[]Resource{scope("a/*")}, nil, `[hosts:"a/*"]`},
		{nil, []Key{{api.ScopeType, "s"}}, "not known"},
		{[]Resource{{Name: "h", Message: &settings.WorkloadSettings{}}}, nil, "[]"},
	} {
		s = mustWith(t, s, step.up, step.rm...)
		if got := strings.ReplaceAll(look(s, "limited"), "  ", " "); got != step.want {
			t.Errorf("step %d: %s, want %s", i, got, step.want)
		}
		if got := look(s, "free"); got != "[]" {
			t.Errorf("step %d: without settings: %s", i, got)
		}
	}
	if _, err := s.With(9, []Resource{{Name: "s", Message: &settings.Scope{Egress: []*settings.Egress{{Port: 1 << 16}}}}}, nil); err == nil ||
		!strings.Contains(err.Error(), "egress[0].port: 65536 is not a port") {
		t.Errorf("a port that is none: %v", err)
	}
}
