package validate

import (
	"fmt"
	"strings"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// apiRoute is what the routes of the Gateway API have in common.
type apiRoute struct {
	kind      string
	parents   []gatewayv1.ParentReference
	hostnames []gatewayv1.Hostname // of those that have them
	backends  []apiBackend
	protocols []gatewayv1.ProtocolType // of the listeners that can take the route
}

// apiBackend is a backend and where it is written.
type apiBackend struct {
	gatewayv1.BackendObjectReference
	weight *int32
	path   string
}

// apiRouteOf returns what the body of a member is as a route; nil when it is none.
func apiRouteOf(body any) *apiRoute {
	const http, https, tls, tcp, udp = gatewayv1.HTTPProtocolType, gatewayv1.HTTPSProtocolType, gatewayv1.TLSProtocolType, gatewayv1.TCPProtocolType, gatewayv1.UDPProtocolType
	var r *apiRoute
	backend := func(b *gatewayv1.BackendRef, format string, args ...any) {
		r.backends = append(r.backends, apiBackend{b.BackendObjectReference, b.Weight, fmt.Sprintf(format, args...)})
	}
	plain := func(rule int, list []gatewayv1.BackendRef) {
		for j := range list {
			backend(&list[j], "spec.rules[%d].backendRefs[%d]", rule, j)
		}
	}
	mirror := func(m *gatewayv1.HTTPRequestMirrorFilter, format string, args ...any) {
		if m != nil {
			r.backends = append(r.backends, apiBackend{m.BackendRef, nil, fmt.Sprintf(format, args...)})
		}
	}
	switch o := body.(type) {
	case *gatewayv1.HTTPRoute:
		r = &apiRoute{"HTTPRoute", o.Spec.ParentRefs, o.Spec.Hostnames, nil, []gatewayv1.ProtocolType{http, https}}
		for i := range o.Spec.Rules {
			for j := range o.Spec.Rules[i].BackendRefs {
				backend(&o.Spec.Rules[i].BackendRefs[j].BackendRef, "spec.rules[%d].backendRefs[%d]", i, j)
			}
			for j := range o.Spec.Rules[i].Filters {
				mirror(o.Spec.Rules[i].Filters[j].RequestMirror, "spec.rules[%d].filters[%d].requestMirror.backendRef", i, j)
			}
		}
	case *gatewayv1.GRPCRoute:
		r = &apiRoute{"GRPCRoute", o.Spec.ParentRefs, o.Spec.Hostnames, nil, []gatewayv1.ProtocolType{http, https}}
		for i := range o.Spec.Rules {
			for j := range o.Spec.Rules[i].BackendRefs {
				backend(&o.Spec.Rules[i].BackendRefs[j].BackendRef, "spec.rules[%d].backendRefs[%d]", i, j)
			}
			for j := range o.Spec.Rules[i].Filters {
				mirror(o.Spec.Rules[i].Filters[j].RequestMirror, "spec.rules[%d].filters[%d].requestMirror.backendRef", i, j)
			}
		}
	case *gatewayv1.TLSRoute:
		r = &apiRoute{"TLSRoute", o.Spec.ParentRefs, o.Spec.Hostnames, nil, []gatewayv1.ProtocolType{tls}}
		for i := range o.Spec.Rules {
			plain(i, o.Spec.Rules[i].BackendRefs)
		}
	case *gatewayv1.TCPRoute:
		r = &apiRoute{"TCPRoute", o.Spec.ParentRefs, nil, nil, []gatewayv1.ProtocolType{tcp, tls}}
		for i := range o.Spec.Rules {
			plain(i, o.Spec.Rules[i].BackendRefs)
		}
	case *gatewayv1.UDPRoute:
		r = &apiRoute{"UDPRoute", o.Spec.ParentRefs, nil, nil, []gatewayv1.ProtocolType{udp}}
		for i := range o.Spec.Rules {
			plain(i, o.Spec.Rules[i].BackendRefs)
		}
	}
	return r
}

// apiRouteRules checks what all kinds of routes have.
func (c *collector) apiRouteRules(r *apiRoute) {
	if len(r.parents) == 0 {
		c.add(Warning, "spec.parentRefs", "is empty: no gateway and no service uses the route")
	}
	for i, p := range r.parents {
		at := indexed("spec.parentRefs", i)
		if p.Name == "" {
			c.add(Error, at+".name", "is required")
		}
		if p.Port != nil && (*p.Port < 1 || *p.Port > 65535) {
			c.add(Error, at+".port", "%d is not a port number from 1 to 65535", *p.Port)
		}
	}
	for i, h := range r.hostnames {
		c.hostname(h, indexed("spec.hostnames", i))
	}
	for _, b := range r.backends {
		service := (b.Kind == nil || *b.Kind == "Service") && (b.Group == nil || *b.Group == "")
		switch {
		case b.Name == "":
			c.add(Error, b.path+".name", "is required")
		case service && b.Port == nil:
			c.add(Error, b.path+".port", "is required for a Service")
		}
		if b.Port != nil && (*b.Port < 1 || *b.Port > 65535) {
			c.add(Error, b.path+".port", "%d is not a port number from 1 to 65535", *b.Port)
		}
		if b.weight != nil {
			between(c, *b.weight, 0, 1_000_000, b.path+".weight")
		}
	}
}

// layer4Rules checks the rules of a route that chooses by the connection only.
func (c *collector) layer4Rules(n int, backends func(i int) int) {
	if n == 0 {
		c.add(Error, "spec.rules", "is required")
	}
	for i := range n {
		if backends(i) == 0 {
			c.add(Error, indexed("spec.rules", i)+".backendRefs", "is required")
		}
	}
}

func grpcRouteRules(c *collector, o *gatewayv1.GRPCRoute) {
	c.apiRouteRules(apiRouteOf(o))
	for i := range o.Spec.Rules {
		for j := range o.Spec.Rules[i].Matches {
			m, at := &o.Spec.Rules[i].Matches[j], indexed("spec.rules", i)+indexed(".matches", j)
			c.grpcMethod(m.Method, at+".method")
			for k, h := range m.Headers {
				c.header(string(h.Name), at+indexed(".headers", k)+".name")
				if h.Type != nil && *h.Type == gatewayv1.GRPCHeaderMatchRegularExpression {
					c.regex(h.Value, at+indexed(".headers", k)+".value")
				}
			}
		}
		for j := range o.Spec.Rules[i].Filters {
			c.grpcFilter(&o.Spec.Rules[i].Filters[j], indexed("spec.rules", i)+indexed(".filters", j))
		}
	}
}

func (c *collector) grpcMethod(m *gatewayv1.GRPCMethodMatch, at string) {
	if m == nil {
		return
	}
	if m.Service == nil && m.Method == nil {
		c.add(Error, at, "service or method is required")
	}
	regex := m.Type != nil && *m.Type == gatewayv1.GRPCMethodMatchRegularExpression
	if m.Type != nil && !regex && *m.Type != gatewayv1.GRPCMethodMatchExact {
		c.add(Error, at+".type", "%q is not one of Exact, RegularExpression", *m.Type)
	}
	for name, text := range map[string]*string{"service": m.Service, "method": m.Method} {
		switch {
		case text == nil:
		case regex:
			c.regex(*text, at+"."+name)
		case strings.ContainsAny(*text, "/ "):
			c.add(Error, at+"."+name, "%q is not the name of a %s: that is SERVICE and METHOD, without slashes", *text, name)
		}
	}
}

func (c *collector) grpcFilter(f *gatewayv1.GRPCRouteFilter, at string) {
	c.filter(string(f.Type), map[string]part{
		string(gatewayv1.GRPCRouteFilterRequestHeaderModifier):  {"requestHeaderModifier", f.RequestHeaderModifier != nil},
		string(gatewayv1.GRPCRouteFilterResponseHeaderModifier): {"responseHeaderModifier", f.ResponseHeaderModifier != nil},
		string(gatewayv1.GRPCRouteFilterRequestMirror):          {"requestMirror", f.RequestMirror != nil},
		string(gatewayv1.GRPCRouteFilterExtensionRef):           {"extensionRef", f.ExtensionRef != nil},
	}, at)
}

func referenceGrantRules(c *collector, o *gatewayv1.ReferenceGrant) {
	if len(o.Spec.From) == 0 {
		c.add(Error, "spec.from", "is required: nobody may refer to anything")
	}
	if len(o.Spec.To) == 0 {
		c.add(Error, "spec.to", "is required: nothing may be referred to")
	}
	for i, f := range o.Spec.From {
		at := indexed("spec.from", i)
		if f.Kind == "" {
			c.add(Error, at+".kind", "is required")
		} else if f.Group == groupGateway {
			c.oneOf(Warning, string(f.Kind), []string{"Gateway", "HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute", "ListenerSet"}, at+".kind")
		}
		c.must(at+".namespace", label1123(string(f.Namespace)))
	}
	for i, t := range o.Spec.To {
		if t.Kind == "" {
			c.add(Error, indexed("spec.to", i)+".kind", "is required")
		} else if t.Group == "" {
			c.oneOf(Warning, string(t.Kind), []string{"Service", "Secret", "ConfigMap"}, indexed("spec.to", i)+".kind")
		}
	}
}

func backendTLSRules(c *collector, o *gatewayv1.BackendTLSPolicy) {
	if len(o.Spec.TargetRefs) == 0 {
		c.add(Error, "spec.targetRefs", "is required")
	}
	for i, t := range o.Spec.TargetRefs {
		if t.Group != "" || t.Kind != "Service" {
			c.add(Warning, indexed("spec.targetRefs", i)+".kind", "%s/%s is not a Service: the policy has no effect on it", t.Group, t.Kind)
		}
		c.must(indexed("spec.targetRefs", i)+".name", filled(string(t.Name)))
	}
	v := o.Spec.Validation
	if v.Hostname == "" {
		c.add(Error, "spec.validation.hostname", "is required")
	} else {
		c.hostname(gatewayv1.Hostname(v.Hostname), "spec.validation.hostname")
	}
	if (len(v.CACertificateRefs) > 0) == (v.WellKnownCACertificates != nil && *v.WellKnownCACertificates != "") {
		c.add(Error, "spec.validation", "caCertificateRefs or wellKnownCACertificates is required, and not both")
	}
	if w := v.WellKnownCACertificates; w != nil && *w != "" && *w != gatewayv1.WellKnownCACertificatesSystem && !strings.Contains(string(*w), "/") {
		c.add(Error, "spec.validation.wellKnownCACertificates", "%q is not System", *w)
	}
	for i, s := range v.SubjectAltNames {
		at := indexed("spec.validation.subjectAltNames", i)
		switch {
		case s.Type == gatewayv1.HostnameSubjectAltNameType && s.Hostname != "":
			c.hostname(s.Hostname, at+".hostname")
		case s.Type == gatewayv1.URISubjectAltNameType && s.URI != "":
			c.must(at+".uri", noBlank(string(s.URI)))
		default:
			c.add(Error, at, "type Hostname needs hostname, type URI needs uri")
		}
	}
}

func listenerSetRules(c *collector, o *gatewayv1.ListenerSet) {
	if o.Spec.ParentRef.Name == "" {
		c.add(Error, "spec.parentRef.name", "is required")
	}
	list := make([]gatewayv1.Listener, 0, len(o.Spec.Listeners))
	for _, l := range o.Spec.Listeners {
		list = append(list, gatewayv1.Listener(l))
	}
	c.listenerList(list)
}
