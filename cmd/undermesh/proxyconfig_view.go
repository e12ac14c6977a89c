package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/policy"
)

func (s servedService) callee() policy.Callee {
	return policy.CalleeOf(&client.Service{Service: s.Service, Settings: s.settings})
}

// seen calls f for each port of each service that the view sees, by host and port. Of several services of one host it is
// the one that counts.
func (m *servedMesh) seen(v policy.View, f func(s servedService, port *workloadapi.Port)) {
	byHost := map[string][]policy.Callee{}
	for _, s := range m.services {
		byHost[s.GetHostname()] = append(byHost[s.GetHostname()], s.callee())
	}
	all := slices.Clone(m.services)
	slices.SortFunc(all, func(a, b servedService) int {
		return cmp.Or(strings.Compare(a.GetHostname(), b.GetHostname()), strings.Compare(a.GetNamespace(), b.GetNamespace()))
	})
	for _, s := range all {
		for _, p := range s.GetPorts() {
			if c, ok := v.Choose(byHost[s.GetHostname()], p.GetServicePort()); ok && c.Namespace == s.GetNamespace() {
				f(s, p)
			}
		}
	}
}

// clustersOf are those that a workload may call, by name; the two that stand for no service come first.
func (m *servedMesh) clustersOf(v sight) []*clusterv3.Cluster {
	var out []*clusterv3.Cluster
	for _, name := range []string{api.BlackHoleCluster, api.PassthroughCluster} {
		if c := m.clusters[name]; c != nil {
			out = append(out, c)
		}
	}
	m.seen(v.View, func(s servedService, p *workloadapi.Port) {
		if c := m.clusters[api.ClusterKey(s.GetNamespace(), p.GetServicePort(), "", s.GetHostname())]; c != nil {
			_, rule := policy.CallTLS(v.held, v.caller, &client.Service{Service: s.Service}, uint16(p.GetServicePort()), "")
			out = append(out, ruled(c, rule))
		}
	})
	return out
}

func (m *servedMesh) routesOf(v policy.View) []*route.RouteConfiguration {
	var shared []policy.SharedRoute
	for _, s := range m.services {
		for _, p := range s.GetPorts() {
			if rc := m.routes[api.RouteKey(s.GetNamespace(), p.GetServicePort(), s.GetHostname())]; rc != nil {
				shared = append(shared, policy.SharedRoute{Callee: s.callee(), Port: p.GetServicePort(),
					Declared: s.settings.GetAppProtocols()[p.GetServicePort()] != "", Config: rc})
			}
		}
	}
	return v.Routes(m.mesh, shared)
}

// endpointState is one line of "proxy-config endpoint".
type endpointState struct {
	Endpoint string `json:"endpoint"`
	Status   string `json:"status"`       // HEALTHY, UNHEALTHY
	Outlier  string `json:"outlierCheck"` // OK
	Cluster  string `json:"cluster"`
	Workload string `json:"workload"`
}

// endpointsOf are the addresses behind the services that a workload may call, on the port that each listens on.
func (m *servedMesh) endpointsOf(v policy.View) []endpointState {
	clusters := map[string]string{} // service key and port -> cluster
	m.seen(v, func(s servedService, p *workloadapi.Port) {
		clusters[portKey(s.GetNamespace()+"/"+s.GetHostname(), p.GetServicePort())] = api.ClusterName(p.GetServicePort(), "", s.GetHostname())
	})
	out := []endpointState{}
	for _, w := range m.workloads {
		status := "HEALTHY"
		if w.GetStatus() == workloadapi.WorkloadStatus_UNHEALTHY {
			status = "UNHEALTHY"
		}
		for service, ports := range w.GetServices() {
			for _, p := range ports.GetPorts() {
				name, ok := clusters[portKey(service, p.GetServicePort())]
				if !ok {
					continue
				}
				for _, a := range hostsOf(w) {
					out = append(out, endpointState{Endpoint: a + ":" + strconv.Itoa(int(p.GetTargetPort())), Status: status,
						Outlier: "OK", Cluster: name, Workload: w.GetUid()})
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b endpointState) int {
		return cmp.Or(strings.Compare(a.Endpoint, b.Endpoint), strings.Compare(a.Cluster, b.Cluster))
	})
	return out
}

func portKey(service string, port uint32) string { return service + ":" + strconv.Itoa(int(port)) }

// hostsOf are a workload's addresses as a URL has them, or the name that DNS is asked for.
func hostsOf(w *workloadapi.Workload) []string {
	var out []string
	for _, raw := range w.GetAddresses() {
		if ip, ok := netip.AddrFromSlice(raw); ok && ip.Is6() {
			out = append(out, "["+ip.String()+"]")
		} else if ok {
			out = append(out, ip.String())
		}
	}
	if len(out) == 0 && w.GetHostname() != "" {
		out = []string{w.GetHostname()}
	}
	return out
}

// listenerState is one line of "proxy-config listener": where a captured connection goes by its destination.
type listenerState struct {
	Address     string `json:"address"`
	Port        uint32 `json:"port"`
	Match       string `json:"match"`
	Destination string `json:"destination"`
}

// listenersOf says what becomes of the connections that a workload makes, and which ports the mesh keeps in its pod.
func (m *servedMesh) listenersOf(v policy.View) []listenerState {
	rest := "Cluster: " + api.PassthroughCluster
	if v.OutboundPolicy(m.mesh) == settings.OutboundPolicy_REGISTRY_ONLY {
		rest = "Cluster: " + api.BlackHoleCluster
	}
	out := []listenerState{
		{"0.0.0.0", api.PortOutbound, "ALL", rest},
		{"0.0.0.0", api.PortInbound, "ALL", "Inbound Passthrough"},
		{"0.0.0.0", api.PortTunnel, "HBONE", "Inbound Tunnel"},
	}
	m.seen(v, func(s servedService, p *workloadapi.Port) {
		port, protocol := p.GetServicePort(), s.settings.GetAppProtocols()[p.GetServicePort()]
		l := listenerState{Port: port, Match: "ALL", Destination: "Cluster: " + api.ClusterName(port, "", s.GetHostname())}
		if m.routes[api.RouteKey(s.GetNamespace(), port, s.GetHostname())] != nil {
			l.Match = "App: HTTP"
			if protocol == "" {
				l.Match = "App: HTTP or TCP"
			}
			l.Destination = "Route: " + policy.RouteConfigName(s.callee(), port, protocol != "")
		}
		addresses := vips(s.Service)
		if len(addresses) == 0 {
			addresses = []string{"0.0.0.0"}
		}
		for _, a := range addresses {
			l.Address = a
			out = append(out, l)
		}
	})
	slices.SortStableFunc(out[3:], func(a, b listenerState) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), strings.Compare(a.Address, b.Address), strings.Compare(a.Destination, b.Destination))
	})
	return out
}

// vips are a service's addresses, networks with their length.
func vips(s *workloadapi.Service) []string {
	var out []string
	for _, a := range s.GetAddresses() {
		ip, ok := netip.AddrFromSlice(a.GetAddress())
		switch {
		case !ok:
		case a.GetLength() != nil:
			out = append(out, fmt.Sprintf("%s/%d", ip, a.GetLength().GetValue()))
		default:
			out = append(out, ip.String())
		}
	}
	return out
}
