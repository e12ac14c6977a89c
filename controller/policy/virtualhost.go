package policy

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/client"
)

// VirtualHost composes what requests for the target go by, and of what it is made.
func (c Caller) VirtualHost(t Target) (*routev3.VirtualHost, Inputs) {
	cc := c.composer()
	return cc.virtualHost(t), cc.inputs()
}

func (c *composer) virtualHost(t Target) *routev3.VirtualHost {
	switch t.Kind {
	case TargetService, TargetHost:
	default:
		return c.rest(t.Kind)
	}
	out := &routev3.VirtualHost{Name: t.Host + ":" + portText(t.Port), Domains: c.View.names(t.Host), IncludeRequestAttemptCount: c.headers().attempts}
	if t.Kind == TargetService {
		out.Domains = c.domains(t.Service)
	}
	for _, r := range c.routes(t.Host, t.Port) {
		if routes := c.ruleRoutes(r, t.Port); len(routes) > 0 {
			out.Routes = routes
			return out
		}
	}
	if t.Kind == TargetService {
		out.Routes = []*routev3.Route{c.defaultRoute(t.Service, t.Port)}
		return out
	}
	rest := c.rest(c.others()) // every rule of the host is for others
	rest.Name, rest.Domains = out.Name, out.Domains
	return rest
}

// domains are the names of a service that mean it to the caller.
func (c *composer) domains(svc *client.Service) []string {
	out := c.View.names(svc.GetHostname())
	for _, ip := range svc.VIPs {
		out = append(out, authorityOf(ip))
	}
	return out
}

// authorityOf writes an address as an authority does.
func authorityOf(ip netip.Addr) string {
	if ip.Is6() {
		return "[" + ip.String() + "]"
	}
	return ip.String()
}

// rest is the virtual host of what is in no registry or not seen (DESIGN §5: passthrough or BlackHole), or goes through the egress
// proxy of the caller's Sidecar.
func (c *composer) rest(kind TargetKind) *routev3.VirtualHost {
	out := &routev3.VirtualHost{Name: "allow_any", Domains: []string{"*"}, IncludeRequestAttemptCount: c.headers().attempts}
	route := &routev3.Route{Name: "allow_any", Match: everyRequest()}
	to := api.PassthroughCluster
	switch kind {
	case TargetPassthrough:
	case TargetEgressProxy:
		to = c.egressProxy()
		if why := c.proxyless(to); why != "" {
			out.Routes = []*routev3.Route{refusalBy(why)}
			return out
		}
	default:
		out.Name, route.Name = "block_all", "block_all"
		route.Action = &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: 502}}
		out.Routes = []*routev3.Route{route}
		return out
	}
	route.Action = &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: to}, Timeout: durationpb.New(0)}}
	out.Routes = []*routev3.Route{route}
	return out
}

// proxyless says why the cluster of an egress proxy leads nowhere, "" where it does. What goes to the address that was dialled is no
// proxy: the calls would go round it.
func (c *composer) proxyless(name string) string {
	spec, ok := c.cluster(name)
	switch {
	case !ok:
		return "egressProxy of the Sidecar: cluster " + name + " is of no service, port and subset that are there"
	case spec.Cluster.GetType() == clusterv3.Cluster_ORIGINAL_DST:
		return "egressProxy of the Sidecar: cluster " + name + " leads to the address that was dialled, since its service has no address or endpoints of its own"
	}
	return ""
}

func everyRequest() *routev3.RouteMatch {
	return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}
}

// defaultRoute is what counts while no VirtualService says otherwise.
func (c *composer) defaultRoute(svc *client.Service, port uint16) *routev3.Route {
	host := svc.GetHostname() + ":" + portText(port)
	none := durationpb.New(0)
	action := &routev3.RouteAction{
		ClusterSpecifier:  &routev3.RouteAction_Cluster{Cluster: api.ClusterName(uint32(port), "", svc.GetHostname())},
		Timeout:           none, // RS-02
		MaxStreamDuration: &routev3.RouteAction_MaxStreamDuration{MaxStreamDuration: none, GrpcTimeoutHeaderMax: none},
		RetryPolicy:       c.defaults().Retry,
	}
	if hash := c.hashPolicy(svc, port, ""); hash != nil {
		action.HashPolicy = []*routev3.RouteAction_HashPolicy{hash}
		action.RetryPolicy = sameHost(action.GetRetryPolicy())
	}
	return &routev3.Route{Name: "default", Match: everyRequest(), Decorator: &routev3.Decorator{Operation: host + "/*"},
		Action: &routev3.Route_Route{Route: action}}
}

// sameHost lets a retry go to the host that failed: the hash says which it is.
func sameHost(p *routev3.RetryPolicy) *routev3.RetryPolicy {
	if len(p.GetRetryHostPredicate()) == 0 {
		return p
	}
	out := proto.CloneOf(p)
	out.RetryHostPredicate = nil
	return out
}

// ruleRoutes are the routes of a VirtualService that are for the caller on the port. None: it says nothing of HTTP to the caller.
func (c *composer) ruleRoutes(r *client.RouteRule, port uint16) []*routev3.Route {
	if r.GetError() != "" {
		return []*routev3.Route{refusal(r, r.GetError())}
	}
	var out []*routev3.Route
	for _, rule := range r.HTTP {
		if !c.meets(rule.Caller, port) {
			continue
		}
		route := c.finish(r, rule, port)
		if out = append(out, route); takesAll(route.GetMatch()) {
			break
		}
	}
	return out
}

// refusal answers every request: a rule that cannot be carried out is no reason to send requests anywhere else.
func refusal(r *client.RouteRule, why string) *routev3.Route {
	return refusalBy(fmt.Sprintf("VirtualService %s/%s cannot be carried out: %s", r.GetNamespace(), r.GetName(), why))
}

func refusalBy(text string) *routev3.Route {
	return &routev3.Route{Name: "invalid", Match: everyRequest(), Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{
		Status: 503, Body: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: text}}}}}
}

// takesAll reports whether every request matches.
func takesAll(m *routev3.RouteMatch) bool {
	all := m.GetPrefix() == "/" || m.GetSafeRegex().GetRegex() == ".*"
	return all && len(m.GetHeaders()) == 0 && len(m.GetQueryParameters()) == 0 && len(m.GetDynamicMetadata()) == 0
}

// finish fills in what depends on the caller: ports of clusters, hash policies, the name of the operation.
func (c *composer) finish(r *client.RouteRule, rule client.HTTPRule, port uint16) *routev3.Route {
	out := proto.CloneOf(rule.Route)
	if d := out.GetRedirect(); d != nil && rule.RedirectCalledPort {
		d.PortRedirect = uint32(port)
		if scheme := d.GetSchemeRedirect(); port == 80 && scheme != "https" || port == 443 && scheme == "https" {
			d.PortRedirect = 0
		}
	}
	operation := r.GetName() + ":" + portText(port)
	if action := out.GetRoute(); action != nil {
		single := c.finishAction(action, rule, port)
		if single != "" {
			operation = single
		}
	}
	out.Decorator = &routev3.Decorator{Operation: operation + pathText(out.GetMatch())}
	return out
}

// finishAction returns HOST:PORT of the only destination, "" when there are several.
func (c *composer) finishAction(action *routev3.RouteAction, rule client.HTTPRule, port uint16) string {
	single := ""
	action.AppendXForwardedHost = c.headers().host
	if action.GetCluster() != "" {
		name, hash := c.destination(action.GetCluster(), port)
		action.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: name}
		if hash != nil {
			action.HashPolicy = append(action.HashPolicy, hash)
			if !rule.OwnRetryHosts {
				action.RetryPolicy = sameHost(action.GetRetryPolicy())
			}
		}
		if p, ok := parseCluster(name); ok {
			single = p.host + ":" + strconv.Itoa(int(p.port))
		}
	}
	for _, w := range action.GetWeightedClusters().GetClusters() {
		name, hash := c.destination(w.GetName(), port)
		w.Name = name
		if hash != nil && !slices.ContainsFunc(action.HashPolicy, func(h *routev3.RouteAction_HashPolicy) bool { return proto.Equal(h, hash) }) {
			action.HashPolicy = append(action.HashPolicy, hash)
		}
	}
	for _, m := range action.GetRequestMirrorPolicies() {
		m.Cluster, _ = c.destination(m.GetCluster(), port)
	}
	return single
}

func pathText(m *routev3.RouteMatch) string {
	switch p := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Prefix:
		return p.Prefix + "*"
	case *routev3.RouteMatch_Path:
		return p.Path
	case *routev3.RouteMatch_SafeRegex:
		return p.SafeRegex.GetRegex()
	}
	return "/*"
}

// destination fills in the port that a rule leaves open: the only one of the service, else the one that is called. It returns the
// hash policy of the destination too.
func (c *composer) destination(name string, called uint16) (string, *routev3.RouteAction_HashPolicy) {
	p, ok := parseCluster(name)
	if !ok {
		return name, nil
	}
	svc := c.service(p.host)
	if p.port == 0 {
		p.port = called
		if svc != nil && len(svc.GetPorts()) == 1 {
			p.port = uint16(svc.GetPorts()[0].GetServicePort())
		}
	}
	var hash *routev3.RouteAction_HashPolicy
	if svc != nil {
		hash = c.hashPolicy(svc, p.port, p.subset)
	}
	return api.ClusterName(uint32(p.port), p.subset, p.host), hash
}

// clusterParts are those of the name of a cluster of a service.
type clusterParts struct {
	port         uint16 // 0: open
	subset, host string
}

// parseCluster reads "outbound|PORT|SUBSET|HOST", where PORT may be missing.
func parseCluster(name string) (clusterParts, bool) {
	parts := strings.SplitN(name, "|", 4)
	if len(parts) != 4 || parts[0] != "outbound" || parts[3] == "" {
		return clusterParts{}, false
	}
	port, err := strconv.ParseUint(parts[1], 10, 16)
	if err != nil && parts[1] != "" {
		return clusterParts{}, false
	}
	return clusterParts{uint16(port), parts[2], parts[3]}, true
}

// hostOf is an authority without its port.
func hostOf(authority string) string {
	if h, _, err := net.SplitHostPort(authority); err == nil {
		return h
	}
	return authority
}
