package envoy

import (
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
)

// name says who speaks what.
func (v versions) name() string {
	text := map[bool]string{false: "HTTP1", true: "HTTP2"}
	return text[v.down] + " to " + text[v.up]
}

// TestEnvoyAgreesOnHTTP2: the same with clients or upstreams, or both, that speak HTTP/2, with gRPC and trailers.
func TestEnvoyAgreesOnHTTP2(t *testing.T) {
	Require(t)
	s := sizes(t)
	t.Logf("MESH_TEST_SEED=%d", s.seed)
	for i, v := range []versions{{true, true}, {true, false}, {false, true}} {
		t.Run(v.name(), func(t *testing.T) {
			g := newGenerator(s.seed + uint64(i))
			g.certain, g.two = true, v.down
			configs := g.configs(t, max(1, s.configs/3))
			agree(t, v, configs, clusterNames, func(*routev3.RouteConfiguration) []call { return g.calls(callCount / 2) })
		})
	}
}
