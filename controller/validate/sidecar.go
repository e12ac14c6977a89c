package validate

import (
	"net/netip"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	"k8s.io/apimachinery/pkg/util/validation"
)

func sidecarRules(c *collector, spec *networking.Sidecar) {
	c.selector(spec.GetWorkloadSelector().GetLabels(), "spec.workloadSelector.labels")
	c.emptySelector(spec.GetWorkloadSelector() != nil, spec.GetWorkloadSelector().GetLabels(), "spec.workloadSelector")
	if len(spec.GetIngress())+len(spec.GetEgress()) == 0 && spec.GetOutboundTrafficPolicy() == nil && spec.GetInboundConnectionPool() == nil {
		c.add(Error, "spec", "egress, ingress, outboundTrafficPolicy or inboundConnectionPool is required")
	}
	seen := map[uint32]int{}
	for i, l := range spec.GetIngress() {
		at := indexed("spec.ingress", i)
		n := l.GetPort().GetNumber()
		c.port(n, at+".port.number")
		if j, twice := seen[n]; twice {
			c.add(Error, at+".port.number", "%s has the number %d already", indexed("spec.ingress", j), n)
		}
		seen[n] = i
		c.listenerPort(l.GetPort(), l.GetBind(), at)
		if e := l.GetDefaultEndpoint(); e != "" {
			c.localEndpoint(e, at+".defaultEndpoint")
		}
		c.pool(l.GetConnectionPool(), at+".connectionPool")
	}
	c.pool(spec.GetInboundConnectionPool(), "spec.inboundConnectionPool")
	catchAll := -1
	for i, l := range spec.GetEgress() {
		at := indexed("spec.egress", i)
		for j, h := range l.GetHosts() {
			c.sidecarHost(h, at+indexed(".hosts", j))
		}
		c.unique(l.GetHosts(), at+".hosts", "host")
		c.bound(l.GetBind(), at+".bind")
		switch {
		case l.GetPort() == nil && catchAll >= 0:
			c.add(Error, at+".port", "is required: %s is for all other ports already", indexed("spec.egress", catchAll))
		case l.GetPort() == nil:
			if catchAll = i; i != len(spec.GetEgress())-1 {
				c.add(Error, at+".port", "is required: only the last item is for all other ports")
			}
		default:
			c.listenerPort(l.GetPort(), "", at)
			if n := l.GetPort().GetNumber(); n != 0 || !strings.HasPrefix(l.GetBind(), "unix://") {
				c.port(n, at+".port.number")
			}
		}
	}
	c.egressProxy(spec.GetOutboundTrafficPolicy())
}

// egressProxy checks what leads calls of hosts in no registry, which REGISTRY_ONLY does not let through.
func (c *collector) egressProxy(p *networking.OutboundTrafficPolicy) {
	const at = "spec.outboundTrafficPolicy.egressProxy"
	to := p.GetEgressProxy()
	if to == nil {
		return
	}
	if p.GetMode() != networking.OutboundTrafficPolicy_ALLOW_ANY {
		c.add(Error, at, "only with mode ALLOW_ANY")
	}
	if to.GetPort() == nil {
		c.add(Error, at+".port", "is required")
	}
	c.destination(to, at)
}

func (c *collector) listenerPort(p *networking.SidecarPort, bind, at string) {
	c.protocol(p.GetProtocol(), at+".port.protocol")
	if p.GetName() != "" {
		c.must(at+".port.name", portName(p.GetName()))
	}
	c.bound(bind, at+".bind")
}

// bound checks the address on which something listens; "" is none.
func (c *collector) bound(text, at string) {
	if text != "" && !strings.HasPrefix(text, "unix://") {
		c.must(at, address(text))
	}
}

// sidecarHost checks NAMESPACE/HOST, where the namespace may be ".", "*" or "~"; a "~" before it takes hosts out.
func (c *collector) sidecarHost(text, field string) {
	ns, host, found := strings.Cut(text, "/")
	if !found {
		c.add(Error, field, "%q is not NAMESPACE/HOST", text)
		c.hint("for the own namespace: \"./%s\"; for all: \"*/%s\"", text, text)
		return
	}
	if name := strings.TrimPrefix(ns, "~"); name != "" && name != "." && name != "*" && len(validation.IsDNS1123Label(name)) > 0 || ns == "" {
		c.add(Error, field, "%q: %q is not a namespace, \".\", \"*\" or \"~\"", text, ns)
	}
	c.must(field, Host(host, true))
}

// localEndpoint checks where a sidecar hands connections to: the own pod only.
func (c *collector) localEndpoint(text, field string) {
	if strings.HasPrefix(text, "unix://") {
		return
	}
	a, err := netip.ParseAddrPort(text)
	if err != nil || a.Port() == 0 || !(a.Addr().IsLoopback() || a.Addr().IsUnspecified()) {
		c.add(Error, field, "%q is not 127.0.0.1:PORT, 0.0.0.0:PORT, [::1]:PORT, [::]:PORT or unix://PATH", text)
	}
}
