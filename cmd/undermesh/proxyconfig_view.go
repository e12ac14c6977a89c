package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/policy"
)

// clustersOf are those that a workload may call, by name; the two that stand for no service come first.
func clustersOf(v sight) []*clusterv3.Cluster {
	var out []*clusterv3.Cluster
	for _, spec := range v.Clusters() {
		rule := ""
		if len(spec.Rules) > 0 {
			rule = spec.Rules[0]
		}
		out = append(out, ruled(spec.Cluster, rule))
	}
	return out
}

// endpointState is one line of "proxy-config endpoint".
type endpointState struct {
	Endpoint string `json:"endpoint"`
	Status   string `json:"status"`       // HEALTHY, UNHEALTHY
	Outlier  string `json:"outlierCheck"` // OK
	Cluster  string `json:"cluster"`
	Workload string `json:"workload"`
}

// endpointsOf are the addresses behind the clusters that a workload may call, on the port that each listens on.
func endpointsOf(v sight) []endpointState {
	out := []endpointState{}
	for _, spec := range v.Clusters() {
		if spec.Service == nil {
			continue
		}
		key := spec.Service.GetNamespace() + "/" + spec.Service.GetHostname()
		for _, w := range v.Snapshot.Endpoints(spec.Service) {
			if !spec.Has(w) {
				continue
			}
			status := "HEALTHY"
			if w.GetStatus() == workloadapi.WorkloadStatus_UNHEALTHY {
				status = "UNHEALTHY"
			}
			for _, p := range w.GetServices()[key].GetPorts() {
				if p.GetServicePort() != uint32(spec.Port) {
					continue
				}
				for _, a := range hostsOf(w.Workload) {
					out = append(out, endpointState{Endpoint: a + ":" + strconv.Itoa(int(p.GetTargetPort())), Status: status,
						Outlier: "OK", Cluster: spec.Cluster.GetName(), Workload: w.GetUid()})
				}
			}
		}
	}
	slices.SortFunc(out, func(a, b endpointState) int {
		return cmp.Or(strings.Compare(a.Endpoint, b.Endpoint), strings.Compare(a.Cluster, b.Cluster))
	})
	return out
}

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
func listenersOf(v sight) []listenerState {
	rest := "Cluster: " + cmp.Or(v.View.EgressProxy(), api.PassthroughCluster)
	if v.View.OutboundPolicy(v.Snapshot.Mesh()) == settings.OutboundPolicy_REGISTRY_ONLY {
		rest = "Cluster: " + api.BlackHoleCluster
	}
	out := []listenerState{
		{"0.0.0.0", api.PortOutbound, "ALL", rest},
		{"0.0.0.0", api.PortInbound, "ALL", "Inbound Passthrough"},
		{"0.0.0.0", api.PortTunnel, "HBONE", "Inbound Tunnel"},
	}
	v.Seen(func(s *client.Service, at uint16) {
		port, protocol := uint32(at), s.Settings.GetAppProtocols()[uint32(at)]
		l := listenerState{Port: port, Match: "ALL", Destination: "Cluster: " + api.ClusterName(port, "", s.GetHostname())}
		if policy.CarriesHTTP(protocol) {
			l.Match = "App: HTTP"
			if protocol == "" {
				l.Match = "App: HTTP or TCP"
			}
			l.Destination = "Route: " + policy.RouteConfigName(policy.CalleeOf(s), port, protocol != "")
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
