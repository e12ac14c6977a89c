package compile

import (
	"math"
	"net"
	"strconv"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	upstream "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"

	"github.com/undermesh/undermesh/controller/api"
)

// defaultConnectTimeout is MeshConfig's default for connectTimeout.
const defaultConnectTimeout = 10 * time.Second

// httpOptions is the name under which a cluster says which HTTP it speaks to its endpoints.
const httpOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

// callee is a service as its callers know it, of Kubernetes or of a ServiceEntry.
type callee struct {
	namespace string
	hostname  string
	domains   []string // under which every namespace may call it, beside the hostname and the addresses
	vips      []string
	ports     []calleePort
	finding   cluster.Cluster_DiscoveryType
}

type calleePort struct {
	number   uint32
	protocol string   // declared; "" for none
	names    []string // HOST:PORT of what DNS is asked for, when finding says that it is
}

// calls returns the clusters of the service's ports and the routes of those that carry HTTP or may.
func (c *Compiler) calls(s callee) []Resource {
	var out []Resource
	for _, p := range s.ports {
		cl := c.cluster(s, p)
		out = append(out, Resource{Type: api.ClusterType, Name: api.ClusterKey(s.namespace, p.number, "", s.hostname), Message: cl})
		if carriesHTTP(p.protocol) {
			r := c.route(s, p)
			out = append(out, Resource{Type: api.RouteType, Name: r.GetName(), Message: r})
		}
	}
	return out
}

// carriesHTTP reports whether a port of the protocol has routes: of what declares nothing the first bytes decide.
func carriesHTTP(protocol string) bool {
	switch protocol {
	case "", "http", "http2", "grpc", "grpc-web":
		return true
	}
	return false
}

func (c *Compiler) cluster(s callee, p calleePort) *cluster.Cluster {
	out := &cluster.Cluster{
		Name:     api.ClusterName(p.number, "", s.hostname),
		LbPolicy: cluster.Cluster_ROUND_ROBIN, // SR-02: in turn
	}
	out.ConnectTimeout, out.CircuitBreakers = c.defaults().timeout, c.defaults().breakers
	out.ClusterDiscoveryType = &cluster.Cluster_Type{Type: s.finding}
	switch s.finding {
	case cluster.Cluster_ORIGINAL_DST:
		out.LbPolicy = cluster.Cluster_CLUSTER_PROVIDED
	case cluster.Cluster_EDS:
		out.EdsClusterConfig = &cluster.Cluster_EdsClusterConfig{ServiceName: out.GetName(), EdsConfig: &core.ConfigSource{
			ResourceApiVersion:    core.ApiVersion_V3,
			ConfigSourceSpecifier: &core.ConfigSource_Ads{Ads: &core.AggregatedConfigSource{}},
		}}
	default: // DNS
		out.DnsLookupFamily, out.RespectDnsTtl = cluster.Cluster_ALL, true
		out.LoadAssignment = assignment(out.GetName(), p.names)
	}
	if o := upstreamHTTP(p.protocol); o != nil {
		out.TypedExtensionProtocolOptions = map[string]*anypb.Any{httpOptions: packed(o)}
	}
	return out
}

// assignment lists what DNS is asked for, HOST:PORT each.
func assignment(name string, hosts []string) *endpoint.ClusterLoadAssignment {
	group := &endpoint.LocalityLbEndpoints{}
	for _, h := range hosts {
		host, text, _ := net.SplitHostPort(h)
		port, _ := strconv.ParseUint(text, 10, 16) // 0 for what is none; callers made it of a number
		group.LbEndpoints = append(group.LbEndpoints, &endpoint.LbEndpoint{HostIdentifier: &endpoint.LbEndpoint_Endpoint{
			Endpoint: &endpoint.Endpoint{Address: &core.Address{Address: &core.Address_SocketAddress{SocketAddress: &core.SocketAddress{
				Address: host, PortSpecifier: &core.SocketAddress_PortValue{PortValue: uint32(port)}}}}}}})
	}
	return &endpoint.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpoint.LocalityLbEndpoints{group}}
}

func unlimited() *wrapperspb.UInt32Value { return wrapperspb.UInt32(math.MaxUint32) }

// upstreamHTTP is nil for HTTP/1.1 and for what is not HTTP.
func upstreamHTTP(protocol string) *upstream.HttpProtocolOptions {
	switch protocol {
	case "http2", "grpc":
		return &upstream.HttpProtocolOptions{UpstreamProtocolOptions: &upstream.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &upstream.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &upstream.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
					Http2ProtocolOptions: &core.Http2ProtocolOptions{}}}}}
	case "": // as the caller speaks
		return &upstream.HttpProtocolOptions{UpstreamProtocolOptions: &upstream.HttpProtocolOptions_UseDownstreamProtocolConfig{
			UseDownstreamProtocolConfig: &upstream.HttpProtocolOptions_UseDownstreamHttpConfig{
				HttpProtocolOptions: &core.Http1ProtocolOptions{}, Http2ProtocolOptions: &core.Http2ProtocolOptions{}}}}
	}
	return nil
}

// callDefaults are the parts that clusters and routes have in common: one message each, shared by all of them, because
// there is a cluster and a route for each port of the mesh.
type callDefaults struct {
	config   *meshv1alpha1.MeshConfig // that they were made of
	timeout  *durationpb.Duration
	none     *durationpb.Duration
	breakers *cluster.CircuitBreakers
	retry    *route.RetryPolicy // nil: none
	stream   *route.RouteAction_MaxStreamDuration
}

// defaults are those of the mesh as it is now.
func (c *Compiler) defaults() *callDefaults {
	config := c.reg.Mesh().Config
	if c.calling != nil && c.calling.config == config {
		return c.calling
	}
	none := durationpb.New(0)
	c.calling = &callDefaults{config: config, timeout: durationpb.New(defaultConnectTimeout), none: none, retry: retryPolicy(config.GetDefaultHttpRetryPolicy()),
		breakers: &cluster.CircuitBreakers{Thresholds: []*cluster.CircuitBreakers_Thresholds{{
			MaxConnections: unlimited(), MaxPendingRequests: unlimited(), MaxRequests: unlimited(), MaxRetries: unlimited(),
			TrackRemaining: true,
		}}},
		stream: &route.RouteAction_MaxStreamDuration{MaxStreamDuration: none, GrpcTimeoutHeaderMax: none}}
	if t := config.GetConnectTimeout(); t.AsDuration() > 0 {
		c.calling.timeout = t
	}
	return c.calling
}

// fixedClusters are those that stand for no service; they are always there.
func (c *Compiler) fixedClusters() []Resource {
	passthrough := &cluster.Cluster{
		Name: api.PassthroughCluster, ConnectTimeout: c.defaults().timeout,
		ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_ORIGINAL_DST}, LbPolicy: cluster.Cluster_CLUSTER_PROVIDED,
		TypedExtensionProtocolOptions: map[string]*anypb.Any{httpOptions: packed(upstreamHTTP(""))},
	}
	hole := &cluster.Cluster{
		Name: api.BlackHoleCluster, ConnectTimeout: c.defaults().timeout,
		ClusterDiscoveryType: &cluster.Cluster_Type{Type: cluster.Cluster_STATIC},
	}
	return []Resource{
		{Type: api.ClusterType, Name: passthrough.GetName(), Message: passthrough},
		{Type: api.ClusterType, Name: hole.GetName(), Message: hole},
	}
}

// packed wraps a message of ours, which always marshals.
func packed(m proto.Message) *anypb.Any { return extension("", m).GetConfig() }
