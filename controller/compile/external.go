package compile

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	networking "istio.io/api/networking/v1alpha3"

	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/validate"
)

// annotationDistribution says on a ServiceEntry what trafficDistribution says on a Service.
const annotationDistribution = "networking.istio.io/traffic-distribution"

// labelTunnel, "http", says of a workload that is no pod that it has a mesh proxy.
const labelTunnel = "networking.istio.io/tunnel"

// entry compiles a ServiceEntry: a service for each of its hosts, and the workloads that it lists itself.
func (c *Compiler) entry(n model.Name) ([]Resource, []validate.Finding) {
	e := c.reg.Entry(n)
	if e == nil {
		return nil, nil
	}
	found := slices.Clone(e.Findings)
	add := func(s validate.Severity, field, format string, args ...any) {
		found = append(found, validate.Finding{Severity: s, Kind: string(model.KindServiceEntry), Namespace: n.Namespace, Name: n.Name,
			Field: field, Message: fmt.Sprintf(format, args...)})
	}
	rivals := c.reg.Rivals(e)
	for i, p := range e.Prefixes {
		c.judgeAddress(e, p, rivals[i], add)
	}
	c.judgeProtocols(e, add)
	var out []Resource
	var hosts []string
	for _, h := range e.Hosts {
		if why := c.reg.HostTaken(e, h); why != "" {
			add(validate.Warning, "spec.hosts", "%q %s, which counts", h, why)
			continue
		}
		hosts = append(hosts, h)
		parts := c.reg.Together(n.Namespace, h)
		if parts[0] != e {
			add(validate.Info, "spec.hosts", "%q is one service with the older ServiceEntry %s", h, parts[0].ServiceEntry.Name)
			continue
		}
		host := c.entryHost(h, parts)
		out = append(out, c.entryService(host))
	}
	return append(out, c.entryWorkloads(e, hosts)...), found
}

// judgeAddress says for whom the entry does not get the connections to one of its addresses or networks.
func (c *Compiler) judgeAddress(e *model.ServiceEntry, p netip.Prefix, rival *model.ServiceEntry, add func(validate.Severity, string, string, ...any)) {
	why := c.reg.AddressRefused(e, p)
	switch {
	case why != "":
		add(validate.Error, "spec.addresses", "%s %s: this entry does not get its connections", bare(p), why)
	case c.reg.NamesNode(e, p):
		add(validate.Warning, "spec.addresses", "%s is the address of a node: this entry gets connections of its own namespace alone", bare(p))
	case rival == nil:
	case rival.Namespace == e.Namespace:
		add(validate.Error, "spec.addresses", "%s is an address of the older ServiceEntry %s: this entry does not get its connections",
			bare(p), rival.Key())
	default:
		add(validate.Warning, "spec.addresses", "%s is declared by the older ServiceEntry %s: this entry gets connections of its own namespace alone",
			bare(p), rival.Key())
	}
}

// bare is one address without its length, or a network.
func bare(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

func (c *Compiler) judgeProtocols(e *model.ServiceEntry, add func(validate.Severity, string, string, ...any)) {
	for _, p := range e.Ports {
		if _, known := entryProtocol(p); !known && p.GetProtocol() == "" { // a wrong protocol was found before
			add(validate.Warning, "spec.ports", "port %d: %q names no protocol: the port counts as undeclared", p.GetNumber(), p.GetName())
		}
	}
}

// entryProtocol is what the port declares by its protocol, or else by its name (SR-12).
func entryProtocol(p *networking.ServicePort) (protocol string, known bool) {
	if text := strings.ToLower(p.GetProtocol()); text != "" {
		v, ok := protocols[text]
		return v, ok
	}
	return namedProtocol(p.GetName())
}

func isUDP(p *networking.ServicePort) bool { return strings.EqualFold(p.GetProtocol(), "UDP") }

func (c *Compiler) entryService(h entryHost) Resource {
	e := h.first
	out := &workloadapi.Service{Name: e.ServiceEntry.Name, Namespace: e.Namespace, Hostname: h.host,
		SubjectAltNames: h.names(c.reg.Mesh().TrustDomain), LoadBalancing: entryBalancing(e)}
	var aliases []string
	put := func(p netip.Prefix) {
		a := &workloadapi.NetworkAddress{Network: c.cfg.Network, Address: p.Addr().AsSlice()}
		switch {
		case p.IsSingleIP() && c.reg.HasPod(p.Addr()): // who asks for the address wants to know the pod
		case p.IsSingleIP():
			aliases = append(aliases, c.cfg.Network+"/"+p.Addr().String())
		default:
			a.Length = wrapperspb.UInt32(uint32(p.Bits()))
		}
		out.Addresses = append(out.Addresses, a)
	}
	ownNamespace := false
	for _, p := range h.prefixes {
		put(p)
		ownNamespace = ownNamespace || c.reg.NamesNode(e, p)
	}
	for _, ip := range h.assigned {
		put(netip.PrefixFrom(ip, ip.BitLen()))
	}
	set := &settings.ServiceSettings{Declared: true, Created: born(e.CreationTimestamp), External: !e.Internal(), ExportTo: c.reg.EntryExportTo(e),
		OwnNamespace: ownNamespace, Resolution: resolutions[e.Spec.GetResolution()]}
	for _, p := range h.ports {
		out.Ports = append(out.Ports, &workloadapi.Port{ServicePort: p.GetNumber(), TargetPort: model.TargetPort(p, nil)})
		if protocol, _ := entryProtocol(p); protocol != "" {
			if set.AppProtocols == nil {
				set.AppProtocols = map[uint32]string{}
			}
			set.AppProtocols[p.GetNumber()] = protocol
		}
	}
	out.Extensions = []*workloadapi.Extension{extension(api.ServiceSettingsExtension, set)}
	return Resource{Type: api.AddressType, Name: e.Namespace + "/" + h.host, Aliases: aliases,
		Message: &workloadapi.Address{Type: &workloadapi.Address_Service{Service: out}}}
}

// born is when an object was made; nil where nobody says it, as in a directory.
func born(at metav1.Time) *timestamppb.Timestamp {
	if at.IsZero() {
		return nil
	}
	return timestamppb.New(at.Time)
}

var resolutions = map[networking.ServiceEntry_Resolution]settings.ServiceSettings_Resolution{
	networking.ServiceEntry_NONE:            settings.ServiceSettings_RESOLUTION_ORIGINAL,
	networking.ServiceEntry_STATIC:          settings.ServiceSettings_RESOLUTION_ENDPOINTS,
	networking.ServiceEntry_DNS:             settings.ServiceSettings_RESOLUTION_DNS,
	networking.ServiceEntry_DNS_ROUND_ROBIN: settings.ServiceSettings_RESOLUTION_DNS_ROUND_ROBIN,
	networking.ServiceEntry_DYNAMIC_DNS:     settings.ServiceSettings_RESOLUTION_DYNAMIC_DNS,
}

func entryBalancing(e *model.ServiceEntry) *workloadapi.LoadBalancing {
	return distribution(e.Annotations[annotationDistribution])
}

// entryWorkloads are the endpoints that the entry lists, or the host itself where DNS says what they are. An address of a
// pod makes the pod a member instead.
func (c *Compiler) entryWorkloads(e *model.ServiceEntry, hosts []string) []Resource {
	var out []Resource
	if len(e.Endpoints) == 0 && e.Selector == nil && e.Resolved() && len(e.Spec.GetEndpoints()) == 0 {
		for _, h := range hosts {
			if strings.HasPrefix(h, "*") {
				continue
			}
			ep := model.Endpoint{WorkloadEntry: &networking.WorkloadEntry{}, Host: h}
			if ip, err := netip.ParseAddr(h); err == nil {
				ep.Host, ep.IP = "", ip.Unmap()
			}
			out = append(out, c.entryWorkload(e, ep, h, []string{h}))
		}
		return out
	}
	seen := map[string]bool{}
	for _, ep := range e.Endpoints {
		if ep.IP.IsValid() && c.reg.HasPod(ep.IP) {
			continue
		}
		id := cmp.Or(ep.Host, ep.IP.String())
		if seen[id] {
			id += "/" + strconv.Itoa(ep.Index)
		}
		seen[id] = true
		out = append(out, c.entryWorkload(e, ep, id, hosts))
	}
	return out
}

// entryWorkload is one endpoint of the entry behind the hosts. It is not found by its address: nobody becomes a workload of
// the mesh because somebody lists him.
func (c *Compiler) entryWorkload(e *model.ServiceEntry, ep model.Endpoint, id string, hosts []string) Resource {
	w := c.outsider(ep, e.Namespace, e.ServiceEntry.Name, e.ServiceEntry.Name, ep.GetLabels())
	w.Uid = c.cfg.ClusterID + "/networking.istio.io/ServiceEntry/" + e.Key().String() + "/" + id
	w.NetworkMode = workloadapi.NetworkMode_HOST_NETWORK
	w.Services = map[string]*workloadapi.PortList{}
	for _, h := range hosts {
		w.Services[e.Namespace+"/"+h] = entryPorts(e, ep.GetPorts())
	}
	setState(w, true, &settings.WorkloadState{Labels: c.labels(w, ep.GetLabels())})
	if !e.Internal() {
		w.TunnelProtocol = workloadapi.TunnelProtocol_NONE
	}
	return Resource{Type: api.AddressType, Name: w.GetUid(),
		Message: &workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: w}}}
}

// entryPorts pairs the ports of the entry with those of an endpoint.
func entryPorts(e *model.ServiceEntry, ports map[string]uint32) *workloadapi.PortList {
	list := &workloadapi.PortList{}
	for _, p := range e.Ports {
		if !isUDP(p) {
			list.Ports = append(list.Ports, &workloadapi.Port{ServicePort: p.GetNumber(), TargetPort: model.TargetPort(p, ports)})
		}
	}
	return list
}

// outsider is a workload that is no pod, without uid and services.
func (c *Compiler) outsider(ep model.Endpoint, namespace, name, app string, labels map[string]string) *workloadapi.Workload {
	w := &workloadapi.Workload{
		Name: name, Namespace: namespace, Network: cmp.Or(ep.GetNetwork(), c.cfg.Network), Hostname: ep.Host,
		ServiceAccount: ep.GetServiceAccount(), ClusterId: c.cfg.ClusterID, WorkloadType: workloadapi.WorkloadType_POD, WorkloadName: app,
		CanonicalName:     firstLabel(labels, app, api.LabelCanonicalName, "app.kubernetes.io/name", "app"),
		CanonicalRevision: firstLabel(labels, "latest", api.LabelCanonicalRevision, "app.kubernetes.io/version", "version"),
	}
	if ep.IP.IsValid() {
		w.Addresses = [][]byte{ep.IP.AsSlice()}
	}
	if td := c.reg.Mesh().TrustDomain; td != api.DefaultTrustDomain {
		w.TrustDomain = td
	}
	if parts := strings.SplitN(ep.GetLocality(), "/", 3); parts[0] != "" {
		parts = append(parts, "", "")
		w.Locality = &workloadapi.Locality{Region: parts[0], Zone: parts[1], Subzone: parts[2]}
	}
	if n := ep.GetWeight(); n != 0 {
		w.Capacity = wrapperspb.UInt32(n)
	}
	if tunnelled(labels) {
		w.TunnelProtocol = workloadapi.TunnelProtocol_HBONE
	}
	return w
}

// workloadEntry compiles a workload that is no pod.
func (c *Compiler) workloadEntry(n model.Name) ([]Resource, []validate.Finding) {
	e := c.reg.WorkloadEntry(n)
	if e == nil {
		return nil, nil
	}
	found := slices.Clone(e.Findings)
	warn := func(field, message string) {
		found = append(found, validate.Finding{Severity: validate.Warning, Kind: string(model.KindWorkloadEntry),
			Namespace: n.Namespace, Name: n.Name, Field: field, Message: message})
	}
	if !e.Reachable() {
		warn("spec.address", "is nothing that a connection can be made to: the workload has no part in the mesh")
		return nil, found
	}
	if e.Endpoint.IP.IsValid() && c.reg.HasPod(e.Endpoint.IP) {
		warn("spec.address", "is the address of a pod: the workload has no part in the mesh")
		return nil, found
	}
	w := c.outsider(e.Endpoint, n.Namespace, n.Name, n.Name, e.Labels)
	w.Uid = c.cfg.ClusterID + "/networking.istio.io/WorkloadEntry/" + n.String()
	w.Services = map[string]*workloadapi.PortList{}
	services := c.reg.ServicesSelecting(n.Namespace, e.Labels)
	for _, s := range services {
		list := &workloadapi.PortList{}
		for _, p := range s.Spec.Ports {
			target := e.Endpoint.GetPorts()[p.Name]
			if target == 0 {
				target = uint32(numericTarget(p))
			}
			if (p.Protocol == "" || p.Protocol == corev1.ProtocolTCP) && target != 0 {
				list.Ports = append(list.Ports, &workloadapi.Port{ServicePort: uint32(p.Port), TargetPort: target})
			}
		}
		w.Services[c.serviceKey(s)] = list
	}
	for _, s := range c.reg.EntriesSelecting(n.Namespace, e.Labels) {
		if e.Endpoint.Host != "" && !s.Resolved() {
			continue
		}
		for _, h := range s.Hosts {
			if c.reg.HostTaken(s, h) == "" {
				key := s.Namespace + "/" + h
				w.Services[key] = join(w.Services[key], entryPorts(s, e.Endpoint.GetPorts()))
			}
		}
	}
	setState(w, true, &settings.WorkloadState{Labels: c.labels(w, e.Labels)})
	var aliases []string
	switch {
	case c.reg.OwnsAddress(e):
		aliases = []string{w.GetNetwork() + "/" + e.Endpoint.IP.String()}
	default:
		w.NetworkMode = workloadapi.NetworkMode_HOST_NETWORK
		if e.Endpoint.IP.IsValid() {
			warn("spec.address", "is also that of a node, of a service or of an older WorkloadEntry: connections to it are not this workload's")
		}
	}
	shared := c.attach(w, e.AsPod(), services)
	if len(w.GetAuthorizationPolicies()) > 0 && !tunnelled(e.Labels) {
		warn("spec", "is without a proxy of the mesh, which alone would enforce "+strings.Join(w.GetAuthorizationPolicies(), ", "))
	}
	return append(shared, Resource{Type: api.AddressType, Name: w.GetUid(), Aliases: aliases,
		Message: &workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: w}}}), found
}

// tunnelled reports whether a workload that is no pod says that it has a proxy of the mesh.
func tunnelled(labels map[string]string) bool { return strings.EqualFold(labels[labelTunnel], "http") }

// judgeOutsiders says which workloads outside the cluster a policy names and nobody enforces it for.
func judgeOutsiders(all []*model.WorkloadEntry, st *validate.Status) {
	var names []string
	for _, e := range all {
		if !tunnelled(e.Labels) && e.Reachable() {
			names = append(names, e.Key().String())
		}
	}
	if len(names) == 0 {
		return
	}
	text := "not enforced for WorkloadEntry " + shorten(names) + ": it has no proxy of the mesh"
	if st.Message != "" {
		text += "; " + st.Message
	}
	st.Message = text
	if st.Enforced {
		st.EnforcedBy = validate.ReasonPartially
	}
}

// entryMemberships adds the hosts of entries that select the pod, or that list its address.
func (c *Compiler) entryMemberships(p *model.Pod, out map[string]*workloadapi.PortList) {
	put := func(e *model.ServiceEntry, ports map[string]uint32) {
		for _, h := range e.Hosts {
			if c.reg.HostTaken(e, h) == "" {
				key := e.Namespace + "/" + h
				out[key] = join(out[key], entryPorts(e, ports))
			}
		}
	}
	for _, e := range c.reg.EntriesSelecting(p.Namespace, p.Labels) {
		put(e, p.Ports)
	}
	for _, e := range c.reg.EntriesListing(p) {
		for _, ep := range e.Endpoints {
			if slices.Contains(p.IPs, ep.IP) {
				put(e, ep.GetPorts())
				break
			}
		}
	}
}

// entryWeights are those that entries give a pod whose address they list, by service; nil without any.
func (c *Compiler) entryWeights(p *model.Pod) map[string]uint32 {
	var out map[string]uint32
	for _, e := range c.reg.EntriesListing(p) {
		i := slices.IndexFunc(e.Endpoints, func(ep model.Endpoint) bool { return slices.Contains(p.IPs, ep.IP) })
		if i < 0 || e.Endpoints[i].GetWeight() == 0 {
			continue
		}
		for _, h := range e.Hosts {
			key := e.Namespace + "/" + h
			if _, older := out[key]; older || c.reg.HostTaken(e, h) != "" {
				continue
			}
			if out == nil {
				out = map[string]uint32{}
			}
			out[key] = e.Endpoints[i].GetWeight()
		}
	}
	return out
}
