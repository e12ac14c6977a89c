package calls

import (
	"math"
	"net/http"
	"net/netip"
	"strconv"
	"sync/atomic"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/undermesh/undermesh/ztunnel/cluster"
	"github.com/undermesh/undermesh/ztunnel/http/route"
)

// Inbound is what requests to one port of a pod go by: one route to the application, without time-outs and second tries.
type Inbound struct {
	Host  *route.VirtualHost
	table *Table
	port  uint16
	spec  *cluster.Spec
	hosts *cluster.Hosts
}

type inboundKey struct {
	at      netip.AddrPort
	version cluster.Version
}

// maxInbound bounds the ports of a pod that are remembered, and those that have statistics of their own; the others have some together,
// under the name of Istio's cluster for ports that nobody declares.
const (
	maxInbound  = 256
	otherPorts  = 0
	passthrough = "InboundPassthroughCluster"
)

// arrivals is the cluster that stands for all connections to the application on a port of the pod.
type arrivals struct {
	cluster *cluster.Cluster
	used    atomic.Int64 // Unix seconds
}

// Arrivals returns the cluster whose statistics and hosts are those of all connections to the application on a port of the pod.
func (t *Table) Arrivals(port uint16) *cluster.Cluster {
	t.mu.RLock()
	a := t.arrivals[port]
	t.mu.RUnlock()
	if a == nil {
		a = t.newArrivals(port)
	}
	if now := t.shared.now(); a.used.Load() != now {
		a.used.Store(now)
	}
	return a.cluster
}

func (t *Table) newArrivals(port uint16) *arrivals {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.arrivals) >= maxInbound && t.arrivals[port] == nil {
		port = otherPorts
	}
	a := t.arrivals[port]
	if a == nil {
		c := inboundCluster(port)
		c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST}
		c.LbPolicy, c.CleanupInterval = clusterv3.Cluster_CLUSTER_PROVIDED, durationpb.New(Idle)
		a = &arrivals{cluster: cluster.New(cluster.Config{Clock: t.shared.cfg.Clock, Rand: t.shared.cfg.Rand}, t.shared.mustCompile(c), cluster.NewHosts(nil))}
		a.used.Store(t.shared.now())
		t.arrivals[port] = a
	}
	return a
}

// inboundCluster is what all clusters for a port of a pod have in common. Nothing is limited, as with Istio.
func inboundCluster(port uint16) *clusterv3.Cluster {
	none := wrapperspb.UInt32(math.MaxUint32)
	c := &clusterv3.Cluster{Name: "inbound|" + strconv.Itoa(int(port)) + "||", CircuitBreakers: &clusterv3.CircuitBreakers{
		Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{MaxConnections: none, MaxPendingRequests: none, MaxRequests: none, MaxRetries: none, TrackRemaining: true}}}}
	if port == otherPorts {
		c.Name = passthrough
	}
	return c
}

func (s *Shared) mustCompile(c *clusterv3.Cluster) *cluster.Spec {
	spec, err := s.specs.get(c, func() (*cluster.Spec, error) { return cluster.Compile(c) })
	if err != nil {
		panic("compile inbound cluster: " + err.Error()) // it is made here
	}
	return spec
}

// Inbound returns what requests go by that come to the pod's own address, for an application that takes HTTP of the version.
func (t *Table) Inbound(at netip.AddrPort, version cluster.Version) *Inbound {
	key := inboundKey{at, version}
	t.mu.RLock()
	in := t.inbound[key]
	t.mu.RUnlock()
	if in != nil {
		return in
	}
	in = t.newInbound(at, version)
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.inbound) >= maxInbound {
		clear(t.inbound)
	}
	t.inbound[key] = in
	return in
}

// Cluster makes the cluster of one connection: its connections to the application are its own, since each bears the address of
// its client. It counts as Arrivals of the port.
func (in *Inbound) Cluster() *cluster.Cluster {
	return in.table.Arrivals(in.port).Part(in.spec, in.hosts)
}

// Close tells the hosts of a cluster that Cluster made that they are of no more use.
func (in *Inbound) Close(c *cluster.Cluster) { c.Update(in.spec, cluster.NewHosts(nil)) }

func (t *Table) newInbound(at netip.AddrPort, version cluster.Version) *Inbound {
	c := inboundCluster(at.Port())
	c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}
	switch version {
	case cluster.HTTP2:
		c.Http2ProtocolOptions = &corev3.Http2ProtocolOptions{}
	case cluster.SameAsReceived:
		c.ProtocolSelection = clusterv3.Cluster_USE_DOWNSTREAM_PROTOCOL
	}
	vh := &routev3.VirtualHost{Name: "inbound|http|" + strconv.Itoa(int(at.Port())), Domains: []string{"*"}, Routes: []*routev3.Route{{
		Name: "default", Match: everyRequest(), Decorator: nil,
		Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: c.Name}, Timeout: durationpb.New(0),
			MaxStreamDuration: &routev3.RouteAction_MaxStreamDuration{MaxStreamDuration: durationpb.New(0), GrpcTimeoutHeaderMax: durationpb.New(0)},
			UpgradeConfigs:    []*routev3.RouteAction_UpgradeConfig{{UpgradeType: "websocket", Enabled: wrapperspb.Bool(true)}}}},
	}}}
	return &Inbound{table: t, port: at.Port(), Host: t.shared.mustHost(vh), spec: t.shared.mustCompile(c),
		hosts: cluster.NewHosts([]cluster.Endpoint{{Key: at.String(), Addr: at, Healthy: true}})}
}

// Answer is a virtual host that gives one answer to every request.
func (s *Shared) Answer(name string, status uint32, body string) *route.VirtualHost {
	return s.mustHost(answer(name, status, body))
}

func (s *Shared) mustHost(vh *routev3.VirtualHost) *route.VirtualHost {
	compiled, err := s.hosts.get(vh, func() (*route.VirtualHost, error) { return route.Compile(vh) })
	if err != nil {
		panic("compile virtual host: " + err.Error()) // it is made here
	}
	return compiled
}

func answer(name string, status uint32, body string) *routev3.VirtualHost {
	return &routev3.VirtualHost{Name: name, Domains: []string{"*"}, Routes: []*routev3.Route{{
		Name: name, Match: everyRequest(),
		Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{Status: status, Body: &corev3.DataSource{
			Specifier: &corev3.DataSource_InlineString{InlineString: body}}}},
	}}}
}

func everyRequest() *routev3.RouteMatch {
	return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}
}

// unserved is a virtual host that says why the real one is not there.
func unserved(vh *routev3.VirtualHost, why error) *routev3.VirtualHost {
	return answer(vh.GetName(), http.StatusServiceUnavailable, why.Error())
}
