package compile

import (
	"net/netip"
	"slices"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	networking "istio.io/api/networking/v1alpha3"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/model"
)

// entryHost is one host of the entries of a namespace that are one service: the oldest speaks for all where they do not add up.
type entryHost struct {
	first    *model.ServiceEntry
	host     string
	parts    []*model.ServiceEntry     // all, first among them
	ports    []*networking.ServicePort // of TCP, each number once, of the oldest that has it
	prefixes []netip.Prefix
	assigned []netip.Addr
}

func (c *Compiler) entryHost(host string, parts []*model.ServiceEntry) entryHost {
	out := entryHost{first: parts[0], host: host, parts: parts}
	has := map[netip.Prefix]bool{}
	for _, e := range parts {
		for _, p := range e.Ports {
			same := func(q *networking.ServicePort) bool { return q.GetNumber() == p.GetNumber() }
			if !isUDP(p) && !slices.ContainsFunc(out.ports, same) {
				out.ports = append(out.ports, p)
			}
		}
		for _, p := range e.Prefixes {
			if !has[p] && c.reg.AddressRefused(e, p) == "" {
				has[p], out.prefixes = true, append(out.prefixes, p)
			}
		}
		for _, ip := range c.reg.Assigned(e, host) {
			if !slices.Contains(out.assigned, ip) {
				out.assigned = append(out.assigned, ip)
			}
		}
	}
	return out
}

// addresses are the single addresses that stand for the host.
func (h entryHost) addresses() []netip.Addr {
	var out []netip.Addr
	for _, p := range h.prefixes {
		if p.IsSingleIP() {
			out = append(out, p.Addr())
		}
	}
	for _, ip := range h.assigned {
		if !slices.Contains(out, ip) {
			out = append(out, ip)
		}
	}
	return out
}

// names are the identities that may answer (MT-15): those listed, and the accounts of the endpoints that the entries name
// themselves. None are none; each endpoint then proves its own.
func (h entryHost) names(trustDomain string) []string {
	if len(h.first.Spec.GetSubjectAltNames()) == 0 {
		return nil
	}
	names := slices.Clone(h.first.Spec.GetSubjectAltNames())
	for _, e := range h.parts {
		for _, ep := range e.Endpoints {
			if a := ep.GetServiceAccount(); a != "" {
				id := api.Identity{TrustDomain: trustDomain, Namespace: e.Namespace, ServiceAccount: a}
				names = append(names, id.String())
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// callee describes the host to callers.
func (h entryHost) callee() callee {
	out := callee{namespace: h.first.Namespace, hostname: h.host, finding: cluster.Cluster_EDS}
	switch h.first.Spec.GetResolution() {
	case networking.ServiceEntry_DNS:
		out.finding = cluster.Cluster_STRICT_DNS
	case networking.ServiceEntry_DNS_ROUND_ROBIN:
		out.finding = cluster.Cluster_LOGICAL_DNS
	case networking.ServiceEntry_NONE, networking.ServiceEntry_DYNAMIC_DNS:
		out.finding = cluster.Cluster_ORIGINAL_DST
	}
	if h.first.Selector != nil && h.first.Resolved() { // the members are addresses
		out.finding = cluster.Cluster_EDS
	}
	for _, ip := range h.addresses() {
		out.vips = append(out.vips, authorityOf(ip))
	}
	for _, p := range h.ports {
		protocol, _ := entryProtocol(p)
		port := calleePort{number: p.GetNumber(), protocol: protocol}
		if out.finding == cluster.Cluster_STRICT_DNS || out.finding == cluster.Cluster_LOGICAL_DNS {
			port.names = h.dnsNames(p.GetNumber())
		}
		if out.finding == cluster.Cluster_LOGICAL_DNS && len(port.names) > 1 {
			port.names = port.names[:1] // there is one name in such a cluster
		}
		out.ports = append(out.ports, port)
	}
	return out
}

// dnsNames are the endpoints of all entries that have the port.
func (h entryHost) dnsNames(port uint32) []string {
	var out []string
	for _, e := range h.parts {
		for _, p := range e.Ports {
			if p.GetNumber() != port || isUDP(p) {
				continue
			}
			for _, name := range dnsNames(e, h.host, p) {
				if !slices.Contains(out, name) {
					out = append(out, name)
				}
			}
		}
	}
	return out
}

// join adds the ports of a member that the list does not have.
func join(list *workloadapi.PortList, more *workloadapi.PortList) *workloadapi.PortList {
	if list == nil {
		return more
	}
	for _, p := range more.GetPorts() {
		if !slices.ContainsFunc(list.Ports, func(q *workloadapi.Port) bool { return q.GetServicePort() == p.GetServicePort() }) {
			list.Ports = append(list.Ports, p)
		}
	}
	return list
}
