package client

import (
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/securityapi"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
)

// FuzzResponses gives a node two responses of any content after good ones. Whatever they say: it does not panic, answers
// each with its own nonce and a reason of a bounded length, keeps a version only of what it took, and never loses the
// policy of a workload that it was not told to drop.
func FuzzResponses(f *testing.F) {
	const uid = "K//Pod/foo/a"
	good := &workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: &workloadapi.Workload{Uid: uid, Name: "a", Namespace: "foo",
		AuthorizationPolicies: []string{"foo/p"}}}}
	policy := &securityapi.Authorization{Name: "p", Namespace: "foo", Scope: securityapi.Scope_WORKLOAD_SELECTOR, Action: securityapi.Action_DENY}
	respond := func(typ, from, name string, m proto.Message, removed ...string) *discovery.DeltaDiscoveryResponse {
		raw, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		return &discovery.DeltaDiscoveryResponse{TypeUrl: typ, Nonce: "1", SystemVersionInfo: "2", RemovedResources: removed,
			ControlPlane: &core.ControlPlane{Identifier: from},
			Resources:    []*discovery.Resource{{Name: name, Version: "v", Resource: &anypb.Any{TypeUrl: typ, Value: raw}}}}
	}
	for _, r := range []*discovery.DeltaDiscoveryResponse{
		respond(api.AddressType, api.DiscoveryWhole, uid, good), respond(api.AddressType, api.DiscoveryPart, uid, good, uid, "x"),
		respond(api.AuthorizationType, "", "foo/p", policy), respond(api.AuthorizationType, "", "foo/q", policy, "foo/p"), {},
	} {
		raw, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, raw)
	}
	f.Fuzz(func(t *testing.T, one, two []byte) {
		c := New(Config{})
		for _, typ := range c.cfg.Types {
			c.handle(&discovery.DeltaDiscoveryResponse{TypeUrl: typ})
		}
		c.handle(respond(api.AuthorizationType, api.DiscoveryPart, "foo/p", policy))
		c.handle(respond(api.AddressType, api.DiscoveryWhole, uid, good))
		told := false // to drop or change something
		for _, raw := range [][]byte{one, two} {
			r := &discovery.DeltaDiscoveryResponse{}
			if proto.Unmarshal(raw, r) != nil {
				return
			}
			told = told || len(r.GetRemovedResources()) > 0 || len(r.GetResources()) > 0
			ack := c.handle(r)
			if ack.GetTypeUrl() != r.GetTypeUrl() || ack.GetResponseNonce() != r.GetNonce() || len(ack.GetErrorDetail().GetMessage()) > maxNack {
				t.Fatalf("answer %v to %v", ack, r)
			}
			if _, ok := c.state.versions[r.GetTypeUrl()]; !ok && ack.GetErrorDetail() == nil {
				t.Fatalf("type %q was not asked for and is accepted", r.GetTypeUrl())
			}
			s := c.Snapshot()
			for _, w := range s.Workloads() {
				if w.GetUid() == "" || w.Settings == nil || w.Identity.Namespace != w.GetNamespace() {
					t.Fatalf("workload %+v", w)
				}
				_ = s.Policies(w)
			}
			if w := s.WorkloadByUID(uid); !told && (w == nil || !s.PoliciesComplete(w) || len(s.Policies(w)) != 1) {
				t.Fatalf("the policy is not in force any more after %v", r)
			}
		}
	})
}
