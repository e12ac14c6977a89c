package compile_test

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
)

// The naive interpreter of VirtualServices and DestinationRules: what the documents say, word by word, of the objects as they are
// written (TR-01…12, 18…20, SR-03, 04, 15, 17, LB-05, 06). It shares nothing with what it is compared with.

// naiveRequest is one request of a pod.
type naiveRequest struct {
	port                    uint32
	authority, path, method string
	header                  map[string]string
}

const naiveDomain = ".svc.cluster.local"

// naiveFull completes a short name with a namespace (SR-03).
func naiveFull(host, namespace string) string {
	if strings.ContainsAny(host, ".*") {
		return host
	}
	return host + "." + namespace + naiveDomain
}

// naiveCovers tells how well a host of a rule covers a name: 0 not, else more for a longer one, the name itself most.
func naiveCovers(host, name string) int {
	switch {
	case host == name:
		return 1000
	case strings.HasPrefix(host, "*") && len(name) > len(host)-1 && strings.HasSuffix(name, host[1:]):
		return len(host)
	}
	return 0
}

// naiveService finds the service of a name in full.
func (w *rulesWorld) naiveService(host string) *corev1.Service {
	for _, s := range w.services {
		if s.Name+"."+s.Namespace+naiveDomain == host {
			return s
		}
	}
	return nil
}

func naiveHasPort(s *corev1.Service, port uint32) bool {
	return s != nil && slices.ContainsFunc(s.Spec.Ports, func(p corev1.ServicePort) bool { return uint32(p.Port) == port })
}

// naiveExported reports whether what namespace from exports so is seen from namespace to; nothing said is everywhere.
func naiveExported(exportTo []string, from, to string) bool {
	return len(exportTo) == 0 || slices.Contains(exportTo, "*") || slices.Contains(exportTo, to) || slices.Contains(exportTo, ".") && from == to
}

// naiveVirtuals lists the VirtualServices for a name that a pod of the namespace goes by: those that have the host that covers the name
// best, the oldest first, then those that cover it less well. A short name that is no service's means nothing to a pattern.
func (w *rulesWorld) naiveVirtuals(name, namespace string, patterns bool) (levels [][]*networkingv1.VirtualService) {
	covers := map[int][]*networkingv1.VirtualService{}
	for _, v := range w.virtuals {
		if !naiveExported(v.Spec.ExportTo, v.Namespace, namespace) || len(v.Spec.Gateways) > 0 && !slices.Contains(v.Spec.Gateways, "mesh") {
			continue
		}
		most := 0
		for _, h := range v.Spec.Hosts {
			if patterns || !strings.HasPrefix(h, "*") {
				most = max(most, naiveCovers(naiveFull(h, v.Namespace), name))
			}
		}
		if most > 0 {
			covers[most] = append(covers[most], v)
		}
	}
	for _, n := range slices.Backward(slices.Sorted(maps.Keys(covers))) {
		slices.SortFunc(covers[n], func(a, b *networkingv1.VirtualService) int {
			return a.CreationTimestamp.Compare(b.CreationTimestamp.Time)
		})
		levels = append(levels, covers[n])
	}
	return levels
}

// naiveAnswer says what becomes of a request: the clusters with their weights, "404", or "passthrough".
func (w *rulesWorld) naiveAnswer(p *corev1.Pod, q naiveRequest) map[string]uint32 {
	name := naiveFull(q.authority, p.Namespace)
	service := w.naiveService(name)
	patterns := service != nil || name == q.authority
	if service != nil && !naiveHasPort(service, q.port) {
		if q.port != 80 {
			return map[string]uint32{"passthrough": 1}
		}
		service, patterns = nil, false // a host that is in no registry
	}
	for _, level := range w.naiveVirtuals(name, p.Namespace, patterns) {
		for _, v := range level {
			said := false
			for _, h := range v.Spec.Http {
				for _, rule := range w.naiveDelegated(v, h) {
					concerns, matches := rule.judge(p, q)
					if said = said || concerns; matches {
						return rule.clusters(w, q.port)
					}
				}
			}
			if said {
				return map[string]uint32{"404": 1} // TR-18
			}
		}
		if service != nil {
			break // it has a route of its own
		}
	}
	if service == nil {
		return map[string]uint32{"passthrough": 1}
	}
	return map[string]uint32{fmt.Sprintf("outbound|%d||%s", q.port, name): 1}
}

// naiveRule is a rule with where its short names are completed: a delegate's own namespace. outer is the rule that delegates.
type naiveRule struct {
	namespace string
	rule      *networking.HTTPRoute
	outer     *networking.HTTPRoute
}

// naiveDelegated is the rule, or the rules of its delegate in its place.
func (w *rulesWorld) naiveDelegated(v *networkingv1.VirtualService, h *networking.HTTPRoute) (out []naiveRule) {
	if h.Delegate == nil {
		return []naiveRule{{v.Namespace, h, nil}}
	}
	for _, d := range w.delegates {
		if d.Name == h.Delegate.Name && d.Namespace == h.Delegate.Namespace {
			for _, inner := range d.Spec.Http {
				out = append(out, naiveRule{d.Namespace, inner, h})
			}
		}
	}
	return out
}

// judge tells whether the rule concerns the pod when it calls the port, and whether it matches the request.
func (r naiveRule) judge(p *corev1.Pod, q naiveRequest) (concerns, matches bool) {
	concerns, matches = naiveMatches(r.rule, p, q)
	if r.outer != nil {
		c, m := naiveMatches(r.outer, p, q)
		concerns, matches = concerns && c, matches && m
	}
	return concerns, matches
}

func naiveMatches(h *networking.HTTPRoute, p *corev1.Pod, q naiveRequest) (concerns, matches bool) {
	if len(h.Match) == 0 {
		return true, true
	}
	for _, m := range h.Match {
		if m.Port != 0 && m.Port != q.port || m.SourceNamespace != "" && m.SourceNamespace != p.Namespace ||
			len(m.Gateways) > 0 && !slices.Contains(m.Gateways, "mesh") {
			continue
		}
		ours := true
		for k, v := range m.SourceLabels {
			ours = ours && p.Labels[k] == v
		}
		if !ours {
			continue
		}
		concerns = true
		all := naiveText(m.Uri, q.path, m.IgnoreUriCase) && naiveText(m.Method, q.method, false)
		for n, want := range m.Headers {
			have, there := q.header[n]
			all = all && there && naiveText(want, have, false)
		}
		for n, want := range m.WithoutHeaders {
			have, there := q.header[n]
			all = all && !(there && naiveText(want, have, false))
		}
		matches = matches || all
	}
	return concerns, matches
}

func naiveText(m *networking.StringMatch, s string, fold bool) bool {
	lower := func(s string) string {
		if fold {
			return strings.ToLower(s)
		}
		return s
	}
	switch m := m.GetMatchType().(type) {
	case *networking.StringMatch_Exact:
		return lower(s) == lower(m.Exact)
	case *networking.StringMatch_Prefix:
		return strings.HasPrefix(lower(s), lower(m.Prefix))
	case *networking.StringMatch_Regex:
		return regexp.MustCompile("^(?:" + m.Regex + ")$").MatchString(s)
	}
	return true
}

// clusters are the destinations and their weights.
func (r naiveRule) clusters(w *rulesWorld, called uint32) map[string]uint32 {
	out := map[string]uint32{}
	for _, d := range r.rule.Route {
		host := naiveFull(d.Destination.Host, r.namespace)
		port := d.Destination.Port.GetNumber()
		if s := w.naiveService(host); port == 0 && s != nil && len(s.Spec.Ports) == 1 {
			port = uint32(s.Spec.Ports[0].Port)
		} else if port == 0 {
			port = called
		}
		weight := uint32(d.Weight)
		if len(r.rule.Route) == 1 {
			weight = 1
		}
		if weight > 0 {
			out[fmt.Sprintf("outbound|%d|%s|%s", port, d.Destination.Subset, host)] += weight
		}
	}
	return out
}

// naiveRuleFor is the DestinationRule that counts when a pod of the namespace calls the service (SR-17).
func (w *rulesWorld) naiveRuleFor(namespace string, s *corev1.Service) *networkingv1.DestinationRule {
	for _, place := range []string{namespace, s.Namespace, visibleRoot} {
		best, found := 0, (*networkingv1.DestinationRule)(nil)
		for _, r := range w.rules {
			if r.Namespace != place || place != namespace && !naiveExported(r.Spec.ExportTo, r.Namespace, namespace) { // its own has it always
				continue
			}
			if n := naiveCovers(naiveFull(r.Spec.Host, r.Namespace), s.Name+"."+s.Namespace+naiveDomain); n > best {
				best, found = n, r
			}
		}
		if found != nil {
			return found
		}
	}
	return nil
}

// naiveCluster says how a cluster is balanced and what labels its endpoints have; ok is false when there is none.
func (w *rulesWorld) naiveCluster(p *corev1.Pod, name string) (simple string, labels map[string]string, ok bool) {
	parts := strings.Split(name, "|")
	s := w.naiveService(parts[3])
	var port uint32
	fmt.Sscan(parts[1], &port)
	if !naiveHasPort(s, port) {
		return "", nil, false // TR-19
	}
	simple = "ROUND_ROBIN" // LB-01
	rule := w.naiveRuleFor(p.Namespace, s)
	says := func(t *networking.TrafficPolicy) {
		if lb := t.GetLoadBalancer(); lb != nil {
			simple = lb.GetSimple().String()
		}
		for _, own := range t.GetPortLevelSettings() { // LB-06
			if own.Port.Number == port {
				simple = own.LoadBalancer.GetSimple().String()
			}
		}
	}
	if rule != nil {
		says(rule.Spec.TrafficPolicy)
	}
	if parts[2] == "" {
		return simple, nil, true
	}
	for _, sub := range naiveSubsets(rule) {
		if sub.Name == parts[2] {
			says(sub.TrafficPolicy) // LB-05
			return simple, sub.Labels, true
		}
	}
	return "", nil, false
}

func naiveSubsets(r *networkingv1.DestinationRule) []*networking.Subset {
	if r == nil {
		return nil
	}
	return r.Spec.Subsets
}
