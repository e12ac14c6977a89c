package policy

import (
	"testing"

	"google.golang.org/protobuf/types/known/anypb"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"

	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
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
