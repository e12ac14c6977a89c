package policy

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/client"
)

// StreamInput is what is known of a connection that is no HTTP, or TLS that the mesh does not end.
type StreamInput struct {
	Port    uint16          // that is called
	SNI     string          // of the ClientHello; "" for none, and for TCP
	Dialled *client.Service // at the destination, as View.ServiceAt finds it; nil for none
	// Source is the caller's address, Destination the one that it dialled.
	Source, Destination netip.Addr
}

// StreamRoute says where a connection goes.
type StreamRoute struct {
	Service  *client.Service // whose rule or cluster it is; nil for a host that only VirtualServices name
	Rule     string          // namespace/name of the VirtualService; "" for none
	Clusters []WeightedCluster
	why      string // there are no clusters; "": the rule has none
}

// WeightedCluster is one of the clusters that connections are shared out to.
type WeightedCluster struct {
	Name   string
	Weight uint32 // share of the sum; not 0
}

// Stream returns where a connection goes that is no HTTP, as find has it, which is TCPRoute or TLSRoute, else through the egress proxy.
// called is in; where the pod of a service without addresses was dialled, it is the service, by its port, that is called. ok is false
// for what goes to the address that was dialled.
func (c Caller) Stream(in StreamInput, find func(StreamInput) (StreamRoute, bool)) (called StreamInput, to StreamRoute, ok bool) {
	if in.Dialled == nil {
		w := c.Snapshot.WorkloadFor(c.View.Namespace, c.Workload.GetNetwork(), in.Destination)
		if svc, port := c.Headless(w, netip.AddrPortFrom(in.Destination, in.Port)); svc != nil {
			in.Dialled, in.Port = svc, port
		}
	}
	to, ok = find(in)
	if !ok && in.Dialled == nil && in.Destination.IsValid() {
		to, ok = c.Others()
	}
	return in, to, ok
}

// TCPRoute returns where a connection goes that is neither HTTP nor TLS (TC-01…04): as the first matching rule of the
// VirtualServices of the service that was dialled says, else to that service. ok is false when no service with the port was dialled.
func (c Caller) TCPRoute(in StreamInput) (StreamRoute, bool) {
	if !hasPort(in.Dialled, in.Port) {
		return StreamRoute{}, false
	}
	cc := c.composer()
	for _, r := range cc.routes(in.Dialled.GetHostname(), in.Port) {
		if r.GetError() != "" {
			return StreamRoute{Service: in.Dialled, Rule: ruleName(r)}, true
		}
		for _, rule := range r.TCP {
			if cc.matchTCP(rule, in) {
				return cc.lead(in.Dialled, r, rule, in.Port), true
			}
		}
	}
	return StreamRoute{Service: in.Dialled, Clusters: []WeightedCluster{{api.ClusterName(uint32(in.Port), "", in.Dialled.GetHostname()), 1}}}, true
}

func ruleName(r *client.RouteRule) string { return r.GetNamespace() + "/" + r.GetName() }

func (c *composer) matchTCP(rule client.StreamRule, in StreamInput) bool {
	return len(rule.Matches) == 0 || slices.ContainsFunc(rule.Matches, func(m client.StreamMatch) bool {
		return c.meets(m.Caller, in.Port) && (!m.Source.IsValid() || m.Source.Contains(in.Source.Unmap())) && subnetOf(m, in) >= 0
	})
}

// subnetOf is the length of the longest subnet of the match that holds the destination: 0 when it names none, -1 when none does.
func subnetOf(m client.StreamMatch, in StreamInput) int {
	if len(m.Destinations) == 0 {
		return 0
	}
	best := -1
	for _, p := range m.Destinations {
		if p.Contains(in.Destination.Unmap()) {
			best = max(best, p.Bits())
		}
	}
	return best
}

// lead returns a route without clusters when the rule leads nowhere: the connection is refused then.
func (c *composer) lead(svc *client.Service, r *client.RouteRule, rule client.StreamRule, port uint16) StreamRoute {
	out := StreamRoute{Service: svc, Rule: ruleName(r)}
	for _, d := range rule.Destinations {
		if d.GetWeight() == 0 {
			continue
		}
		name, _ := c.destination(d.GetCluster(), port)
		out.Clusters = append(out.Clusters, WeightedCluster{name, d.GetWeight()})
	}
	return out
}

// carriesTLS reports whether connections to a port of the protocol are routed by their SNI.
func carriesTLS(protocol string) bool {
	switch protocol {
	case "", "https", "tls":
		return true
	}
	return false
}

// TLSRoute returns where a TLS connection goes that the mesh does not end (TC-05, TC-06): to the host that its SNI means to the
// caller on the port, or else that was dialled, by the matching rule of its VirtualServices when there is one. Of several the most
// specific destination subnet counts, then the most specific name, then the first rule. ok is false when the connection is for no
// host that is seen.
func (c Caller) TLSRoute(in StreamInput) (StreamRoute, bool) {
	cc := c.composer()
	sni := strings.TrimSuffix(strings.ToLower(in.SNI), ".")
	host, svc := "", in.Dialled
	if hasPort(svc, in.Port) && len(svc.VIPs) > 0 {
		host = svc.GetHostname()
	} else {
		t, _ := c.target(in.Port, sni, in.Dialled, carriesTLS, func(r *client.RouteRule) bool { return len(r.TLS) > 0 || r.GetError() != "" })
		host, svc = t.Host, t.Service
	}
	if host == "" {
		return StreamRoute{}, false
	}
	best, at := StreamRoute{}, tlsMatch{subnet: -1}
	for _, r := range cc.routes(host, in.Port) {
		if r.GetError() != "" {
			return StreamRoute{Service: svc, Rule: ruleName(r)}, true
		}
		for _, rule := range r.TLS {
			for _, m := range rule.Matches {
				if now := cc.matchTLS(m, in, sni); now.better(at) {
					best, at = cc.lead(svc, r, rule, in.Port), now
				}
			}
		}
	}
	switch {
	case at.subnet >= 0:
		return best, true
	case svc == nil:
		return StreamRoute{}, false
	}
	return StreamRoute{Service: svc, Clusters: []WeightedCluster{{api.ClusterName(uint32(in.Port), "", svc.GetHostname()), 1}}}, true
}

// tlsMatch is how specific a match is; a subnet of -1 is none.
type tlsMatch struct {
	subnet int
	exact  bool
	length int // of the name
}

func (a tlsMatch) better(b tlsMatch) bool {
	switch {
	case a.subnet != b.subnet:
		return a.subnet > b.subnet
	case a.exact != b.exact:
		return a.exact
	}
	return a.length > b.length
}

func (c *composer) matchTLS(m client.StreamMatch, in StreamInput, sni string) tlsMatch {
	none := tlsMatch{subnet: -1}
	if !c.meets(m.Caller, in.Port) || m.Source.IsValid() && !m.Source.Contains(in.Source.Unmap()) {
		return none
	}
	out := tlsMatch{subnet: subnetOf(m, in)}
	if len(m.SNI) == 0 || out.subnet < 0 {
		return out
	}
	found := false
	for _, name := range m.SNI {
		suffix, wild := strings.CutPrefix(strings.ToLower(name), "*")
		switch {
		case !wild && suffix == sni:
			out.exact, out.length, found = true, len(name), true
		case wild && strings.HasSuffix(sni, suffix) && len(sni) > len(suffix):
			found = true
			if !out.exact {
				out.length = max(out.length, len(name))
			}
		}
	}
	if !found {
		return none
	}
	return out
}

// Refusal is why connections are refused: the VirtualService of their host cannot be carried out, or the egress proxy is not there; "" when they are not.
func (r StreamRoute) Refusal() string {
	if len(r.Clusters) > 0 {
		return ""
	}
	return cmp.Or(r.why, "VirtualService "+r.Rule+" leads nowhere")
}

// Others returns where a connection goes that is for no host that is seen, and was made to no workload's address: through the egress
// proxy of the caller's Sidecar. ok is false where there is none.
func (c Caller) Others() (StreamRoute, bool) {
	cc := c.composer()
	if cc.others() != TargetEgressProxy || c.AtWorkload {
		return StreamRoute{}, false
	}
	name := cc.egressProxy()
	if why := cc.proxyless(name); why != "" {
		return StreamRoute{why: why}, true
	}
	p, _ := parseCluster(name)
	return StreamRoute{Service: cc.service(p.host), Clusters: []WeightedCluster{{name, 1}}}, true
}
