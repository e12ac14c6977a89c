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
			if !v.servesHost(g, gateway, h, m.namespace) {
				lost = append(lost, h)
			}
		}
		if len(lost) > 0 {
			v.add(m, Warning, CodeGatewayHost, "spec.hosts", "one or more host %s defined in VirtualService %s not found in Gateway %s", some(lost), m, g)
			v.hint("the gateway answers such requests with 404: add the host to one of its servers")
		}
	}
}

// servesHost says whether a gateway has a server for a host of a VirtualService of the namespace.
func (v *view) servesHost(m *member, g *networking.Gateway, host, namespace string) bool {
	served := v.servers[m]
	if served == nil {
		served = newNames[string]()
		for _, s := range g.GetServers() {
			for _, h := range s.GetHosts() {
				ns, name, found := strings.Cut(h, "/")
				if !found {
					ns, name = "*", h
				}
				served.add(name, ns)
			}
		}
		v.servers[m] = served
	}
	if !v.spend(1 + len(host)) {
		return true
	}
	admitted := func(group []string) bool {
		v.spend(len(group))
		return slices.ContainsFunc(group, func(ns string) bool {
			return ns == "*" || ns == namespace || (ns == "." && m.namespace == namespace)
		})
	}
	for group := range served.covering(host) {
		if admitted(group) {
			return true
		}
	}
	if !strings.HasPrefix(host, "*") || !v.spend(len(served.exact)) {
		return false
	}
	for name, group := range served.exact {
		if covers(host, name) && admitted(group) {
			return true
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
		if !v.spend(len(r.GetSubsets())) {
			return
		}
		if slices.ContainsFunc(r.GetSubsets(), func(s *networking.Subset) bool { return s.GetName() == d.GetSubset() }) {
			return
		}
	}
	v.missing(m, Error, d.path+".subset", d.what+"+subset in destinationrule", d.GetHost()+"+"+d.GetSubset())
	switch elsewhere := v.subsetElsewhere(name, d.GetSubset(), m.namespace, home); {
	case len(rules) > 0:
		var names []string
		for _, s := range rules[0].GetSubsets() {
			if !v.effort.guess(1) {
				break
			}
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
	for _, h := range v.byShort[name] {
		if h.namespace != namespace {
			return h.name
		}
	}
	if strings.Contains(name, ".") || !v.effort.guess(len(v.short[namespace])) {
		return ""
	}
	return closest(name, v.short[namespace])
}

func (v *view) destinationPort(m *member, d place, h *host) {
	n := d.GetPort().GetNumber()
	switch {
	case n == 0 && len(h.ports) > 1 && d.GetPort() == nil:
		if spec, ok := m.body.(*networking.VirtualService); ok && keepsPort(spec) {
			return // the port that was called is taken
		}
		v.add(m, Error, CodePortRequired, d.path, "This VirtualService routes to a service %q that exposes multiple ports %s. Specifying a port in the destination is required to disambiguate", d.GetHost(), someNumbers(h.ports))
	case n != 0 && len(h.ports) > 0 && !h.numbers[n]:
		v.add(m, Error, CodeReference, d.path+".port.number", "Referenced port not found: \"%d\"", n)
		v.hint("%s has %s: the number is that of the Service, not of the container", d.GetHost(), someNumbers(h.ports))
	}
}

// someNumbers is the numbers of ports for a message.
func someNumbers(ports []hostPort) string {
	var numbers []uint32
	for _, p := range ports[:min(len(ports), mentioned)] {
		numbers = append(numbers, p.number)
	}
	return someOfMany(numbers, len(ports))
}

// keepsPort says whether the VirtualService is for calls in the mesh only, whose destination has the called port.
func keepsPort(spec *networking.VirtualService) bool {
	return len(spec.GetGateways()) == 0 || (len(spec.GetGateways()) == 1 && spec.GetGateways()[0] == meshGateway)
}

// hostOwner is a VirtualService of the mesh with a host.
type hostOwner struct {
	*member
	spec  *networking.VirtualService
	index int
}

// hostOwners is the VirtualServices of the mesh that have one host, by who sees them.
type hostOwners struct {
	all    []hostOwner
	public []*member            // that every namespace sees
	in     map[string][]*member // of a namespace
	to     map[string][]*member // that a namespace sees because it is named
}

// meshHosts reports hosts that two VirtualServices of the mesh have, for clients that see both.
func (v *view) meshHosts() {
	byHost := map[string]*hostOwners{}
	each(v, func(m *member, spec *networking.VirtualService) {
		if len(spec.GetGateways()) > 0 && !slices.Contains(spec.GetGateways(), meshGateway) {
			return
		}
		for i, h := range spec.GetHosts() {
			name := v.complete(h, m.namespace)
			if byHost[name] == nil {
				byHost[name] = &hostOwners{in: map[string][]*member{}, to: map[string][]*member{}}
			}
			byHost[name].add(hostOwner{m, spec, i})
		}
	})
	for _, name := range sortedKeys(byHost) {
		if len(byHost[name].all) < 2 {
			continue
		}
		byHost[name].visible(v)
		for _, a := range byHost[name].all {
			names, more := byHost[name].rivals(v, a)
			if len(names) == 0 {
				continue
			}
			names = append(names, a.String())
			slices.Sort(names)
			list := strings.Join(names, ",")
			if more {
				list += " and more"
			}
			v.add(a.member, Error, CodeMeshHosts, indexed("spec.hosts", a.index), "The VirtualServices %s associated with mesh gateway define the same host %s "+
				"which can lead to undefined behavior. This can be fixed by merging the conflicting VirtualServices into a single resource", list, name)
		}
	}
}

// add takes an owner, one that has the host in two spellings once.
func (o *hostOwners) add(a hostOwner) {
	if n := len(o.all); n == 0 || o.all[n-1].member != a.member {
		o.all = append(o.all, a)
	}
}

// visible sorts the owners by who sees them.
func (o *hostOwners) visible(v *view) {
	for _, a := range o.all {
		if !v.spend(1 + len(a.spec.GetExportTo())) {
			return
		}
		o.in[a.namespace] = append(o.in[a.namespace], a.member)
		if to := a.spec.GetExportTo(); len(to) == 0 || slices.Contains(to, "*") {
			o.public = append(o.public, a.member)
			continue
		}
		for _, ns := range a.spec.GetExportTo() {
			if ns == "." {
				ns = a.namespace
			}
			o.to[ns] = append(o.to[ns], a.member)
		}
	}
}

// rivals names the other owners for which it holds that one of the two sees the other, or the first of them.
func (o *hostOwners) rivals(v *view, a hostOwner) (names []string, more bool) {
	const most = 10
	v.spend(1 + len(a.spec.GetExportTo()))
	lists := [][]*member{o.public, o.to[a.namespace]}
	if to := a.spec.GetExportTo(); len(to) == 0 || slices.Contains(to, "*") {
		lists = [][]*member{nil}
		for i := range min(len(o.all), most+2) {
			lists[0] = append(lists[0], o.all[i].member)
		}
	} else {
		for _, ns := range to {
			if ns == "." {
				ns = a.namespace
			}
			lists = append(lists, o.in[ns])
		}
	}
	told := map[*member]bool{a.member: true}
	for _, list := range lists {
		for _, m := range list {
			if !v.spend(1) {
				return nil, false
			}
			if told[m] {
				continue
			}
			if told[m] = true; len(names) == most {
				return names, true
			}
			names = append(names, m.String())
		}
	}
	return names, false
}
