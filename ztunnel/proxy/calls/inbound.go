package calls

import (
	"net/http"
	"net/netip"
	"strconv"

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
	Host   *route.VirtualHost
	shared *Shared
	spec   *cluster.Spec
	hosts  *cluster.Hosts
}

type inboundKey struct {
	at      netip.AddrPort
	version cluster.Version
}

const maxInbound = 256 // ports of a pod that are remembered

// Inbound returns what requests go by that come to the pod's own address, for an application that takes HTTP of the version.
func (t *Table) Inbound(at netip.AddrPort, version cluster.Version) *Inbound {
	key := inboundKey{at, version}
	t.mu.RLock()
	in := t.inbound[key]
	t.mu.RUnlock()
	if in != nil {
		return in
	}
	in = t.shared.newInbound(at, version)
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.inbound) >= maxInbound {
		clear(t.inbound)
	}
	t.inbound[key] = in
	return in
}

// Cluster makes the cluster of one connection: its connections to the application are its own, since each bears the address of
// its client.
func (in *Inbound) Cluster() *cluster.Cluster {
	return cluster.New(cluster.Config{Clock: in.shared.cfg.Clock, Rand: in.shared.cfg.Rand}, in.spec, in.hosts)
}

// Close tells the hosts of a cluster that Cluster made that they are of no more use.
func (in *Inbound) Close(c *cluster.Cluster) { c.Update(in.spec, cluster.NewHosts(nil)) }

func (s *Shared) newInbound(at netip.AddrPort, version cluster.Version) *Inbound {
	port := strconv.Itoa(int(at.Port()))
	name := "inbound|" + port + "||"
	c := &clusterv3.Cluster{Name: name, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC}}
	switch version {
	case cluster.HTTP2:
		c.Http2ProtocolOptions = &corev3.Http2ProtocolOptions{}
	case cluster.SameAsReceived:
		c.ProtocolSelection = clusterv3.Cluster_USE_DOWNSTREAM_PROTOCOL
	}
	spec, err := s.specs.get(c, func() (*cluster.Spec, error) { return cluster.Compile(c) })
	if err != nil {
		panic("compile inbound cluster: " + err.Error()) // it is made here
	}
	vh := &routev3.VirtualHost{Name: "inbound|http|" + port, Domains: []string{"*"}, Routes: []*routev3.Route{{
		Name: "default", Match: everyRequest(), Decorator: nil,
		Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: name}, Timeout: durationpb.New(0),
			MaxStreamDuration: &routev3.RouteAction_MaxStreamDuration{MaxStreamDuration: durationpb.New(0), GrpcTimeoutHeaderMax: durationpb.New(0)},
			UpgradeConfigs:    []*routev3.RouteAction_UpgradeConfig{{UpgradeType: "websocket", Enabled: wrapperspb.Bool(true)}}}},
	}}}
	return &Inbound{shared: s, Host: s.mustHost(vh), spec: spec,
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
