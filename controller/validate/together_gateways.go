package validate

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "k8s.io/api/networking/v1"
)

// gateways judges the selectors, secrets and ports of Istio's gateways, and hosts that two of them have.
func (v *view) gateways() {
	each(v, func(m *member, g *networking.Gateway) {
		pods := v.gatewayPods(g)
		if len(pods) == 0 && len(g.GetSelector()) > 0 && !v.unread("", "Pod") {
			v.missing(m, Error, "spec.selector", "selector", labelText(g.GetSelector()))
		}
		for i, s := range g.GetServers() {
			v.serverSecrets(m, s, pods, indexed("spec.servers", i))
			v.serverExposed(m, g, s, pods, indexed("spec.servers", i))
		}
	})
	v.sameServers()
}

// gatewayPods lists the pods that serve a gateway: in every namespace. Without a selector that is all of them.
func (v *view) gatewayPods(g *networking.Gateway) []*workload {
	if len(g.GetSelector()) > 0 {
		return v.everywhere(g.GetSelector())
	}
	var out []*workload
	for _, ns := range sortedKeys(v.workloads) {
		v.spend(1 + len(v.workloads[ns]))
		out = append(out, v.workloads[ns]...)
	}
	return out
}

// serverSecrets judges the secrets of a server: they are in the namespace of the pods that serve it, or in its own.
func (v *view) serverSecrets(m *member, s *networking.Server, pods []*workload, at string) {
	names := slices.Clone(s.GetTls().GetCredentialNames())
	if n := s.GetTls().GetCredentialName(); n != "" {
		names = append(names, n)
	}
	for _, n := range names {
		if strings.Contains(n, "://") || v.unread("", "Secret") {
			continue
		}
		found := v.objects[objectID{"", "Secret", m.namespace, n}] != nil
		if !v.spend(1 + len(pods)) {
			return
		}
		for _, w := range pods {
			found = found || v.objects[objectID{"", "Secret", w.namespace, n}] != nil
		}
		if found {
			continue
		}
		v.missing(m, Error, at+".tls.credentialName", "credentialName", n)
		if have := v.secrets[n]; len(have) > 0 {
			v.hint("there is one in namespace %s: it must be where the gateway's pods are", have[len(have)-1].namespace)
		}
	}
}

// serverExposed reports a server whose port no Service of the gateway's pods has.
func (v *view) serverExposed(m *member, g *networking.Gateway, s *networking.Server, pods []*workload, at string) {
	number, services := s.GetPort().GetNumber(), 0
	if number == 0 || len(pods) == 0 || v.unread("", "Service") || len(g.GetSelector()) == 0 {
		return
	}
	for _, w := range pods {
		bound := v.boundPorts(w)
		if !v.spend(1 + len(bound)) {
			return
		}
		services += len(bound)
		if len(bound[number]) > 0 {
			return
		}
		for _, list := range bound {
			if slices.ContainsFunc(list, func(p servicePort) bool { return p.port.number == number }) {
				return
			}
		}
	}
	if services > 0 {
		v.add(m, Warning, CodeGatewayPort, at+".port.number", "The gateway is listening on a target port (port %d) that is not defined in the Service "+
			"associated with its workload instances (Pod selector %s). If you need to access the gateway port through the gateway Service, it will not be available", number, labelText(g.GetSelector()))
	}
}

// sameServers reports servers of one port and host that several gateways of the same pods have.
func (v *view) sameServers() {
	type place struct {
		selector, bind, host string
		port                 uint32
	}
	at := func(g *networking.Gateway, s *networking.Server, host string) place {
		return place{labelText(g.GetSelector()), s.GetBind(), host, s.GetPort().GetNumber()}
	}
	owners := map[place][]*member{}
	each(v, func(m *member, g *networking.Gateway) {
		for _, s := range g.GetServers() {
			for _, h := range s.GetHosts() {
				key := at(g, s, h)
				if have := owners[key]; len(g.GetSelector()) > 0 && (len(have) == 0 || have[len(have)-1] != m) {
					owners[key] = append(have, m)
				}
			}
		}
	})
	each(v, func(m *member, g *networking.Gateway) {
		for i, s := range g.GetServers() {
			both := map[string][]string{} // the other gateways → the hosts
			for _, h := range s.GetHosts() {
				if have := owners[at(g, s, h)]; len(have) > 1 {
					others := strings.Trim(someOthers(have, m), "[]")
					both[others] = append(both[others], h)
				}
			}
			for _, others := range sortedKeys(both) {
				v.add(m, Error, CodeGatewayConflict, indexed("spec.servers", i), "Conflict with gateways %s (workload selector %s, port %d, hosts %s)",
					others, labelText(g.GetSelector()), s.GetPort().GetNumber(), some(both[others]))
			}
		}
	})
}

// ingresses judges what Ingresses refer to.
func (v *view) ingresses() {
	each(v, func(m *member, in *networkingv1.Ingress) {
		for i, t := range in.Spec.TLS {
			if t.SecretName != "" && !v.has("", "Secret", m.namespace, t.SecretName) {
				v.missing(m, Error, indexed("spec.tls", i)+".secretName", "secret", t.SecretName)
			}
		}
		check := func(b *networkingv1.IngressBackend, at string) {
			if b != nil && b.Service != nil && b.Service.Name != "" {
				v.backend(m, m.namespace, b.Service.Name, uint32(b.Service.Port.Number), b.Service.Port.Name, at+".service") //nolint:gosec // checked by the rules
			}
		}
		check(in.Spec.DefaultBackend, "spec.defaultBackend")
		for i, r := range in.Spec.Rules {
			if r.HTTP == nil {
				continue
			}
			for j := range r.HTTP.Paths {
				check(&r.HTTP.Paths[j].Backend, fmt.Sprintf("spec.rules[%d].http.paths[%d].backend", i, j))
			}
		}
	})
}

// backend judges a Service and a port of it, by number or by name.
func (v *view) backend(m *member, namespace, name string, number uint32, portName, at string) {
	if !v.has("", "Service", namespace, name) {
		v.missing(m, Error, at+".name", "service", namespace+"/"+name)
		return
	}
	hosts := v.hosts.exact[strings.ToLower(name+"."+namespace+".svc."+v.cfg.ClusterDomain)]
	if len(hosts) == 0 || (number == 0 && portName == "") {
		return
	}
	if !v.spend(len(hosts[0].ports)) {
		return
	}
	if !slices.ContainsFunc(hosts[0].ports, func(p hostPort) bool {
		return (number != 0 && p.number == number) || (portName != "" && p.name == portName)
	}) {
		if portName == "" {
			portName = strconv.FormatUint(uint64(number), 10)
		}
		v.add(m, Error, CodeReference, at+".port", "Referenced port not found: %q", portName)
	}
}

// serviceEntries judges selectors, and egress gateways that would call themselves for ever (EG-12).
func (v *view) serviceEntries() {
	routed := v.egressRoutes()
	each(v, func(m *member, e *networking.ServiceEntry) {
		v.noPods(m, e.GetWorkloadSelector().GetLabels(), "spec.workloadSelector.labels")
		if e.GetResolution() != networking.ServiceEntry_NONE {
			return
		}
		for i, h := range e.GetHosts() {
			if strings.Contains(h, "*") {
				continue
			}
			for _, r := range routed[h] {
				if !v.spend(1 + len(e.GetExportTo())) {
					return
				}
				if !exported(e.GetExportTo(), m.namespace, r.namespace) || !v.routesTo(r.spec, r.namespace, h) {
					continue
				}
				v.add(m, Warning, CodeEgressLoop, "spec.resolution", "is NONE, and VirtualService %s sends %s through an egress gateway: "+
					"the gateway would send it to the address that the client asked for, which is the gateway itself, for ever", r, e.GetHosts()[i])
				v.hint("write resolution: DNS")
			}
		}
	})
}

// egressRoutes maps hosts to the VirtualServices that take them from the mesh to a gateway.
func (v *view) egressRoutes() map[string][]hostOwner {
	out := map[string][]hostOwner{}
	each(v, func(m *member, spec *networking.VirtualService) {
		through := slices.ContainsFunc(spec.GetGateways(), func(g string) bool { return g != meshGateway })
		if !through || !slices.Contains(spec.GetGateways(), meshGateway) {
			return
		}
		for i, h := range spec.GetHosts() {
			if have := out[h]; len(have) == 0 || have[len(have)-1].member != m {
				out[h] = append(have, hostOwner{m, spec, i})
			}
		}
	})
	return out
}

// routesTo says whether the VirtualService has the host as a destination too, from the gateway.
func (v *view) routesTo(spec *networking.VirtualService, namespace, host string) bool {
	all := destinationsOf(spec)
	v.spend(len(all) * 4)
	return slices.ContainsFunc(all, func(d place) bool { return v.complete(d.GetHost(), namespace) == strings.ToLower(host) })
}
