package validate

import (
	"cmp"
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
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
	hosts     map[string][]*host // by name in lower case; wildcards too
	selecting map[string][]*host // of Services with a selector, by namespace
	wild      []*host            // those whose name has a wildcard, longest first
	rules     map[string][]*destinationRule
}

// host is something that can be called.
type host struct {
	*member
	name     string // complete, in lower case
	ports    []hostPort
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
	v := &view{Set: s, workloads: map[string][]*workload{}, hosts: map[string][]*host{}, selecting: map[string][]*host{}, rules: map[string][]*destinationRule{}}
	for _, m := range s.order {
		if s.objects[m.objectID] == m {
			v.members = append(v.members, m)
			v.index(m)
		}
	}
	each(v, func(m *member, o *networking.DestinationRule) { // their hosts are known now
		r := &destinationRule{member: m, DestinationRule: o, name: v.complete(o.GetHost(), m.namespace)}
		v.rules[m.namespace] = append(v.rules[m.namespace], r)
	})
	slices.SortStableFunc(v.wild, func(a, b *host) int { return cmp.Compare(len(b.name), len(a.name)) })
	return v
}

func (v *view) index(m *member) {
	pods := func(labels map[string]string, ports map[string]int32, entry bool) {
		v.workloads[m.namespace] = append(v.workloads[m.namespace], &workload{member: m, labels: labels, ports: ports, entry: entry})
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
		for _, name := range o.GetHosts() {
			h := &host{member: m, name: strings.ToLower(name), exportTo: o.GetExportTo(), entry: o}
			for _, p := range o.GetPorts() {
				h.ports = append(h.ports, hostPort{number: p.GetNumber(), name: p.GetName(), protocol: strings.ToUpper(p.GetProtocol())})
			}
			v.addHost(h)
		}
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
	v.addHost(h)
	if len(h.selector) > 0 {
		v.selecting[h.namespace] = append(v.selecting[h.namespace], h)
	}
}

func (v *view) addHost(h *host) {
	v.hosts[h.name] = append(v.hosts[h.name], h)
	if strings.HasPrefix(h.name, "*") {
		v.wild = append(v.wild, h)
	}
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
	case len(parts) == 2 && v.hosts[name] == nil && v.objects[objectID{"", "Service", parts[1], parts[0]}] != nil:
		return name + suffix
	case len(parts) == 3 && parts[2] == "svc":
		return name + "." + v.cfg.ClusterDomain
	}
	return name
}

// find returns the host of a name that objects of the namespace can see; nil when there is none.
func (v *view) find(name, namespace string) *host {
	name = v.complete(name, namespace)
	for _, h := range v.hosts[name] {
		if exported(h.exportTo, h.namespace, namespace) {
			return h
		}
	}
	for _, h := range v.wild {
		if covers(h.name, name) && exported(h.exportTo, h.namespace, namespace) {
			return h
		}
	}
	return nil
}

// exported says whether what is exported to those namespaces is visible in to.
func exported(exportTo []string, from, to string) bool {
	return len(exportTo) == 0 || slices.Contains(exportTo, "*") || slices.Contains(exportTo, to) || (slices.Contains(exportTo, ".") && from == to)
}

// selected lists the workloads of a namespace with those labels; without labels all of them.
func (v *view) selected(namespace string, want map[string]string) []*workload {
	var out []*workload
	for _, w := range v.workloads[namespace] {
		if contains(w.labels, want) {
			out = append(out, w)
		}
	}
	return out
}

// members of a kind of the mesh, whose body is T.
func each[T any](v *view, visit func(m *member, body T)) {
	for _, m := range v.members {
		if body, ok := m.body.(T); ok {
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
