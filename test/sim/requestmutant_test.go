package sim

import (
	"slices"
	"sync/atomic"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/test/sim/memnet"
	"github.com/undermesh/undermesh/ztunnel/proxy"
)

// otherSubsets is a mesh where each subset has the endpoints of another.
func otherSubsets(t *testing.T, snapshot func() *client.Snapshot) func() *client.Snapshot {
	return altered(t, snapshot, func(s *client.Snapshot) (out []client.Resource, _ []client.Key) {
		for r := range s.Resources {
			rule, ok := r.Message.(*settings.CallRule)
			if !ok {
				continue
			}
			rule = proto.CloneOf(rule)
			for _, sub := range rule.GetSubsets() {
				sub.Labels = map[string]string{"version": podVersions[1-slices.Index(podVersions, sub.GetName())]}
			}
			out = append(out, client.Resource{Name: r.Name, Message: rule})
		}
		return out, nil
	})
}

// changedRoutes is a mesh whose routes a func changes.
func changedRoutes(t *testing.T, snapshot func() *client.Snapshot, change func(*routev3.RouteAction)) func() *client.Snapshot {
	return altered(t, snapshot, func(s *client.Snapshot) (out []client.Resource, _ []client.Key) {
		for r := range s.Resources {
			rule, ok := r.Message.(*settings.RouteRule)
			if !ok {
				continue
			}
			rule = proto.CloneOf(rule)
			for _, h := range rule.GetHttp() {
				to := &routev3.Route{}
				if err := h.GetRoute().UnmarshalTo(to); err != nil || to.GetRoute() == nil {
					continue
				}
				change(to.GetRoute())
				var err error
				if h.Route, err = anypb.New(to); err != nil {
					t.Error(err)
				}
			}
			out = append(out, client.Resource{Name: r.Name, Message: rule})
		}
		return out, nil
	})
}

// sameWeights gives all destinations of a route the same weight.
func sameWeights(a *routev3.RouteAction) {
	for _, c := range a.GetWeightedClusters().GetClusters() {
		c.Weight = wrapperspb.UInt32(1)
	}
}

// anyError has every error tried again.
func anyError(a *routev3.RouteAction) {
	a.RetryPolicy = &routev3.RetryPolicy{RetryOn: "5xx,reset", NumRetries: wrapperspb.UInt32(2)}
}

// TestRequestChecksFail breaks the mesh, or the applications, in one way at a time; the check that it concerns must say so within a
// few histories.
func TestRequestChecksFail(t *testing.T) {
	snapshot := func(t *testing.T, alter func(*testing.T, func() *client.Snapshot) func() *client.Snapshot) Hooks {
		return Hooks{Proxy: func(_ string, c *proxy.Config) { c.Snapshot = alter(t, c.Snapshot) }}
	}
	for _, m := range []struct {
		name, invariant string
		hooks           func(t *testing.T) Hooks
	}{
		{"subsets have the endpoints of others", "route", func(t *testing.T) Hooks { return snapshot(t, otherSubsets) }},
		{"VirtualServices do not arrive", "route", func(t *testing.T) Hooks { return snapshot(t, withoutRoutes) }},
		{"every error is tried again", "twice", func(t *testing.T) Hooks {
			return snapshot(t, func(t *testing.T, s func() *client.Snapshot) func() *client.Snapshot {
				return changedRoutes(t, s, anyError)
			})
		}},
		{"weights are not heeded", "weights", func(t *testing.T) Hooks {
			return snapshot(t, func(t *testing.T, s func() *client.Snapshot) func() *client.Snapshot {
				return changedRoutes(t, s, sameWeights)
			})
		}},
		{"a node without chance", "weights", func(*testing.T) Hooks {
			return Hooks{Proxy: func(_ string, c *proxy.Config) { c.Random = func() uint64 { return 0 } }}
		}},
		{"answers are mixed up", "mixed", func(*testing.T) Hooks {
			var last atomic.Uint64
			return Hooks{Number: func(n uint64) uint64 { return max(1, last.Swap(n)) }}
		}},
		{"plain text goes round the proxy", "plaintext", func(*testing.T) Hooks {
			return Hooks{Steer: func(_ memnet.SYN, _, app *memnet.Socket) *memnet.Socket { return app }}
		}},
		{"a leg to a STRICT pod has no TLS", "plaintext", func(t *testing.T) Hooks { return snapshot(t, alwaysProxied) }},
		{"a node allows everything", "forbidden", func(t *testing.T) Hooks { return snapshot(t, withoutPolicies) }},
		{"a node stays away", "recovery", func(*testing.T) Hooks { return Hooks{Restart: func(string) bool { return false }} }},
		{"some answer that there is no service at times", "unserved", func(*testing.T) Hooks {
			var n atomic.Uint64
			return Hooks{Status: func(status int) int {
				if n.Add(1)%40 == 0 {
					return 500
				}
				return status
			}}
		}},
		{"a client stays", "accounting", func(*testing.T) Hooks { return Hooks{Stay: true} }},
		{"a client does not close", "leak", func(*testing.T) Hooks { return Hooks{Stay: true} }},
	} {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			for seed := uint64(1); seed <= 30; seed++ {
				r := history(t, Options{Seed: seed, Requests: true, Hooks: m.hooks(t)})
				if i := slices.IndexFunc(r.Violations, func(v Violation) bool { return v.Invariant == m.invariant }); i >= 0 {
					t.Logf("seed %d: %v", seed, r.Violations[i])
					return
				}
			}
			t.Errorf("no %s was noticed", m.invariant)
		})
	}
}

// withoutRoutes is a mesh without VirtualServices.
func withoutRoutes(t *testing.T, snapshot func() *client.Snapshot) func() *client.Snapshot {
	return altered(t, snapshot, func(s *client.Snapshot) (_ []client.Resource, out []client.Key) {
		for r := range s.Resources {
			if _, ok := r.Message.(*settings.RouteRule); ok {
				out = append(out, client.Key{Type: api.RouteRuleType, Name: r.Name})
			}
		}
		return nil, out
	})
}
