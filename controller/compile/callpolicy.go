package compile

import (
	"math"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/validate"
)

type keepalive = networking.ConnectionPoolSettings_TCPSettings_TcpKeepalive

// callDefaultsOf is what MeshConfig, which may be nil, says of calls.
func callDefaultsOf(mesh *meshv1alpha1.MeshConfig) *settings.CallDefaults {
	out := &settings.CallDefaults{H2Upgrade: mesh.GetH2UpgradePolicy() == meshv1alpha1.MeshConfig_UPGRADE}
	if t := mesh.GetConnectTimeout(); t.AsDuration() > 0 {
		out.ConnectTimeout = t
	}
	if r := retryPolicy(mesh.GetDefaultHttpRetryPolicy()); r != nil {
		out.RetryPolicy = pack(r)
	}
	p := &settings.CallPolicy{ConnectionPool: connectionPool(mesh.GetDefaultTrafficPolicy().GetConnectionPool(), mesh.GetTcpKeepalive()),
		OutlierDetection: outlierDetection(mesh.GetDefaultTrafficPolicy().GetOutlierDetection())}
	if l := locality(mesh.GetLocalityLbSetting(), mesh.GetZoneAwareLbSetting()); l != nil {
		p.Balancing = &settings.Balancing{Locality: l}
	}
	if !proto.Equal(p, &settings.CallPolicy{}) {
		out.Policy = p
	}
	return out
}

// callPolicies compiles a trafficPolicy; nil for none.
func callPolicies(p *networking.TrafficPolicy, mesh *keepalive) *settings.CallPolicies {
	if p == nil {
		return nil
	}
	host := callPolicy(p.GetLoadBalancer(), p.GetConnectionPool(), p.GetOutlierDetection(), mesh)
	if t := p.GetTunnel(); t != nil {
		host.Tunnel = &settings.Tunnel{Protocol: t.GetProtocol(), TargetHost: t.GetTargetHost(), TargetPort: t.GetTargetPort()}
	}
	if v := p.GetProxyProtocol(); v != nil {
		host.ProxyProtocol = uint32(v.GetVersion()) + 1 // V1 is 0
	}
	if b := p.GetRetryBudget(); b != nil {
		host.RetryBudget = pack(retryBudget(b))
	}
	out := &settings.CallPolicies{Host: host}
	for _, port := range p.GetPortLevelSettings() {
		n := port.GetPort().GetNumber()
		if n == 0 || n > math.MaxUint16 || out.GetPorts()[n] != nil { // of several for one port the first counts
			continue
		}
		if out.Ports == nil {
			out.Ports = map[uint32]*settings.CallPolicy{}
		}
		out.Ports[n] = callPolicy(port.GetLoadBalancer(), port.GetConnectionPool(), port.GetOutlierDetection(), mesh)
	}
	return out
}

func callPolicy(lb *networking.LoadBalancerSettings, pool *networking.ConnectionPoolSettings, out *networking.OutlierDetection, mesh *keepalive) *settings.CallPolicy {
	p := &settings.CallPolicy{Balancing: balancing(lb), OutlierDetection: outlierDetection(out)}
	if pool != nil {
		p.ConnectionPool = connectionPool(pool, mesh)
	}
	return p
}

func retryBudget(in *networking.TrafficPolicy_RetryBudget) *cluster.CircuitBreakers_Thresholds_RetryBudget {
	out := &cluster.CircuitBreakers_Thresholds_RetryBudget{BudgetPercent: &typev3.Percent{Value: 20}, MinRetryConcurrency: wrapperspb.UInt32(3)}
	if p := in.GetPercent(); p != nil {
		out.BudgetPercent.Value = min(max(p.GetValue(), 0), 100)
	}
	if n := in.GetMinRetryConcurrency(); n > 0 {
		out.MinRetryConcurrency = wrapperspb.UInt32(n)
	}
	return out
}

// balancing is nil when nothing is said.
func balancing(in *networking.LoadBalancerSettings) *settings.Balancing {
	if in == nil {
		return nil
	}
	out := &settings.Balancing{Locality: locality(in.GetLocalityLbSetting(), in.GetZoneAwareLbSetting())}
	c := &cluster.Cluster{LbPolicy: cluster.Cluster_ROUND_ROBIN} // SR-02, LB-01
	warm := warmup(in)
	switch in.GetSimple() {
	case networking.LoadBalancerSettings_RANDOM:
		c.LbPolicy = cluster.Cluster_RANDOM
	case networking.LoadBalancerSettings_LEAST_REQUEST, networking.LoadBalancerSettings_LEAST_CONN: //nolint:staticcheck // LB-03
		c.LbPolicy = cluster.Cluster_LEAST_REQUEST
		if warm != nil {
			c.LbConfig = &cluster.Cluster_LeastRequestLbConfig_{LeastRequestLbConfig: &cluster.Cluster_LeastRequestLbConfig{SlowStartConfig: warm}}
		}
	case networking.LoadBalancerSettings_PASSTHROUGH:
		c.LbPolicy = cluster.Cluster_CLUSTER_PROVIDED
		c.ClusterDiscoveryType = &cluster.Cluster_Type{Type: cluster.Cluster_ORIGINAL_DST}
	default:
		if warm != nil {
			c.LbConfig = &cluster.Cluster_RoundRobinLbConfig_{RoundRobinLbConfig: &cluster.Cluster_RoundRobinLbConfig{SlowStartConfig: warm}}
		}
	}
	if hash := in.GetConsistentHash(); hash != nil {
		consistentHash(c, hash)
		if p := hashPolicy(hash); p != nil {
			out.HashPolicy = pack(p)
		}
	}
	if in.GetLbPolicy() != nil || warm != nil {
		out.Cluster = pack(c)
	}
	return out
}

// warmup is nil without.
func warmup(in *networking.LoadBalancerSettings) *cluster.Cluster_SlowStartConfig {
	w := in.GetWarmup()
	if w == nil {
		if d := in.GetWarmupDurationSecs(); d != nil { //nolint:staticcheck // still read
			return &cluster.Cluster_SlowStartConfig{SlowStartWindow: d}
		}
		return nil
	}
	out := &cluster.Cluster_SlowStartConfig{SlowStartWindow: w.GetDuration(), MinWeightPercent: &typev3.Percent{Value: 10},
		Aggression: &core.RuntimeDouble{DefaultValue: 1, RuntimeKey: "upstream.slow_start.aggression"}}
	if a := w.GetAggression(); a != nil && validate.Aggression(a.GetValue()) {
		out.Aggression.DefaultValue = a.GetValue()
	}
	if p := w.GetMinimumPercent(); p != nil {
		out.MinWeightPercent.Value = min(max(p.GetValue(), 0), 100)
	}
	return out
}

// defaultRing is how many places a hash ring has at least.
const defaultRing = 1024

func consistentHash(c *cluster.Cluster, in *networking.LoadBalancerSettings_ConsistentHashLB) {
	if m := in.GetMaglev(); m != nil {
		c.LbPolicy, c.LbConfig = cluster.Cluster_MAGLEV, nil
		if validate.TableSize(m.GetTableSize()) == nil {
			c.LbConfig = &cluster.Cluster_MaglevLbConfig_{MaglevLbConfig: &cluster.Cluster_MaglevLbConfig{TableSize: wrapperspb.UInt64(m.GetTableSize())}}
		}
		return
	}
	size := uint64(defaultRing)
	switch old := in.GetMinimumRingSize(); { //nolint:staticcheck // still read
	case in.GetRingHash().GetMinimumRingSize() != 0:
		size = in.GetRingHash().GetMinimumRingSize()
	case in.GetRingHash() == nil && old != 0:
		size = old
	}
	c.LbPolicy = cluster.Cluster_RING_HASH
	c.LbConfig = &cluster.Cluster_RingHashLbConfig_{RingHashLbConfig: &cluster.Cluster_RingHashLbConfig{MinimumRingSize: wrapperspb.UInt64(min(size, validate.MostRing))}}
}

// hashPolicy says what of a request is hashed; nil when the rule does not, or names what cannot be: then chance decides.
func hashPolicy(in *networking.LoadBalancerSettings_ConsistentHashLB) *route.RouteAction_HashPolicy {
	if !validate.Hashes(in) {
		return nil
	}
	switch k := in.GetHashKey().(type) {
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpHeaderName:
		return &route.RouteAction_HashPolicy{PolicySpecifier: &route.RouteAction_HashPolicy_Header_{
			Header: &route.RouteAction_HashPolicy_Header{HeaderName: k.HttpHeaderName}}}
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpCookie:
		c := &route.RouteAction_HashPolicy_Cookie{Name: k.HttpCookie.GetName(), Ttl: k.HttpCookie.GetTtl(), Path: k.HttpCookie.GetPath()}
		for _, a := range k.HttpCookie.GetAttributes() {
			c.Attributes = append(c.Attributes, &route.RouteAction_HashPolicy_CookieAttribute{Name: a.GetName(), Value: a.GetValue()})
		}
		return &route.RouteAction_HashPolicy{PolicySpecifier: &route.RouteAction_HashPolicy_Cookie_{Cookie: c}}
	case *networking.LoadBalancerSettings_ConsistentHashLB_UseSourceIp:
		return &route.RouteAction_HashPolicy{PolicySpecifier: &route.RouteAction_HashPolicy_ConnectionProperties_{
			ConnectionProperties: &route.RouteAction_HashPolicy_ConnectionProperties{SourceIp: k.UseSourceIp}}}
	case *networking.LoadBalancerSettings_ConsistentHashLB_HttpQueryParameterName:
		return &route.RouteAction_HashPolicy{PolicySpecifier: &route.RouteAction_HashPolicy_QueryParameter_{
			QueryParameter: &route.RouteAction_HashPolicy_QueryParameter{Name: k.HttpQueryParameterName}}}
	}
	return nil
}

// locality is nil when nothing is said. Of two settings that exclude each other the one of zones counts.
func locality(in *networking.LocalityLoadBalancerSetting, zones *networking.ZoneAwareLoadBalancerSetting) *settings.LocalityPolicy {
	switch {
	case zones != nil:
		if zones.GetEnabled() != nil && !zones.GetEnabled().GetValue() {
			return &settings.LocalityPolicy{Disabled: true}
		}
		out := &settings.LocalityPolicy{FailoverPriority: zones.GetFailoverPriority(),
			ZoneAware: &settings.LocalityPolicy_ZoneAware{MinClusterSize: uint64(zones.GetMinClusterSize().GetValue())}}
		for _, f := range zones.GetFailover() {
			out.Failover = region(out.GetFailover(), f.GetFrom(), f.GetTo())
		}
		return out
	case in == nil:
		return nil
	case in.GetEnabled() != nil && !in.GetEnabled().GetValue():
		return &settings.LocalityPolicy{Disabled: true}
	}
	out := &settings.LocalityPolicy{FailoverPriority: in.GetFailoverPriority()}
	for _, d := range in.GetDistribute() {
		out.Distribute = append(out.Distribute, &settings.LocalityPolicy_Distribute{From: d.GetFrom(), To: d.GetTo()})
	}
	for _, f := range in.GetFailover() {
		out.Failover = region(out.GetFailover(), f.GetFrom(), f.GetTo())
	}
	return out
}

// region adds where a region fails over to; the first that is said counts.
func region(m map[string]string, from, to string) map[string]string {
	if m == nil {
		m = map[string]string{}
	}
	if _, ok := m[from]; !ok {
		m[from] = to
	}
	return m
}

// positive is nil for what is not set.
func positive(n int32) *wrapperspb.UInt32Value {
	if n <= 0 {
		return nil
	}
	return wrapperspb.UInt32(uint32(n))
}

// connectionPool is nil when neither the rule nor the mesh says anything.
func connectionPool(in *networking.ConnectionPoolSettings, mesh *keepalive) *settings.ConnectionPool {
	if in == nil && mesh == nil {
		return nil
	}
	tcp, http := in.GetTcp(), in.GetHttp()
	c := &cluster.Cluster{ConnectTimeout: tcp.GetConnectTimeout(), UpstreamConnectionOptions: keepAlive(mesh, tcp.GetTcpKeepalive())}
	if in != nil {
		limit := func(n int32) *wrapperspb.UInt32Value {
			if v := positive(n); v != nil {
				return v
			}
			return wrapperspb.UInt32(math.MaxUint32)
		}
		c.CircuitBreakers = &cluster.CircuitBreakers{Thresholds: []*cluster.CircuitBreakers_Thresholds{{MaxConnections: limit(tcp.GetMaxConnections()),
			MaxPendingRequests: limit(http.GetHttp1MaxPendingRequests()), MaxRequests: limit(http.GetHttp2MaxRequests()),
			MaxRetries: limit(http.GetMaxRetries()), TrackRemaining: true}}}
	}
	out := &settings.ConnectionPool{Cluster: pack(c), UseClientProtocol: http.GetUseClientProtocol(), TcpIdleTimeout: tcp.GetIdleTimeout()}
	common := &core.HttpProtocolOptions{IdleTimeout: http.GetIdleTimeout(), MaxRequestsPerConnection: positive(http.GetMaxRequestsPerConnection()),
		MaxConnectionDuration: tcp.GetMaxConnectionDuration()}
	if common.GetIdleTimeout() == nil {
		common.IdleTimeout = tcp.GetIdleTimeout()
	}
	if !proto.Equal(common, &core.HttpProtocolOptions{}) {
		out.Http = pack(common)
	}
	http2 := &core.Http2ProtocolOptions{MaxConcurrentStreams: positive(http.GetMaxConcurrentStreams())}
	if k := http.GetHttp2KeepAlive(); k != nil {
		http2.ConnectionKeepalive = &core.KeepaliveSettings{Interval: k.GetInterval(), Timeout: k.GetTimeout()}
	}
	if !proto.Equal(http2, &core.Http2ProtocolOptions{}) {
		out.Http2 = pack(http2)
	}
	switch http.GetH2UpgradePolicy() {
	case networking.ConnectionPoolSettings_HTTPSettings_UPGRADE:
		out.H2Upgrade = settings.ConnectionPool_H2_UPGRADE_ALWAYS
	case networking.ConnectionPoolSettings_HTTPSettings_DO_NOT_UPGRADE:
		out.H2Upgrade = settings.ConnectionPool_H2_UPGRADE_NEVER
	}
	return out
}

// keepAlive is nil without; what the rule says counts before what the mesh says, each for itself.
func keepAlive(all ...*keepalive) *cluster.UpstreamConnectionOptions {
	var out *core.TcpKeepalive
	seconds := func(d *durationpb.Duration) *wrapperspb.UInt32Value {
		return positive(int32(min(d.GetSeconds(), math.MaxInt32)))
	}
	for _, k := range all {
		if k == nil {
			continue
		}
		if out == nil {
			out = &core.TcpKeepalive{}
		}
		if k.GetProbes() > 0 {
			out.KeepaliveProbes = wrapperspb.UInt32(k.GetProbes())
		}
		if v := seconds(k.GetTime()); v != nil {
			out.KeepaliveTime = v
		}
		if v := seconds(k.GetInterval()); v != nil {
			out.KeepaliveInterval = v
		}
	}
	if out == nil {
		return nil
	}
	return &cluster.UpstreamConnectionOptions{TcpKeepalive: out}
}
