package validate

import (
	"fmt"
	"slices"
	"strings"
	"sync"

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
					v.add(w.member, Warning, CodeSharedPort, "", "port %d is called by several services by different protocols: %s", n, someOf(names))
					v.hint("what a connection is depends on the service that was called; say one protocol in all of them")
				}
			}
		}
	}
	for _, name := range v.sorted {
		if all := v.hosts.exact[name]; len(all) > 1 {
			v.entryProtocols(all)
		}
	}
}

// entryProtocols reports ports of one host of which an earlier ServiceEntry, that somebody sees beside it, says something
// else. Of several such entries the first is told.
func (v *view) entryProtocols(all []*host) {
	said := map[uint32]map[string][]*host{} // port → protocol → who says so
	for _, a := range all {
		if a.entry == nil {
			continue
		}
		for i, p := range a.ports {
			if said[p.number] == nil {
				said[p.number] = map[string][]*host{}
			}
			if b, protocol := v.contradiction(a, p, said[p.number]); b != nil {
				v.add(a.member, Warning, CodeEntryProtocol, indexed("spec.ports", i)+".protocol", "ServiceEntry %s says that port %d of %s is %s, and this one that it is %s",
					b.member, p.number, a.name, orNone(protocol), orNone(p.protocol))
			}
		}
		for _, p := range a.ports { // an entry does not contradict itself
			said[p.number][p.protocol] = append(said[p.number][p.protocol], a)
		}
	}
}

// contradiction finds who says another protocol of a port; nil when nobody does.
func (v *view) contradiction(a *host, p hostPort, said map[string][]*host) (*host, string) {
	for _, protocol := range sortedKeys(said) {
		if protocol == p.protocol {
			continue
		}
		for _, b := range said[protocol] {
			if !v.spend(1 + len(a.exportTo) + len(b.exportTo)) {
				return nil, ""
			}
			if b.member != a.member && (exported(a.exportTo, a.namespace, b.namespace) || exported(b.exportTo, b.namespace, a.namespace)) {
				return b, protocol
			}
		}
	}
	return nil, ""
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
		at string
	}
	type pods struct{ secret, selector string }
	users := map[pods][]use{}
	each(v, func(m *member, g *networking.Gateway) {
		for i, s := range g.GetServers() {
			if n := s.GetTls().GetCredentialName(); n != "" && len(g.GetSelector()) > 0 {
				key := pods{n, labelText(g.GetSelector())}
				users[key] = append(users[key], use{m, indexed("spec.servers", i) + ".tls.credentialName"})
			}
		}
	})
	for _, all := range users {
		var gateways []*member // those of one gateway stand together
		for _, u := range all {
			if n := len(gateways); n == 0 || gateways[n-1] != u.member {
				gateways = append(gateways, u.member)
			}
		}
		if len(gateways) < 2 {
			continue
		}
		for _, u := range all {
			v.add(u.member, Warning, CodeSharedCertificate, u.at, "Duplicate certificate in multiple gateways %s may cause 404s if clients re-use HTTP2 connections", someOthers(gateways, u.member))
			v.hint("put the hosts of one certificate into one Gateway")
		}
	}
}

// someOthers names the first of many objects beside one of them.
func someOthers(all []*member, m *member) string {
	var names []string
	for _, o := range all[:min(len(all), mentioned+1)] {
		if o != m && len(names) < mentioned {
			names = append(names, o.String())
		}
	}
	return someOfMany(names, len(all)-1)
}

// claimRouting reports routes by claims of tokens that nobody looks at (IST0149).
func (v *view) claimRouting() {
	each(v, func(m *member, spec *networking.VirtualService) {
		checked := sync.OnceValue(func() bool { return v.tokensChecked(m, spec) })
		for i, r := range spec.GetHttp() {
			for j, match := range r.GetMatch() {
				for _, key := range sortedKeys(match.GetHeaders()) {
					if !strings.HasPrefix(key, "@request.auth.claims") || checked() {
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
	var names []string
	each(v, func(m *member, mesh *meshconfig.MeshConfig) {
		if m.namespace != v.cfg.RootNamespace || m.name != "istio" {
			return
		}
		names = append(names, builtinProviders...)
		for _, p := range mesh.GetExtensionProviders() {
			names = append(names, p.GetName())
		}
	})
	if names == nil {
		return
	}
	known := map[string]bool{}
	for _, n := range names {
		known[n] = true
	}
	check := func(m *member, name, at string) {
		if name != "" && !known[name] {
			v.missing(m, Error, at, "provider", name)
			meant := ""
			if v.effort.guess(len(names)) {
				meant = closest(name, names)
			}
			if meant != "" {
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
