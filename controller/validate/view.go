package validate

import (
	"reflect"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

const (
	groupNetworking = "networking.istio.io"
	groupSecurity   = "security.istio.io"
	groupGateway    = "gateway.networking.k8s.io"
)

// view is a Set, indexed for one judgement.
type view struct {
	*Set
	members   []*member // what the Set holds, in order
	workloads map[string][]*workload
	kinds     map[reflect.Type][]*member // by the type of their body
	labelled  map[labelIn][]*workload    // those of a namespace, "" for all, that have a label
	hosts     *names[*host]
	sorted    []string                            // the names of the hosts
	selecting map[labelIn][]*host                 // Services, by one label of their selector
	byShort   map[string][]*host                  // services, by their short name
	short     map[string][]string                 // the short names of the services of a namespace
	secrets   map[string][]*member                // by name
	grants    map[string][]*member                // by namespace
	rules     map[string]*names[*destinationRule] // by namespace
	subsets   map[string][]*destinationRule       // that have a subset of the name
	servers   map[*member]*names[string]          // hosts of gateways → the namespaces that may use them
	modes     map[*host]peerMode
}

// labelIn is one label in a namespace.
type labelIn struct{ namespace, key, value string }

// host is something that can be called.
type host struct {
	*member
	name     string // complete, in lower case
	ports    []hostPort
	numbers  map[uint32]bool   // of the ports
	order    int               // of the Services
	selector map[string]string // of a Service
	exportTo []string
	entry    *networking.ServiceEntry // nil for a Service
	service  *corev1.Service          // nil for a ServiceEntry
}

// hostPort is a port of a host.
type hostPort struct {
	number   uint32
	name     string
	protocol string // as protocolOf says
	target   string // number or name of the port of the pods; "" for the same number
}

// destinationRule is one, with the complete name of its host.
type destinationRule struct {
	*member
	*networking.DestinationRule
	name string
}

func newView(s *Set) *view {
	v := &view{Set: s, workloads: map[string][]*workload{}, kinds: map[reflect.Type][]*member{}, labelled: map[labelIn][]*workload{},
		hosts: newNames[*host](), selecting: map[labelIn][]*host{}, byShort: map[string][]*host{}, short: map[string][]string{},
		secrets: map[string][]*member{}, grants: map[string][]*member{}, rules: map[string]*names[*destinationRule]{},
		subsets: map[string][]*destinationRule{}, servers: map[*member]*names[string]{}, modes: map[*host]peerMode{}}
	for _, m := range s.order {
		if s.objects[m.objectID] == m {
			v.members = append(v.members, m)
			v.index(m)
		}
	}
	v.sorted = sortedKeys(v.hosts.exact)
	for _, names := range v.short {
		slices.Sort(names)
	}
	each(v, func(m *member, o *networking.DestinationRule) { // their hosts are known now
		r := &destinationRule{member: m, DestinationRule: o, name: v.complete(o.GetHost(), m.namespace)}
		if v.rules[m.namespace] == nil {
			v.rules[m.namespace] = newNames[*destinationRule]()
		}
		v.rules[m.namespace].add(r.name, r)
		for _, s := range o.GetSubsets() {
			v.subsets[s.GetName()] = append(v.subsets[s.GetName()], r)
		}
	})
	return v
}

func (v *view) index(m *member) {
	pods := func(labels map[string]string, ports map[string]int32, entry bool) {
		w := &workload{member: m, labels: labels, ports: ports, entry: entry}
		v.workloads[m.namespace] = append(v.workloads[m.namespace], w)
		for k, value := range labels {
			for _, l := range []labelIn{{m.namespace, k, value}, {"", k, value}} {
				v.labelled[l] = append(v.labelled[l], w)
			}
		}
	}
	v.kinds[reflect.TypeOf(m.body)] = append(v.kinds[reflect.TypeOf(m.body)], m)
	if m.kind == "Secret" && m.group == "" {
		v.secrets[m.name] = append(v.secrets[m.name], m)
	}
	switch o := m.body.(type) {
	case *corev1.Pod:
		if o.Status.Phase != corev1.PodSucceeded && o.Status.Phase != corev1.PodFailed {
			pods(o.Labels, containerPorts(&o.Spec), false)
		}
	case *appsv1.Deployment:
		pods(o.Spec.Template.Labels, containerPorts(&o.Spec.Template.Spec), false)
	case *appsv1.StatefulSet:
		pods(o.Spec.Template.Labels, containerPorts(&o.Spec.Template.Spec), false)
	case *appsv1.DaemonSet:
		pods(o.Spec.Template.Labels, containerPorts(&o.Spec.Template.Spec), false)
	case *networking.WorkloadEntry:
		pods(o.GetLabels(), nil, true)
	case *networking.WorkloadGroup:
		pods(o.GetMetadata().GetLabels(), nil, true)
	case *corev1.Service:
		v.indexService(m, o)
	case *networking.ServiceEntry:
		var ports []hostPort // of all hosts
		for _, p := range o.GetPorts() {
			ports = append(ports, hostPort{number: p.GetNumber(), name: p.GetName(), protocol: strings.ToUpper(p.GetProtocol())})
		}
		numbers := numbersOf(ports)
		for _, name := range o.GetHosts() {
			h := &host{member: m, name: strings.ToLower(name), exportTo: o.GetExportTo(), entry: o, ports: ports, numbers: numbers}
			v.hosts.add(h.name, h)
		}
	case *gatewayv1.ReferenceGrant:
		v.grants[m.namespace] = append(v.grants[m.namespace], m)
	}
}

func (v *view) indexService(m *member, s *corev1.Service) {
	h := &host{member: m, name: m.name + "." + m.namespace + ".svc." + v.cfg.ClusterDomain, selector: s.Spec.Selector, service: s}
	for name := range strings.SplitSeq(m.annotations["networking.istio.io/exportTo"], ",") {
		if name = strings.TrimSpace(name); name != "" {
			h.exportTo = append(h.exportTo, name)
		}
	}
	for _, p := range s.Spec.Ports {
		if p.Protocol == corev1.ProtocolUDP || p.Protocol == corev1.ProtocolSCTP {
			continue
		}
		port := hostPort{number: uint32(p.Port), name: p.Name, protocol: servicePortProtocol(&p)} //nolint:gosec // checked by the rules
		if t := p.TargetPort.String(); t != "0" && t != "" {
			port.target = t
		}
		h.ports = append(h.ports, port)
	}
	h.numbers = numbersOf(h.ports)
	v.hosts.add(h.name, h)
	h.order = len(v.members)
	v.byShort[m.name] = append(v.byShort[m.name], h)
	v.short[m.namespace] = append(v.short[m.namespace], m.name)
	if keys := sortedKeys(h.selector); len(keys) > 0 {
		l := labelIn{h.namespace, keys[0], h.selector[keys[0]]}
		v.selecting[l] = append(v.selecting[l], h)
	}
}

func numbersOf(ports []hostPort) map[uint32]bool {
	out := make(map[uint32]bool, len(ports))
	for _, p := range ports {
		out[p.number] = true
	}
	return out
}

// complete makes the name of a host that an object of the namespace names: short names are services of that namespace.
func (v *view) complete(name, namespace string) string {
	name = strings.ToLower(name)
	suffix := ".svc." + v.cfg.ClusterDomain
	switch parts := strings.Split(name, "."); {
	case strings.Contains(name, "*") || name == "":
		return name
	case len(parts) == 1:
		return name + "." + namespace + suffix
	case len(parts) == 2 && len(v.hosts.exact[name]) == 0 && v.objects[objectID{"", "Service", parts[1], parts[0]}] != nil:
		return name + suffix
	case len(parts) == 3 && parts[2] == "svc":
		return name + "." + v.cfg.ClusterDomain
	}
	return name
}

// find returns the host of a name that objects of the namespace can see; nil when there is none.
func (v *view) find(name, namespace string) *host {
	name = v.complete(name, namespace)
	for group := range v.hosts.covering(name) {
		for _, h := range group {
			if !v.spend(1 + len(h.exportTo)) {
				return nil
			}
			if exported(h.exportTo, h.namespace, namespace) {
				return h
			}
		}
	}
	return nil
}

// exported says whether what is exported to those namespaces is visible in to.
func exported(exportTo []string, from, to string) bool {
	return len(exportTo) == 0 || slices.Contains(exportTo, "*") || slices.Contains(exportTo, to) || (slices.Contains(exportTo, ".") && from == to)
}

// selected lists the workloads of a namespace with those labels; without labels all of them, in a list that is not to be
// changed.
func (v *view) selected(namespace string, want map[string]string) []*workload {
	if len(want) == 0 {
		return v.workloads[namespace]
	}
	return v.withLabels(namespace, want)
}

// withLabels lists the workloads of a namespace, "" for all, that have the labels, of which there is one at least.
func (v *view) withLabels(namespace string, want map[string]string) []*workload {
	var least, out []*workload
	first := true
	for k, value := range want {
		if list := v.labelled[labelIn{namespace, k, value}]; first || len(list) < len(least) {
			least, first = list, false
		}
	}
	if !v.spend(1 + len(least)*len(want)) {
		return nil
	}
	for _, w := range least {
		if contains(w.labels, want) {
			out = append(out, w)
		}
	}
	return out
}

// members of a kind of the mesh, whose body is T.
func each[T any](v *view, visit func(m *member, body T)) {
	for _, m := range v.kinds[reflect.TypeFor[T]()] {
		if body, ok := m.body.(T); ok && v.spend(1) {
			visit(m, body)
		}
	}
}

// servicePortProtocol is the protocol that a port of a Service declares, in upper case; "" when it declares none.
func servicePortProtocol(p *corev1.ServicePort) string {
	if p.AppProtocol != nil {
		switch word := strings.ToUpper(strings.TrimPrefix(*p.AppProtocol, "kubernetes.io/")); {
		case word == "WS":
			return "HTTP"
		case word == "WSS":
			return "HTTPS"
		case protocolWord(word) != "":
			return protocolWord(word)
		}
	}
	word := strings.ToUpper(p.Name)
	if word == "GRPC-WEB" || strings.HasPrefix(word, "GRPC-WEB-") {
		return "GRPC-WEB"
	}
	word, _, _ = strings.Cut(word, "-")
	return protocolWord(word)
}

// protocolWord is the protocol that a word in upper case means; "" when it means none.
func protocolWord(word string) string {
	switch {
	case word == "H2C":
		return "HTTP2"
	case word == "THRIFT" || slices.Contains(protocols, word):
		return word
	}
	return ""
}

// speaksHTTP and speaksTCP say what is declared; both are false for a port that declares nothing.
func speaksHTTP(protocol string) bool {
	return slices.Contains([]string{"HTTP", "HTTP2", "GRPC", "GRPC-WEB"}, protocol)
}

func speaksTCP(protocol string) bool { return protocol != "" && !speaksHTTP(protocol) }

// String is namespace/name.
func (r *destinationRule) String() string { return r.member.String() }
