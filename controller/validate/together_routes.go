package validate

import (
	"fmt"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
)

// virtualServices judges what VirtualServices refer to, and the hosts that several of them have.
func (v *view) virtualServices() {
	each(v, func(m *member, spec *networking.VirtualService) {
		v.boundGateways(m, spec)
		for _, d := range destinationsOf(spec) {
			v.destination(m, d)
		}
		for i, r := range spec.GetHttp() {
			if d := r.GetDelegate(); d != nil {
				ns := d.GetNamespace()
				if ns == "" {
					ns = m.namespace
				}
				if !v.has(groupNetworking, "VirtualService", ns, d.GetName()) {
					v.missing(m, Error, indexed("spec.http", i)+".delegate", "delegate", ns+"/"+d.GetName())
				}
			}
		}
	})
	v.meshHosts()
}

// boundGateways judges the gateways that a VirtualService names, and whether they have its hosts.
func (v *view) boundGateways(m *member, spec *networking.VirtualService) {
	for i, ref := range spec.GetGateways() {
		if ref == meshGateway || reference(ref) != nil {
			continue
		}
		ns, name, found := strings.Cut(ref, "/")
		if !found || ns == "." {
			if !found {
				name = ref
			}
			ns = m.namespace
		}
		if !v.has(groupNetworking, "Gateway", ns, name) {
			v.missing(m, Error, indexed("spec.gateways", i), "gateway", ref)
			continue
		}
		g := v.objects[objectID{groupNetworking, "Gateway", ns, name}]
		if g == nil {
			continue
		}
		gateway, ok := g.body.(*networking.Gateway)
		if !ok {
			continue
		}
		var lost []string
		for _, h := range spec.GetHosts() {
			if !servesHost(gateway, g.namespace, h, m.namespace) {
				lost = append(lost, h)
			}
		}
		if len(lost) > 0 {
			v.add(m, Warning, CodeGatewayHost, "spec.hosts", "one or more host %v defined in VirtualService %s not found in Gateway %s", lost, m, g)
			v.hint("the gateway answers such requests with 404: add the host to one of its servers")
		}
	}
}

// servesHost says whether a gateway has a server for a host of a VirtualService of the namespace.
func servesHost(g *networking.Gateway, gatewayNamespace, host, namespace string) bool {
	for _, s := range g.GetServers() {
		for _, h := range s.GetHosts() {
			ns, name, found := strings.Cut(h, "/")
			if !found {
				ns, name = "*", h
			}
			if (ns == "*" || ns == namespace || (ns == "." && gatewayNamespace == namespace)) && (covers(name, host) || covers(host, name)) {
				return true
			}
		}
	}
	return false
}

// place is a destination and where it is written.
type place struct {
	*networking.Destination
	path string
	what string // destination or mirror
}

// destinationsOf lists every destination of a VirtualService.
func destinationsOf(spec *networking.VirtualService) []place {
	var out []place
	add := func(d *networking.Destination, what, format string, args ...any) {
		if d.GetHost() != "" {
			out = append(out, place{d, fmt.Sprintf(format, args...), what})
		}
	}
	for i, r := range spec.GetHttp() {
		for j, d := range r.GetRoute() {
			add(d.GetDestination(), "host", "spec.http[%d].route[%d].destination", i, j)
		}
		add(r.GetMirror(), "mirror", "spec.http[%d].mirror", i)
		for j, d := range r.GetMirrors() {
			add(d.GetDestination(), "mirror", "spec.http[%d].mirrors[%d].destination", i, j)
		}
	}
	for i, r := range spec.GetTls() {
		for j, d := range r.GetRoute() {
			add(d.GetDestination(), "host", "spec.tls[%d].route[%d].destination", i, j)
		}
	}
	for i, r := range spec.GetTcp() {
		for j, d := range r.GetRoute() {
			add(d.GetDestination(), "host", "spec.tcp[%d].route[%d].destination", i, j)
		}
	}
	return out
}

// destination judges one destination: its host, its port and its subset.
func (v *view) destination(m *member, d place) {
	h := v.find(d.GetHost(), m.namespace)
	if h == nil && !v.unread("", "Service") && !v.unread(groupNetworking, "ServiceEntry") {
		v.missing(m, Error, d.path+".host", d.what, d.GetHost())
		if names := v.similar(d.GetHost(), m.namespace); names != "" {
			v.hint("did you mean %s?", names)
		}
	}
	if h != nil {
		v.destinationPort(m, d, h)
	}
	if d.GetSubset() == "" || v.unread(groupNetworking, "DestinationRule") {
		return
	}
	name, home := v.complete(d.GetHost(), m.namespace), m.namespace
	if h != nil {
		home = h.namespace
	}
	rules := v.lookup(name, m.namespace, home)
	for _, r := range rules {
		if slices.ContainsFunc(r.GetSubsets(), func(s *networking.Subset) bool { return s.GetName() == d.GetSubset() }) {
			return
		}
	}
	v.missing(m, Error, d.path+".subset", d.what+"+subset in destinationrule", d.GetHost()+"+"+d.GetSubset())
	switch elsewhere := v.subsetElsewhere(name, d.GetSubset(), m.namespace, home); {
	case len(rules) > 0:
		var names []string
		for _, s := range rules[0].GetSubsets() {
			names = append(names, s.GetName())
		}
		if meant := closest(d.GetSubset(), names); meant != "" {
			v.hint("DestinationRule %s has no such subset: did you mean %q?", rules[0], meant)
		} else {
			v.hint("DestinationRule %s has no such subset", rules[0])
		}
	case elsewhere != nil:
		v.hint("DestinationRule %s has it, and is not looked up from here: only rules of the client's namespace, of the service's and of %s are", elsewhere, v.cfg.RootNamespace)
	}
}

// similar names a host that was probably meant; "" when none is near.
func (v *view) similar(name, namespace string) string {
	var names []string
	for _, hosts := range v.hosts {
		for _, h := range hosts {
			if short := h.member.name; h.service != nil && h.namespace == namespace && !strings.Contains(name, ".") {
				names = append(names, short)
			} else if h.service != nil && h.member.name == name {
				return h.name
			}
		}
	}
	slices.Sort(names)
	return closest(name, names)
}

func (v *view) destinationPort(m *member, d place, h *host) {
	n := d.GetPort().GetNumber()
	var numbers []uint32
	for _, p := range h.ports {
		numbers = append(numbers, p.number)
	}
	switch {
	case n == 0 && len(numbers) > 1 && d.GetPort() == nil:
		if spec, ok := m.body.(*networking.VirtualService); ok && keepsPort(spec) {
			return // the port that was called is taken
		}
		v.add(m, Error, CodePortRequired, d.path, "This VirtualService routes to a service %q that exposes multiple ports %v. Specifying a port in the destination is required to disambiguate", d.GetHost(), numbers)
	case n != 0 && len(numbers) > 0 && !slices.Contains(numbers, n):
		v.add(m, Error, CodeReference, d.path+".port.number", "Referenced port not found: \"%d\"", n)
		v.hint("%s has %v: the number is that of the Service, not of the container", d.GetHost(), numbers)
	}
}

// keepsPort says whether the VirtualService is for calls in the mesh only, whose destination has the called port.
func keepsPort(spec *networking.VirtualService) bool {
	return len(spec.GetGateways()) == 0 || (len(spec.GetGateways()) == 1 && spec.GetGateways()[0] == meshGateway)
}

// meshHosts reports hosts that two VirtualServices of the mesh have, for clients that see both.
func (v *view) meshHosts() {
	type owner struct {
		*member
		spec  *networking.VirtualService
		index int
	}
	byHost := map[string][]owner{}
	each(v, func(m *member, spec *networking.VirtualService) {
		if len(spec.GetGateways()) > 0 && !slices.Contains(spec.GetGateways(), meshGateway) {
			return
		}
		for i, h := range spec.GetHosts() {
			name := v.complete(h, m.namespace)
			byHost[name] = append(byHost[name], owner{m, spec, i})
		}
	})
	for _, name := range sortedKeys(byHost) {
		all := byHost[name]
		for i, a := range all {
			var names []string
			for j, b := range all {
				bothSeen := exported(a.spec.GetExportTo(), a.namespace, b.namespace) || exported(b.spec.GetExportTo(), b.namespace, a.namespace)
				if i != j && a.member != b.member && bothSeen {
					names = append(names, b.String())
				}
			}
			if len(names) == 0 {
				continue
			}
			slices.Sort(names)
			v.add(a.member, Error, CodeMeshHosts, indexed("spec.hosts", a.index), "The VirtualServices %s associated with mesh gateway define the same host %s "+
				"which can lead to undefined behavior. This can be fixed by merging the conflicting VirtualServices into a single resource",
				strings.Join(slices.Sorted(slices.Values(append([]string{a.String()}, names...))), ","), name)
		}
	}
}
