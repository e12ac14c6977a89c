package enroll

import (
	"cmp"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Probe is one request that kubelet makes of a pod's own address.
type Probe struct {
	Port uint16
	HTTP bool   // plain HTTP: passes only with this method and path; otherwise the connection passes
	Path string // with leading slash and query; HTTP only
	GRPC bool   // what begins as HTTP/2 passes
	TLS  bool   // HTTPS: what begins as TLS passes
	// None of them: no payload passes.
}

// Probes lists what the pod spec declares for kubelet: liveness, readiness and startup probes and lifecycle hooks of
// every container, init containers included. A probe whose host is not the pod itself is not declared by that host and
// does not pass; it and unresolvable port names give warnings. Sorted, without duplicates.
func Probes(pod *corev1.Pod) ([]Probe, []string) {
	var out []Probe
	var warnings []string
	for _, c := range append(slices.Clone(pod.Spec.InitContainers), pod.Spec.Containers...) {
		for _, h := range handlers(&c) {
			p, err := h.probe(pod, &c)
			switch {
			case err != nil:
				warnings = append(warnings, fmt.Sprintf("pod %s/%s: container %s: %s: %v", pod.Namespace, pod.Name, c.Name, h.field, err))
			case p != (Probe{}):
				out = append(out, p)
			}
		}
	}
	slices.SortFunc(out, func(a, b Probe) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), strings.Compare(a.Path, b.Path), cmp.Compare(a.kind(), b.kind()))
	})
	out = slices.Compact(out)
	return out, append(warnings, shared(pod, out)...)
}

// shared warns about ports with an httpGet probe and another: all of kubelet's connections to such a port end in the
// proxy, which accepts them itself and passes HTTP only. probes are sorted.
func shared(pod *corev1.Pod, probes []Probe) []string {
	var out []string
	for i := 0; i < len(probes); {
		port, end := probes[i].Port, i
		kinds := map[int]bool{}
		for ; end < len(probes) && probes[end].Port == port; end++ {
			kinds[probes[end].kind()] = true
		}
		i = end
		for _, c := range []struct {
			probe Probe
			text  string
		}{
			{Probe{}, "a tcpSocket probe succeeds whether the application listens or not"},
			{Probe{GRPC: true}, "a grpc probe fails"},
			{Probe{TLS: true}, "an HTTPS probe fails"},
		} {
			if kinds[Probe{HTTP: true}.kind()] && kinds[c.probe.kind()] {
				out = append(out, fmt.Sprintf("pod %s/%s: port %d also has an httpGet probe, which the mesh answers for: %s; use httpGet or another port",
					pod.Namespace, pod.Name, port, c.text))
			}
		}
	}
	return out
}

// kind orders probes of one port and path.
func (p Probe) kind() int {
	switch {
	case p.HTTP:
		return 1
	case p.GRPC:
		return 2
	case p.TLS:
		return 3
	}
	return 0
}

// handler is one probe or hook with the name of its field.
type handler struct {
	field string
	http  *corev1.HTTPGetAction
	tcp   *corev1.TCPSocketAction
	grpc  *corev1.GRPCAction
}

func handlers(c *corev1.Container) []handler {
	var out []handler
	for field, p := range map[string]*corev1.Probe{
		"livenessProbe": c.LivenessProbe, "readinessProbe": c.ReadinessProbe, "startupProbe": c.StartupProbe,
	} {
		if p != nil {
			out = append(out, handler{field: field, http: p.HTTPGet, tcp: p.TCPSocket, grpc: p.GRPC})
		}
	}
	if c.Lifecycle != nil {
		for field, h := range map[string]*corev1.LifecycleHandler{
			"lifecycle.postStart": c.Lifecycle.PostStart, "lifecycle.preStop": c.Lifecycle.PreStop,
		} {
			if h != nil {
				out = append(out, handler{field: field, http: h.HTTPGet})
			}
		}
	}
	slices.SortFunc(out, func(a, b handler) int { return strings.Compare(a.field, b.field) })
	return out
}

// probe returns the zero value for an exec handler.
func (h handler) probe(pod *corev1.Pod, c *corev1.Container) (Probe, error) {
	switch {
	case h.http != nil:
		if err := ownHost(pod, h.http.Host); err != nil {
			return Probe{}, err
		}
		port, err := resolve(c, h.http.Port)
		if err != nil || h.http.Scheme == corev1.URISchemeHTTPS { // nothing to see inside TLS
			return Probe{Port: port, TLS: true}, err
		}
		target, err := requestTarget(h.http.Path)
		return Probe{Port: port, HTTP: true, Path: target}, err
	case h.tcp != nil:
		if err := ownHost(pod, h.tcp.Host); err != nil {
			return Probe{}, err
		}
		port, err := resolve(c, h.tcp.Port)
		return Probe{Port: port}, err
	case h.grpc != nil:
		port, err := resolve(c, intstr.FromInt32(h.grpc.Port))
		return Probe{Port: port, GRPC: true}, err
	}
	return Probe{}, nil
}

// requestTarget returns what kubelet puts into the request line for the path of an httpGet action: it reads the path as a
// URL, so that it escapes what must be escaped and drops a fragment, and takes it literally where that cannot be done.
func requestTarget(path string) (string, error) {
	u, err := url.Parse(path)
	if err != nil {
		u = &url.URL{Path: path}
	}
	u.Scheme, u.Host = "http", "pod"
	u, err = url.Parse(u.String())
	if err != nil || u.Host != "pod" || u.Opaque != "" {
		return "", fmt.Errorf("path %q: kubelet can make no request of it", path)
	}
	target := u.RequestURI()
	if strings.Contains(target, " ") {
		return "", fmt.Errorf("path %q: its query has a blank, with which kubelet's request is not HTTP: write %%20", path)
	}
	return target, nil
}

// ownHost refuses a probe of anything but the pod itself.
func ownHost(pod *corev1.Pod, host string) error {
	if host == "" {
		return nil
	}
	addr, err := netip.ParseAddr(host)
	if err == nil && slices.Contains(podAddrs(pod), addr.Unmap()) {
		return nil
	}
	return fmt.Errorf("host %q is not this pod: kubelet's request does not pass the mesh there", host)
}

// resolve turns a port number or the name of a port of the same container into a number.
func resolve(c *corev1.Container, p intstr.IntOrString) (uint16, error) {
	n := p.IntVal
	if p.Type == intstr.String {
		i := slices.IndexFunc(c.Ports, func(cp corev1.ContainerPort) bool { return cp.Name == p.StrVal })
		if i < 0 {
			return 0, fmt.Errorf("port %q is not a port name of the container", p.StrVal)
		}
		n = c.Ports[i].ContainerPort
	}
	if n < 1 || n > 65535 {
		return 0, fmt.Errorf("port %s is not a port", p.String())
	}
	return uint16(n), nil
}

// podAddrs returns the pod's addresses as its status has them; none before the network is set up.
func podAddrs(pod *corev1.Pod) []netip.Addr {
	var out []netip.Addr
	for _, ip := range pod.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			out = append(out, a.Unmap())
		}
	}
	if len(out) == 0 {
		if a, err := netip.ParseAddr(pod.Status.PodIP); err == nil {
			out = append(out, a.Unmap())
		}
	}
	return out
}
