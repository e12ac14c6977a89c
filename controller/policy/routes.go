package policy

import (
	"maps"
	"slices"
	"strings"

	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
)

// SharedRoute is the RouteConfiguration of one port of a service, as it is served to every caller alike.
type SharedRoute struct {
	Callee   Callee
	Port     uint32
	Declared bool // the port declares HTTP
	Config   *route.RouteConfiguration
}

// Routes composes what the callers of the view go by, in the form of Istio: one RouteConfiguration a port with a virtual
// host for each service that is seen, its short names among the domains, and the outbound policy for the rest. It is sorted
// by name; nothing of the arguments is modified, and parts of them are shared.
func (v View) Routes(mesh *settings.MeshSettings, shared []SharedRoute) []*route.RouteConfiguration {
	byName := map[string]*route.RouteConfiguration{}
	taken := map[string]map[string]bool{} // name -> domains
	shared = slices.Clone(shared)
	slices.SortStableFunc(shared, func(a, b SharedRoute) int {
		return v.compare(a.Callee, b.Callee) // who comes first keeps a domain that several have
	})
	type hostPort struct {
		host string
		port uint32
	}
	rivals := map[hostPort][]Callee{}
	for _, s := range shared {
		at := hostPort{s.Callee.Hostname, s.Port}
		rivals[at] = append(rivals[at], s.Callee)
	}
	for _, s := range shared {
		chosen, ok := v.Choose(rivals[hostPort{s.Callee.Hostname, s.Port}], s.Port)
		if !ok || chosen.Namespace != s.Callee.Namespace {
			continue
		}
		name := RouteConfigName(s.Callee, s.Port, s.Declared)
		rc := byName[name]
		if rc == nil {
			rc = &route.RouteConfiguration{Name: name, ValidateClusters: wrapperspb.Bool(false), IgnorePortInHostMatching: true}
			byName[name], taken[name] = rc, map[string]bool{}
		}
		for _, vh := range s.Config.GetVirtualHosts() {
			vh = v.withShortNames(vh, s.Callee)
			vh.Domains = slices.DeleteFunc(vh.Domains, func(d string) bool { // Envoy refuses a domain that stands twice
				twice := taken[name][d]
				taken[name][d] = true
				return twice
			})
			if len(vh.Domains) > 0 {
				rc.VirtualHosts = append(rc.VirtualHosts, vh)
			}
		}
	}
	var out []*route.RouteConfiguration
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		rc := byName[name]
		slices.SortStableFunc(rc.VirtualHosts, func(a, b *route.VirtualHost) int { return strings.Compare(a.GetName(), b.GetName()) })
		if !taken[name]["*"] {
			rc.VirtualHosts = append(rc.VirtualHosts, v.rest(mesh))
		}
		out = append(out, rc)
	}
	return out
}

// withShortNames adds the name by which the service's own namespace calls it.
func (v View) withShortNames(vh *route.VirtualHost, s Callee) *route.VirtualHost {
	out := proto.CloneOf(vh)
	short, rest, _ := strings.Cut(s.Hostname, ".")
	if s.Namespace == v.Namespace && v.full(short) == s.Hostname && rest != "" && !slices.Contains(out.GetDomains(), short) {
		i := min(1, len(out.Domains))
		out.Domains = slices.Insert(out.Domains, i, short)
	}
	return out
}

// rest is the virtual host of what is in no registry or not seen (DESIGN §5: passthrough or BlackHole).
func (v View) rest(mesh *settings.MeshSettings) *route.VirtualHost {
	all := &route.RouteMatch{PathSpecifier: &route.RouteMatch_Prefix{Prefix: "/"}}
	if v.OutboundPolicy(mesh) == settings.OutboundPolicy_REGISTRY_ONLY {
		return &route.VirtualHost{Name: "block_all", Domains: []string{"*"}, IncludeRequestAttemptCount: true, Routes: []*route.Route{{
			Name: "block_all", Match: all,
			Action: &route.Route_DirectResponse{DirectResponse: &route.DirectResponseAction{Status: 502}},
		}}}
	}
	return &route.VirtualHost{Name: "allow_any", Domains: []string{"*"}, IncludeRequestAttemptCount: true, Routes: []*route.Route{{
		Name: "allow_any", Match: all,
		Action: &route.Route_Route{Route: &route.RouteAction{
			ClusterSpecifier: &route.RouteAction_Cluster{Cluster: api.PassthroughCluster}, Timeout: durationpb.New(0)}},
	}}}
}
