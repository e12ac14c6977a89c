package server

import (
	"log/slog"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/securityapi"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/xds"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// recorder is a store that says what it took.
type recorder struct {
	*xds.Store
	served map[string]proto.Message
}

func (s *recorder) Apply(generation uint64, upserts []xds.Resource, removed []xds.Key) error {
	if err := s.Store.Apply(generation, upserts, removed); err != nil {
		return err
	}
	for _, r := range upserts {
		s.served[r.Name] = r.Message
	}
	for _, k := range removed {
		delete(s.served, k.Name)
	}
	return nil
}

// TestUnencodablePolicyDenies: a policy that cannot be put on the wire refuses everything in its scope, new or old, and
// what is beside it is served.
func TestUnencodablePolicyDenies(t *testing.T) {
	store := &recorder{Store: xds.NewStore(xds.StoreConfig{Clock: clock.System()}), served: map[string]proto.Message{}}
	p := publisher{store, slog.New(slog.DiscardHandler)}
	policy := func(principal string) compile.Resource {
		return compile.Resource{Type: api.AuthorizationType, Name: "foo/p", Message: &securityapi.Authorization{Name: "p", Namespace: "foo",
			Scope: securityapi.Scope_NAMESPACE, Groups: []*securityapi.Group{{Rules: []*securityapi.Rules{{Matches: []*securityapi.Match{{
				Principals: []*securityapi.StringMatch{{MatchType: &securityapi.StringMatch_Exact{Exact: principal}}}}}}}}}}}
	}
	address := func(name, text string) compile.Resource {
		return compile.Resource{Type: api.AddressType, Name: name, Message: &workloadapi.Address{
			Type: &workloadapi.Address_Workload{Workload: &workloadapi.Workload{Uid: name, Name: text}}}}
	}
	for generation, principal := range []string{"\xff", "ok", "\xff"} {
		p.apply(compile.Delta{Generation: uint64(generation + 1), Upserts: []compile.Resource{policy(principal), address("a", "a"), address("b", "\xff")}})
		got := store.served
		auth, _ := got["foo/p"].(*securityapi.Authorization)
		if got["a"] == nil || got["b"] != nil || auth == nil {
			t.Fatalf("%q: served %v", principal, got)
		}
		denies := auth.GetAction() == securityapi.Action_DENY && auth.GetScope() == securityapi.Scope_NAMESPACE &&
			len(auth.GetGroups()) == 1 && len(auth.GetGroups()[0].GetRules()) == 0
		if denies != (principal != "ok") {
			t.Errorf("%q: served %v", principal, auth)
		}
	}
}

// TestGenerationIsNoChange: the mesh's settings are not sent again because something else changed.
func TestGenerationIsNoChange(t *testing.T) {
	store := &recorder{Store: xds.NewStore(xds.StoreConfig{Clock: clock.System()}), served: map[string]proto.Message{}}
	p := publisher{store, slog.New(slog.DiscardHandler)}
	for g := range uint64(2) {
		m := &settings.MeshSettings{TrustDomain: "td", Generation: g}
		p.apply(compile.Delta{Generation: g, Upserts: []compile.Resource{{Type: api.MeshSettingsType, Name: api.MeshSettingsName, Message: m}}})
		if m.GetGeneration() != g {
			t.Error("the compiler's message was modified")
		}
		if got := store.served[api.MeshSettingsName].(*settings.MeshSettings); got.GetGeneration() != 0 || got.GetTrustDomain() != "td" {
			t.Errorf("served %v", got)
		}
	}
}
