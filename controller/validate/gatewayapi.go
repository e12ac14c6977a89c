package validate

import (
	"fmt"
	"strings"

	kschema "k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// addGateway registers the rules of a kind of the Gateway API. Older versions are read as v1, whose fields they have.
func addGateway[T any](c *Catalogue, kind string, rules func(*collector, *T)) {
	for _, version := range []string{"v1", "v1beta1", "v1alpha3", "v1alpha2"} {
		addGo(c, kschema.GroupVersionKind{Group: groupGateway, Version: version, Kind: kind}, rules)
	}
}

// gatewayAPI registers the rules of the Gateway API's kinds.
func (c *Catalogue) gatewayAPI() {
	addGateway(c, "Gateway", func(c *collector, g *gatewayv1.Gateway) { c.listeners(&g.Spec) })
	addGateway(c, "ListenerSet", listenerSetRules)
	addGateway(c, "HTTPRoute", func(c *collector, r *gatewayv1.HTTPRoute) {
		c.apiRouteRules(apiRouteOf(r))
		c.httpRouteAPI(&r.Spec)
	})
	addGateway(c, "GRPCRoute", grpcRouteRules)
	addGateway(c, "TLSRoute", func(c *collector, r *gatewayv1.TLSRoute) {
		c.apiRouteRules(apiRouteOf(r))
		c.layer4Rules(len(r.Spec.Rules), func(i int) int { return len(r.Spec.Rules[i].BackendRefs) })
	})
	addGateway(c, "TCPRoute", func(c *collector, r *gatewayv1.TCPRoute) {
		c.apiRouteRules(apiRouteOf(r))
		c.layer4Rules(len(r.Spec.Rules), func(i int) int { return len(r.Spec.Rules[i].BackendRefs) })
	})
	addGateway(c, "UDPRoute", func(c *collector, r *gatewayv1.UDPRoute) {
		c.apiRouteRules(apiRouteOf(r))
		c.layer4Rules(len(r.Spec.Rules), func(i int) int { return len(r.Spec.Rules[i].BackendRefs) })
	})
	addGateway(c, "ReferenceGrant", referenceGrantRules)
	addGateway(c, "BackendTLSPolicy", backendTLSRules)
	addGateway(c, "GatewayClass", func(c *collector, g *gatewayv1.GatewayClass) {
		domain, path, found := strings.Cut(string(g.Spec.ControllerName), "/")
		if !found || path == "" || len(validation.IsDNS1123Subdomain(domain)) > 0 {
			c.add(Error, "spec.controllerName", "%q is not DOMAIN/PATH", g.Spec.ControllerName)
		}
	})
}

// hostname checks a name of the Gateway API: a wildcard is a whole first label, and addresses are no names.
func (c *collector) hostname(h gatewayv1.Hostname, field string) {
	text := string(h)
	if strings.HasPrefix(text, "*.") {
		text = "a" + text[1:]
	}
	if m := validation.IsDNS1123Subdomain(text); len(m) > 0 {
		c.add(Error, field, "%q is not a host name: %s", h, m[0])
	} else if len(validation.IsValidIP(nil, text)) == 0 {
		c.add(Error, field, "%q is an address", h)
	}
}

func (c *collector) listeners(g *gatewayv1.GatewaySpec) {
	if g.GatewayClassName == "" {
		c.add(Error, "spec.gatewayClassName", "is required")
	}
	c.listenerList(g.Listeners)
}

func (c *collector) listenerList(list []gatewayv1.Listener) {
	if len(list) == 0 {
		c.add(Error, "spec.listeners", "is required")
	}
	names, sockets := map[gatewayv1.SectionName]int{}, map[string]int{}
	for i := range list {
		l, at := &list[i], indexed("spec.listeners", i)
		if j, twice := names[l.Name]; twice {
			c.add(Error, at+".name", "%s has the name %q already", indexed("spec.listeners", j), l.Name)
		}
		names[l.Name] = i
		if l.Name == "" {
			c.add(Error, at+".name", "is required")
		}
		if l.Port < 1 || l.Port > 65535 {
			c.add(Error, at+".port", "%d is not a port number from 1 to 65535", l.Port)
		}
		host := ""
		if l.Hostname != nil && *l.Hostname != "" {
			host = string(*l.Hostname)
			c.hostname(*l.Hostname, at+".hostname")
		}
		here := fmt.Sprintf("%d %s %s", l.Port, l.Protocol, host)
		if j, twice := sockets[here]; twice {
			c.add(Error, at, "has the port, protocol and hostname of %s", indexed("spec.listeners", j))
		}
		sockets[here] = i
		c.listenerTLS(l, at)
	}
}

func (c *collector) listenerTLS(l *gatewayv1.Listener, at string) {
	passthrough := l.TLS != nil && l.TLS.Mode != nil && *l.TLS.Mode == gatewayv1.TLSModePassthrough
	switch l.Protocol {
	case gatewayv1.HTTPProtocolType, gatewayv1.TCPProtocolType, gatewayv1.UDPProtocolType:
		if l.TLS != nil {
			c.add(Error, at+".tls", "has no meaning with the protocol %s", l.Protocol)
		}
	case gatewayv1.HTTPSProtocolType, gatewayv1.TLSProtocolType:
		switch {
		case l.TLS == nil:
			c.add(Error, at+".tls", "is required for the protocol %s", l.Protocol)
		case passthrough && l.Protocol == gatewayv1.HTTPSProtocolType:
			c.add(Error, at+".tls.mode", "Passthrough is for the protocol TLS only")
		case !passthrough && len(l.TLS.CertificateRefs)+len(l.TLS.Options) == 0:
			c.add(Error, at+".tls.certificateRefs", "is required with mode Terminate")
		}
	case "":
		c.add(Error, at+".protocol", "is required")
	default:
		known := []string{"HTTP", "HTTPS", "TLS", "TCP", "UDP"}
		if !strings.Contains(string(l.Protocol), "/") { // others have a domain
			c.oneOf(Error, string(l.Protocol), known, at+".protocol")
		}
	}
}

func (c *collector) httpRouteAPI(r *gatewayv1.HTTPRouteSpec) {
	for i := range r.Rules {
		rule, at := &r.Rules[i], indexed("spec.rules", i)
		for j := range rule.Matches {
			c.routeMatch(&rule.Matches[j], at+indexed(".matches", j))
		}
		redirect := false
		for j := range rule.Filters {
			redirect = c.routeFilter(&rule.Filters[j], at+indexed(".filters", j)) || redirect
		}
		if redirect && len(rule.BackendRefs) > 0 {
			c.add(Error, at+".backendRefs", "and a redirect exclude each other")
		}
	}
}

func (c *collector) routeMatch(m *gatewayv1.HTTPRouteMatch, at string) {
	if p := m.Path; p != nil {
		kind, value := gatewayv1.PathMatchPathPrefix, "/"
		if p.Type != nil {
			kind = *p.Type
		}
		if p.Value != nil {
			value = *p.Value
		}
		known := []string{string(gatewayv1.PathMatchExact), string(gatewayv1.PathMatchPathPrefix), string(gatewayv1.PathMatchRegularExpression)}
		switch kind {
		case gatewayv1.PathMatchRegularExpression:
			c.regex(value, at+".path.value")
		case gatewayv1.PathMatchExact, gatewayv1.PathMatchPathPrefix:
			if !strings.HasPrefix(value, "/") {
				c.add(Error, at+".path.value", "%q does not begin with \"/\"", value)
			}
		default:
			c.oneOf(Error, string(kind), known, at+".path.type")
		}
	}
	for i, h := range m.Headers {
		c.header(string(h.Name), at+indexed(".headers", i)+".name")
		if h.Type != nil && *h.Type == gatewayv1.HeaderMatchRegularExpression {
			c.regex(h.Value, at+indexed(".headers", i)+".value")
		}
	}
	for i, q := range m.QueryParams {
		if q.Type != nil && *q.Type == gatewayv1.QueryParamMatchRegularExpression {
			c.regex(q.Value, at+indexed(".queryParams", i)+".value")
		}
	}
	if m.Method != nil {
		c.method(string(*m.Method), at+".method")
	}
}

// part of an object that is there when its type says so.
type part struct {
	name string
	set  bool
}

// filter checks that a filter has what its type says, by type.
func (c *collector) filter(typ string, parts map[string]part, at string) {
	switch want, known := parts[typ]; {
	case typ == "":
		c.add(Error, at+".type", "is required")
	case !known:
		c.oneOf(Error, typ, sortedKeys(parts), at+".type")
	case !want.set:
		c.add(Error, at+"."+want.name, "is required with type %s", typ)
	}
}

// routeFilter checks that a filter has what its type says, and returns whether it redirects.
func (c *collector) routeFilter(f *gatewayv1.HTTPRouteFilter, at string) (redirect bool) {
	if f.Type != "ExternalAuth" {
		c.filter(string(f.Type), map[string]part{
			string(gatewayv1.HTTPRouteFilterRequestHeaderModifier):  {"requestHeaderModifier", f.RequestHeaderModifier != nil},
			string(gatewayv1.HTTPRouteFilterResponseHeaderModifier): {"responseHeaderModifier", f.ResponseHeaderModifier != nil},
			string(gatewayv1.HTTPRouteFilterRequestMirror):          {"requestMirror", f.RequestMirror != nil},
			string(gatewayv1.HTTPRouteFilterRequestRedirect):        {"requestRedirect", f.RequestRedirect != nil},
			string(gatewayv1.HTTPRouteFilterURLRewrite):             {"urlRewrite", f.URLRewrite != nil},
			string(gatewayv1.HTTPRouteFilterCORS):                   {"cors", f.CORS != nil},
			string(gatewayv1.HTTPRouteFilterExtensionRef):           {"extensionRef", f.ExtensionRef != nil},
		}, at)
	}
	return f.Type == gatewayv1.HTTPRouteFilterRequestRedirect
}
