package policy

import (
	"math"
	"slices"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	upstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
)

// httpOptions is the name under which a cluster says which HTTP it speaks to its endpoints.
const httpOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

// defaultConnectTimeout is MeshConfig's default for connectTimeout.
const defaultConnectTimeout = 10 * time.Second

// ClusterSpec is one cluster as the caller knows it.
type ClusterSpec struct {
	Cluster *clusterv3.Cluster  // without endpoints
	Service *client.Service     // nil for the clusters that stand for no service
	Port    uint16              // of the service
	Subset  string              // "": all endpoints
	Labels  map[string]string   // that an endpoint must have
	TLS     *settings.ClientTls // what the DestinationRules say of it; nil: nothing
	Tunnel  *settings.Tunnel    // through which TCP connections are led; nil: none
	// Idle is after which a connection that is not HTTP and carries nothing ends; 0: never.
	Idle   time.Duration
	Rules  []string // namespace/name of the DestinationRules that count, the first first
	Inputs Inputs

	locality *settings.LocalityPolicy // that counts; nil: places count for nothing
	failover bool                     // who is far is called when nobody near is there
}

// Serves reports whether w, nil for nobody, is behind the service of the cluster.
func (s ClusterSpec) Serves(w *client.Workload) bool {
	if w == nil || s.Service == nil {
		return false
	}
	_, ok := w.GetServices()[s.Service.GetNamespace()+"/"+s.Service.GetHostname()]
	return ok
}

// Cluster composes the cluster of that name: "outbound|PORT|SUBSET|HOST", PassthroughCluster or BlackHoleCluster. ok is false for
// a name that nothing stands for: a host that is in no registry or not exported to the caller, a port that the service does not
// have, a subset that no DestinationRule makes.
func (c Caller) Cluster(name string) (spec ClusterSpec, ok bool) {
	cc := c.composer()
	spec, ok = cc.cluster(name)
	spec.Inputs = cc.inputs()
	return spec, ok
}

func (c *composer) cluster(name string) (ClusterSpec, bool) {
	switch name {
	case api.PassthroughCluster:
		return ClusterSpec{Cluster: c.passthrough(), Idle: client.DefaultIdle}, true
	case api.BlackHoleCluster:
		return ClusterSpec{Cluster: &clusterv3.Cluster{Name: name, ConnectTimeout: c.connectTimeout(),
			ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}}}, true
	}
	p, ok := parseCluster(name)
	if !ok {
		return ClusterSpec{}, false
	}
	svc := c.service(p.host)
	if !hasPort(svc, p.port) {
		return ClusterSpec{}, false
	}
	eff, ok := c.effective(svc, p.port, p.subset)
	if !ok {
		return ClusterSpec{}, false
	}
	spec := ClusterSpec{Service: svc, Port: p.port, Subset: p.subset, Labels: eff.labels, Rules: eff.rules, Tunnel: eff.policy.Tunnel, TLS: eff.tls}
	if spec.Idle = client.DefaultIdle; eff.policy.Pool != nil {
		spec.Idle = eff.policy.Pool.Idle
	}
	spec.Cluster = c.build(name, svc, p.port, eff)
	spec.locality, spec.failover = c.locality(svc, eff, spec.Cluster)
	return spec, true
}

func (c *composer) connectTimeout() *durationpb.Duration {
	if t := c.defaults().GetConnectTimeout(); t != nil {
		return t
	}
	return durationpb.New(defaultConnectTimeout)
}

func (c *composer) passthrough() *clusterv3.Cluster {
	return &clusterv3.Cluster{Name: api.PassthroughCluster, ConnectTimeout: c.connectTimeout(),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST}, LbPolicy: clusterv3.Cluster_CLUSTER_PROVIDED,
		TypedExtensionProtocolOptions: packHTTP(asCalled(nil))}
}

// finding says how the endpoints of a service are found, in Envoy's terms.
func finding(svc *client.Service) clusterv3.Cluster_DiscoveryType {
	switch svc.Settings.GetResolution() {
	case settings.ServiceSettings_RESOLUTION_ORIGINAL, settings.ServiceSettings_RESOLUTION_DYNAMIC_DNS:
		return clusterv3.Cluster_ORIGINAL_DST
	case settings.ServiceSettings_RESOLUTION_DNS:
		return clusterv3.Cluster_STRICT_DNS
	case settings.ServiceSettings_RESOLUTION_DNS_ROUND_ROBIN:
		return clusterv3.Cluster_LOGICAL_DNS
	}
	if len(svc.GetAddresses()) == 0 && !svc.Settings.GetDeclared() { // headless: the caller chose an endpoint
		return clusterv3.Cluster_ORIGINAL_DST
	}
	return clusterv3.Cluster_EDS
}

func (c *composer) build(name string, svc *client.Service, port uint16, eff effective) *clusterv3.Cluster {
	p := eff.policy
	out := &clusterv3.Cluster{Name: name, LbPolicy: clusterv3.Cluster_ROUND_ROBIN, ConnectTimeout: c.connectTimeout(), // SR-02: in turn
		CommonLbConfig: &clusterv3.Cluster_CommonLbConfig{}}
	kind := finding(svc)
	if b := p.Balancing; b != nil && b.Cluster != nil {
		out.LbPolicy, out.LbConfig = b.Cluster.GetLbPolicy(), proto.CloneOf(b.Cluster).LbConfig
		if b.Cluster.GetType() == clusterv3.Cluster_ORIGINAL_DST {
			kind = clusterv3.Cluster_ORIGINAL_DST
		}
	} else if svc.Settings.GetClientIpAffinity() != nil {
		out.LbPolicy = clusterv3.Cluster_MAGLEV
	}
	out.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: kind}
	switch kind {
	case clusterv3.Cluster_ORIGINAL_DST:
		out.LbPolicy, out.LbConfig = clusterv3.Cluster_CLUSTER_PROVIDED, nil
	case clusterv3.Cluster_EDS:
		out.EdsClusterConfig = &clusterv3.Cluster_EdsClusterConfig{ServiceName: name, EdsConfig: &corev3.ConfigSource{
			ResourceApiVersion: corev3.ApiVersion_V3, ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}}}
	default:
		out.DnsLookupFamily, out.RespectDnsTtl = clusterv3.Cluster_ALL, true
	}
	out.CircuitBreakers = breakers(p)
	if p.Pool != nil {
		if t := p.Pool.Cluster.GetConnectTimeout(); t != nil {
			out.ConnectTimeout = t
		}
		out.UpstreamConnectionOptions = p.Pool.Cluster.GetUpstreamConnectionOptions()
	}
	if p.Outlier != nil {
		out.OutlierDetection = p.Outlier.GetOutlierDetection()
		out.CommonLbConfig.HealthyPanicThreshold = p.Outlier.GetCommonLbConfig().GetHealthyPanicThreshold()
	}
	if svc.GetLoadBalancing().GetHealthPolicy() == workloadapi.LoadBalancing_ALLOW_ALL { // what is not ready is called anyway
		out.CommonLbConfig.HealthyPanicThreshold = &typev3.Percent{}
	}
	if o := upstreamHTTP(svc.Settings.GetAppProtocols()[uint32(port)], p.Pool, c.defaults().GetH2Upgrade()); o != nil {
		out.TypedExtensionProtocolOptions = packHTTP(o)
	}
	out.TransportSocket = introduced(p.ProxyProtocol, transportSocket(eff.tls, svc))
	return out
}

// breakers never limits what is not said.
func breakers(p client.CallPolicy) *clusterv3.CircuitBreakers {
	out := &clusterv3.CircuitBreakers{}
	if p.Pool != nil {
		out = proto.CloneOf(p.Pool.Cluster.GetCircuitBreakers())
	}
	if len(out.GetThresholds()) == 0 {
		most := wrapperspb.UInt32(math.MaxUint32)
		out = &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{MaxConnections: most, MaxPendingRequests: most,
			MaxRequests: most, MaxRetries: most, TrackRemaining: true}}}
	}
	if p.RetryBudget != nil {
		out.Thresholds[0].RetryBudget = p.RetryBudget
	}
	return out
}

func packHTTP(o *upstreamv3.HttpProtocolOptions) map[string]*anypb.Any {
	packed, err := anypb.New(o)
	if err != nil {
		panic("pack options of HTTP: " + err.Error()) // they are made here
	}
	return map[string]*anypb.Any{httpOptions: packed}
}

// asCalled speaks the HTTP that the caller speaks.
func asCalled(http2 *corev3.Http2ProtocolOptions) *upstreamv3.HttpProtocolOptions {
	if http2 == nil {
		http2 = &corev3.Http2ProtocolOptions{}
	}
	return &upstreamv3.HttpProtocolOptions{UpstreamProtocolOptions: &upstreamv3.HttpProtocolOptions_UseDownstreamProtocolConfig{
		UseDownstreamProtocolConfig: &upstreamv3.HttpProtocolOptions_UseDownstreamHttpConfig{
			HttpProtocolOptions: &corev3.Http1ProtocolOptions{}, Http2ProtocolOptions: http2}}}
}

// upstreamHTTP is nil for HTTP/1.1 by its defaults and for what is not HTTP.
func upstreamHTTP(protocol string, pool *client.ConnectionPool, upgrade bool) *upstreamv3.HttpProtocolOptions {
	var out *upstreamv3.HttpProtocolOptions
	var http2 *corev3.Http2ProtocolOptions
	if pool != nil {
		http2 = pool.HTTP2
	}
	h2 := protocol == "http2" || protocol == "grpc" || upgrade && protocol == "http"
	if pool != nil {
		h2 = h2 && (pool.H2Upgrade != settings.ConnectionPool_H2_UPGRADE_NEVER || protocol != "http") || pool.H2Upgrade == settings.ConnectionPool_H2_UPGRADE_ALWAYS
	}
	switch {
	case pool != nil && pool.UseClientProtocol:
		out = asCalled(http2)
	case h2:
		options := &corev3.Http2ProtocolOptions{}
		if http2 != nil {
			options = http2
		}
		out = &upstreamv3.HttpProtocolOptions{UpstreamProtocolOptions: &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: options}}}}
	case protocol == "":
		out = asCalled(http2)
	}
	if pool == nil || pool.HTTP == nil {
		return out
	}
	if out == nil { // options that say no version are none
		out = &upstreamv3.HttpProtocolOptions{UpstreamProtocolOptions: &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: &corev3.Http1ProtocolOptions{}}}}}
	}
	out.CommonHttpProtocolOptions = pool.HTTP
	return out
}

// effective is what the DestinationRules say of one port of a service or of a subset of it.
type effective struct {
	policy client.CallPolicy
	tls    *settings.ClientTls
	labels map[string]string
	rules  []string
}

// effective merges what counts for the caller as Istio does: what a port says counts whole before what the level says; groups
// that a subset has count before those of the host; of several rules of one host the first that has a trafficPolicy, and the
// first that makes the subset. ok is false for a subset that none makes.
func (c *composer) effective(svc *client.Service, port uint16, subset string) (effective, bool) {
	rules := c.calls(svc.GetNamespace(), svc.GetHostname())
	if len(rules) > 0 && rules[0].GetSelective() {
		rules = rules[:1] // it alone counts, whatever it says
	}
	var out effective
	var top *client.CallPolicies
	for _, r := range rules {
		out.rules = append(out.rules, r.GetNamespace()+"/"+r.GetName())
		if top == nil {
			top = r.Policies
		}
	}
	out.policy, _ = levelOf(top, port)
	out.tls, _ = clientTLS(rules, port, subset)
	if subset != "" {
		s, ok := subsetOf(rules, subset)
		if !ok {
			return effective{}, false
		}
		out.labels = s.Labels
		if s.Policies != nil {
			inner, whole := levelOf(s.Policies, port)
			out.policy = overlay(out.policy, inner, whole)
		}
	}
	mesh := c.defaults().Policy
	if out.policy.Pool == nil && mesh.Pool != nil {
		out.policy.Pool = mesh.Pool
	}
	if out.policy.Outlier == nil {
		out.policy.Outlier = mesh.Outlier
	}
	return out, true
}

func subsetOf(rules []*client.CallRule, name string) (client.Subset, bool) {
	for _, r := range rules {
		if i := slices.IndexFunc(r.Subsets, func(s client.Subset) bool { return s.Name == name }); i >= 0 {
			return r.Subsets[i], true
		}
	}
	return client.Subset{}, false
}

// levelOf returns what one trafficPolicy says of the port, and whether it says so of this port: those groups that a port can have
// count whole then, the others stay.
func levelOf(p *client.CallPolicies, port uint16) (client.CallPolicy, bool) {
	if p == nil {
		return client.CallPolicy{}, false
	}
	if own, ok := p.Ports[uint32(port)]; ok {
		out := *own
		out.Tunnel, out.ProxyProtocol, out.RetryBudget = p.Host.Tunnel, p.Host.ProxyProtocol, p.Host.RetryBudget
		return out, true
	}
	return *p.Host, false
}

// overlay puts the groups of a subset over those of the host.
func overlay(out, inner client.CallPolicy, whole bool) client.CallPolicy {
	if inner.Balancing != nil || whole {
		out.Balancing = inner.Balancing
	}
	if inner.Pool != nil || whole {
		out.Pool = inner.Pool
	}
	if inner.Outlier != nil || whole {
		out.Outlier = inner.Outlier
	}
	if inner.Tunnel != nil {
		out.Tunnel = inner.Tunnel
	}
	if inner.ProxyProtocol != 0 {
		out.ProxyProtocol = inner.ProxyProtocol
	}
	if inner.RetryBudget != nil {
		out.RetryBudget = inner.RetryBudget
	}
	return out
}

// hashPolicy says by what an endpoint is chosen, nil where it is not by a hash.
func (c *composer) hashPolicy(svc *client.Service, port uint16, subset string) *routev3.RouteAction_HashPolicy {
	eff, ok := c.effective(svc, port, subset)
	switch {
	case !ok:
		return nil
	case eff.policy.Balancing != nil && (eff.policy.Balancing.Cluster != nil || eff.policy.Balancing.Hash != nil):
		return eff.policy.Balancing.Hash
	case svc.Settings.GetClientIpAffinity() != nil:
		return &routev3.RouteAction_HashPolicy{PolicySpecifier: &routev3.RouteAction_HashPolicy_ConnectionProperties_{
			ConnectionProperties: &routev3.RouteAction_HashPolicy_ConnectionProperties{SourceIp: true}}}
	}
	return nil
}
