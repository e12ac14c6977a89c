package validate

import (
	"fmt"
	"slices"
	"strings"

	meshconfig "istio.io/api/mesh/v1alpha1"
	networking "istio.io/api/networking/v1alpha3"
	securitybeta "istio.io/api/security/v1beta1"
	telemetry "istio.io/api/telemetry/v1alpha1"
)

// protocolConflicts reports ports of workloads that several services call by different protocols (IST0116), and hosts of
// which two ServiceEntries say different protocols (IST0177).
func (v *view) protocolConflicts() {
	for _, ns := range sortedKeys(v.workloads) {
		for _, w := range v.workloads[ns] {
			bound := v.boundPorts(w)
			for _, n := range sortedKeys(bound) {
				var names, protocols []string
				for _, p := range bound[n] {
					if p.port.protocol != "" && !slices.Contains(protocols, p.port.protocol) {
						protocols = append(protocols, p.port.protocol)
						names = append(names, fmt.Sprintf("%s (%s)", p.host.member, p.port.protocol))
					}
				}
				if len(protocols) > 1 {
					v.add(w.member, Warning, CodeSharedPort, "", "port %d is called by several services by different protocols: %s", n, strings.Join(names, ", "))
					v.hint("what a connection is depends on the service that was called; say one protocol in all of them")
				}
			}
		}
	}
	for _, name := range sortedKeys(v.hosts) {
		for i, a := range v.hosts[name] {
			for _, b := range v.hosts[name][:i] {
				v.entryProtocols(a, b)
			}
		}
	}
}

func (v *view) entryProtocols(a, b *host) {
	if a.entry == nil || b.entry == nil || a.member == b.member || !(exported(a.exportTo, a.namespace, b.namespace) || exported(b.exportTo, b.namespace, a.namespace)) {
		return
	}
	for i, p := range a.ports {
		for _, q := range b.ports {
			if p.number == q.number && p.protocol != q.protocol {
				v.add(a.member, Warning, CodeEntryProtocol, indexed("spec.ports", i)+".protocol", "ServiceEntry %s says that port %d of %s is %s, and this one that it is %s",
					b.member, p.number, a.name, orNone(q.protocol), orNone(p.protocol))
			}
		}
	}
}

func orNone(protocol string) string {
	if protocol == "" {
		return "undeclared"
	}
	return protocol
}

// sharedCertificates reports a secret that servers of several gateways of the same pods have (IST0138): clients take one
// HTTP/2 connection for hosts of one certificate, and the other gateway's hosts are 404 on it.
func (v *view) sharedCertificates() {
	type use struct {
		*member
		at, selector string
	}
	users := map[string][]use{}
	each(v, func(m *member, g *networking.Gateway) {
		for i, s := range g.GetServers() {
			if n := s.GetTls().GetCredentialName(); n != "" {
				users[n] = append(users[n], use{m, indexed("spec.servers", i) + ".tls.credentialName", labelText(g.GetSelector())})
			}
		}
	})
	for _, name := range sortedKeys(users) {
		for i, a := range users[name] {
			var others []string
			for j, b := range users[name] {
				if i != j && a.member != b.member && a.selector == b.selector && a.selector != "" && !slices.Contains(others, b.member.String()) {
					others = append(others, b.member.String())
				}
			}
			if len(others) > 0 {
				v.add(a.member, Warning, CodeSharedCertificate, a.at, "Duplicate certificate in multiple gateways %v may cause 404s if clients re-use HTTP2 connections", others)
				v.hint("put the hosts of one certificate into one Gateway")
			}
		}
	}
}

// claimRouting reports routes by claims of tokens that nobody looks at (IST0149).
func (v *view) claimRouting() {
	each(v, func(m *member, spec *networking.VirtualService) {
		for i, r := range spec.GetHttp() {
			for j, match := range r.GetMatch() {
				for _, key := range sortedKeys(match.GetHeaders()) {
					if !strings.HasPrefix(key, "@request.auth.claims") || v.tokensChecked(m, spec) {
						continue
					}
					v.add(m, Error, CodeClaimRouting, fmt.Sprintf("spec.http[%d].match[%d].headers.%s", i, j, key),
						"The virtual service uses the JWT claim based routing (key: %s) but found no request authentication for its gateways", key)
				}
			}
		}
	})
}

// tokensChecked says whether the pods of all gateways of a VirtualService have a RequestAuthentication, or nobody knows.
func (v *view) tokensChecked(m *member, spec *networking.VirtualService) bool {
	if v.unread(groupSecurity, "RequestAuthentication") || v.unread("", "Pod") {
		return true
	}
	for _, ref := range spec.GetGateways() {
		ns, name, found := strings.Cut(ref, "/")
		if !found || ns == "." {
			ns, name = m.namespace, strings.TrimPrefix(ref, "./")
		}
		o := v.objects[objectID{groupNetworking, "Gateway", ns, name}]
		if ref == meshGateway || o == nil {
			continue
		}
		g, ok := o.body.(*networking.Gateway)
		if !ok {
			continue
		}
		for _, w := range v.gatewayPods(g) {
			checked := false
			each(v, func(a *member, r *securitybeta.RequestAuthentication) {
				labels := r.GetSelector().GetMatchLabels()
				checked = checked || ((a.namespace == w.namespace || a.namespace == v.cfg.RootNamespace) && contains(w.labels, labels))
			})
			if !checked {
				return false
			}
		}
	}
	return true
}

// providers judges the names of providers against the mesh configuration, where that is known.
func (v *view) providers() {
	var known []string
	each(v, func(m *member, mesh *meshconfig.MeshConfig) {
		if m.namespace != v.cfg.RootNamespace || m.name != "istio" {
			return
		}
		known = append(known, builtinProviders...)
		for _, p := range mesh.GetExtensionProviders() {
			known = append(known, p.GetName())
		}
	})
	if known == nil {
		return
	}
	check := func(m *member, name, at string) {
		if name != "" && !slices.Contains(known, name) {
			v.missing(m, Error, at, "provider", name)
			if meant := closest(name, known); meant != "" {
				v.hint("did you mean %s?", meant)
			} else {
				v.hint("write it into extensionProviders of the mesh configuration")
			}
		}
	}
	each(v, func(m *member, p *securitybeta.AuthorizationPolicy) {
		check(m, p.GetProvider().GetName(), "spec.provider.name")
	})
	each(v, func(m *member, t *telemetry.Telemetry) {
		list := func(refs []*telemetry.ProviderRef, at string, i int) {
			for j, r := range refs {
				check(m, r.GetName(), indexed(at, i)+indexed(".providers", j)+".name")
			}
		}
		for i, x := range t.GetTracing() {
			list(x.GetProviders(), "spec.tracing", i)
		}
		for i, x := range t.GetMetrics() {
			list(x.GetProviders(), "spec.metrics", i)
		}
		for i, x := range t.GetAccessLogging() {
			list(x.GetProviders(), "spec.accessLogging", i)
		}
	})
}
