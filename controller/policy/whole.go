package policy

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/client"
)

// Seen calls f for each port of each service that the caller sees, by hostname and port. Of several services of one host it is the
// one that counts.
func (c Caller) Seen(f func(svc *client.Service, port uint16)) {
	all := c.Snapshot.Services()
	slices.SortFunc(all, func(a, b *client.Service) int {
		return cmp.Or(strings.Compare(a.GetHostname(), b.GetHostname()), strings.Compare(a.GetNamespace(), b.GetNamespace()))
	})
	for _, svc := range all {
		rivals := c.Snapshot.ServicesByHost(svc.GetHostname())
		for _, p := range svc.GetPorts() {
			if c.choose(c.View, rivals, uint16(p.GetServicePort())) == svc {
				f(svc, uint16(p.GetServicePort()))
			}
		}
	}
}

// RouteConfigs composes everything that the caller's HTTP goes by, in the form of Istio: one RouteConfiguration for each port that
// some service declares HTTP for, and one for each port of a service that declares nothing. It is sorted by name. O(services), for
// the CLI and for tests.
func (c Caller) RouteConfigs() []*routev3.RouteConfiguration {
	cc := c.composer()
	byName := map[string]*routev3.RouteConfiguration{}
	hosts := map[uint16]map[string]*routev3.VirtualHost{}
	c.Seen(func(svc *client.Service, port uint16) {
		protocol := svc.Settings.GetAppProtocols()[uint32(port)]
		if !CarriesHTTP(protocol) {
			return
		}
		vh := cc.virtualHost(Target{Kind: TargetService, Port: port, Host: svc.GetHostname(), Service: svc})
		if hosts[port] == nil {
			hosts[port] = map[string]*routev3.VirtualHost{}
		}
		hosts[port][svc.GetHostname()] = vh
		if protocol == "" {
			name := svc.GetHostname() + ":" + portText(port)
			alone := &routev3.VirtualHost{Name: vh.GetName(), Domains: []string{"*"}, Routes: vh.GetRoutes(), IncludeRequestAttemptCount: vh.GetIncludeRequestAttemptCount()}
			byName[name] = routeConfig(name, alone)
		} else {
			byName[portText(port)] = nil
		}
	})
	for name, rc := range byName {
		if rc != nil {
			continue
		}
		port64, _ := strconv.ParseUint(name, 10, 16) // it was written above
		port := uint16(port64)
		for _, host := range cc.ruleHosts(port) {
			if hosts[port][host] == nil {
				hosts[port][host] = cc.virtualHost(Target{Kind: TargetHost, Port: port, Host: host})
			}
		}
		byName[name] = cc.shared(name, port, hosts[port])
	}
	out := make([]*routev3.RouteConfiguration, 0, len(byName))
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		out = append(out, byName[name])
	}
	return out
}

func routeConfig(name string, hosts ...*routev3.VirtualHost) *routev3.RouteConfiguration {
	return &routev3.RouteConfiguration{Name: name, VirtualHosts: hosts, ValidateClusters: wrapperspb.Bool(false), IgnorePortInHostMatching: true,
		MaxDirectResponseBodySizeBytes: wrapperspb.UInt32(1 << 20)}
}

// ruleHosts are the hosts that VirtualServices name and no service has, or none that counts there for them.
func (c *composer) ruleHosts(port uint16) []string {
	asked := map[string]bool{}
	for _, r := range c.Snapshot.AllRouteRules() {
		for _, h := range r.GetHosts() {
			if _, again := asked[h]; !again {
				asked[h] = (len(c.Snapshot.ServicesByHost(h)) == 0 || c.isAside(h, port)) && c.named(h, port, c.saysHTTP(port))
			}
		}
	}
	maps.DeleteFunc(asked, func(_ string, named bool) bool { return !named })
	return slices.Sorted(maps.Keys(asked))
}

// shared puts the virtual hosts of a port together. Of several that have one domain the service that is preferred keeps it; Envoy
// refuses a domain that stands twice.
func (c *composer) shared(name string, port uint16, hosts map[string]*routev3.VirtualHost) *routev3.RouteConfiguration {
	out := routeConfig(name)
	taken := map[string]bool{}
	order := slices.SortedFunc(maps.Keys(hosts), func(a, b string) int {
		return cmp.Or(c.compareHosts(a, b), strings.Compare(a, b))
	})
	for _, host := range order { // whole names first: they are nobody's short ones
		taken[host] = true
	}
	for _, host := range order {
		vh := hosts[host]
		domains := []string{host}
		for _, d := range vh.GetDomains() {
			if !taken[d] {
				taken[d] = true
				domains = append(domains, d)
			}
		}
		vh.Domains = domains
		out.VirtualHosts = append(out.VirtualHosts, vh)
	}
	slices.SortStableFunc(out.VirtualHosts, func(a, b *routev3.VirtualHost) int { return strings.Compare(a.GetName(), b.GetName()) })
	rest := c.rest(c.others())
	if taken["*"] {
		rest.Domains = nil
	}
	if rest.Domains = append(rest.Domains, c.uncovered(port, order, taken)...); len(rest.Domains) > 0 {
		out.VirtualHosts = append(out.VirtualHosts, rest)
	}
	return out
}

// uncovered are the names of services that a pattern among the hosts would cover, and that it does not count for: their port is none,
// or not of HTTP.
func (c *composer) uncovered(port uint16, hosts []string, taken map[string]bool) []string {
	if !slices.ContainsFunc(hosts, func(h string) bool { return strings.HasPrefix(h, "*") }) {
		return nil
	}
	var out []string
	for _, svc := range c.Snapshot.Services() {
		seen, why := c.seen(svc.GetHostname(), port, CarriesHTTP)
		if seen != svc || why == "" {
			continue
		}
		for _, d := range c.domains(svc) {
			if !taken[d] && slices.ContainsFunc(patterns(d)[1:], func(p string) bool { return slices.Contains(hosts, p) }) {
				taken[d] = true
				out = append(out, d)
			}
		}
	}
	slices.Sort(out)
	return out
}

func (c *composer) compareHosts(a, b string) int {
	x, y := c.service(a), c.service(b)
	switch {
	case x == nil || y == nil:
		return truth(x == nil, y == nil)
	}
	return c.View.compare(CalleeOf(x), CalleeOf(y))
}

// Clusters composes the clusters of everything that the caller sees, with the subsets of their DestinationRules and what routes
// lead to beside them, sorted by host, port and subset after the two that stand for no service. O(services), for the CLI and for tests.
func (c Caller) Clusters() []ClusterSpec {
	out := []ClusterSpec{}
	for _, name := range []string{api.BlackHoleCluster, api.PassthroughCluster} {
		spec, _ := c.Cluster(name)
		out = append(out, spec)
	}
	names := map[string]bool{}
	cc := c.composer()
	c.Seen(func(svc *client.Service, port uint16) {
		names[api.ClusterName(uint32(port), "", svc.GetHostname())] = true
		for _, r := range cc.calls(svc.GetNamespace(), svc.GetHostname()) {
			for _, s := range r.Subsets {
				names[api.ClusterName(uint32(port), s.Name, svc.GetHostname())] = true
			}
		}
	})
	for _, rc := range c.RouteConfigs() {
		for _, vh := range rc.GetVirtualHosts() {
			for _, r := range vh.GetRoutes() {
				for name := range clustersOf(r) {
					names[name] = true
				}
			}
		}
	}
	for _, name := range slices.SortedFunc(maps.Keys(names), compareClusters) {
		if spec, ok := c.Cluster(name); ok && spec.Service != nil {
			out = append(out, spec)
		}
	}
	return out
}

// compareClusters orders by host, port and subset.
func compareClusters(a, b string) int {
	x, _ := parseCluster(a)
	y, _ := parseCluster(b)
	return cmp.Or(strings.Compare(x.host, y.host), cmp.Compare(x.port, y.port), strings.Compare(x.subset, y.subset), strings.Compare(a, b))
}

// clustersOf are those that a route leads to.
func clustersOf(r *routev3.Route) map[string]bool {
	out := map[string]bool{}
	a := r.GetRoute()
	if a.GetCluster() != "" {
		out[a.GetCluster()] = true
	}
	for _, w := range a.GetWeightedClusters().GetClusters() {
		out[w.GetName()] = true
	}
	for _, m := range a.GetRequestMirrorPolicies() {
		out[m.GetCluster()] = true
	}
	return out
}

// Assignment is the endpoints of a cluster in the form of Envoy.
func (c Caller) Assignment(spec ClusterSpec) *endpointv3.ClusterLoadAssignment {
	out := &endpointv3.ClusterLoadAssignment{ClusterName: spec.Cluster.GetName()}
	groups := map[localityKey]*endpointv3.LocalityLbEndpoints{}
	for _, e := range c.Endpoints(spec) {
		k := keyOf(e)
		g := groups[k]
		if g == nil {
			g = &endpointv3.LocalityLbEndpoints{Priority: e.Priority,
				Locality: &corev3.Locality{Region: k.region, Zone: k.zone, SubZone: k.subzone}}
			if e.LocalityWeight > 0 {
				g.LoadBalancingWeight = wrapperspb.UInt32(e.LocalityWeight)
			}
			groups[k] = g
			out.Endpoints = append(out.Endpoints, g)
		}
		health := corev3.HealthStatus_HEALTHY
		switch {
		case e.Draining:
			health = corev3.HealthStatus_DRAINING
		case !e.Healthy:
			health = corev3.HealthStatus_UNHEALTHY
		}
		g.LbEndpoints = append(g.LbEndpoints, &endpointv3.LbEndpoint{HealthStatus: health, LoadBalancingWeight: wrapperspb.UInt32(e.Weight),
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: socketAddress(e)}}})
	}
	slices.SortStableFunc(out.Endpoints, func(a, b *endpointv3.LocalityLbEndpoints) int {
		return cmp.Or(cmp.Compare(a.GetPriority(), b.GetPriority()), strings.Compare(placeText(a.GetLocality()), placeText(b.GetLocality())))
	})
	return out
}

func placeText(l *corev3.Locality) string {
	return l.GetRegion() + "/" + l.GetZone() + "/" + l.GetSubZone()
}

func socketAddress(e ClusterEndpoint) *corev3.Address {
	host := e.Workload.GetHostname()
	if len(e.Workload.Addrs) > 0 {
		host = e.Workload.Addrs[0].String()
	}
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{Address: host,
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(e.Port)}}}}
}
