package policy

import (
	"testing"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
)

// TestEgressProxy: what is for no host goes through the Sidecar's egress proxy, and nowhere where that is not there; what is composed
// is composed anew when the proxy comes, goes or changes.
func TestEgressProxy(t *testing.T) {
	const cluster = "outbound|80||web.foo.svc.cluster.local"
	addressed := service(nil, func(s *workloadapi.Service) {
		s.Ports = []*workloadapi.Port{{ServicePort: 80, TargetPort: 8080}}
		s.Addresses = []*workloadapi.NetworkAddress{{Address: []byte{10, 96, 0, 1}}}
	})
	headless := service(nil, func(s *workloadapi.Service) { s.Ports = []*workloadapi.Port{{ServicePort: 80, TargetPort: 8080}} })
	allow, only := settings.OutboundPolicy_ALLOW_ANY, settings.OutboundPolicy_REGISTRY_ONLY
	for name, tc := range map[string]struct {
		service    client.Resource
		scope      *settings.Scope
		atWorkload bool
		want       TargetKind
		refused    bool
	}{
		"control: without a proxy": {addressed, &settings.Scope{OutboundPolicy: &allow}, false, TargetPassthrough, false},
		"the proxy":                {addressed, &settings.Scope{OutboundPolicy: &allow, EgressProxy: cluster}, false, TargetEgressProxy, false},
		"a workload was dialled":   {addressed, &settings.Scope{OutboundPolicy: &allow, EgressProxy: cluster}, true, TargetPassthrough, false},
		"another port":             {addressed, &settings.Scope{OutboundPolicy: &allow, EgressProxy: "outbound|81||web.foo.svc.cluster.local"}, false, TargetEgressProxy, true},
		"a headless service":       {headless, &settings.Scope{OutboundPolicy: &allow, EgressProxy: cluster}, false, TargetEgressProxy, true},
		"REGISTRY_ONLY":            {addressed, &settings.Scope{OutboundPolicy: &only, EgressProxy: cluster}, false, TargetBlackHole, false},
		"the mesh's policy":        {addressed, &settings.Scope{EgressProxy: cluster}, false, TargetPassthrough, false},
	} {
		s, _ := build(t, tc.service, endpoint("src", "n1"))
		c, ok := NewCaller(s, s.WorkloadByName("foo", "src"))
		if !ok {
			t.Fatal("no caller")
		}
		plain, _ := NewCaller(s, c.Workload)
		c.View.Scope, c.AtWorkload = tc.scope, tc.atWorkload
		target := c.Target(80, "any.example", nil)
		vh, inputs := c.VirtualHost(target)
		if target.Kind != tc.want || (vh.GetRoutes()[0].GetDirectResponse().GetStatus() == 503) != tc.refused || !inputs.Hold(c) {
			t.Errorf("%s: %s %v", name, target.Kind, vh)
		}
		if got := vh.GetRoutes()[0].GetRoute().GetCluster(); tc.want == TargetEgressProxy && !tc.refused && got != cluster || tc.want == TargetPassthrough && got != api.PassthroughCluster {
			t.Errorf("%s: to %s", name, got)
		}
		to, ok := c.Others()
		if ok != (tc.want == TargetEgressProxy) || ok && (to.Refusal() != "") != tc.refused {
			t.Errorf("%s: connections go to %v, %t", name, to, ok)
		}
		if tc.want == TargetEgressProxy && inputs.Hold(plain) {
			t.Errorf("%s: what was composed holds without the proxy", name)
		}
	}
}
