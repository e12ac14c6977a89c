package cluster

import (
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
)

// names reads the names of a cluster that is resolved by DNS.
func (p *parser) names(a *endpointv3.ClusterLoadAssignment, k Kind) []Name {
	var out []Name
	for i, group := range a.GetEndpoints() {
		field := fmt.Sprintf("load_assignment.endpoints[%d]", i)
		if group.GetLedsClusterLocalityConfig() != nil || group.GetLoadBalancerEndpoints() != nil {
			p.fail(field, "lists of endpoints elsewhere are not supported")
		}
		for j, e := range group.GetLbEndpoints() {
			field := fmt.Sprintf("%s.lb_endpoints[%d]", field, j)
			addr := e.GetEndpoint().GetAddress().GetSocketAddress()
			n, ok := port(addr)
			if addr.GetAddress() == "" || !ok || addr.GetProtocol() != corev3.SocketAddress_TCP {
				p.fail(field+".endpoint.address", "is not a name with a TCP port")
			}
			l := group.GetLocality()
			out = append(out, Name{
				Host: addr.GetAddress(), Port: n, Weight: e.GetLoadBalancingWeight().GetValue(),
				Locality:       Locality{l.GetRegion(), l.GetZone(), l.GetSubZone()},
				LocalityWeight: group.GetLoadBalancingWeight().GetValue(), Priority: group.GetPriority(),
			})
		}
	}
	if k == LogicalDNS && len(out) > 1 { // none: the endpoints come from elsewhere
		p.fail("load_assignment", "LOGICAL_DNS has one name at most, not %d", len(out))
	}
	return out
}
