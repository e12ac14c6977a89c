package validate

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	securitybeta "istio.io/api/security/v1beta1"
	telemetry "istio.io/api/telemetry/v1alpha1"
	typebeta "istio.io/api/type/v1beta1"
	corev1 "k8s.io/api/core/v1"
)

// noPods reports a selector that no workload has. It returns the workloads.
func (v *view) noPods(m *member, labels map[string]string, field string) []*workload {
	var found []*workload
	if m.namespace == v.cfg.RootNamespace && m.group != groupNetworking { // a policy for the whole mesh
		found = v.everywhere(labels)
	} else {
		found = v.selected(m.namespace, labels)
	}
	if len(found) == 0 && len(labels) > 0 && !v.unread("", "Pod") {
		v.add(m, Warning, CodeNoWorkloads, field, "No matching workloads for this resource with the following labels: %s", labelText(labels))
	}
	return found
}

// targets judges the objects that a policy names.
func (v *view) targets(m *member, one *typebeta.PolicyTargetReference, many []*typebeta.PolicyTargetReference) {
	check := func(t *typebeta.PolicyTargetReference, at string) {
		group := t.GetGroup()
		if group == "core" {
			group = ""
		}
		known := (group == "" && t.GetKind() == "Service") || (group == groupGateway && t.GetKind() == "Gateway") ||
			(group == groupNetworking && t.GetKind() == "ServiceEntry")
		if known && t.GetName() != "" && !v.has(group, t.GetKind(), m.namespace, t.GetName()) {
			v.missing(m, Warning, at, t.GetKind(), t.GetName())
		}
	}
	if one != nil {
		check(one, "spec.targetRef")
	}
	for i, t := range many {
		check(t, indexed("spec.targetRefs", i))
	}
}

// everywhere lists the workloads of all namespaces with those labels; without labels none, as nobody asks for all.
func (v *view) everywhere(labels map[string]string) []*workload {
	if len(labels) == 0 {
		return nil
	}
	found := v.withLabels("", labels)
	slices.SortStableFunc(found, func(a, b *workload) int { return strings.Compare(a.namespace, b.namespace) })
	return found
}

// rivals are policies of one kind in one namespace.
type rivals struct {
	members []*member
	labels  []map[string]string
}

// peerAuthentications judges policies of one level (MT-11), and ports that no service binds (MT-08).
func (v *view) peerAuthentications() {
	all := map[string]*rivals{}
	each(v, func(m *member, p *securitybeta.PeerAuthentication) {
		sel := p.GetSelector().GetMatchLabels()
		r := all[m.namespace]
		if r == nil {
			r = &rivals{}
			all[m.namespace] = r
		}
		r.members, r.labels = append(r.members, m), append(r.labels, sel)
		if len(sel) == 0 {
			return
		}
		if pods := v.noPods(m, sel, "spec.selector.matchLabels"); len(pods) > 0 && !v.unread("", "Service") {
			v.unboundPorts(m, p, pods)
		}
	})
	for _, ns := range sortedKeys(all) {
		r := all[ns]
		shadowed := v.oldest(r)
		for _, m := range r.members {
			if by := shadowed[m]; by.first != nil {
				first, pod := by.first, by.pod
				effect := "and this one is ignored"
				if !by.whole {
					effect = "and this one is ignored there"
				}
				level := "for namespace " + ns
				switch {
				case pod != "":
					level = "for workload " + pod
				case ns == v.cfg.RootNamespace:
					level = "for the whole mesh"
				}
				v.add(m, Warning, CodePolicyConflict, "metadata.name", "PeerAuthentication %s is %s too: the older one counts, %s", first, level, effect)
				v.hint("keep one of them")
			}
		}
	}
}

// shadow is the policy that counts instead of another one, and the workload that both are for.
type shadow struct {
	first *member
	pod   string
	whole bool // it counts for all that the other one may be for
}

// oldest tells of policies which one counts instead.
func (v *view) oldest(r *rivals) map[*member]shadow {
	order := make([]int, len(r.members))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int {
		switch a, b := r.members[i], r.members[j]; {
		case older(a, b):
			return -1
		case older(b, a):
			return 1
		}
		return 0
	})
	out := map[*member]shadow{}
	owner := map[*workload]*member{} // who counts for a workload, of those with a selector
	wider := map[labelIn][]int{}     // the older ones, by the first label of their selector
	for _, i := range order {
		m, labels := r.members[i], r.labels[i]
		keys := sortedKeys(labels)
		if len(keys) == 0 {
			if all := wider[labelIn{}]; len(all) > 0 {
				out[m] = shadow{r.members[all[0]], "", true}
			}
			wider[labelIn{}] = append(wider[labelIn{}], i)
			continue
		}
		pods := v.selected(m.namespace, labels)
		for _, w := range pods {
			if owner[w] == nil {
				owner[w] = m
			} else if out[m].first == nil {
				out[m] = shadow{first: owner[w], pod: w.String()}
			}
		}
		for _, k := range keys {
			for _, j := range wider[labelIn{"", k, labels[k]}] {
				if out[m].whole || !v.spend(1+len(r.labels[j])) {
					break
				}
				if !contains(labels, r.labels[j]) {
					continue
				}
				out[m] = shadow{r.members[j], labelText(labels), true}
				if len(pods) > 0 {
					out[m] = shadow{r.members[j], pods[0].String(), true}
				}
			}
		}
		at := labelIn{"", keys[0], labels[keys[0]]}
		wider[at] = append(wider[at], i)
	}
	return out
}

// unboundPorts reports ports of a PeerAuthentication to which no service of its workloads leads.
func (v *view) unboundPorts(m *member, p *securitybeta.PeerAuthentication, pods []*workload) {
	bound := map[uint32]bool{}
	for _, w := range pods {
		for n := range v.boundPorts(w) {
			bound[n] = true
		}
		v.spend(1 + len(w.bound))
	}
	for _, n := range sortedKeys(p.GetPortLevelMtls()) {
		if bound[n] {
			continue
		}
		v.add(m, Warning, CodeUnboundPort, fmt.Sprintf("spec.portLevelMtls.%d", n), "no service of these workloads leads to port %d: the mode of the port is ignored", n)
		v.hint("write the port of the container, to which a Service leads (targetPort): %s", strings.Trim(some(sortedKeys(bound)), "[]"))
	}
}

// boundPorts maps the ports of a workload's containers to the ports of the services that lead to them.
func (v *view) boundPorts(w *workload) map[uint32][]servicePort {
	if w.bound != nil {
		return w.bound
	}
	var services []*host
	for k, value := range w.labels {
		list := v.selecting[labelIn{w.namespace, k, value}]
		v.spend(1 + len(list))
		for _, h := range list {
			if contains(w.labels, h.selector) {
				services = append(services, h)
			}
		}
	}
	slices.SortFunc(services, func(a, b *host) int { return a.order - b.order })
	w.bound = map[uint32][]servicePort{}
	for _, h := range services {
		if !v.spend(len(h.ports)) {
			return w.bound
		}
		for _, p := range h.ports {
			n := p.number
			if p.target != "" {
				if number, err := strconv.ParseUint(p.target, 10, 16); err == nil {
					n = uint32(number)
				} else if named, ok := w.ports[p.target]; ok && named > 0 {
					n = uint32(named)
				} else {
					continue
				}
			}
			w.bound[n] = append(w.bound[n], servicePort{h, p})
		}
	}
	return w.bound
}

// servicePort is a port of a service.
type servicePort struct {
	*host
	port hostPort
}

// authorizationPolicies judges namespaces, targets, and HTTP fields for ports that are TCP.
func (v *view) authorizationPolicies() {
	each(v, func(m *member, p *securitybeta.AuthorizationPolicy) {
		sel := p.GetSelector().GetMatchLabels()
		pods := v.noPods(m, sel, "spec.selector.matchLabels")
		v.targets(m, p.GetTargetRef(), p.GetTargetRefs())
		for i, rule := range p.GetRules() {
			at := indexed("spec.rules", i)
			for j, from := range rule.GetFrom() {
				for k, ns := range from.GetSource().GetNamespaces() {
					if !strings.Contains(ns, "*") && v.cfg.All && !v.has("", "Namespace", "", ns) && len(v.workloads[ns]) == 0 {
						v.missing(m, Warning, at+indexed(".from", j)+".source"+indexed(".namespaces", k), "namespace", ns)
					}
				}
			}
			if len(pods) > 0 && len(sel) > 0 && !v.unread("", "Service") {
				v.tcpFields(m, p, rule, pods, at)
			}
		}
	})
}

// tcpFields reports a rule that needs an HTTP request and is for ports that are declared to be something else (AZ-22, 23).
func (v *view) tcpFields(m *member, p *securitybeta.AuthorizationPolicy, rule *securitybeta.Rule, pods []*workload, at string) {
	field := httpField(rule)
	if field == "" {
		return
	}
	wanted := map[uint32]bool{}
	for _, to := range rule.GetTo() {
		for _, text := range to.GetOperation().GetPorts() {
			if n, err := Port(text); err == nil {
				wanted[n] = true
			}
		}
	}
	var tcp []string
	told := map[string]bool{}
	for _, w := range pods {
		bound := v.boundPorts(w)
		if !v.spend(1 + len(bound)) {
			return
		}
		for _, n := range sortedKeys(bound) {
			if len(wanted) > 0 && !wanted[n] {
				continue
			}
			for _, s := range bound[n] {
				if text := fmt.Sprintf("port %d of service %s (%s)", s.port.number, s.host, s.port.protocol); speaksTCP(s.port.protocol) && !told[text] {
					told[text] = true
					tcp = append(tcp, text)
				}
			}
		}
	}
	if len(tcp) == 0 {
		return
	}
	effect := "the field is ignored there, so that more is refused than was written"
	if p.GetAction() == securitybeta.AuthorizationPolicy_ALLOW {
		effect = "the rule allows nothing there"
	}
	v.add(m, Warning, CodeTCPFields, at+"."+field, "needs HTTP requests, and %s has none: %s", someOf(tcp), effect)
	v.hint("name the HTTP ports in to.operation.ports, or declare the protocol in the name of the Service's port")
}

// httpField is the path of the first field of a rule that only an HTTP request has; "" when there is none.
func httpField(rule *securitybeta.Rule) string {
	for i, from := range rule.GetFrom() {
		if f := HTTPSourceFields(from.GetSource()); len(f) > 0 {
			return indexed("from", i) + ".source." + f[0]
		}
	}
	for i, to := range rule.GetTo() {
		if f := HTTPFields(to.GetOperation()); len(f) > 0 {
			return indexed("to", i) + ".operation." + f[0]
		}
	}
	for i, c := range rule.GetWhen() {
		if Condition(c.GetKey()) == ConditionHTTP {
			return indexed("when", i) + ".key"
		}
	}
	return ""
}

// requestAuthentications judges selectors, and tokens that would be looked for where there is no HTTP.
func (v *view) requestAuthentications() {
	each(v, func(m *member, p *securitybeta.RequestAuthentication) {
		sel := p.GetSelector().GetMatchLabels()
		pods := v.noPods(m, sel, "spec.selector.matchLabels")
		v.targets(m, p.GetTargetRef(), p.GetTargetRefs())
		if len(sel) == 0 || len(p.GetJwtRules()) == 0 || v.unread("", "Service") {
			return
		}
		told := map[string]bool{}
		for _, w := range pods {
			bound := v.boundPorts(w)
			if !v.spend(1 + len(bound)) {
				return
			}
			for _, n := range sortedKeys(bound) {
				for _, s := range bound[n] {
					if speaksHTTP(s.port.protocol) || told[fmt.Sprint(s.name, s.port.number)] {
						continue
					}
					told[fmt.Sprint(s.name, s.port.number)] = true
					v.add(m, Warning, CodeJWTPort, "spec.selector.matchLabels", "Authentication policy with JWT targets Service with invalid port specification "+
						"(port: %d, name: %s, protocol: TCP, targetPort: %d): service %s", s.port.number, s.port.name, n, s.host)
					v.hint("call the port http, http2, grpc or PROTOCOL-SUFFIX, or set appProtocol")
				}
			}
		}
	})
}

// telemetries judges resources of one level (TT-13).
func (v *view) telemetries() {
	each(v, func(m *member, t *telemetry.Telemetry) {
		v.noPods(m, t.GetSelector().GetMatchLabels(), "spec.selector.matchLabels")
		v.targets(m, t.GetTargetRef(), t.GetTargetRefs())
	})
	conflicts(v, "Telemetries", CodeTelemetries, CodeTelemetryPods, func(t *telemetry.Telemetry) (map[string]string, bool) {
		return t.GetSelector().GetMatchLabels(), t.GetTargetRef() == nil && len(t.GetTargetRefs()) == 0
	})
}

// sidecars judges resources of one level, and hosts that do not exist.
func (v *view) sidecars() {
	each(v, func(m *member, s *networking.Sidecar) {
		v.noPods(m, s.GetWorkloadSelector().GetLabels(), "spec.workloadSelector.labels")
		for i, e := range s.GetEgress() {
			for j, text := range e.GetHosts() {
				ns, name, _ := strings.Cut(text, "/")
				if strings.Contains(name, "*") || strings.HasPrefix(ns, "~") || name == "" || v.unread("", "Service") || v.unread(groupNetworking, "ServiceEntry") {
					continue
				}
				if len(v.hosts.exact[v.complete(name, m.namespace)]) == 0 {
					v.missing(m, Warning, indexed("spec.egress", i)+indexed(".hosts", j), "host", text)
				}
			}
		}
	})
	conflicts(v, "Sidecars", CodeSidecars, CodeSidecarPods, func(s *networking.Sidecar) (map[string]string, bool) {
		return s.GetWorkloadSelector().GetLabels(), true
	})
}

// conflicts reports objects of one kind and namespace that are all for the whole namespace, or for one workload.
func conflicts[T any](v *view, plural, codeAll, codePods string, selector func(T) (map[string]string, bool)) {
	all := map[string]*rivals{}
	each(v, func(m *member, body T) {
		labels, counts := selector(body)
		if !counts {
			return
		}
		if all[m.namespace] == nil {
			all[m.namespace] = &rivals{}
		}
		all[m.namespace].members, all[m.namespace].labels = append(all[m.namespace].members, m), append(all[m.namespace].labels, labels)
	})
	for _, ns := range sortedKeys(all) {
		v.conflict(all[ns], func(m *member, names []string, w *workload) {
			if w == nil {
				v.add(m, Error, codeAll, "metadata.name", "The %s %s in namespace %q have no workload selector, which can lead to undefined behavior", plural, some(names), ns)
				return
			}
			v.add(m, Error, codePods, "metadata.name", "The %s %s in namespace %q select the same workload pod %q, which can lead to undefined behavior", plural, some(names), ns, w)
		})
	}
}

// conflict reports for each policy the names of all that are for the whole namespace as it is, or for a workload of it.
func (v *view) conflict(r *rivals, report func(m *member, names []string, w *workload)) {
	const most = 10 // that are told of one policy
	var free []string
	byPod := map[*workload][]*member{}
	for i, m := range r.members {
		if len(r.labels[i]) == 0 {
			free = append(free, m.name)
			continue
		}
		for _, w := range v.selected(m.namespace, r.labels[i]) {
			byPod[w] = append(byPod[w], m)
		}
	}
	slices.Sort(free)
	for i, m := range r.members {
		if len(r.labels[i]) == 0 {
			if len(free) > 1 {
				report(m, free, nil)
			}
			continue
		}
		told := map[*member]bool{m: true}
		for _, w := range v.selected(m.namespace, r.labels[i]) {
			names := []string{m.name}
			for _, other := range byPod[w] {
				if !told[other] && len(told) <= most {
					told[other] = true
					names = append(names, other.name)
				}
				if len(told) > most || !v.spend(1) {
					break
				}
			}
			if len(names) > 1 {
				slices.Sort(names)
				report(m, names, w)
			}
		}
	}
}

// services reports ports that declare no protocol (SR-12).
func (v *view) services() {
	each(v, func(m *member, s *corev1.Service) {
		if m.namespace == "kube-system" || s.Spec.Type == corev1.ServiceTypeExternalName && len(s.Spec.Ports) == 0 {
			return
		}
		for i, p := range s.Spec.Ports {
			if (p.Protocol != "" && p.Protocol != corev1.ProtocolTCP) || servicePortProtocol(&p) != "" {
				continue
			}
			severity, name := Warning, p.Name
			if name == "" { // nothing was said, and nothing wrong
				severity, name = Info, `""`
			}
			v.add(m, severity, CodePortName, indexed("spec.ports", i)+".name", "Port name %s (port: %d, targetPort: %s) doesn't follow the naming convention of Istio port: "+
				"the mesh looks at the first bytes of each connection", name, p.Port, p.TargetPort.String())
			v.hint("name it PROTOCOL or PROTOCOL-SUFFIX (http, http2, grpc, https, tls, tcp, mongo, mysql, redis), or set appProtocol")
		}
	})
}
