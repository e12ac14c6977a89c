package policy

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"

	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
)

// Caller composes, for one workload and one snapshot, what its calls go by: virtual hosts, routes, clusters and endpoints in the
// form of Envoy. It is pure, and what it returns must not be modified. The same composition serves ztunnel, the CLI and the tests
// against Envoy. Snapshot is required.
type Caller struct {
	Snapshot *client.Snapshot
	Workload *client.Workload // nil: not known; no rule with conditions on the caller is for it
	View     View
	// AtWorkload: the address that was dialled is a workload's, so that what is for no host goes there and through no egress proxy.
	AtWorkload bool
}

// NewCaller returns the caller that a workload of the snapshot is. ok is false while its scope has not arrived: what it sees is
// not known then.
func NewCaller(s *client.Snapshot, w *client.Workload) (c Caller, ok bool) {
	scope, ok := s.ScopeOf(w)
	return Caller{Snapshot: s, Workload: w, View: View{Namespace: bare(w).GetNamespace(), ClusterDomain: s.Mesh().GetClusterDomain(),
		Scope: scope}}, ok
}

// TargetKind is what a request is for.
type TargetKind int

// The zero TargetKind refuses.
const (
	TargetBlackHole   TargetKind = iota // no host that is seen, and the outbound policy is REGISTRY_ONLY
	TargetPassthrough                   // no host that is seen: to the address that was dialled
	TargetService                       // a service
	TargetHost                          // a host that no registry has, which VirtualServices name (SR-04)
	TargetEgressProxy                   // no host that is seen: through the egress proxy of the caller's Sidecar
)

// String is the name that explain uses.
func (k TargetKind) String() string {
	return [...]string{"black hole", "passthrough", "service", "virtual host", "egress proxy"}[k]
}

// Target is what a request is for. It is comparable.
type Target struct {
	Kind    TargetKind
	Port    uint16          // that is called
	Host    string          // in full, or the pattern that covers it; "" for what is for no host
	Service *client.Service // nil but for TargetService
}

// Target finds what a request for the authority on the port is for: the service or the host of a VirtualService that the authority
// means to the caller and that is seen on the port, else the service that was dialled, else what the outbound policy says. Where
// the port of the service that was dialled declares no protocol the service counts, whatever the authority. dialled, which may be
// nil, is the service of the destination address as View.ServiceAt finds it. As in Istio, what covers a service by a pattern says
// nothing of a port that the service does not have or that is not of HTTP; what names it does so of port 80.
func (c Caller) Target(port uint16, authority string, dialled *client.Service) Target {
	t, _ := c.target(port, authority, dialled, CarriesHTTP, c.saysHTTP(port))
	return t
}

// Candidate is a name that an authority may mean, and why it was not taken.
type Candidate struct {
	Host string
	Why  string
}

// Passed lists the names that Target passed over before it took what it returns.
func (c Caller) Passed(port uint16, authority string, dialled *client.Service) []Candidate {
	_, passed := c.target(port, authority, dialled, CarriesHTTP, c.saysHTTP(port))
	return passed
}

// saysHTTP tells whether a rule has a route for the caller's requests on the port. Of a host in no registry one that has none says
// nothing, as in Istio: what covers the host less well counts then.
func (c Caller) saysHTTP(port uint16) func(*client.RouteRule) bool {
	cc := c.composer()
	return func(r *client.RouteRule) bool {
		return r.GetError() != "" || slices.ContainsFunc(r.HTTP, func(h client.HTTPRule) bool { return cc.meets(h.Caller, port) })
	}
}

// CarriesHTTP reports whether a port of the protocol has routes: of what declares nothing the first bytes decide.
func CarriesHTTP(protocol string) bool {
	switch protocol {
	case "", "http", "http2", "grpc", "grpc-web":
		return true
	}
	return false
}

// target is Target for the protocols and the rules that count, with what it passed over.
func (c Caller) target(port uint16, authority string, dialled *client.Service, carries func(protocol string) bool,
	rules func(*client.RouteRule) bool) (Target, []Candidate) {
	var passed []Candidate
	found := func(svc *client.Service) (Target, []Candidate) {
		return Target{Kind: TargetService, Port: port, Host: svc.GetHostname(), Service: svc}, passed
	}
	undeclared := hasPort(dialled, port) && dialled.Settings.GetAppProtocols()[uint32(port)] == ""
	if undeclared && carries("") {
		return found(dialled)
	}
	for _, host := range c.View.Hosts(authority) {
		svc, why := c.seen(host, port, carries)
		if svc != nil && why == "" {
			return found(svc)
		}
		if aside(svc, why, port) && c.named(host, port, rules) {
			return Target{Kind: TargetHost, Port: port, Host: host}, passed
		}
		passed = append(passed, Candidate{host, cmp.Or(why, "no service and no VirtualService has the host")})
		if svc != nil {
			break
		}
	}
	if hasPort(dialled, port) && carries(dialled.Settings.GetAppProtocols()[uint32(port)]) {
		return found(dialled)
	}
	kind := c.others()
	if kind == TargetEgressProxy && (c.AtWorkload || dialled != nil) { // what was dialled is known
		kind = TargetPassthrough
	}
	return Target{Kind: kind, Port: port}, passed
}

// others is what calls for no host that is seen are for, whatever was dialled.
func (c Caller) others() TargetKind {
	switch {
	case c.View.OutboundPolicy(c.Snapshot.Mesh()) == settings.OutboundPolicy_REGISTRY_ONLY:
		return TargetBlackHole
	case c.View.EgressProxy() != "":
		return TargetEgressProxy
	}
	return TargetPassthrough
}

// aside reports whether a host of which seen says so may be that of a VirtualService alone: no service has it, or, on port 80, one that
// does not have the port. Istio holds such a service for none on that port.
func aside(svc *client.Service, why string, port uint16) bool {
	return svc == nil && why == "" || svc != nil && port == 80 && !hasPort(svc, port)
}

// isAside is aside of what is seen of the host.
func (c Caller) isAside(host string, port uint16) bool {
	svc, why := c.seen(host, port, CarriesHTTP)
	return aside(svc, why, port)
}

// seen returns the service of the host that is seen on the port, and why it does not count there; both are empty when no service has
// the host.
func (c Caller) seen(host string, port uint16, carries func(string) bool) (*client.Service, string) {
	if ip, err := netip.ParseAddr(host); err == nil {
		svc := c.View.ServiceAt(c.Snapshot, bare(c.Workload).GetNetwork(), netip.AddrPortFrom(ip, port))
		if svc == nil || !hasPort(svc, port) || !carries(svc.Settings.GetAppProtocols()[uint32(port)]) {
			return nil, ""
		}
		return svc, ""
	}
	all := c.Snapshot.ServicesByHost(host)
	if len(all) == 0 {
		return nil, ""
	}
	svc := c.choose(c.View, all, port)
	switch {
	case svc == nil:
		return nil, "the service is not seen from here"
	case !hasPort(svc, port):
		return svc, "the service has no port " + portText(port)
	case !carries(svc.Settings.GetAppProtocols()[uint32(port)]):
		return svc, "port " + portText(port) + " of the service carries " + svc.Settings.GetAppProtocols()[uint32(port)]
	}
	return svc, ""
}

// named reports whether VirtualServices that count name the host as it is written.
func (c Caller) named(host string, port uint16, wanted func(*client.RouteRule) bool) bool {
	return slices.ContainsFunc(c.Snapshot.RouteRules(host), func(r *client.RouteRule) bool {
		return c.counts(r, host, port) && wanted(r) && !c.brokenForeign(r, host)
	})
}

// counts reports whether a VirtualService is for the caller when it calls a host that the rule names so (SR-16).
func (c Caller) counts(r *client.RouteRule, host string, port uint16) bool {
	if to := r.GetExportTo(); len(to) > 0 && !slices.Contains(to, c.View.Namespace) {
		return false
	}
	return len(c.View.Scope.GetEgress()) == 0 ||
		c.View.imports(c.View.egress(uint32(port)).GetHosts(), Callee{Namespace: r.GetNamespace(), Hostname: host})
}

// routeRules returns the VirtualServices that count for the host on the port: those of the most specific name that any has for it,
// the oldest first.
func (c Caller) routeRules(host string, port uint16) []*client.RouteRule {
	for _, pattern := range patterns(host) {
		var out []*client.RouteRule
		for _, r := range c.Snapshot.RouteRules(pattern) {
			if c.counts(r, pattern, port) && !c.brokenForeign(r, host) {
				out = append(out, r)
			}
		}
		if len(out) > 0 {
			return out
		}
	}
	return nil
}

// brokenForeign reports whether r cannot be carried out and the host is the service of another namespace: anybody's mistake, or
// malice, would end what is not his. A rule of the service's own namespace, or of a host that is no service, is refused instead.
func (c Caller) brokenForeign(r *client.RouteRule, host string) bool {
	if r.GetError() == "" {
		return false
	}
	svc := c.exported(host)
	return svc != nil && svc.GetNamespace() != r.GetNamespace()
}

// exported returns the service of the host that is exported to the caller, whatever its scope: what a rule names is called.
func (c Caller) exported(host string) *client.Service {
	return c.choose(View{Namespace: c.View.Namespace, ClusterDomain: c.View.ClusterDomain}, c.Snapshot.ServicesByHost(host), 0)
}

// choose is View.Choose of services.
func (c Caller) choose(v View, all []*client.Service, port uint16) *client.Service {
	callees := make([]Callee, 0, len(all))
	for _, svc := range all {
		callees = append(callees, CalleeOf(svc))
	}
	chosen, ok := v.Choose(callees, uint32(port))
	if !ok {
		return nil
	}
	i := slices.IndexFunc(all, func(svc *client.Service) bool { return svc.GetNamespace() == chosen.Namespace })
	return all[i]
}

func hasPort(svc *client.Service, port uint16) bool {
	return svc != nil && slices.ContainsFunc(svc.GetPorts(), func(p *workloadapi.Port) bool { return p.GetServicePort() == uint32(port) })
}

// bare is the message of a workload, nil for none: its getters take nil.
func bare(w *client.Workload) *workloadapi.Workload {
	if w == nil {
		return nil
	}
	return w.Workload
}

func portText(port uint16) string { return strconv.Itoa(int(port)) }
