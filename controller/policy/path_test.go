package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
)

const svcKey = "foo/web.foo.svc.cluster.local"

// endpoint is a pod on a node that serves port 80 on 8080.
func endpoint(n, node string, edit ...func(*workloadapi.Workload)) client.Resource {
	w := &workloadapi.Workload{
		Uid: "Kubernetes//Pod/foo/" + n, Name: n, Namespace: "foo", ServiceAccount: "sa", Node: node,
		Addresses: [][]byte{{10, 0, 0, byte(len(n)*16 + int(n[len(n)-1]))}}, TunnelProtocol: workloadapi.TunnelProtocol_HBONE,
		Services: map[string]*workloadapi.PortList{svcKey: {Ports: []*workloadapi.Port{{ServicePort: 80, TargetPort: 8080}}}},
	}
	for _, e := range edit {
		e(w)
	}
	return client.Resource{Message: w}
}

func service(lb *workloadapi.LoadBalancing, edit ...func(*workloadapi.Service)) client.Resource {
	s := &workloadapi.Service{Name: "web", Namespace: "foo", Hostname: "web.foo.svc.cluster.local", LoadBalancing: lb}
	for _, e := range edit {
		e(s)
	}
	return client.Resource{Message: s}
}

func build(t testing.TB, rs ...client.Resource) (*client.Snapshot, *client.Service) {
	t.Helper()
	s, err := client.NewSnapshot(rs...)
	if err != nil {
		t.Fatal(err)
	}
	return s, s.ServiceByHost("foo", "web.foo.svc.cluster.local")
}

func configured(t testing.TB) func(*workloadapi.Workload) {
	ref, err := anypb.New(&settings.SettingsRef{Name: "h"})
	if err != nil {
		t.Fatal(err)
	}
	return func(w *workloadapi.Workload) {
		w.Extensions = []*workloadapi.Extension{{Name: api.WorkloadSettingsExtension, Config: ref}}
	}
}

func TestPathFor(t *testing.T) {
	type query = PathQuery
	plain := func(w *workloadapi.Workload) { w.TunnelProtocol = workloadapi.TunnelProtocol_NONE }
	for _, tc := range []struct {
		name    string
		dst     func(*workloadapi.Workload)
		set     *settings.WorkloadSettings
		mesh    *settings.MeshSettings
		edit    func(*query)
		want    Kind
		refused reason.Reason
	}{
		{name: "another node", want: Tunnel},
		{name: "same node", edit: func(q *query) { q.Local = true }, want: Proxied},
		{name: "same node, STRICT", set: &settings.WorkloadSettings{Mtls: settings.MtlsMode_MTLS_STRICT}, edit: func(q *query) { q.Local = true }, want: Tunnel},
		{name: "same node, STRICT on another port", set: &settings.WorkloadSettings{PortMtls: map[uint32]settings.MtlsMode{1: settings.MtlsMode_MTLS_STRICT}}, edit: func(q *query) { q.Local = true }, want: Proxied},
		{name: "same node, STRICT on the port", set: &settings.WorkloadSettings{PortMtls: map[uint32]settings.MtlsMode{8080: settings.MtlsMode_MTLS_STRICT}}, edit: func(q *query) { q.Local = true }, want: Tunnel},
		{name: "same node, STRICT, proxied by setting", set: &settings.WorkloadSettings{Mtls: settings.MtlsMode_MTLS_STRICT, SameNode: settings.SameNode_SAME_NODE_PROXIED}, edit: func(q *query) { q.Local = true }, want: Proxied},
		{name: "same node, mesh says tunnel", mesh: &settings.MeshSettings{SameNode: settings.SameNode_SAME_NODE_TUNNEL}, edit: func(q *query) { q.Local = true }, want: Tunnel},
		{name: "same node, direct is not built", mesh: &settings.MeshSettings{SameNode: settings.SameNode_SAME_NODE_DIRECT}, edit: func(q *query) { q.Local = true }, want: Proxied},
		{name: "DISABLE", set: &settings.WorkloadSettings{Mtls: settings.MtlsMode_MTLS_DISABLE}, want: Passthrough},
		{name: "destination not enrolled", dst: plain, want: Passthrough},
		{name: "source unknown", edit: func(q *query) { q.Source = nil }, want: Passthrough},
		{name: "destination unknown", edit: func(q *query) { q.Destination = nil }, want: Passthrough},
		{name: "destination unknown, REGISTRY_ONLY", mesh: &settings.MeshSettings{OutboundPolicy: settings.OutboundPolicy_REGISTRY_ONLY}, edit: func(q *query) { q.Destination = nil }, want: Reject, refused: reason.OutboundBlocked},
		{name: "no snapshot", edit: func(q *query) { q.Snapshot = nil }, want: Reject, refused: reason.NotReady},
		{name: "mesh port", edit: func(q *query) { q.Address = netip.AddrPortFrom(q.Address.Addr(), 15008) }, want: Reject, refused: reason.MeshPort},
		{name: "waypoint", dst: func(w *workloadapi.Workload) { w.Waypoint = &workloadapi.GatewayAddress{} }, want: Reject, refused: reason.PolicyUnenforceable},
		{name: "another network", dst: func(w *workloadapi.Workload) { w.Network = "n2" }, want: Reject, refused: reason.NoEndpoint},
	} {
		t.Run(tc.name, func(t *testing.T) {
			rs := []client.Resource{endpoint("src", "n1")}
			d := endpoint("dst", "n2")
			if tc.dst != nil {
				tc.dst(d.Message.(*workloadapi.Workload))
			}
			if tc.set != nil {
				configured(t)(d.Message.(*workloadapi.Workload))
				rs = append(rs, client.Resource{Name: "h", Message: tc.set})
			}
			if tc.mesh != nil {
				rs = append(rs, client.Resource{Message: tc.mesh})
			}
			s, _ := build(t, append(rs, d)...)
			q := query{Snapshot: s, Source: s.WorkloadByName("foo", "src"), Destination: s.WorkloadByName("foo", "dst"), Address: netip.MustParseAddrPort("10.0.0.9:8080")}
			if tc.edit != nil {
				tc.edit(&q)
			}
			p := PathFor(q)
			if p.Kind != tc.want || p.Refused != tc.refused || p.Reason == "" || (p.Kind == Reject) != (p.Refused != reason.None) {
				t.Errorf("got %s (%s, %s), want %s (%s)", p.Kind, p.Reason, p.Refused, tc.want, tc.refused)
			}
			if (p.Kind == Tunnel) != (len(p.ServerIdentities) > 0 && p.TunnelPort == 15008) {
				t.Errorf("tunnel to port %d, identities %v", p.TunnelPort, p.ServerIdentities)
			}
		})
	}
	if (Path{}).Kind != Reject {
		t.Error("a path that nobody decided does not refuse")
	}
}

func TestMT15SecureNaming(t *testing.T) {
	sans := func(s ...string) func(*workloadapi.Service) {
		return func(svc *workloadapi.Service) { svc.SubjectAltNames = s }
	}
	for san, want := range map[string]reason.Reason{
		"spiffe://cluster.local/ns/foo/sa/sa": reason.None, "spiffe://cluster.local/ns/foo/sa/other": reason.PeerIdentity,
	} {
		s, svc := build(t, endpoint("src", "n1"), endpoint("dst", "n2"), service(nil, sans(san)))
		p := PathFor(PathQuery{Snapshot: s, Service: svc, Source: s.WorkloadByName("foo", "src"), Destination: s.WorkloadByName("foo", "dst"), Address: netip.MustParseAddrPort("10.0.0.9:8080")})
		if p.Refused != want {
			t.Errorf("MT-15 %s: got %s, want %s", san, p.Refused, want)
		}
	}
}

func TestMT23ServerIdentitiesInAliases(t *testing.T) {
	s, _ := build(t, endpoint("src", "n1"), endpoint("dst", "n2"), client.Resource{Message: &settings.MeshSettings{TrustDomain: "new", TrustDomainAliases: []string{"old"}}})
	p := PathFor(PathQuery{Snapshot: s, Source: s.WorkloadByName("foo", "src"), Destination: s.WorkloadByName("foo", "dst"), Address: netip.MustParseAddrPort("10.0.0.9:8080")})
	if got := fmt.Sprint(p.ServerIdentities); got != "[spiffe://new/ns/foo/sa/sa spiffe://old/ns/foo/sa/sa]" {
		t.Errorf("got %s", got)
	}
}

// counts picks often and returns how often each endpoint was chosen.
func counts(t *testing.T, s *client.Snapshot, svc *client.Service, src *client.Workload, clientIP string, n int) map[string]int {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	out := map[string]int{}
	for range n {
		c, why := Pick(PickQuery{Snapshot: s, Service: svc, Port: 80, Source: src, Client: netip.MustParseAddr(clientIP)}, r)
		if why != reason.None {
			out[why.String()]++
			continue
		}
		out[fmt.Sprintf("%s:%d", c.Workload.GetName(), c.Port)]++
	}
	return out
}

func TestPickEligibility(t *testing.T) {
	sick := func(w *workloadapi.Workload) { w.Status = workloadapi.WorkloadStatus_UNHEALTHY }
	named := func(w *workloadapi.Workload) { w.Services[svcKey].Ports[0].TargetPort = 9090 }
	unnamed := func(w *workloadapi.Workload) { w.Services[svcKey].Ports[0].TargetPort = 0 }
	rs := []client.Resource{endpoint("a", "n1"), endpoint("b", "n2", named), endpoint("c", "n1", sick), endpoint("d", "n1", unnamed)}
	s, svc := build(t, append(rs, service(nil))...)
	got := counts(t, s, svc, nil, "10.1.1.1", 4000)
	if len(got) != 2 || got["a:8080"] < 1800 || got["b:9090"] < 1800 {
		t.Errorf("got %v", got)
	}
	s, svc = build(t, append(rs, service(&workloadapi.LoadBalancing{HealthPolicy: workloadapi.LoadBalancing_ALLOW_ALL}))...)
	if got := counts(t, s, svc, nil, "10.1.1.1", 300); len(got) != 3 || got["c:8080"] == 0 {
		t.Errorf("publishNotReadyAddresses: %v", got)
	}
	if c, why := Pick(PickQuery{Snapshot: s, Service: svc, Port: 81}, rand.New(rand.NewPCG(1, 1))); why != reason.NoEndpoint || c.Workload != nil {
		t.Errorf("an undeclared port: %+v, %s", c, why)
	}
	if _, why := Pick(PickQuery{Port: 80}, nil); why != reason.NoEndpoint {
		t.Errorf("no service: %s", why)
	}
}

func TestPickLocality(t *testing.T) {
	zone := func(z string) func(*workloadapi.Workload) {
		return func(w *workloadapi.Workload) { w.Locality = &workloadapi.Locality{Region: "r", Zone: z} }
	}
	lb := func(m workloadapi.LoadBalancing_Mode, s ...workloadapi.LoadBalancing_Scope) client.Resource {
		return service(&workloadapi.LoadBalancing{Mode: m, RoutingPreference: s})
	}
	const strict, failover = workloadapi.LoadBalancing_STRICT, workloadapi.LoadBalancing_FAILOVER
	const node, zoneScope = workloadapi.LoadBalancing_NODE, workloadapi.LoadBalancing_ZONE
	pods := []client.Resource{endpoint("a", "n1", zone("z1")), endpoint("b", "n2", zone("z1")), endpoint("c", "n3", zone("z2"))}
	for _, tc := range []struct {
		name string
		svc  client.Resource
		node string
		zone string
		want string
	}{
		{"internalTrafficPolicy Local", lb(strict, node), "n2", "z1", "map[b:8080:50]"},
		{"internalTrafficPolicy Local, none here", lb(strict, node), "n9", "z1", "map[no_endpoint:50]"},
		{"internalTrafficPolicy Local, node unknown", lb(strict, node), "", "z1", "map[no_endpoint:50]"},
		{"prefer zone", lb(failover, zoneScope), "n9", "z2", "map[c:8080:50]"},
		{"prefer zone, none there", lb(failover, zoneScope), "n9", "z9", "all"},
		{"prefer zone, then node", lb(failover, zoneScope, node), "n1", "z1", "map[a:8080:50]"},
		{"no preference", service(nil), "n1", "z1", "all"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, svc := build(t, append(pods, tc.svc, endpoint("src", tc.node, zone(tc.zone), func(w *workloadapi.Workload) { w.Services = nil }))...)
			got := counts(t, s, svc, s.WorkloadByName("foo", "src"), "10.1.1.1", 50)
			if tc.want == "all" && len(got) == 3 {
				return
			}
			if fmt.Sprint(got) != tc.want {
				t.Errorf("got %v, want %s", got, tc.want)
			}
		})
	}
	s, svc := build(t, append(pods, lb(strict, node))...)
	if got := counts(t, s, svc, nil, "10.1.1.1", 5); got["no_endpoint"] != 5 {
		t.Errorf("an unknown source is local to %v", got)
	}
}

func TestPickCapacity(t *testing.T) {
	weigh := func(n uint32) func(*workloadapi.Workload) {
		return func(w *workloadapi.Workload) { w.Capacity = wrapperspb.UInt32(n) }
	}
	s, svc := build(t, endpoint("a", "n1", weigh(3)), endpoint("b", "n1"), endpoint("c", "n1", weigh(0)), service(nil))
	got := counts(t, s, svc, nil, "10.1.1.1", 4000)
	if len(got) != 2 || got["a:8080"] < 2800 || got["a:8080"] > 3200 {
		t.Errorf("got %v, want 3 to 1", got)
	}
}

func TestPickClientIPAffinity(t *testing.T) {
	set, err := anypb.New(&settings.ServiceSettings{ClientIpAffinity: durationpb.New(10800e9)})
	if err != nil {
		t.Fatal(err)
	}
	sticky := service(nil, func(s *workloadapi.Service) {
		s.Extensions = []*workloadapi.Extension{{Name: api.ServiceSettingsExtension, Config: set}}
	})
	var pods []client.Resource
	for i := range 8 {
		pods = append(pods, endpoint(fmt.Sprint("p", i), "n1"))
	}
	s, svc := build(t, append(pods, sticky)...)
	fewer, svc2 := build(t, append(pods[:7:7], sticky)...)
	used, moved := map[string]int{}, 0
	for i := range 800 {
		ip := fmt.Sprintf("10.1.%d.%d", i/200, i%200)
		got := counts(t, s, svc, nil, ip, 3)
		if len(got) != 1 {
			t.Fatalf("%s went to %v", ip, got)
		}
		mapped := counts(t, s, svc, nil, "::ffff:"+ip, 1)
		after := counts(t, fewer, svc2, nil, ip, 1)
		for k := range got {
			used[k]++
			if mapped[k] != 1 {
				t.Errorf("%s: the mapped form goes elsewhere", ip)
			}
			if after[k] != 1 {
				if moved++; k != "p7:8080" {
					t.Errorf("%s left %s, which lives", ip, k)
				}
			}
		}
	}
	for k, n := range used {
		if n < 50 || n > 160 {
			t.Errorf("%s has %d of 800 clients", k, n)
		}
	}
	if len(used) != 8 || moved != used["p7:8080"] {
		t.Errorf("%d endpoints used, %d clients moved", len(used), moved)
	}
}

func TestPickAllocates(t *testing.T) {
	s, svc := build(t, endpoint("a", "n1"), endpoint("b", "n1"), service(nil))
	r, ip := rand.New(rand.NewPCG(1, 2)), netip.MustParseAddr("10.1.1.1")
	// One string, the key of the service.
	if n := testing.AllocsPerRun(100, func() { Pick(PickQuery{Snapshot: s, Service: svc, Port: 80, Client: ip}, r) }); n > 1 {
		t.Errorf("%v allocations a choice", n)
	}
}
