package policy

import (
	"net/netip"
	"testing"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
)

type tlsMode = settings.ClientTls_Mode

const (
	auto        = settings.ClientTls_MODE_AUTO
	disable     = settings.ClientTls_MODE_DISABLE
	simple      = settings.ClientTls_MODE_SIMPLE
	mutual      = settings.ClientTls_MODE_MUTUAL
	istioMutual = settings.ClientTls_MODE_ISTIO_MUTUAL
)

// callRule is one that is for everybody and for the host alone.
func callRule(n string, made int64, mode tlsMode, edit ...func(*settings.CallRule)) client.Resource {
	r := &settings.CallRule{Namespace: "foo", Name: n, Host: "web.foo.svc.cluster.local", Created: &timestamppb.Timestamp{Seconds: made},
		Tls: &settings.ClientTlsPolicy{Host: &settings.ClientTls{Mode: mode}}}
	for _, e := range edit {
		e(r)
	}
	return client.Resource{Message: r}
}

func onPort(port uint32, mode tlsMode) func(*settings.CallRule) {
	return func(r *settings.CallRule) { r.Tls.Ports = map[uint32]*settings.ClientTls{port: {Mode: mode}} }
}

func byCredential(name string) func(*settings.CallRule) {
	return func(r *settings.CallRule) { r.Tls.Host.CredentialName = name }
}

func selective(r *settings.CallRule) { r.Selective = true }

// TestPathByClientMode: what a DestinationRule says of TLS decides how its clients connect, and never lets them connect
// with less than it asks for.
func TestPathByClientMode(t *testing.T) {
	type query = PathQuery
	plain := func(w *workloadapi.Workload) { w.TunnelProtocol = workloadapi.TunnelProtocol_NONE }
	local := func(q *query) { q.Local = true }
	byIP := func(q *query) { q.Service, q.ServicePort = nil, 0 }
	served := func(m settings.MtlsMode) *settings.WorkloadSettings { return &settings.WorkloadSettings{Mtls: m} }
	for _, tc := range []struct {
		name    string
		rules   []client.Resource
		dst     func(*workloadapi.Workload)
		set     *settings.WorkloadSettings // of the destination and of the caller
		vip     bool
		edit    func(*query)
		want    Kind
		refused reason.Reason
		hidden  bool
		origin  bool // TLS of the caller's own
	}{
		{name: "control: no rule", want: Tunnel},
		{name: "a rule without tls", rules: []client.Resource{callRule("r", 1, auto)}, want: Tunnel},
		{name: "DISABLE", rules: []client.Resource{callRule("r", 1, disable)}, want: Passthrough, hidden: true},
		{name: "DISABLE, same node", rules: []client.Resource{callRule("r", 1, disable)}, edit: local, want: Passthrough, hidden: true},
		{name: "DISABLE of a STRICT server", rules: []client.Resource{callRule("r", 1, disable)}, set: served(settings.MtlsMode_MTLS_STRICT), want: Passthrough, hidden: true},
		{name: "ISTIO_MUTUAL", rules: []client.Resource{callRule("r", 1, istioMutual)}, want: Tunnel},
		{name: "ISTIO_MUTUAL, same node", rules: []client.Resource{callRule("r", 1, istioMutual)}, edit: local, want: Tunnel},
		{name: "ISTIO_MUTUAL, server outside the mesh", rules: []client.Resource{callRule("r", 1, istioMutual)}, dst: plain, want: Reject, refused: reason.ClientTLS},
		{name: "ISTIO_MUTUAL, server with DISABLE", rules: []client.Resource{callRule("r", 1, istioMutual)}, set: served(settings.MtlsMode_MTLS_DISABLE), want: Reject, refused: reason.ClientTLS},
		{name: "ISTIO_MUTUAL, no endpoint known", rules: []client.Resource{callRule("r", 1, istioMutual)}, edit: func(q *query) { q.Destination = nil }, want: Reject, refused: reason.ClientTLS},
		{name: "SIMPLE", rules: []client.Resource{callRule("r", 1, simple)}, want: Passthrough, hidden: true, origin: true},
		{name: "SIMPLE, same node", rules: []client.Resource{callRule("r", 1, simple)}, edit: local, want: Passthrough, hidden: true, origin: true},
		{name: "SIMPLE, server outside the mesh", rules: []client.Resource{callRule("r", 1, simple)}, dst: plain, want: Passthrough, origin: true},
		{name: "SIMPLE, no endpoint known", rules: []client.Resource{callRule("r", 1, simple)}, edit: func(q *query) { q.Destination = nil }, want: Passthrough, origin: true},
		{name: "MUTUAL, by files", rules: []client.Resource{callRule("r", 1, mutual)}, want: Reject, refused: reason.ClientTLS},
		{name: "MT-13 MUTUAL, by a Secret for nobody", rules: []client.Resource{callRule("r", 1, mutual, byCredential("s"))}, want: Reject, refused: reason.ClientTLS},
		{name: "MT-13 MUTUAL, by a Secret", rules: []client.Resource{callRule("r", 1, mutual, byCredential("s"), selective)},
			set: &settings.WorkloadSettings{CallRules: []string{"foo/r"}}, want: Passthrough, hidden: true, origin: true},
		{name: "MT-13 MUTUAL, by a Secret of a namespace", rules: []client.Resource{callRule("r", 1, mutual, byCredential("kubernetes://bar/s"), selective)},
			set: &settings.WorkloadSettings{CallRules: []string{"foo/r"}}, want: Reject, refused: reason.ClientTLS},
		{name: "another port", rules: []client.Resource{callRule("r", 1, istioMutual, onPort(81, disable))}, want: Tunnel},
		{name: "MT-07 the port", rules: []client.Resource{callRule("r", 1, istioMutual, onPort(80, disable))}, want: Passthrough, hidden: true},
		{name: "the port's settings count whole", rules: []client.Resource{callRule("r", 1, disable, onPort(80, auto))}, want: Tunnel},
		{name: "the older counts", rules: []client.Resource{callRule("a", 2, disable), callRule("b", 1, istioMutual)}, want: Tunnel},
		{name: "the older says nothing of calls", rules: []client.Resource{callRule("a", 2, disable), callRule("b", 1, auto, func(r *settings.CallRule) { r.Tls = nil })}, want: Passthrough, hidden: true},
		{name: "selects others", rules: []client.Resource{callRule("r", 1, disable, func(r *settings.CallRule) { r.Selective = true })}, want: Tunnel},
		{name: "selects the caller", rules: []client.Resource{callRule("all", 1, simple), callRule("r", 2, disable, func(r *settings.CallRule) { r.Selective = true })},
			set: &settings.WorkloadSettings{CallRules: []string{"foo/r"}}, want: Passthrough, hidden: true},
		{name: "a pattern", rules: []client.Resource{callRule("r", 1, disable, func(r *settings.CallRule) { r.Host = "*.local" })}, want: Passthrough, hidden: true},
		{name: "another host", rules: []client.Resource{callRule("r", 1, disable, func(r *settings.CallRule) { r.Host = "b.foo.svc.cluster.local" })}, want: Tunnel},
		{name: "a pod of a headless service", rules: []client.Resource{callRule("r", 1, disable)}, edit: byIP, want: Passthrough, hidden: true},
		{name: "a pod by its address", rules: []client.Resource{callRule("r", 1, disable)}, vip: true, edit: byIP, want: Tunnel},
		{name: "a headless service's other port", rules: []client.Resource{callRule("r", 1, disable)}, edit: func(q *query) { byIP(q); q.Address = netip.AddrPortFrom(q.Address.Addr(), 8081) }, want: Tunnel},
		{name: "MT-15 names of the rule", rules: []client.Resource{callRule("r", 1, istioMutual, func(r *settings.CallRule) {
			r.Tls.Host.SubjectAltNames = []string{"spiffe://cluster.local/ns/foo/sa/b"}
		})}, want: Reject, refused: reason.PeerIdentity},
		{name: "MT-15 the right name of the rule", rules: []client.Resource{callRule("r", 1, istioMutual, func(r *settings.CallRule) {
			r.Tls.Host.SubjectAltNames = []string{"spiffe://cluster.local/ns/foo/sa/sa"}
		})}, want: Tunnel},
	} {
		t.Run(tc.name, func(t *testing.T) {
			src, d := endpoint("src", "n1"), endpoint("dst", "n2")
			rs := append(tc.rules, src, service(nil, func(s *workloadapi.Service) {
				if tc.vip {
					s.Addresses = []*workloadapi.NetworkAddress{{Address: []byte{10, 96, 0, 1}}}
				}
			}))
			if tc.dst != nil {
				tc.dst(d.Message.(*workloadapi.Workload))
			}
			if tc.set != nil {
				configured(t)(src.Message.(*workloadapi.Workload))
				configured(t)(d.Message.(*workloadapi.Workload))
				rs = append(rs, client.Resource{Name: "h", Message: tc.set})
			}
			s, svc := build(t, append(rs, d)...)
			q := query{Snapshot: s, Service: svc, ServicePort: 80, Source: s.WorkloadByName("foo", "src"), Captured: true,
				Destination: s.WorkloadByName("foo", "dst"), Address: netip.MustParseAddrPort("10.0.0.9:8080")}
			if tc.edit != nil {
				tc.edit(&q)
			}
			p := PathFor(q)
			if p.Kind != tc.want || p.Refused != tc.refused || p.Anonymous != tc.hidden || p.Reason == "" || (p.Originate != nil) != tc.origin || (p.Called != nil) != tc.origin {
				t.Errorf("got %s (%s, %s), anonymous %t, TLS %v; want %s (%s), %t, %t", p.Kind, p.Reason, p.Refused, p.Anonymous, p.Originate, tc.want, tc.refused,
					tc.hidden, tc.origin)
			}
		})
	}
}

// TestCallRulesByPlace: the caller's namespace, then the service's, then the root namespace; each as far as it is exported.
func TestCallRulesByPlace(t *testing.T) {
	in := func(namespace string, exportTo ...string) func(*settings.CallRule) {
		return func(r *settings.CallRule) { r.Namespace, r.ExportTo = namespace, exportTo }
	}
	own, theirs, root := callRule("r", 1, simple, in("caller")), callRule("r", 1, disable, in("foo")), callRule("r", 1, mutual, in("istio-system"))
	for name, tc := range map[string]struct {
		rules []client.Resource
		want  tlsMode
	}{
		"all":                         {[]client.Resource{own, theirs, root}, simple},
		"service and root":            {[]client.Resource{theirs, root}, disable},
		"root":                        {[]client.Resource{root}, mutual},
		"the service's is its own":    {[]client.Resource{callRule("r", 1, disable, in("foo", "~")), root}, mutual},
		"exported to another":         {[]client.Resource{callRule("r", 1, disable, in("foo", "bar")), root}, mutual},
		"exported to the caller":      {[]client.Resource{callRule("r", 1, disable, in("foo", "bar", "caller")), root}, disable},
		"the own one counts whatever": {[]client.Resource{callRule("r", 1, simple, in("caller", "~")), root}, simple},
		"of a fourth namespace":       {[]client.Resource{callRule("r", 1, simple, in("bar"))}, auto},
	} {
		w := endpoint("src", "n1", func(w *workloadapi.Workload) { w.Namespace = "caller" })
		s, svc := build(t, append(tc.rules, w, service(nil))...)
		if tls, rule := CallTLS(s, s.WorkloadByName("caller", "src"), svc, 80, ""); tls.GetMode() != tc.want {
			t.Errorf("%s: %s by %q, want %s", name, tls.GetMode(), rule, tc.want)
		}
	}
}

// TestCallRulesOfOthersLists: who lists the address of another namespace's pod, as a service without an address of its own, has
// no say in how the pod is reached.
func TestCallRulesOfOthersLists(t *testing.T) {
	const evil = "evil/a.evil.svc.cluster.local"
	ports := &workloadapi.PortList{Ports: []*workloadapi.Port{{ServicePort: 80, TargetPort: 8080}}}
	for _, mode := range []tlsMode{disable, simple} {
		s, _ := build(t, endpoint("src", "n1"), endpoint("dst", "n2", func(w *workloadapi.Workload) { w.Services[evil] = ports }),
			client.Resource{Message: &workloadapi.Service{Name: "a", Namespace: "evil", Hostname: "a.evil.svc.cluster.local", Ports: ports.GetPorts()}},
			callRule("r", 1, mode, func(r *settings.CallRule) { r.Namespace, r.Host = "evil", "a.evil.svc.cluster.local" }))
		p := PathFor(PathQuery{Snapshot: s, Source: s.WorkloadByName("foo", "src"), Captured: true,
			Destination: s.WorkloadByName("foo", "dst"), Address: netip.MustParseAddrPort("10.0.0.9:8080")})
		if p.Kind != Tunnel || p.Anonymous {
			t.Errorf("%s: %s (%s)", mode, p.Kind, p.Reason)
		}
	}
}

// TestCallRulesOfTwoHeadlessServices: of a pod that two of them lead to, the rules of that one count that was called, by the subset too.
func TestCallRulesOfTwoHeadlessServices(t *testing.T) {
	ports := &workloadapi.PortList{Ports: []*workloadapi.Port{{ServicePort: 80, TargetPort: 8080}}}
	other := &workloadapi.Service{Name: "z", Namespace: "foo", Hostname: "z.foo.svc.cluster.local", Ports: ports.GetPorts()}
	s, _ := build(t, service(nil), endpoint("src", "n1"), endpoint("dst", "n2", func(w *workloadapi.Workload) { w.Services["foo/"+other.GetHostname()] = ports }),
		client.Resource{Message: other}, callRule("z", 1, istioMutual, func(r *settings.CallRule) {
			r.Host, r.Subsets = other.GetHostname(), []*settings.Subset{{Name: "v1"}}
			r.Tls.Subsets = map[string]*settings.ClientTlsPolicy{"v1": {Host: &settings.ClientTls{Mode: disable}}}
		}))
	at, dst := netip.MustParseAddrPort("10.0.0.9:8080"), s.WorkloadByName("foo", "dst")
	c, ok := NewCaller(s, s.WorkloadByName("foo", "src"))
	if !ok {
		t.Fatal("no caller")
	}
	if svc, port := c.Headless(dst, at); svc == nil || svc.GetName() == "z" || port != 80 {
		t.Errorf("the first by name: %v, %d", svc, port)
	}
	if svc, _ := c.Headless(dst, netip.MustParseAddrPort("10.0.0.9:8081")); svc != nil {
		t.Errorf("another port: %v", svc)
	}
	c.View.Scope = &settings.Scope{Egress: []*settings.Egress{{Hosts: []string{"bar/*"}}}}
	if svc, _ := c.Headless(dst, at); svc != nil {
		t.Errorf("a service that is not seen: %v", svc)
	}
	q := PathQuery{Snapshot: s, Source: c.Workload, Captured: true, Destination: dst, Address: at, Subset: "v1"}
	if p := PathFor(q); p.Kind != Tunnel {
		t.Errorf("control: by the first service's name: %s (%s)", p.Kind, p.Reason)
	}
	q.Behind = s.ServiceByHost("foo", other.GetHostname())
	if p := PathFor(q); p.Kind != Passthrough || !p.Anonymous {
		t.Errorf("the subset of the other service: %s (%s)", p.Kind, p.Reason)
	}
}
