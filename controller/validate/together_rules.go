package validate

import (
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	securitybeta "istio.io/api/security/v1beta1"
)

// lookup returns the DestinationRules that a client of a namespace uses for a complete host name of another one: those of
// its own namespace, else of the service's, else of the root namespace; the exact host, else the longest wildcard.
func (v *view) lookup(name, client, home string) []*destinationRule {
	seen := map[string]bool{}
	for _, ns := range []string{client, home, v.cfg.RootNamespace} {
		if seen[ns] {
			continue
		}
		seen[ns] = true
		if v.rules[ns] == nil {
			continue
		}
		for group := range v.rules[ns].covering(name) {
			var best []*destinationRule
			for _, r := range group {
				if !v.spend(1 + len(r.GetExportTo())) {
					return nil
				}
				if ns == client || exported(r.GetExportTo(), ns, client) {
					best = append(best, r)
				}
			}
			if len(best) > 0 {
				return best
			}
		}
	}
	return nil
}

// subsetElsewhere returns a rule that has the subset of the host and that is not looked up; nil when there is none.
func (v *view) subsetElsewhere(name, subset, client, home string) *destinationRule {
	for _, r := range v.subsets[subset] {
		if !v.effort.guess(1) {
			return nil
		}
		if covers(r.name, name) && r.namespace != client && r.namespace != home {
			return r
		}
	}
	return nil
}

// destinationRules judges the hosts, subsets, secrets and TLS modes of DestinationRules.
func (v *view) destinationRules() {
	each(v, func(m *member, spec *networking.DestinationRule) {
		hosts := v.matching(spec.GetHost(), m.namespace)
		if len(hosts) == 0 && spec.GetHost() != "" && !v.unread("", "Service") && !v.unread(groupNetworking, "ServiceEntry") {
			v.missing(m, Warning, "spec.host", "host", spec.GetHost())
			v.found[len(v.found)-1].Code = CodeRuleHost
			if names := v.similar(spec.GetHost(), m.namespace); names != "" {
				v.hint("did you mean %s?", names)
			}
		}
		v.subsetPods(m, spec, hosts)
		v.ruleNamespace(m, spec, hosts)
		v.clientSecret(m, spec.GetTrafficPolicy(), "spec.trafficPolicy")
		for i, s := range spec.GetSubsets() {
			v.clientSecret(m, s.GetTrafficPolicy(), indexed("spec.subsets", i)+".trafficPolicy")
		}
		v.tlsConflict(m, spec, hosts)
	})
	type level struct{ namespace, host, selector string }
	first := map[level]*member{}
	each(v, func(m *member, spec *networking.DestinationRule) {
		at := level{m.namespace, v.complete(spec.GetHost(), m.namespace), labelText(spec.GetWorkloadSelector().GetMatchLabels())}
		if b := first[at]; b != nil {
			v.add(m, Warning, CodeRuleConflict, "spec.host", "DestinationRule %s has the host %s already: subsets are put together, and of two traffic policies the older one counts", b, spec.GetHost())
			return
		}
		first[at] = m
	})
}

// matching lists the hosts that a name stands for, which may be a wildcard.
func (v *view) matching(name, namespace string) []*host {
	if !strings.Contains(name, "*") {
		if h := v.find(name, namespace); h != nil {
			return []*host{h}
		}
		return nil
	}
	var out []*host
	if !v.spend(len(v.sorted)) {
		return nil
	}
	for _, n := range v.sorted {
		if covers(name, n) {
			out = append(out, v.hosts.exact[n]...)
		}
	}
	return out
}

// subsetPods reports subsets whose labels no pod of the host has.
func (v *view) subsetPods(m *member, spec *networking.DestinationRule, hosts []*host) {
	if v.unread("", "Pod") {
		return
	}
	for i, s := range spec.GetSubsets() {
		if len(s.GetLabels()) == 0 {
			continue // a name for a policy
		}
		found := len(hosts) == 0 && v.cfg.All // said about the host already
		for _, h := range hosts {
			if !v.spend(1 + len(h.entry.GetEndpoints())) {
				return
			}
			if v.hostHasLabels(h, s.GetLabels()) {
				found = true
				break
			}
		}
		if !found {
			v.add(m, Warning, CodeSubsetPods, indexed("spec.subsets", i)+".labels", "This subset's labels are not found in any matching host: no pod of %s has %s", spec.GetHost(), labelText(s.GetLabels()))
			v.hint("requests for the subset %q are answered with 503", s.GetName())
		}
	}
}

// hostHasLabels says whether a workload of the host has the labels, as far as that can be known.
func (v *view) hostHasLabels(h *host, want map[string]string) bool {
	topology := map[string]string{}
	for k, value := range want {
		if !strings.HasPrefix(k, "topology.") { // labels of nodes, which pods get from them
			topology[k] = value
		}
	}
	want = topology
	if h.entry != nil {
		for _, e := range h.entry.GetEndpoints() {
			if contains(e.GetLabels(), want) {
				return true
			}
		}
		sel := h.entry.GetWorkloadSelector().GetLabels()
		if len(sel) == 0 {
			return len(h.entry.GetEndpoints()) == 0
		}
		return v.anyWith(h.namespace, sel, want)
	}
	if len(h.selector) == 0 {
		return true // its endpoints are made by hand
	}
	return v.anyWith(h.namespace, h.selector, want)
}

func (v *view) anyWith(namespace string, selector, want map[string]string) bool {
	list := v.selected(namespace, selector)
	v.spend(len(list))
	return slices.ContainsFunc(list, func(w *workload) bool { return contains(w.labels, want) })
}

func contains(have, want map[string]string) bool {
	for k, value := range want {
		if have[k] != value {
			return false
		}
	}
	return true
}

// labelText is k=v,k=v.
func labelText(labels map[string]string) string {
	var out []string
	for _, k := range sortedKeys(labels) {
		out = append(out, k+"="+labels[k])
	}
	return strings.Join(out, ",")
}

// ruleNamespace reports rules that nobody looks up: in a namespace that has no clients, that is not the service's, and not
// the root.
func (v *view) ruleNamespace(m *member, spec *networking.DestinationRule, hosts []*host) {
	if len(hosts) == 0 || !v.cfg.All || v.unread("", "Pod") || m.namespace == v.cfg.RootNamespace || len(v.workloads[m.namespace]) > 0 {
		return
	}
	v.spend(len(hosts))
	for _, h := range hosts {
		if h.namespace == m.namespace {
			return
		}
	}
	v.add(m, Warning, CodeLookupPath, "metadata.namespace", "nobody looks it up: namespace %s has no clients, and %s is in namespace %s", m.namespace, spec.GetHost(), hosts[0].namespace)
	v.hint("put it into namespace %s, or into %s for the whole mesh", hosts[0].namespace, v.cfg.RootNamespace)
}

// clientSecret judges the secrets that a traffic policy names. The gateway that uses them may be in any namespace.
func (v *view) clientSecret(m *member, p *networking.TrafficPolicy, at string) {
	check := func(t *networking.ClientTLSSettings, at string) {
		name := t.GetCredentialName()
		if name == "" || v.unread("", "Secret") || strings.Contains(name, "://") {
			return
		}
		if len(v.secrets[name]) > 0 {
			return
		}
		v.missing(m, Error, at+".tls.credentialName", "credentialName", name)
	}
	check(p.GetTls(), at)
	for i, s := range p.GetPortLevelSettings() {
		check(s.GetTls(), at+indexed(".portLevelSettings", i))
	}
}

// tlsConflict reports a DestinationRule that speaks plain text to workloads that take mutual TLS only.
func (v *view) tlsConflict(m *member, spec *networking.DestinationRule, hosts []*host) {
	tls := spec.GetTrafficPolicy().GetTls()
	if tls == nil || tls.GetMode() == networking.ClientTLSSettings_ISTIO_MUTUAL {
		return
	}
	for _, h := range hosts {
		if h.service == nil {
			continue
		}
		force := v.peerMode(h)
		if force.mode == securitybeta.PeerAuthentication_MutualTLS_STRICT && len(strings.Split(spec.GetHost(), "*")) == 1 {
			v.add(m, Error, CodeTLSConflict, "spec.trafficPolicy.tls.mode", "A DestinationRule and Policy are in conflict with regards to mTLS for host %s. "+
				"The DestinationRule %q specifies that mTLS must be false but the Policy object %q specifies STRICT", spec.GetHost(), m, force.policy)
			return
		}
	}
}

// peerMode is the mode in force for some workloads, and the policy that says so.
type peerMode struct {
	policy *member
	mode   securitybeta.PeerAuthentication_MutualTLS_Mode
}

// peerMode returns the mode in force for the workloads of a service.
func (v *view) peerMode(h *host) peerMode {
	if known, ok := v.modes[h]; ok {
		return known
	}
	namespace, labels := h.namespace, h.selector
	var best *member
	rank, mode := 0, securitybeta.PeerAuthentication_MutualTLS_UNSET
	each(v, func(m *member, p *securitybeta.PeerAuthentication) {
		r, sel := 0, p.GetSelector().GetMatchLabels()
		switch {
		case p.GetMtls().GetMode() == securitybeta.PeerAuthentication_MutualTLS_UNSET:
		case len(sel) > 0 && m.namespace == namespace && contains(labels, sel):
			r = 3
		case len(sel) == 0 && m.namespace == namespace:
			r = 2
		case len(sel) == 0 && m.namespace == v.cfg.RootNamespace:
			r = 1
		}
		if r > rank || (r == rank && r > 0 && older(m, best)) {
			best, rank, mode = m, r, p.GetMtls().GetMode()
		}
	})
	v.modes[h] = peerMode{best, mode}
	return v.modes[h]
}

// older says which of two policies counts: the one that was made first, then the first by name.
func older(a, b *member) bool {
	if a.created != b.created && a.created != "" && b.created != "" {
		return a.created < b.created
	}
	return a.String() < b.String()
}
