package policy

import (
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/ztunnel/http/head"
	"github.com/undermesh/undermesh/ztunnel/http/route"
)

// TestCallerThatIsNotKnown: nothing of the composition needs the workload.
func TestCallerThatIsNotKnown(t *testing.T) {
	outlier, err := anypb.New(&clusterv3.Cluster{OutlierDetection: &clusterv3.OutlierDetection{}})
	if err != nil {
		t.Fatal(err)
	}
	ports := func(s *workloadapi.Service) {
		s.Ports = []*workloadapi.Port{{ServicePort: 80, TargetPort: 8080}}
		s.Addresses = []*workloadapi.NetworkAddress{{Address: []byte{10, 96, 0, 1}}}
	}
	s, svc := build(t, service(nil, ports), endpoint("a", "n1"), client.Resource{Message: &settings.MeshSettings{CallDefaults: &settings.CallDefaults{Policy: &settings.CallPolicy{
		OutlierDetection: outlier, Balancing: &settings.Balancing{Locality: &settings.LocalityPolicy{FailoverPriority: []string{"x", "topology.istio.io/network"},
			Failover: map[string]string{"": "r"}, Distribute: []*settings.LocalityPolicy_Distribute{{From: "r", To: map[string]uint32{"r": 1}}}}}}}}})
	c, ok := NewCaller(s, nil)
	if !ok {
		t.Fatal("no caller")
	}
	for _, authority := range []string{"web.foo", "10.96.0.1", "nobody", ""} {
		target := c.Target(80, authority, nil)
		vh, inputs := c.VirtualHost(target)
		if len(vh.GetRoutes()) == 0 || !inputs.Hold(c) {
			t.Error(authority, vh)
		}
	}
	for _, spec := range c.Clusters() {
		if spec.Service != nil && len(c.Endpoints(spec)) != 1 {
			t.Error("endpoints of", spec.Cluster.GetName())
		}
	}
	if len(c.RouteConfigs()) != 1 {
		t.Error(c.RouteConfigs())
	}
	in := StreamInput{Port: 80, SNI: "x", Dialled: svc}
	if r, ok := c.TCPRoute(in); !ok || len(r.Clusters) != 1 {
		t.Error(r)
	}
	if r, ok := c.TLSRoute(in); !ok || len(r.Clusters) != 1 {
		t.Error(r)
	}
}

// TestPatternsAndPorts: what a VirtualService with a pattern means for services that it covers, on ports that they have and on others:
// as Istio makes virtual hosts, of a port's services, and of other hosts on port 80 only when they are named.
func TestPatternsAndPorts(t *testing.T) {
	named := func(name string, port uint32, protocol string) client.Resource {
		set, err := anypb.New(&settings.ServiceSettings{AppProtocols: map[uint32]string{port: protocol}})
		if err != nil {
			t.Fatal(err)
		}
		return service(nil, func(s *workloadapi.Service) {
			s.Name, s.Hostname = name, name+".foo.svc.cluster.local"
			s.Ports = []*workloadapi.Port{{ServicePort: port, TargetPort: 8080}}
			s.Extensions = []*workloadapi.Extension{{Name: api.ServiceSettingsExtension, Config: set}}
		})
	}
	rule := func(hosts ...string) client.Resource {
		packed, err := anypb.New(&routev3.Route{Name: "rule", Match: everyRequest(), Action: &routev3.Route_DirectResponse{
			DirectResponse: &routev3.DirectResponseAction{Status: 418}}})
		if err != nil {
			t.Fatal(err)
		}
		return client.Resource{Message: &settings.RouteRule{Namespace: "foo", Name: "v", Hosts: hosts, Http: []*settings.HttpRule{{Route: packed}}}}
	}
	for _, tc := range []struct {
		name, host, authority string
		port                  uint16
		want                  string // name of the route
	}{
		{"a service with the port", "*.foo.svc.cluster.local", "web.foo.svc.cluster.local", 81, "rule"},
		{"by its short name", "*.foo.svc.cluster.local", "web", 81, "rule"},
		{"a service without the port", "*.foo.svc.cluster.local", "other.foo.svc.cluster.local", 81, "allow_any"},
		{"every host, a service without the port", "*", "other.foo.svc.cluster.local", 81, "allow_any"},
		{"every host, by its short name", "*", "other", 81, "allow_any"},
		{"every host, port 80", "*", "other.foo.svc.cluster.local", 80, "allow_any"},
		{"every host, a port that is not of HTTP", "*", "raw.foo.svc.cluster.local", 83, "allow_any"},
		{"every host, one in no registry", "*", "example.com", 81, "rule"},
		{"a domain, one in no registry", "*.example.com", "a.example.com", 81, "rule"},
		{"a domain, one outside of it", "*.example.com", "example.org", 81, "allow_any"},
		{"named, port 80", "other.foo.svc.cluster.local", "other", 80, "rule"},
		{"named, another port that it does not have", "other.foo.svc.cluster.local", "other", 81, "allow_any"},
		{"named, a port that is not of HTTP", "raw.foo.svc.cluster.local", "raw", 83, "allow_any"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, _ := build(t, named("web", 81, "http"), named("other", 82, "http"), named("raw", 83, "tcp"), named("more", 80, "http"), named("much", 83, "http"),
				rule(tc.host))
			c := Caller{Snapshot: s, View: View{Namespace: "foo"}}
			vh, _ := c.VirtualHost(c.Target(tc.port, tc.authority, nil))
			if got := vh.GetRoutes()[0].GetName(); got != tc.want {
				t.Errorf("goes by route %s of %s, want %s", got, vh.GetName(), tc.want)
			}
			for _, rc := range c.RouteConfigs() {
				if rc.GetName() != portText(tc.port) {
					continue
				}
				compiled, err := route.CompileConfig(rc)
				if err != nil {
					t.Fatal(err)
				}
				var req head.Request
				req.Reset(nil)
				req.Method, req.Scheme, req.Authority, req.Path = []byte("GET"), []byte("http"), []byte(tc.authority), []byte("/")
				if got := compiled.Find([]byte(tc.authority), &route.Input{}).Match(&req, &route.Input{}).Name; got != tc.want {
					t.Errorf("in the configuration of Envoy it goes by %s, want %s", got, tc.want)
				}
				return
			}
			t.Error("the port has no configuration")
		})
	}
}

// TestHeadersThatRoutesTell: what the mesh says of them, also when it says it later.
func TestHeadersThatRoutesTell(t *testing.T) {
	packed := func(m proto.Message) *anypb.Any {
		out, err := anypb.New(m)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	rule := client.Resource{Message: &settings.RouteRule{Namespace: "foo", Name: "v", Hosts: []string{"example.com"}, Http: []*settings.HttpRule{{Route: packed(
		&routev3.Route{Match: everyRequest(), Action: &routev3.Route_Route{Route: &routev3.RouteAction{
			ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: "outbound|80||example.com"}}}})}}}}
	compose := func(h *meshv1alpha1.ProxyConfig_ProxyHeaders) (c Caller, attempts, host bool, in Inputs) {
		s, _ := build(t, rule, service(nil), client.Resource{Message: &settings.MeshSettings{DefaultConfig: packed(&meshv1alpha1.ProxyConfig{ProxyHeaders: h})}})
		c = Caller{Snapshot: s, View: View{Namespace: "foo"}}
		vh, in := c.VirtualHost(c.Target(80, "example.com", nil))
		return c, vh.GetIncludeRequestAttemptCount(), vh.GetRoutes()[0].GetRoute().GetAppendXForwardedHost(), in
	}
	_, attempts, host, in := compose(nil)
	if !attempts || host {
		t.Errorf("by default: %v, %v", attempts, host)
	}
	c, attempts, host, _ := compose(&meshv1alpha1.ProxyConfig_ProxyHeaders{
		AttemptCount:   &meshv1alpha1.ProxyConfig_ProxyHeaders_AttemptCount{Disabled: wrapperspb.Bool(true)},
		XForwardedHost: &meshv1alpha1.ProxyConfig_ProxyHeaders_XForwardedHost{Enabled: wrapperspb.Bool(true)}})
	if attempts || !host {
		t.Errorf("otherwise: %v, %v", attempts, host)
	}
	if in.Hold(c) {
		t.Error("what was composed before is taken for good")
	}
}
