package policy

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/client"
)

// CallTLS returns what the DestinationRules that count for the caller say of TLS to a port of a service, or of a subset of it, and
// the rule that says it, "" for none; nil stands for MODE_AUTO. What a port says counts before what its level says, and a
// subset's before the host's.
func CallTLS(s *client.Snapshot, caller *client.Workload, svc *client.Service, port uint16, subset string) (tls *settings.ClientTls, rule string) {
	if svc == nil || caller == nil {
		return nil, ""
	}
	return clientTLS(s.CallRules(caller, svc.GetNamespace(), svc.GetHostname()), port, subset)
}

func clientTLS(all []*client.CallRule, port uint16, subset string) (tls *settings.ClientTls, rule string) {
	if len(all) == 0 {
		return nil, ""
	}
	if all[0].GetSelective() { // it alone counts, whatever it says
		all = all[:1]
	}
	name := func(r *client.CallRule) string { return r.GetNamespace() + "/" + r.GetName() }
	if subset != "" {
		for _, r := range all { // the first that makes the subset
			if !slices.ContainsFunc(r.Subsets, func(s client.Subset) bool { return s.Name == subset }) {
				continue
			}
			if tls := levelTLS(r.GetTls().GetSubsets()[subset], port); tls != nil {
				return tls, name(r)
			}
			break
		}
	}
	for _, r := range all {
		if tls := levelTLS(r.GetTls(), port); tls != nil {
			return tls, name(r)
		}
	}
	return nil, name(all[0])
}

func levelTLS(p *settings.ClientTlsPolicy, port uint16) *settings.ClientTls {
	if tls, ok := p.GetPorts()[uint32(port)]; ok {
		return tls
	}
	return p.GetHost()
}

// called returns the service whose rules count for the connection and its port of it: the one that was dialled, or a
// headless one that the dialled pod is behind on that port; nil for none. Of several the first by name counts. It must be a
// Kubernetes service of the pod's own namespace: others may list the pod's address, and have no say in how it is reached.
func called(q PathQuery) (*client.Service, uint16) {
	if q.Service != nil || q.Source == nil || q.Destination == nil {
		return q.Service, q.ServicePort
	}
	var best *client.Service
	var at uint16
	for key, ports := range q.Destination.GetServices() {
		namespace, host, _ := strings.Cut(key, "/")
		if b := q.Behind; b != nil && (b.GetNamespace() != namespace || b.GetHostname() != host) {
			continue
		}
		svc := q.Snapshot.ServiceByHost(namespace, host)
		if svc == nil || len(svc.GetAddresses()) > 0 || svc.Settings.GetDeclared() ||
			svc.GetNamespace() != q.Destination.GetNamespace() || !exported(svc.Settings.GetExportTo(), q.Source.GetNamespace()) || best != nil && best.GetHostname() < host {
			continue
		}
		for _, p := range ports.GetPorts() {
			if p.GetTargetPort() == uint32(q.Address.Port()) {
				best, at = svc, uint16(p.GetServicePort())
			}
		}
	}
	return best, at
}

// Headless returns the service without addresses that leads to the workload at addr, and its port of it: that whose rules count when the
// address is dialled. It is nil where there is none, or none that is seen.
func (c Caller) Headless(w *client.Workload, addr netip.AddrPort) (*client.Service, uint16) {
	svc, port := called(PathQuery{Snapshot: c.Snapshot, Source: c.Workload, Destination: w, Address: addr})
	if svc == nil || !c.View.Sees(CalleeOf(svc), uint32(port)) {
		return nil, 0
	}
	return svc, port
}

// mayServe is secure naming (MT-15): a service that lists subject names is served by those alone, and what the caller's
// DestinationRule lists counts instead. The names mean the same account in each alias of the mesh's trust domain.
func mayServe(mesh *settings.MeshSettings, svc *client.Service, tls *settings.ClientTls, id api.Identity) bool {
	names := tls.GetSubjectAltNames()
	if len(names) == 0 {
		names = svc.GetSubjectAltNames()
	}
	return len(names) == 0 || slices.ContainsFunc(names, func(n string) bool {
		named, err := api.ParseIdentity(n)
		return err == nil && SameAccount(mesh, named, id)
	})
}
