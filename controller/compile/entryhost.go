package compile

import (
	"net/netip"
	"slices"

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
