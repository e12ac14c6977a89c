package compile

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/validate"
)

// localityOf is where a pod says by its label that it stands, and else where its node is. A label that has no region, or more parts than
// there are, says nothing.
func localityOf(p *model.Pod, node model.Locality) model.Locality {
	said := strings.Split(p.Labels[api.LabelLocality], ".")
	if len(said) > 3 || slices.Contains(said, "") {
		return node
	}
	said = append(said, "", "")
	return model.Locality{Region: said[0], Zone: said[1], Subzone: said[2]}
}

// pod compiles one pod: its workload, and the settings and policies that it shares with others.
func (c *Compiler) pod(n model.Name) []Resource {
	p := c.reg.Pod(n)
	if p == nil || len(p.IPs) == 0 {
		return nil
	}
	services := c.reg.ServicesOf(p)
	loc := localityOf(p, c.reg.Locality(p.Node))
	w := &workloadapi.Workload{
		Uid: c.cfg.ClusterID + "//Pod/" + n.String(), Name: n.Name, Namespace: n.Namespace, Network: c.cfg.Network,
		ServiceAccount: p.ServiceAccount, Node: p.Node, ClusterId: c.cfg.ClusterID,
		WorkloadType: workloadType(p.OwnerKind), WorkloadName: p.OwnerName, Services: c.memberships(p, services),
		CanonicalName:     firstLabel(p.Labels, p.OwnerName, api.LabelCanonicalName, "app.kubernetes.io/name", "app"),
		CanonicalRevision: firstLabel(p.Labels, "latest", api.LabelCanonicalRevision, "app.kubernetes.io/version", "version"),
	}
	if td := c.reg.Mesh().TrustDomain; td != api.DefaultTrustDomain {
		w.TrustDomain = td
	}
	if loc != (model.Locality{}) {
		w.Locality = &workloadapi.Locality{Region: loc.Region, Zone: loc.Zone, Subzone: loc.Subzone}
	}
	setState(w, p.Ready, &settings.WorkloadState{ServingTerminating: p.Terminating, Labels: c.labels(w, p.Labels), Weights: c.entryWeights(p)})
	if p.Captured {
		w.TunnelProtocol = workloadapi.TunnelProtocol_HBONE
	}
	var aliases []string
	for _, ip := range p.IPs {
		w.Addresses = append(w.Addresses, ip.AsSlice())
		if !p.HostNetwork { // the address is the node's, not the pod's
			aliases = append(aliases, c.cfg.Network+"/"+ip.String())
		}
	}
	if p.HostNetwork {
		w.NetworkMode = workloadapi.NetworkMode_HOST_NETWORK
	}
	return append(c.attach(w, p, services), Resource{Type: api.AddressType, Name: w.GetUid(), Aliases: aliases,
		Message: &workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: w}}})
}

// attach makes the workload name the policies, the mode of mutual TLS and the scope that are for it, and returns what it names
// and shares with others.
func (c *Compiler) attach(w *workloadapi.Workload, p *model.Pod, services []*model.Service) []Resource {
	for _, name := range c.reg.SelectorPolicies(p, services) {
		w.AuthorizationPolicies = append(w.AuthorizationPolicies, name.String())
	}
	scope, scopes := c.scopeOf(p.Namespace, p.Labels)
	set := &settings.WorkloadSettings{Scope: scope, CallRules: c.callRulesFor(p)}
	return append(scopes, c.attachSettings(w, c.composeMTLS(p, boundPorts(w)), set)...)
}

// setState says whether the workload takes connections, and what else is to say of it. Who is being deleted and still serves is
// unhealthy to peers that do not know our extension.
func setState(w *workloadapi.Workload, ready bool, state *settings.WorkloadState) {
	if ready {
		state.ServingTerminating = false
	} else {
		w.Status = workloadapi.WorkloadStatus_UNHEALTHY
	}
	if proto.Size(state) > 0 {
		w.Extensions = append(w.Extensions, extension(api.WorkloadStateExtension, state))
	}
}

// labels are those of a workload that rules ask for.
func (c *Compiler) labels(w *workloadapi.Workload, all map[string]string) map[string]string {
	hosts := make([]string, 0, len(w.GetServices()))
	for key := range w.GetServices() {
		_, host, _ := strings.Cut(key, "/")
		hosts = append(hosts, host)
	}
	return c.reg.LabelsFor(all, hosts)
}

// condition is one of an endpoint's, or what it means when it is not there.
func condition(value *bool, absent bool) bool {
	if value == nil {
		return absent
	}
	return *value
}

func workloadType(kind string) workloadapi.WorkloadType {
	switch kind {
	case "Deployment":
		return workloadapi.WorkloadType_DEPLOYMENT
	case "CronJob":
		return workloadapi.WorkloadType_CRONJOB
	case "Job":
		return workloadapi.WorkloadType_JOB
	}
	return workloadapi.WorkloadType_POD
}

func firstLabel(labels map[string]string, fallback string, keys ...string) string {
	for _, k := range keys {
		if v := labels[k]; v != "" {
			return v
		}
	}
	return fallback
}

// memberships lists the pod's services with the ports as they are on this pod.
func (c *Compiler) memberships(p *model.Pod, services []*model.Service) map[string]*workloadapi.PortList {
	out := map[string]*workloadapi.PortList{}
	for _, s := range services {
		list := &workloadapi.PortList{}
		for _, port := range s.Spec.Ports {
			if port.Protocol != "" && port.Protocol != corev1.ProtocolTCP {
				continue
			}
			target := uint32(numericTarget(port))
			if target == 0 {
				if target = p.Ports[port.TargetPort.StrVal]; target == 0 {
					continue // no container of this pod has a port of that name
				}
			}
			list.Ports = append(list.Ports, &workloadapi.Port{ServicePort: uint32(port.Port), TargetPort: target})
		}
		out[c.serviceKey(s)] = list
	}
	for _, slice := range c.reg.SlicesOf(p) {
		s := c.reg.ManualService(slice)
		if s == nil {
			continue
		}
		list := out[c.serviceKey(s)]
		if list == nil {
			list = &workloadapi.PortList{}
			out[c.serviceKey(s)] = list
		}
		list.Ports = append(list.Ports, slicePorts(s, slice)...)
	}
	c.entryMemberships(p, out)
	if len(out) == 0 {
		return nil
	}
	return out
}

// slicePorts pairs the ports of service and slice by name.
func slicePorts(s *model.Service, slice *model.Slice) []*workloadapi.Port {
	var out []*workloadapi.Port
	for _, sp := range s.Spec.Ports {
		for _, ep := range slice.Ports {
			name := ""
			if ep.Name != nil {
				name = *ep.Name
			}
			tcp := ep.Protocol == nil || *ep.Protocol == corev1.ProtocolTCP
			if name == sp.Name && ep.Port != nil && tcp && (sp.Protocol == "" || sp.Protocol == corev1.ProtocolTCP) {
				out = append(out, &workloadapi.Port{ServicePort: uint32(sp.Port), TargetPort: uint32(*ep.Port)})
			}
		}
	}
	return out
}

// slice compiles the addresses of a manual EndpointSlice that are no pods: workloads without identity or tunnel.
func (c *Compiler) slice(n model.Name) ([]Resource, []validate.Finding) {
	slice := c.reg.Slice(n)
	if slice == nil {
		return nil, nil
	}
	s := c.reg.ManualService(slice)
	if s == nil {
		return nil, nil
	}
	if slice.AddressType == discoveryv1.AddressTypeFQDN {
		return nil, []validate.Finding{{Severity: validate.Warning, Kind: "EndpointSlice", Namespace: n.Namespace, Name: n.Name,
			Field: "addressType", Message: "FQDN is not supported: the slice adds no endpoints"}}
	}
	var out []Resource
	var found []validate.Finding
	seen := map[netip.Addr]bool{}
	for i, e := range slice.Endpoints {
		for _, text := range e.Addresses {
			ip, err := netip.ParseAddr(text)
			if err != nil {
				found = append(found, validate.Finding{Severity: validate.Error, Kind: "EndpointSlice", Namespace: n.Namespace,
					Name: n.Name, Field: "endpoints[" + strconv.Itoa(i) + "].addresses", Message: strconv.Quote(text) + " is not an IP address"})
				continue
			}
			if ip = ip.Unmap(); seen[ip] || c.reg.HasPod(ip) {
				continue
			}
			seen[ip] = true
			out = append(out, c.foreign(n, s, slice, &e, ip))
		}
	}
	return out, found
}

func (c *Compiler) foreign(n model.Name, s *model.Service, slice *model.Slice, e *discoveryv1.Endpoint, ip netip.Addr) Resource {
	w := &workloadapi.Workload{
		Uid:  c.cfg.ClusterID + "/discovery.k8s.io/EndpointSlice/" + n.String() + "/" + ip.String(),
		Name: n.Name, Namespace: n.Namespace, Network: c.cfg.Network, Addresses: [][]byte{ip.AsSlice()},
		ClusterId: c.cfg.ClusterID, WorkloadType: workloadapi.WorkloadType_POD, WorkloadName: s.Name,
		CanonicalName: s.Name, CanonicalRevision: "latest",
		Services: map[string]*workloadapi.PortList{c.serviceKey(s): {Ports: slicePorts(s, slice)}},
	}
	if e.NodeName != nil {
		w.Node = *e.NodeName
	}
	if e.Zone != nil {
		w.Locality = &workloadapi.Locality{Zone: *e.Zone}
	}
	setState(w, condition(e.Conditions.Ready, true), &settings.WorkloadState{
		ServingTerminating: condition(e.Conditions.Serving, true) && condition(e.Conditions.Terminating, false)})
	aliases := []string{c.cfg.Network + "/" + ip.String()}
	if c.reg.IsNode(ip) { // the API server, for example: what comes from a node is not this workload's
		w.NetworkMode, aliases = workloadapi.NetworkMode_HOST_NETWORK, nil
	}
	return Resource{Type: api.AddressType, Name: w.GetUid(), Aliases: aliases,
		Message: &workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: w}}}
}

// boundPorts are the container ports that some service of the workload's own namespace leads to: others may list its address,
// and have no say in how it is protected.
func boundPorts(w *workloadapi.Workload) map[uint32]bool {
	bound := map[uint32]bool{}
	for key, list := range w.GetServices() {
		if namespace, _, _ := strings.Cut(key, "/"); namespace != w.GetNamespace() {
			continue
		}
		for _, p := range list.GetPorts() {
			bound[p.GetTargetPort()] = true
		}
	}
	return bound
}
