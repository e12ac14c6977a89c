package model

import (
	"net/netip"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/undermesh/undermesh/controller/validate"
)

// ServiceEntry is what the mesh needs of a ServiceEntry, with what is wrong with it by itself. What is wrong is left out.
type ServiceEntry struct {
	*networkingv1.ServiceEntry
	Hosts     []string                // lower case, each once
	Prefixes  []netip.Prefix          // of spec.addresses, each once
	Assigned  map[string][]netip.Addr // by host: what the leader stored, all of the pools
	Ports     []*networking.ServicePort
	Selector  map[string]string // nil: no pods and workload entries are selected
	Endpoints []Endpoint
	Findings  []validate.Finding
}

// Endpoint is one address behind a host.
type Endpoint struct {
	*networking.WorkloadEntry
	Index int        // in spec.endpoints
	IP    netip.Addr // invalid when it is a name
	Host  string     // "" when it is an address
}

// labelNoAllocation, when false, asks for no address.
const labelNoAllocation = "networking.istio.io/enable-autoallocate-ip"

func assignable(ip netip.Addr) bool {
	return slices.ContainsFunc(validate.Pools(), func(p netip.Prefix) bool { return p.Contains(ip) })
}

func newEntry(o *networkingv1.ServiceEntry, issues []validate.Field) *ServiceEntry {
	out := &ServiceEntry{ServiceEntry: o, Findings: validate.ServiceEntry(o, issues), Assigned: map[string][]netip.Addr{}}
	if validate.EntrySize(&o.Spec) != nil {
		return out
	}
	for _, h := range o.Spec.GetHosts() {
		h = strings.TrimSuffix(strings.ToLower(h), ".")
		if validate.Host(h, true) == nil && h != "*" && !slices.Contains(out.Hosts, h) {
			out.Hosts = append(out.Hosts, h)
		}
	}
	for _, a := range o.Spec.GetAddresses() {
		if p, err := validate.IPBlock(a); err == nil && validate.Declarable(p) == nil && !slices.Contains(out.Prefixes, p) {
			out.Prefixes = append(out.Prefixes, p)
		}
	}
	for _, p := range o.Spec.GetPorts() {
		same := func(q *networking.ServicePort) bool { return q.GetNumber() == p.GetNumber() }
		if isPort(p.GetNumber()) && p.GetTargetPort() <= 65535 && !slices.ContainsFunc(out.Ports, same) {
			out.Ports = append(out.Ports, p)
		}
	}
	if s := o.Spec.GetWorkloadSelector().GetLabels(); len(s) > 0 && !out.Original() {
		out.Selector = s
	}
	for i, e := range o.Spec.GetEndpoints() {
		if out.Original() || out.Selector != nil {
			break
		}
		if ep, ok := newEndpoint(e, i); ok && (ep.Host == "" || out.Resolved()) {
			out.Endpoints = append(out.Endpoints, ep)
		}
	}
	for _, a := range o.Status.GetAddresses() {
		if ip, err := netip.ParseAddr(a.GetValue()); err == nil && assignable(ip) && slices.Contains(out.WantsAddresses(), a.GetHost()) {
			out.Assigned[a.GetHost()] = append(out.Assigned[a.GetHost()], ip)
		}
	}
	return out
}

func isPort(p uint32) bool { return p > 0 && p <= 65535 }

// newEndpoint reports false for what no connection can be made to: unix sockets, other networks without an address, and
// whose account is none, so that nobody can prove to be it.
func newEndpoint(e *networking.WorkloadEntry, index int) (Endpoint, bool) {
	out := Endpoint{WorkloadEntry: e, Index: index}
	if a := e.GetServiceAccount(); a != "" && validate.AccountName(a) != nil {
		return out, false
	}
	text := e.GetAddress()
	if ip, err := netip.ParseAddr(text); err == nil && ip.Zone() == "" {
		out.IP = ip.Unmap()
		return out, true
	}
	out.Host = strings.TrimSuffix(strings.ToLower(text), ".")
	return out, !strings.HasPrefix(text, "unix://") && validate.Host(out.Host, false) == nil
}

// Original reports whether connections go to the address that was dialled.
func (e *ServiceEntry) Original() bool { return e.Spec.GetResolution() == networking.ServiceEntry_NONE }

// Resolved reports whether names are resolved by DNS.
func (e *ServiceEntry) Resolved() bool {
	r := e.Spec.GetResolution()
	return r == networking.ServiceEntry_DNS || r == networking.ServiceEntry_DNS_ROUND_ROBIN
}

// Internal reports whether the hosts are part of the mesh.
func (e *ServiceEntry) Internal() bool {
	return e.Spec.GetLocation() == networking.ServiceEntry_MESH_INTERNAL
}

// Key is the entry's name.
func (e *ServiceEntry) Key() Name { return Name{e.Namespace, e.ServiceEntry.Name} }

func (e *ServiceEntry) olderThan(o *ServiceEntry) bool {
	return olderThan(e.CreationTimestamp.Time, o.CreationTimestamp.Time, e.Key(), o.Key())
}

// WantsAddresses returns the hosts that need an assigned address, because without one no connection can be told to be
// theirs. Connections to the others are told by the addresses of the entry, or go where they were dialled.
func (e *ServiceEntry) WantsAddresses() []string {
	if e.Original() || len(e.Spec.GetAddresses()) > 0 || strings.EqualFold(e.Labels[labelNoAllocation], "false") {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(e.Hosts), func(h string) bool {
		_, err := netip.ParseAddr(h)
		return err == nil || strings.HasPrefix(h, "*")
	})
}

// TargetPort is the port of an endpoint behind a port of the entry; ports may be nil.
func TargetPort(p *networking.ServicePort, ports map[string]uint32) uint32 {
	if t := ports[p.GetName()]; isPort(t) {
		return t
	}
	if p.GetTargetPort() != 0 {
		return p.GetTargetPort()
	}
	return p.GetNumber()
}

// WorkloadEntry is one workload that is no pod.
type WorkloadEntry struct {
	*networkingv1.WorkloadEntry
	Labels   map[string]string // those of the object and of its spec, which win
	Endpoint Endpoint
	Findings []validate.Finding
}

// Key is the entry's name.
func (w *WorkloadEntry) Key() Name { return Name{w.Namespace, w.WorkloadEntry.Name} }

// newWorkload returns nil for one that no connection can be made to.
func newWorkload(o *networkingv1.WorkloadEntry, issues []validate.Field) *WorkloadEntry {
	out := &WorkloadEntry{WorkloadEntry: o, Labels: map[string]string{}, Findings: validate.WorkloadEntry(o, issues)}
	for _, labels := range []map[string]string{o.Labels, o.Spec.GetLabels()} {
		for k, v := range labels {
			out.Labels[k] = v
		}
	}
	out.Endpoint, _ = newEndpoint(&o.Spec, 0)
	return out
}

// AsPod is the workload as policies and Sidecars see it.
func (w *WorkloadEntry) AsPod() *Pod {
	return &Pod{Name: w.Key(), Labels: w.Labels, ServiceAccount: w.Spec.GetServiceAccount(), HostNetwork: true}
}

// Reachable reports whether a connection can be made to the workload.
func (w *WorkloadEntry) Reachable() bool { return w.Endpoint.IP.IsValid() || w.Endpoint.Host != "" }
