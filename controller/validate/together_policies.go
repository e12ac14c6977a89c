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
	scope := []string{m.namespace}
	if m.namespace == v.cfg.RootNamespace && m.group != groupNetworking { // a policy for the whole mesh
		scope = sortedKeys(v.workloads)
	}
	var found []*workload
	for _, ns := range scope {
		found = append(found, v.selected(ns, labels)...)
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
		for i, m := range r.members {
			if first, pod, whole := v.rival(r, i); first != nil {
				effect := "and this one is ignored"
				if !whole {
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

// rival returns a policy that counts instead of the i-th, and the workload that both are for; nil when there is none. whole
// says that it counts for all that the i-th may be for.
func (v *view) rival(r *rivals, i int) (first *member, pod string, whole bool) {
	for j, other := range r.members {
		if i == j || (len(r.labels[i]) == 0) != (len(r.labels[j]) == 0) || !older(other, r.members[i]) {
			continue
		}
		if len(r.labels[i]) == 0 {
			return other, "", true
		}
		whole := contains(r.labels[i], r.labels[j])
		for _, w := range v.selected(r.members[i].namespace, r.labels[i]) {
			if contains(w.labels, r.labels[j]) && (whole || first == nil) {
				first, pod = other, w.String()
				break
			}
		}
		if whole && first != other {
			first, pod = other, labelText(r.labels[i])
		}
		if whole {
			return first, pod, true
		}
	}
	return first, pod, false
}

// unboundPorts reports ports of a PeerAuthentication to which no service of its workloads leads.
func (v *view) unboundPorts(m *member, p *securitybeta.PeerAuthentication, pods []*workload) {
	bound := map[uint32]bool{}
	for _, w := range pods {
		for n := range v.boundPorts(w) {
			bound[n] = true
		}
	}
	for _, n := range sortedKeys(p.GetPortLevelMtls()) {
		if bound[n] {
			continue
		}
		v.add(m, Warning, CodeUnboundPort, fmt.Sprintf("spec.portLevelMtls.%d", n), "no service of these workloads leads to port %d: the mode of the port is ignored", n)
		v.hint("write the port of the container, to which a Service leads (targetPort): %s", strings.Trim(fmt.Sprint(sortedKeys(bound)), "[]"))
	}
}

// boundPorts maps the ports of a workload's containers to the ports of the services that lead to them.
func (v *view) boundPorts(w *workload) map[uint32][]servicePort {
	out := map[uint32][]servicePort{}
	for _, h := range v.selecting[w.namespace] {
		if !contains(w.labels, h.selector) {
			continue
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
			out[n] = append(out[n], servicePort{h, p})
		}
	}
	return out
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
	for _, w := range pods {
		bound := v.boundPorts(w)
		for _, n := range sortedKeys(bound) {
			if len(wanted) > 0 && !wanted[n] {
				continue
			}
			for _, s := range bound[n] {
				if text := fmt.Sprintf("port %d of service %s (%s)", s.port.number, s.host, s.port.protocol); speaksTCP(s.port.protocol) && !slices.Contains(tcp, text) {
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
	v.add(m, Warning, CodeTCPFields, at+"."+field, "needs HTTP requests, and %s has none: %s", strings.Join(tcp, ", "), effect)
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
				if v.hosts[v.complete(name, m.namespace)] == nil {
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
		r := all[ns]
		for i, m := range r.members {
			for j, other := range r.members {
				if i == j {
					continue
				}
				names := slices.Sorted(slices.Values([]string{m.name, other.name}))
				switch free := len(r.labels[i]) == 0; {
				case free != (len(r.labels[j]) == 0):
				case free:
					v.add(m, Error, codeAll, "metadata.name", "The %s %v in namespace %q have no workload selector, which can lead to undefined behavior", plural, names, ns)
				default:
					for _, w := range v.selected(ns, r.labels[i]) {
						if contains(w.labels, r.labels[j]) {
							v.add(m, Error, codePods, "metadata.name", "The %s %v in namespace %q select the same workload pod %q, which can lead to undefined behavior", plural, names, ns, w)
							break
						}
					}
				}
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
