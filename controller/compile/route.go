package compile

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
	networking "istio.io/api/networking/v1alpha3"
	corev1 "k8s.io/api/core/v1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/model"
)

// route is what callers of one port of one service go by while no VirtualService says otherwise: one virtual host, under
// the names that mean the service in every namespace. What a namespace adds, its short names, is added where the caller is
// known (policy.View).
func (c *Compiler) route(s callee, p calleePort) *route.RouteConfiguration {
	host, d := s.hostname+":"+strconv.Itoa(int(p.number)), c.defaults()
	return &route.RouteConfiguration{
		Name: api.RouteKey(s.namespace, p.number, s.hostname),
		VirtualHosts: []*route.VirtualHost{{
			Name: host, Domains: slices.Concat([]string{s.hostname}, s.domains, s.vips), IncludeRequestAttemptCount: true,
			Routes: []*route.Route{{
				Name:      "default",
				Match:     &route.RouteMatch{PathSpecifier: &route.RouteMatch_Prefix{Prefix: "/"}},
				Decorator: &route.Decorator{Operation: host + "/*"},
				Action: &route.Route_Route{Route: &route.RouteAction{
					ClusterSpecifier:  &route.RouteAction_Cluster{Cluster: api.ClusterName(p.number, "", s.hostname)},
					Timeout:           d.none, // RS-02
					MaxStreamDuration: d.stream, RetryPolicy: d.retry,
				}},
			}},
		}},
		ValidateClusters:         wrapperspb.Bool(false),
		IgnorePortInHostMatching: true,
	}
}

// callee describes a service of Kubernetes. The ports are those that speak TCP.
func (c *Compiler) callee(s *model.Service) callee {
	name := s.Name + "." + s.Namespace
	out := callee{namespace: s.Namespace, hostname: c.hostname(s), domains: []string{name + ".svc", name}, finding: cluster.Cluster_EDS}
	if s.Spec.ClusterIP == corev1.ClusterIPNone { // the caller chose an endpoint
		out.finding = cluster.Cluster_ORIGINAL_DST
	}
	target := ""
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		out.finding = cluster.Cluster_STRICT_DNS
		target, _ = externalName(s) // whose error was reported
	}
	for _, ip := range clusterIPs(s.Service) {
		out.vips = append(out.vips, authorityOf(ip))
	}
	seen := map[uint32]bool{}
	for _, p := range s.Spec.Ports {
		if p.Protocol != "" && p.Protocol != corev1.ProtocolTCP || seen[uint32(p.Port)] {
			continue
		}
		seen[uint32(p.Port)] = true
		protocol, _ := appProtocol(p)
		port := calleePort{number: uint32(p.Port), protocol: protocol}
		if target != "" {
			port.names = []string{net.JoinHostPort(target, strconv.Itoa(int(p.Port)))}
		}
		out.ports = append(out.ports, port)
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

// dnsNames are the entry's endpoints, or the host itself without any.
func dnsNames(e *model.ServiceEntry, host string, p *networking.ServicePort) []string {
	var out []string
	for _, ep := range e.Endpoints {
		name := ep.Host
		if ep.IP.IsValid() {
			name = ep.IP.String()
		}
		out = append(out, net.JoinHostPort(name, strconv.Itoa(int(model.TargetPort(p, ep.GetPorts())))))
	}
	if len(out) == 0 && len(e.Spec.GetEndpoints()) == 0 && !strings.HasPrefix(host, "*") {
		out = []string{net.JoinHostPort(host, strconv.Itoa(int(model.TargetPort(p, nil))))}
	}
	return out
}
