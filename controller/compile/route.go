package compile

import (
	"slices"
	"strconv"

	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previous "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	corev1 "k8s.io/api/core/v1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/model"
)

// What is tried again without a rule (RS-06), unless MeshConfig says otherwise.
const (
	defaultRetries = 2
	defaultRetryOn = "connect-failure,refused-stream,unavailable,cancelled"
	// hostAttempts is how often another endpoint is looked for than the one that failed.
	hostAttempts = 5
)

// route is what callers of one port of one service go by while no VirtualService says otherwise: one virtual host, under
// the names that mean the service in every namespace. What a namespace adds, its short names, is added where the caller is
// known (policy.View).
func (c *Compiler) route(s callee, p calleePort) *route.RouteConfiguration {
	host := s.hostname + ":" + strconv.Itoa(int(p.number))
	return &route.RouteConfiguration{
		Name: api.RouteName(p.number, s.hostname),
		VirtualHosts: []*route.VirtualHost{{
			Name: host, Domains: slices.Concat([]string{s.hostname}, s.domains, s.vips), IncludeRequestAttemptCount: true,
			Routes: []*route.Route{{
				Name:      "default",
				Match:     &route.RouteMatch{PathSpecifier: &route.RouteMatch_Prefix{Prefix: "/"}},
				Decorator: &route.Decorator{Operation: host + "/*"},
				Action: &route.Route_Route{Route: &route.RouteAction{
					ClusterSpecifier: &route.RouteAction_Cluster{Cluster: api.ClusterName(p.number, "", s.hostname)},
					Timeout:          durationpb.New(0), // RS-02: none
					MaxStreamDuration: &route.RouteAction_MaxStreamDuration{
						MaxStreamDuration: durationpb.New(0), GrpcTimeoutHeaderMax: durationpb.New(0)},
					RetryPolicy: c.retryPolicy(),
				}},
			}},
		}},
		ValidateClusters:         wrapperspb.Bool(false),
		IgnorePortInHostMatching: true,
	}
}

// retryPolicy is nil when MeshConfig turns retries off.
func (c *Compiler) retryPolicy() *route.RetryPolicy {
	out := &route.RetryPolicy{RetryOn: defaultRetryOn, NumRetries: wrapperspb.UInt32(defaultRetries),
		HostSelectionRetryMaxAttempts: hostAttempts,
		RetryHostPredicate: []*route.RetryPolicy_RetryHostPredicate{{Name: "envoy.retry_host_predicates.previous_hosts",
			ConfigType: &route.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: previousHosts()}}}}
	said := c.reg.Mesh().Config.GetDefaultHttpRetryPolicy()
	if said == nil {
		return out
	}
	if said.GetAttempts() <= 0 {
		return nil
	}
	out.NumRetries = wrapperspb.UInt32(uint32(said.GetAttempts()))
	out.PerTryTimeout = said.GetPerTryTimeout()
	if on := said.GetRetryOn(); on != "" {
		out.RetryOn = on
	}
	return out
}

func previousHosts() *anypb.Any { return packed(&previous.PreviousHostsPredicate{}) }

// callee describes a service of Kubernetes. The ports are those that speak TCP.
func (c *Compiler) callee(s *model.Service) callee {
	name := s.Name + "." + s.Namespace
	out := callee{hostname: c.hostname(s), domains: []string{name + ".svc", name}, direct: s.Spec.ClusterIP == corev1.ClusterIPNone}
	for _, ip := range clusterIPs(s.Service) {
		text := ip.String()
		if ip.Is6() {
			text = "[" + text + "]" // as an authority writes it
		}
		out.vips = append(out.vips, text)
	}
	seen := map[uint32]bool{}
	for _, p := range s.Spec.Ports {
		if p.Protocol != "" && p.Protocol != corev1.ProtocolTCP || seen[uint32(p.Port)] {
			continue
		}
		seen[uint32(p.Port)] = true
		protocol, _ := appProtocol(p)
		out.ports = append(out.ports, calleePort{uint32(p.Port), protocol})
	}
	return out
}
