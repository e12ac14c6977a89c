package explain

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/policy"
	"github.com/undermesh/undermesh/ztunnel/http/route"
)

// errNotReady is for a pod of which not everything has arrived.
var errNotReady = errors.New("not all that it refers to has arrived yet")

// decider answers one question.
type decider struct {
	World
	caller  policy.Caller
	ask     asked
	dialled *client.Service
	in      route.Input
	out     *Decision
}

// Decide answers a question. The error is about the question: a request that is refused has a Decision too.
func Decide(w World, q Question) (*Decision, error) {
	a, err := q.read()
	if err != nil {
		return nil, fmt.Errorf("read request: %w", err)
	}
	if w.Snapshot == nil {
		return nil, errors.New("there is no snapshot of the mesh yet")
	}
	caller, err := callerOf(w.Snapshot, q)
	if err != nil {
		return nil, err
	}
	d := &decider{World: w, caller: caller, ask: a, out: &Decision{Question: q, Generation: w.Snapshot.Generation()}}
	d.source()
	d.connect()
	switch {
	case d.own():
		d.out.Connection.Listener = "none"
		d.out.Outcome = "not the mesh's: what a pod sends to its own addresses is not captured"
	case d.out.Connection.Protocol == protocolHTTP:
		d.http()
	default:
		d.stream()
	}
	return d.out, nil
}

// callerOf is the pod that the question is about.
func callerOf(s *client.Snapshot, q Question) (policy.Caller, error) {
	workload := s.WorkloadByName(q.Namespace, q.Pod)
	if workload == nil {
		return policy.Caller{}, fmt.Errorf("pod %s/%s: the mesh knows no workload of this name", q.Namespace, q.Pod)
	}
	caller, ok := policy.NewCaller(s, workload)
	if !ok {
		return policy.Caller{}, fmt.Errorf("pod %s/%s: %w", q.Namespace, q.Pod, errNotReady)
	}
	return caller, nil
}

func (d *decider) source() {
	w := d.caller.Workload
	s := Source{Workload: w.GetNamespace() + "/" + w.GetName(), Identity: w.Identity.String(), Node: w.GetNode(), Labels: w.Labels}
	if len(w.Addrs) > 0 {
		s.Address = w.Addrs[0].String()
		d.in.Source = netip.AddrPortFrom(w.Addrs[0], 0)
	}
	d.out.Source = s
	scope := Scope{Name: w.Settings.GetScope(), Rest: d.caller.View.OutboundPolicy(d.Snapshot.Mesh()).String(), EgressProxy: d.caller.View.EgressProxy()}
	for _, e := range d.caller.View.Scope.GetEgress() {
		hosts := strings.Join(e.GetHosts(), ", ")
		if e.GetPort() != 0 {
			hosts = fmt.Sprintf("port %d: %s", e.GetPort(), hosts)
		}
		scope.Egress = append(scope.Egress, hosts)
	}
	d.out.Scope = scope
}

// The protocols of a connection.
const (
	protocolHTTP = "http"
	protocolTLS  = "tls"
	protocolTCP  = "tcp"
)

// own reports whether the pod dials itself, which is never captured (docs/datapath.md).
func (d *decider) own() bool {
	ip := d.ask.addr.Addr()
	return ip.IsLoopback() || ip.IsUnspecified() || slices.Contains(d.caller.Workload.Addrs, ip)
}

// connect finds what is at the address that is dialled, and what is spoken there.
func (d *decider) connect() {
	c := &d.out.Connection
	c.Listener = fmt.Sprintf("outbound, port %d", api.PortOutbound)
	if !d.ask.addr.IsValid() {
		d.ask.addr = d.resolve()
	}
	port := d.ask.port
	if d.ask.addr.IsValid() {
		c.Address, port = d.ask.addr.String(), d.ask.addr.Port()
		d.dialled = d.caller.View.ServiceAt(d.Snapshot, d.caller.Workload.GetNetwork(), d.ask.addr)
	}
	d.ask.port = port
	d.caller.AtWorkload = d.Snapshot.WorkloadFor(d.caller.View.Namespace, d.caller.Workload.GetNetwork(), d.ask.addr.Addr()) != nil
	if d.dialled != nil {
		c.Service = d.dialled.GetNamespace() + "/" + d.dialled.GetHostname()
	}
	d.speak(d.declared())
}

// declared is what the port declares, and of what; "" for nothing.
func (d *decider) declared() (protocol, by string) {
	key := uint32(d.ask.port)
	if d.dialled != nil {
		return d.dialled.Settings.GetAppProtocols()[key], "port " + fmt.Sprint(key) + " of " + d.dialled.GetHostname()
	}
	w := d.Snapshot.WorkloadFor(d.caller.Workload.GetNamespace(), d.caller.Workload.GetNetwork(), d.ask.addr.Addr())
	if w == nil {
		return "", ""
	}
	for service, ports := range w.GetServices() {
		namespace, host, _ := strings.Cut(service, "/")
		svc := d.Snapshot.ServiceByHost(namespace, host)
		if svc == nil || namespace != w.GetNamespace() {
			continue
		}
		for _, p := range ports.GetPorts() {
			if said := svc.Settings.GetAppProtocols()[p.GetServicePort()]; p.GetTargetPort() == key && said != "" {
				protocol, by = said, fmt.Sprintf("port %d of %s, behind which the pod is", p.GetServicePort(), host)
			}
		}
	}
	return protocol, by
}

// speak decides what the connection is taken for.
func (d *decider) speak(declared, by string) {
	c := &d.out.Connection
	switch declared {
	case "":
		c.Why = "nothing is declared, and the first bytes are a request"
		if c.Protocol = protocolHTTP; d.ask.tls {
			c.Protocol, c.Why = protocolTLS, "nothing is declared, and the first bytes are a ClientHello"
		}
	case "http", "http2", "grpc", "grpc-web":
		c.Protocol, c.Why = protocolHTTP, by+" declares "+declared
		if d.ask.tls {
			c.Protocol, c.Why = protocolTLS, c.Why+", and the pod sends TLS"
		}
	case "https", "tls":
		c.Protocol, c.Why = protocolTLS, by+" declares "+declared
		if !d.ask.tls {
			c.Protocol, c.Why = protocolTCP, c.Why+", and the pod sends no TLS"
		}
	default:
		c.Protocol, c.Why = protocolTCP, by+" declares "+declared
	}
}

// resolve is the address that the mesh's DNS has for the host: the first of the service that the name means here.
func (d *decider) resolve() netip.AddrPort {
	for _, name := range d.caller.View.Hosts(d.ask.host) {
		var best *client.Service
		for _, svc := range d.Snapshot.ServicesByHost(name) {
			if len(svc.VIPs) > 0 && d.caller.View.Sees(policy.CalleeOf(svc), uint32(d.ask.port)) && d.caller.View.Prefers(svc, best) {
				best = svc
			}
		}
		if best != nil {
			return netip.AddrPortFrom(d.vip(best), d.ask.port)
		}
	}
	return netip.AddrPort{}
}

// vip is that of the caller's own family, if there is one.
func (d *decider) vip(svc *client.Service) netip.Addr {
	for _, ip := range svc.VIPs {
		if own := d.caller.Workload.Addrs; len(own) > 0 && ip.Is4() == own[0].Is4() {
			return ip
		}
	}
	return svc.VIPs[0]
}

// http follows a request.
func (d *decider) http() {
	authority := string(d.ask.req.Authority)
	t := d.caller.Target(d.ask.port, authority, d.dialled)
	d.out.Target = &Target{Kind: t.Kind.String(), Host: t.Host, Port: t.Port}
	for _, p := range d.caller.Passed(d.ask.port, authority, d.dialled) {
		d.out.Target.Passed = append(d.out.Target.Passed, Passed{p.Host, p.Why})
	}
	vh, _ := d.caller.VirtualHost(t)
	d.out.VirtualHost = &VirtualHost{Name: vh.GetName(), Domains: vh.GetDomains(), Routes: len(vh.GetRoutes())}
	compiled, err := route.Compile(vh)
	if err != nil {
		d.out.Outcome = "503: the virtual host cannot be served: " + err.Error()
		return
	}
	taken, passed := compiled.Explain(d.ask.req, &d.in)
	r := &Route{}
	for i, p := range passed {
		r.Passed = append(r.Passed, Passed{titleOf(i, vh.GetRoutes()[i]), p.Why})
	}
	d.out.Route = r
	switch {
	case d.in.Excess != "":
		d.out.Outcome = "431: the regular expressions of the routes cost too much"
		return
	case taken == nil:
		d.out.Outcome = "404: no route matches"
		return
	}
	m := vh.GetRoutes()[len(passed)]
	r.Name, r.Object, r.Match, r.Does = taken.Name, objectOf(taken.Object), matchText(m.GetMatch()), effects(m)
	if text, err := protojson.Marshal(m); err == nil {
		r.Config = compacted(text)
	}
	d.act(taken, m)
}

// act says where the route leads, and what of it a fault answers.
func (d *decider) act(taken *route.Route, m *routev3.Route) {
	d.lead(taken, m)
	abort := faultOf(m).GetAbort()
	if abort == nil {
		return
	}
	if share := shareOf(abort.GetPercentage()); share >= 100 {
		d.out.Outcome = abortText(abort) + ": a fault answers every request"
	} else if share > 0 {
		d.out.Outcome += fmt.Sprintf("; a fault answers %g %% with %s", share, abortText(abort))
	}
}

func (d *decider) lead(taken *route.Route, m *routev3.Route) {
	switch {
	case taken.Direct != nil:
		d.out.Outcome = fmt.Sprintf("%d: the route answers itself", taken.Direct.Status)
		if len(taken.Direct.Body) > 0 {
			d.out.Outcome += fmt.Sprintf(" with %q", taken.Direct.Body)
		}
	case taken.Redirect != nil:
		d.out.Outcome = fmt.Sprintf("%d: redirected to %s", taken.Redirect.Status, taken.Redirect.Location(nil, d.ask.req, &d.in))
	default:
		total := uint64(0)
		targets := d.targets(taken, m.GetRoute())
		taken.Request(d.ask.req, taken.Pick(d.ask.req, &d.in), &d.in) // rules may make what is hashed
		hash := taken.Hash(d.ask.req, &d.in)
		for _, t := range targets {
			total += uint64(t.Weight)
		}
		for _, t := range targets {
			c := d.cluster(t.Name, hash)
			c.Share = percent(uint64(t.Weight), total)
			d.out.Clusters = append(d.out.Clusters, c)
		}
		d.out.Outcome = d.outcome("503")
	}
}

// targets are the clusters of a route by weight.
func (d *decider) targets(taken *route.Route, a *routev3.RouteAction) []policy.WeightedCluster {
	var out []policy.WeightedCluster
	for _, w := range a.GetWeightedClusters().GetClusters() {
		if n := w.GetWeight().GetValue(); n > 0 {
			out = append(out, policy.WeightedCluster{Name: w.GetName(), Weight: n})
		}
	}
	if len(out) == 0 {
		out = append(out, policy.WeightedCluster{Name: taken.Pick(d.ask.req, &d.in).Cluster, Weight: 1})
	}
	return out
}

// stream follows a connection that is no HTTP.
func (d *decider) stream() {
	in := policy.StreamInput{Port: d.ask.port, Dialled: d.dialled, Destination: d.ask.addr.Addr(), Source: d.in.Source.Addr()}
	find := d.caller.TCPRoute
	if d.out.Connection.Protocol == protocolTLS {
		in.SNI, find = d.ask.sni, d.caller.TLSRoute
	}
	in, way, ok := d.caller.Stream(in, find)
	if !ok {
		d.direct()
		return
	}
	d.out.Route = &Route{Object: way.Rule}
	if why := way.Refusal(); why != "" {
		d.out.Outcome = "reset: " + why
		return
	}
	total := uint64(0)
	for _, w := range way.Clusters {
		total += uint64(w.Weight)
	}
	for _, w := range way.Clusters {
		c := d.cluster(w.Name, route.Hash{})
		c.Share = percent(uint64(w.Weight), total)
		d.out.Clusters = append(d.out.Clusters, c)
	}
	d.out.Outcome = d.outcome("reset")
}

// direct is a connection for no service: to a pod's address, or out of the mesh.
func (d *decider) direct() {
	name := api.PassthroughCluster
	if !d.ask.addr.IsValid() {
		d.out.Outcome = "unknown: the name is none of the mesh's, and where it leads DNS says: ask with its address"
		return
	}
	c := d.cluster(name, route.Hash{})
	c.Share = percent(1, 1)
	d.out.Clusters = append(d.out.Clusters, c)
	d.out.Outcome = d.outcome("reset")
}

// outcome sums up what the clusters' endpoints say; failed is what a request that reaches none comes to.
func (d *decider) outcome(failed string) string {
	reached, refused := 0, ""
	for _, c := range d.out.Clusters {
		switch {
		case c.Missing != "":
			refused = failed + ": " + c.Missing
			continue
		case !slices.ContainsFunc(c.Endpoints, func(e Endpoint) bool { return e.Share > 0 }):
			refused = failed + ": no endpoint of " + c.Name + " can be picked"
			continue
		}
		for _, e := range c.Endpoints {
			switch {
			case e.Share == 0:
			case e.Path == policy.Reject.String():
				refused = failed + ": " + e.Address + ": " + e.PathWhy
			case e.Allowed != nil && !*e.Allowed:
				refused = failed + ": " + e.Address + " refuses it: " + e.Reason
			default:
				reached++
			}
		}
	}
	switch {
	case reached == 0:
		return refused
	case refused != "":
		return "forwarded; partly " + refused
	}
	return "forwarded"
}

// objectOf is the namespace/name of the VirtualService that filter_metadata names.
func objectOf(path string) string {
	namespace, name, ok := api.RuleOf(path, "virtual-service")
	if !ok {
		return ""
	}
	return namespace + "/" + name
}

func titleOf(i int, r *routev3.Route) string {
	out := fmt.Sprintf("#%d", i)
	if r.GetName() != "" {
		out += " " + r.GetName()
	}
	return out + " (" + matchText(r.GetMatch()) + ")"
}

func percent(n, of uint64) float64 {
	if of == 0 {
		return 0
	}
	return float64(n*10000/of) / 100
}
