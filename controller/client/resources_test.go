package client

import (
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/securityapi"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
)

// TestResources: what a snapshot says that it is made of makes it again.
func TestResources(t *testing.T) {
	route, err := anypb.New(&routev3.Route{Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: 404}}})
	if err != nil {
		t.Fatal(err)
	}
	ref, err := anypb.New(&settings.SettingsRef{Name: "h1"})
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSnapshot(
		Resource{Message: &settings.MeshSettings{TrustDomain: "td"}},
		Resource{Message: &workloadapi.Workload{Uid: "u", Name: "w", Namespace: "foo", Extensions: []*workloadapi.Extension{{Name: api.WorkloadSettingsExtension, Config: ref}}}},
		Resource{Message: &workloadapi.Service{Name: "s", Namespace: "foo", Hostname: "s.foo"}},
		Resource{Name: "h1", Message: &settings.WorkloadSettings{TunnelPort: 7, Scope: "x"}}, Resource{Name: "x", Message: &settings.Scope{}},
		Resource{Message: &securityapi.Authorization{Name: "p", Namespace: "foo", Scope: securityapi.Scope_NAMESPACE}},
		Resource{Message: &settings.CallRule{Namespace: "foo", Name: "d", Host: "s.foo"}},
		Resource{Message: &settings.RouteRule{Namespace: "foo", Name: "v", Hosts: []string{"s.foo"}, Http: []*settings.HttpRule{{Route: route}}}})
	if err != nil {
		t.Fatal(err)
	}
	var all []Resource
	for r := range s.Resources {
		all = append(all, r)
	}
	again, err := NewSnapshot(all...)
	if err != nil {
		t.Fatal(err)
	}
	w := again.WorkloadByUID("u")
	scope, known := again.ScopeOf(w)
	if len(all) != 8 || again.Mesh().GetTrustDomain() != "td" || w.Settings.GetTunnelPort() != 7 || w.SettingsName() != "h1" || scope == nil || !known ||
		len(again.Policies(w)) != 1 || len(again.CallRules(w, "foo", "s.foo")) != 1 || len(again.RouteRules("s.foo")) != 1 || again.ServiceByHost("foo", "s.foo") == nil {
		t.Errorf("%d resources make %+v", len(all), again)
	}
	n := 0
	for range s.Resources {
		if n++; n == 3 {
			break
		}
	}
}
