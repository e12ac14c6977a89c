package validate

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "k8s.io/api/networking/v1"
)

// gateways judges the selectors, secrets and ports of Istio's gateways, and hosts that two of them have.
func (v *view) gateways() {
	var all []*member
	each(v, func(m *member, g *networking.Gateway) {
		all = append(all, m)
		pods := v.gatewayPods(g)
		if len(pods) == 0 && len(g.GetSelector()) > 0 && !v.unread("", "Pod") {
			v.missing(m, Error, "spec.selector", "selector", labelText(g.GetSelector()))
		}
		for i, s := range g.GetServers() {
			v.serverSecrets(m, s, pods, indexed("spec.servers", i))
			v.serverExposed(m, g, s, pods, indexed("spec.servers", i))
		}
	})
	for i, a := range all {
		for _, b := range all[:i] {
			v.sameServers(a, b)
		}
	}
}

// gatewayPods lists the pods that serve a gateway: in every namespace.
func (v *view) gatewayPods(g *networking.Gateway) []*workload {
	var out []*workload
	for _, ns := range sortedKeys(v.workloads) {
		out = append(out, v.selected(ns, g.GetSelector())...)
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
		for _, w := range pods {
			found = found || v.objects[objectID{"", "Secret", w.namespace, n}] != nil
		}
		if found {
			continue
		}
		v.missing(m, Error, at+".tls.credentialName", "credentialName", n)
		for _, o := range v.members {
			if o.kind == "Secret" && o.name == n {
				v.hint("there is one in namespace %s: it must be where the gateway's pods are", o.namespace)
			}
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

// sameServers reports servers of one port and host that two gateways of the same pods have.
func (v *view) sameServers(a, b *member) {
	one, ok := a.body.(*networking.Gateway)
	two, ok2 := b.body.(*networking.Gateway)
	if !ok || !ok2 || !maps.Equal(one.GetSelector(), two.GetSelector()) || len(one.GetSelector()) == 0 {
		return
	}
	for i, s := range one.GetServers() {
		for j, t := range two.GetServers() {
			if s.GetPort().GetNumber() != t.GetPort().GetNumber() || s.GetBind() != t.GetBind() {
				continue
			}
			var both []string
			for _, h := range s.GetHosts() {
				if slices.Contains(t.GetHosts(), h) {
					both = append(both, h)
				}
			}
			if len(both) > 0 {
				report := func(m, other *member, i int) {
					v.add(m, Error, CodeGatewayConflict, indexed("spec.servers", i), "Conflict with gateways %s (workload selector %s, port %d, hosts %v)",
						other, labelText(one.GetSelector()), s.GetPort().GetNumber(), both)
				}
				report(a, b, i)
				report(b, a, j)
			}
		}
	}
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
	hosts := v.hosts[strings.ToLower(name+"."+namespace+".svc."+v.cfg.ClusterDomain)]
	if len(hosts) == 0 || (number == 0 && portName == "") {
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
	each(v, func(m *member, e *networking.ServiceEntry) {
		v.noPods(m, e.GetWorkloadSelector().GetLabels(), "spec.workloadSelector.labels")
		if e.GetResolution() != networking.ServiceEntry_NONE {
			return
		}
		each(v, func(o *member, spec *networking.VirtualService) {
			through := slices.ContainsFunc(spec.GetGateways(), func(g string) bool { return g != meshGateway })
			if !through || !slices.Contains(spec.GetGateways(), meshGateway) || !exported(e.GetExportTo(), m.namespace, o.namespace) {
				return
			}
			for i, h := range e.GetHosts() {
				if strings.Contains(h, "*") || !slices.Contains(spec.GetHosts(), h) || !v.routesTo(spec, o.namespace, h) {
					continue
				}
				v.add(m, Warning, CodeEgressLoop, "spec.resolution", "is NONE, and VirtualService %s sends %s through an egress gateway: "+
					"the gateway would send it to the address that the client asked for, which is the gateway itself, for ever", o, e.GetHosts()[i])
				v.hint("write resolution: DNS")
			}
		})
	})
}

// routesTo says whether the VirtualService has the host as a destination too, from the gateway.
func (v *view) routesTo(spec *networking.VirtualService, namespace, host string) bool {
	return slices.ContainsFunc(destinationsOf(spec), func(d place) bool { return v.complete(d.GetHost(), namespace) == strings.ToLower(host) })
}
