package envoy

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	commonfault "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/undermesh/undermesh/controller/policy"
	"github.com/undermesh/undermesh/test/corpus"
	"github.com/undermesh/undermesh/ztunnel/http/route"
)

// composed is every virtual host that callers in the files go by, each in a configuration of its own, and the clusters that they
// name.
func composed(t *testing.T) (configs []*routev3.RouteConfiguration, clusters []string) {
	t.Helper()
	var files []string
	for _, pattern := range []string{"../../deploy/samples/*/*/*.yaml", "../../deploy/samples/*/*.yaml", "../../controller/compile/testdata/*.yaml", "../../ztunnel/explain/testdata/*.yaml"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	for _, f := range corpus.Files(t) {
		files = append(files, f.Path)
	}
	seen, names := map[string]bool{}, map[string]bool{}
	add := func(vh *routev3.VirtualHost) {
		vh = proto.CloneOf(vh)
		vh.Name, vh.Domains = "v", []string{"*"}
		for _, r := range vh.GetRoutes() {
			certain(t, r)
			for _, c := range named(r) {
				names[c] = true
			}
		}
		key, err := proto.MarshalOptions{Deterministic: true}.Marshal(vh)
		if err != nil {
			t.Fatal(err)
		}
		plain := len(vh.GetRoutes()) == 1 && vh.GetRoutes()[0].GetMatch().GetPrefix() == "/" && len(seen) > 10 // one service is like the other
		if !seen[string(key)] && !plain {
			seen[string(key)] = true
			configs = append(configs, &routev3.RouteConfiguration{Name: fmt.Sprintf("p%d", len(configs)), ValidateClusters: wrapperspb.Bool(false),
				VirtualHosts: []*routev3.VirtualHost{vh}})
		}
	}
	for _, f := range files {
		snap := compiled(t, f)
		for _, w := range snap.Workloads() {
			if caller, ok := policy.NewCaller(snap, w); ok {
				for _, rc := range caller.RouteConfigs() {
					for _, vh := range rc.GetVirtualHosts() {
						add(vh)
					}
				}
			}
		}
		for _, rule := range snap.AllRouteRules() {
			caller := policy.Caller{Snapshot: snap, View: policy.View{Namespace: rule.GetNamespace()}}
			for _, host := range rule.GetHosts() {
				if vh, _ := caller.VirtualHost(policy.Target{Kind: policy.TargetHost, Port: 80, Host: host}); vh != nil {
					add(vh)
				}
			}
		}
	}
	return configs, slices.Sorted(maps.Keys(names))
}

// named lists the clusters of a route.
func named(r *routev3.Route) []string {
	var out []string
	if c := r.GetRoute().GetCluster(); c != "" {
		out = append(out, c)
	}
	for _, w := range r.GetRoute().GetWeightedClusters().GetClusters() {
		out = append(out, w.GetName())
	}
	for _, m := range r.GetRoute().GetRequestMirrorPolicies() {
		out = append(out, m.GetCluster())
	}
	return out
}

// certain takes chance and waiting out of a route: shares become none or all, the largest weight all of them.
func certain(t *testing.T, r *routev3.Route) {
	t.Helper()
	for i, w := range r.GetRoute().GetWeightedClusters().GetClusters() {
		w.Weight = wrapperspb.UInt32(0)
		if i == 0 {
			w.Weight = wrapperspb.UInt32(100)
		}
	}
	for _, m := range r.GetRoute().GetRequestMirrorPolicies() {
		if p := m.GetRuntimeFraction().GetDefaultValue(); p.GetNumerator() > 0 {
			p.Numerator, p.Denominator = 100, typev3.FractionalPercent_HUNDRED
		}
	}
	if typed := r.GetTypedPerFilterConfig()[route.FaultFilter]; typed != nil {
		var f faultv3.HTTPFault
		if err := typed.UnmarshalTo(&f); err != nil {
			t.Fatal(err)
		}
		for _, p := range []*typev3.FractionalPercent{f.GetDelay().GetPercentage(), f.GetAbort().GetPercentage()} {
			if p.GetNumerator() > 0 {
				p.Numerator, p.Denominator = 100, typev3.FractionalPercent_HUNDRED
			}
		}
		if d := f.GetDelay(); d.GetFixedDelay() != nil {
			d.FaultDelaySecifier = &commonfault.FaultDelay_FixedDelay{FixedDelay: durationpb.New(1e6)}
		}
		r.TypedPerFilterConfig[route.FaultFilter] = packed(&f)
	}
	if p := r.GetRoute().GetRetryPolicy(); p != nil {
		p.RetryBackOff = &routev3.RetryPolicy_RetryBackOff{BaseInterval: durationpb.New(1e6)}
	}
}

// aimed makes calls that are likely to meet the conditions of the routes.
func aimed(g *generator, rc *routev3.RouteConfiguration) []call {
	var out []call
	for _, r := range rc.GetVirtualHosts()[0].GetRoutes() {
		for range 12 {
			c := g.call()
			m := r.GetMatch()
			switch {
			case m.GetPath() != "":
				c.Target = m.GetPath()
			case m.GetPathSeparatedPrefix() != "":
				c.Target = m.GetPathSeparatedPrefix()
			case strings.HasPrefix(m.GetPrefix(), "/"):
				c.Target = m.GetPrefix() + pick(g, "", "x", "x/y?q=1")
			}
			for _, h := range m.GetHeaders() {
				s := h.GetStringMatch()
				value := s.GetExact() + s.GetPrefix() + s.GetSuffix() + s.GetContains()
				if s.GetSafeRegex() != nil {
					value = pick(g, "user=jason", "a", "1")
				}
				switch h.GetName() {
				case ":method":
					c.Method = value
				case ":authority", "host":
					c.Authority = value
				default:
					if !strings.HasPrefix(h.GetName(), ":") && !g.chance(4) {
						c.Fields = append(c.Fields, h.GetName()+": "+value)
					}
				}
			}
			for _, q := range m.GetQueryParameters() {
				c.Target += pick(g, "?", "?a=b&") + q.GetName() + "=" + q.GetStringMatch().GetExact() + q.GetStringMatch().GetPrefix()
			}
			if g.chance(4) {
				c.Target = pick(g, paths...)
			}
			out = append(out, c)
		}
	}
	return out
}

// TestEnvoyAgreesOnPolicies: Envoy and our engine do the same under what the control plane composes of the VirtualServices in the
// samples, in the compiler's tests and in the documents of users.
func TestEnvoyAgreesOnPolicies(t *testing.T) {
	Require(t)
	configs, clusters := composed(t)
	if len(configs) < 15 {
		t.Fatalf("only %d configurations", len(configs))
	}
	g := newGenerator(sizes(t).seed)
	agree(t, versions{}, configs, clusters, func(rc *routev3.RouteConfiguration) []call { return aimed(g, rc) })
}
