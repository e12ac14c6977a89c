package validate

import (
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// gatewayAPI judges what the objects of the Gateway API refer to: classes, gateways and their listeners, services, secrets,
// and whether a ReferenceGrant allows what crosses namespaces.
func (v *view) gatewayAPI() {
	each(v, func(m *member, g *gatewayv1.Gateway) {
		if class := string(g.Spec.GatewayClassName); class != "" && !v.has(groupGateway, "GatewayClass", "", class) {
			v.missing(m, Error, "spec.gatewayClassName", "gatewayclass", class)
		}
		for i := range g.Spec.Listeners {
			v.certificates(m, g.Spec.Listeners[i].TLS, indexed("spec.listeners", i))
		}
	})
	each(v, func(m *member, s *gatewayv1.ListenerSet) {
		p := s.Spec.ParentRef
		v.parent(m, nil, gatewayv1.ParentReference{Group: p.Group, Kind: p.Kind, Namespace: p.Namespace, Name: p.Name}, "spec.parentRef")
		for i := range s.Spec.Listeners {
			v.certificates(m, s.Spec.Listeners[i].TLS, indexed("spec.listeners", i))
		}
	})
	for _, m := range v.members {
		r := apiRouteOf(m.body)
		if r == nil {
			continue
		}
		for i, p := range r.parents {
			v.parent(m, r, p, indexed("spec.parentRefs", i))
		}
		for _, b := range r.backends {
			v.routeBackend(m, r, b)
		}
	}
	each(v, v.grant)
	each(v, func(m *member, p *gatewayv1.BackendTLSPolicy) {
		for i, t := range p.Spec.TargetRefs {
			if t.Group != "" || t.Kind != "Service" || t.Name == "" {
				continue
			}
			port := ""
			if t.SectionName != nil {
				port = string(*t.SectionName)
			}
			v.backend(m, m.namespace, string(t.Name), 0, port, indexed("spec.targetRefs", i))
		}
	})
}

// certificates judges the secrets of a listener.
func (v *view) certificates(m *member, tls *gatewayv1.ListenerTLSConfig, at string) {
	if tls == nil {
		return
	}
	for j, ref := range tls.CertificateRefs {
		if (ref.Kind != nil && *ref.Kind != "Secret") || (ref.Group != nil && *ref.Group != "") {
			continue
		}
		ns, here := m.namespace, at+".tls"+indexed(".certificateRefs", j)
		if ref.Namespace != nil {
			ns = string(*ref.Namespace)
		}
		if !v.has("", "Secret", ns, string(ref.Name)) {
			v.missing(m, Error, here, "secret", ns+"/"+string(ref.Name))
		}
		v.granted(m, m.kind, "Secret", ns, string(ref.Name), here)
	}
}

// parent judges to what a route is attached; r is nil for a ListenerSet.
func (v *view) parent(m *member, r *apiRoute, p gatewayv1.ParentReference, at string) {
	group, kind, ns := groupGateway, "Gateway", m.namespace
	if p.Group != nil {
		group = string(*p.Group)
	}
	if p.Kind != nil {
		kind = string(*p.Kind)
	}
	if p.Namespace != nil {
		ns = string(*p.Namespace)
	}
	switch {
	case group == groupGateway && (kind == "Gateway" || kind == "ListenerSet"), group == "" && kind == "Service":
	case group == groupNetworking && kind == "ServiceEntry":
	default:
		return
	}
	if !v.has(group, kind, ns, string(p.Name)) {
		v.missing(m, Error, at, strings.ToLower(kind), ns+"/"+string(p.Name))
		return
	}
	if o := v.objects[objectID{group, kind, ns, string(p.Name)}]; o != nil && r != nil {
		if g, ok := o.body.(*gatewayv1.Gateway); ok {
			v.attached(m, r, p, o, g, at)
		}
	}
}

// attached reports a route that no listener of its gateway takes, with the reason of the listener that comes closest.
func (v *view) attached(m *member, r *apiRoute, p gatewayv1.ParentReference, o *member, g *gatewayv1.Gateway, at string) {
	reasons := []string{"there is no such listener", "", "", ""} // by how far a listener came
	best := 0
	for i := range g.Spec.Listeners {
		l := &g.Spec.Listeners[i]
		if !v.spend(1 + len(r.hostnames)) {
			return
		}
		if (p.SectionName != nil && *p.SectionName != l.Name) || (p.Port != nil && *p.Port != l.Port) {
			continue
		}
		step := 0
		switch {
		case !slices.Contains(r.protocols, l.Protocol):
			step, reasons[1] = 1, fmt.Sprintf("listener %s is %s, which a %s is not for", l.Name, l.Protocol, r.kind)
		case !v.admits(l, m.namespace, o.namespace):
			step, reasons[2] = 2, fmt.Sprintf("listener %s takes no routes of namespace %s (allowedRoutes)", l.Name, m.namespace)
		case !intersect(l.Hostname, r.hostnames):
			step, reasons[3] = 3, fmt.Sprintf("listener %s is for %s, which is none of the route's hostnames", l.Name, *l.Hostname)
		default:
			return
		}
		best = max(best, step)
	}
	v.add(m, Error, CodeNoListener, at, "no listener of Gateway %s takes the route: %s", o, reasons[best])
}

// admits says whether the listener takes routes of a namespace, or cannot know.
func (v *view) admits(l *gatewayv1.Listener, namespace, own string) bool {
	from := gatewayv1.NamespacesFromSame
	var selector *metav1.LabelSelector
	if a := l.AllowedRoutes; a != nil && a.Namespaces != nil {
		if a.Namespaces.From != nil {
			from = *a.Namespaces.From
		}
		selector = a.Namespaces.Selector
	}
	switch from {
	case gatewayv1.NamespacesFromSame:
		return namespace == own
	case gatewayv1.NamespacesFromSelector:
		n := v.objects[objectID{"", "Namespace", "", namespace}]
		s, err := metav1.LabelSelectorAsSelector(selector)
		return n == nil || err != nil || s.Matches(labels.Set(n.labels))
	}
	return true
}

// intersect says whether a listener has one of the hostnames; without any it takes all.
func intersect(listener *gatewayv1.Hostname, names []gatewayv1.Hostname) bool {
	if listener == nil || *listener == "" || len(names) == 0 {
		return true
	}
	return slices.ContainsFunc(names, func(h gatewayv1.Hostname) bool {
		return covers(string(*listener), string(h)) || covers(string(h), string(*listener))
	})
}

func (v *view) routeBackend(m *member, r *apiRoute, b apiBackend) {
	if (b.Kind != nil && *b.Kind != "Service") || (b.Group != nil && *b.Group != "") || b.Name == "" {
		return
	}
	ns, port := m.namespace, uint32(0)
	if b.Namespace != nil {
		ns = string(*b.Namespace)
	}
	if b.Port != nil {
		port = uint32(*b.Port) //nolint:gosec // checked by the rules
	}
	v.backend(m, ns, string(b.Name), port, "", b.path)
	v.granted(m, r.kind, "Service", ns, string(b.Name), b.path)
}

// granted reports a reference to another namespace that no ReferenceGrant of that namespace allows.
func (v *view) granted(m *member, from, to, namespace, name, at string) {
	if namespace == m.namespace || v.unread(groupGateway, "ReferenceGrant") {
		return
	}
	allowed := false
	for _, o := range v.grants[namespace] {
		g, ok := o.body.(*gatewayv1.ReferenceGrant)
		if !ok || !v.spend(1+len(g.Spec.From)+len(g.Spec.To)) {
			return
		}
		allowed = allowed || (slices.ContainsFunc(g.Spec.From, func(f gatewayv1.ReferenceGrantFrom) bool {
			return f.Group == groupGateway && string(f.Kind) == from && string(f.Namespace) == m.namespace
		}) && slices.ContainsFunc(g.Spec.To, func(t gatewayv1.ReferenceGrantTo) bool {
			return (t.Group == "" || t.Group == "core") && string(t.Kind) == to && (t.Name == nil || *t.Name == "" || string(*t.Name) == name)
		}))
	}
	if !allowed {
		v.add(m, Error, CodeNoGrant, at, "no ReferenceGrant in namespace %s lets a %s of namespace %s refer to %s %s", namespace, from, m.namespace, to, name)
	}
}

// grant judges what a ReferenceGrant names.
func (v *view) grant(m *member, g *gatewayv1.ReferenceGrant) {
	for i, t := range g.Spec.To {
		if t.Name != nil && *t.Name != "" && t.Group == "" && (t.Kind == "Service" || t.Kind == "Secret") && !v.has("", string(t.Kind), m.namespace, string(*t.Name)) {
			v.missing(m, Warning, indexed("spec.to", i)+".name", strings.ToLower(string(t.Kind)), m.namespace+"/"+string(*t.Name))
		}
	}
	for i, f := range g.Spec.From {
		if v.cfg.All && f.Namespace != "" && !v.has("", "Namespace", "", string(f.Namespace)) && len(v.workloads[string(f.Namespace)]) == 0 {
			v.missing(m, Warning, indexed("spec.from", i)+".namespace", "namespace", string(f.Namespace))
		}
	}
}
