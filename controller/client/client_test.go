package client

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/securityapi"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

type half struct{}

func (half) Float64() float64 { return 1 }

func TestRunBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var at []time.Duration
		begin := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		c := New(Config{NodeID: "n", Clock: clock.System(), Rand: half{}, MaxBackoff: time.Second, Dial: func(context.Context) (*grpc.ClientConn, error) {
			if at = append(at, time.Since(begin)); len(at) == 7 {
				cancel()
			}
			return nil, errors.New("refused")
		}})
		if err := c.Run(ctx); err != nil {
			t.Error(err)
		}
		want := []time.Duration{0, 100, 300, 700, 1500, 2500, 3500}
		for i := range want {
			if at[i] != want[i]*time.Millisecond {
				t.Errorf("attempt %d at %s, want %s", i, at[i], want[i]*time.Millisecond)
			}
		}
	})
}

func TestConfigIsChecked(t *testing.T) {
	dial := func(context.Context) (*grpc.ClientConn, error) { return nil, nil }
	for want, cfg := range map[string]Config{
		"Dial": {NodeID: "n"}, "NodeID": {Dial: dial}, "Clock": {Dial: dial, NodeID: "n"}, "Rand": {Dial: dial, NodeID: "n", Clock: clock.System()},
		"Types": {Dial: dial, NodeID: "n", Clock: clock.System(), Rand: half{}, Types: []string{"x"}},
	} {
		if err := New(cfg).Run(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %s, got %v", want, err)
		}
	}
}

func response(t *testing.T, typ, generation string, removed []string, rs ...Resource) *discovery.DeltaDiscoveryResponse {
	t.Helper()
	out := &discovery.DeltaDiscoveryResponse{TypeUrl: typ, SystemVersionInfo: generation, RemovedResources: removed, Nonce: "n"}
	for _, r := range rs {
		raw, err := proto.Marshal(r.Message)
		if err != nil {
			t.Fatal(err)
		}
		out.Resources = append(out.Resources, &discovery.Resource{Name: r.Name, Version: "v" + generation, Resource: &anypb.Any{TypeUrl: typ, Value: raw}})
	}
	return out
}

func TestSnapshotWaitsForEveryType(t *testing.T) {
	c := New(Config{})
	changed, stop := c.Watch()
	defer stop()
	for i, typ := range []string{api.AddressType, api.CallRuleType, api.RouteRuleType, api.AuthorizationType, api.ScopeType, api.WorkloadSettingsType, api.MeshSettingsType} {
		if c.Snapshot() != nil {
			t.Fatalf("there is a snapshot after %d types", i)
		}
		if ack := c.handle(response(t, typ, "3", nil)); ack.GetErrorDetail() != nil || ack.GetResponseNonce() != "n" {
			t.Fatalf("answer %v", ack)
		}
	}
	if c.Snapshot() == nil || c.Snapshot().Generation() != 3 || len(changed) != 1 {
		t.Fatal("no snapshot after all types")
	}
	before := c.Snapshot()
	c.handle(response(t, api.MeshSettingsType, "3", nil)) // nothing in it
	if c.Snapshot() != before {
		t.Error("an empty response made a new snapshot")
	}
	c.handle(response(t, api.MeshSettingsType, "4", nil)) // another replica's count
	if c.Snapshot().Generation() != 4 || before.Generation() != 3 {
		t.Error("the generation of the controller that is followed now is not taken over")
	}
	set := Resource{Name: "h", Message: &settings.WorkloadSettings{TunnelPort: 9}}
	c.handle(response(t, api.WorkloadSettingsType, "5", nil, set))
	if c.Snapshot().Generation() != 5 || c.state.versions[api.WorkloadSettingsType]["h"] != "v5" {
		t.Error("the version to resume from is not kept")
	}
	bad := Resource{Name: "h", Message: &settings.WorkloadSettings{TunnelPort: 70000}}
	ack := c.handle(response(t, api.WorkloadSettingsType, "6", nil, bad))
	if !strings.Contains(ack.GetErrorDetail().GetMessage(), `"h"`) || c.state.versions[api.WorkloadSettingsType]["h"] != "v5" {
		t.Errorf("NACK %v, version %v", ack, c.state.versions)
	}
	if set, _ := c.Snapshot().settings.get("h"); set.GetTunnelPort() != 9 {
		t.Error("the previous settings are gone")
	}
	c.handle(response(t, api.WorkloadSettingsType, "7", []string{"h"}))
	if c.Snapshot().settings.size != 0 || len(c.state.versions[api.WorkloadSettingsType]) != 0 {
		t.Error("a removal does not count")
	}
	if ack := c.handle(response(t, "x", "8", nil)); ack.GetErrorDetail() == nil {
		t.Error("a type that was not asked for is accepted")
	}
}

// TestPartsAreOneState: what comes in many responses is derived and published once; a removal and a return in between
// count in their order.
func TestPartsAreOneState(t *testing.T) {
	c := New(Config{Types: []string{api.AddressType}})
	changed, stop := c.Watch()
	defer stop()
	hear := func(from string, removed []string, rs ...Resource) {
		t.Helper()
		r := response(t, api.AddressType, "3", removed, rs...)
		r.ControlPlane = &core.ControlPlane{Identifier: from}
		if ack := c.handle(r); ack.GetErrorDetail() != nil {
			t.Fatal(ack)
		}
	}
	addressed := func(n, ip string) Resource {
		w := pod("foo", n, ip).Message.(*workloadapi.Workload)
		return Resource{Name: w.GetUid(), Message: &workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: w}}}
	}
	a, b := addressed("a", "10.0.0.1"), addressed("b", "10.0.0.2")
	hear(api.DiscoveryPart, nil, a, b)
	hear(api.DiscoveryPart, []string{a.Name, b.Name})
	if c.Snapshot() != nil || c.state.current.workloads.size != 0 {
		t.Error("a part was derived or published")
	}
	hear(api.DiscoveryWhole, nil, a)
	<-changed
	if s := c.Snapshot(); s.WorkloadByUID(a.Name) == nil || s.WorkloadByUID(b.Name) != nil || len(changed) != 0 {
		t.Errorf("workloads %v", s.Workloads())
	}
}

// TestShortContents: what a resource's name says is filled in, and the content's type is the response's.
func TestShortContents(t *testing.T) {
	c := New(Config{Types: []string{api.AddressType}})
	r := response(t, api.AddressType, "1", nil, Resource{Name: "K//Pod/foo/a", Message: &workloadapi.Address{
		Type: &workloadapi.Address_Workload{Workload: &workloadapi.Workload{Addresses: [][]byte{{10, 0, 0, 1}}}}}})
	r.Resources[0].Resource.TypeUrl = ""
	if ack := c.handle(r); ack.GetErrorDetail() != nil {
		t.Fatal(ack)
	}
	w := c.Snapshot().WorkloadByName("foo", "a")
	if w == nil || w.GetUid() != "K//Pod/foo/a" || w.GetClusterId() != "K" || w.Identity.Namespace != "foo" {
		t.Errorf("workload %v", w)
	}
	r.Resources[0].Resource.TypeUrl = api.AuthorizationType
	if ack := c.handle(r); ack.GetErrorDetail() == nil {
		t.Error("a content of another type is accepted")
	}
}

func TestForeignControllerCountsChanges(t *testing.T) {
	c := New(Config{Types: []string{api.AddressType}})
	for i := range 3 {
		c.handle(response(t, api.AddressType, "2026-01-01T00:00:00Z/1", []string{"x"}))
		if g := c.Snapshot().Generation(); g != uint64(i+1) {
			t.Errorf("generation %d", g)
		}
	}
}

// TestNarrowedPolicyIsNeverInForceForNobody: a DENY policy of the whole namespace gets a selector; the policy comes in one
// response, the workload that names it in the next, and the stream may break between the two.
func TestNarrowedPolicyIsNeverInForceForNobody(t *testing.T) {
	uid := "Kubernetes//Pod/foo/a"
	all := map[string][]Resource{
		api.MeshSettingsType: nil, api.WorkloadSettingsType: nil,
		api.AuthorizationType: {{Name: "foo/shut", Message: &securityapi.Authorization{Namespace: "foo", Name: "shut",
			Scope: securityapi.Scope_NAMESPACE, Action: securityapi.Action_DENY}}},
		api.AddressType: {{Name: uid, Message: &workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: &workloadapi.Workload{
			Uid: uid, Name: "a", Namespace: "foo"}}}}},
	}
	narrow := proto.CloneOf(all[api.AuthorizationType][0].Message.(*securityapi.Authorization))
	narrow.Scope = securityapi.Scope_WORKLOAD_SELECTOR
	named := proto.CloneOf(all[api.AddressType][0].Message.(*workloadapi.Address))
	named.GetWorkload().AuthorizationPolicies = []string{"foo/shut"}
	c := New(Config{})
	hear := func(typ, from string, rs ...Resource) {
		t.Helper()
		r := response(t, typ, "3", nil, rs...)
		r.ControlPlane = &core.ControlPlane{Identifier: from}
		if ack := c.handle(r); ack.GetErrorDetail() != nil {
			t.Fatal(ack)
		}
		if s := c.Snapshot(); s != nil && len(s.Policies(s.WorkloadByUID(uid))) != 1 {
			t.Errorf("after a response of %s no policy is in force", typ)
		}
	}
	for _, typ := range c.cfg.Types {
		hear(typ, api.DiscoveryWhole, all[typ]...)
	}
	before := c.Snapshot()
	hear(api.AuthorizationType, api.DiscoveryPart, Resource{Name: "foo/shut", Message: narrow})
	c.state.begin() // the stream broke, and resumes
	for _, typ := range c.cfg.Types[:len(c.cfg.Types)-1] {
		hear(typ, api.DiscoveryWhole) // nothing new: this client had it
		if c.Snapshot() != before {
			t.Fatalf("published after %s, before the workloads", typ)
		}
	}
	hear(api.AddressType, api.DiscoveryPart, Resource{Name: uid, Message: named})
	if c.Snapshot() != before {
		t.Error("published before the change was complete")
	}
	hear(api.MeshSettingsType, api.DiscoveryWhole) // what was promised came to nothing
	if s := c.Snapshot(); s == before || s.Policies(s.WorkloadByUID(uid))[0].GetScope() != securityapi.Scope_WORKLOAD_SELECTOR {
		t.Error("the complete state is not published")
	}
	before = c.Snapshot()
	hear(api.AddressType, "istiod-1", Resource{Name: uid, Message: named}) // a foreign controller has no end of a change
	if c.Snapshot() == before {
		t.Error("a foreign controller's response is not published")
	}
}
