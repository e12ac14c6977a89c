package validate

import (
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// kubernetes registers what the mesh needs of Kubernetes' own kinds. All else about them is said by the API server.
func (c *Catalogue) kubernetes() {
	addGo(c, corev1.SchemeGroupVersion.WithKind("Service"), serviceRules)
	addGo(c, corev1.SchemeGroupVersion.WithKind("Pod"), func(c *collector, p *corev1.Pod) { c.pod(&p.Spec, "spec") })
	addGo(c, appsv1.SchemeGroupVersion.WithKind("Deployment"), func(c *collector, d *appsv1.Deployment) { c.workloads(d.Spec.Selector, &d.Spec.Template) })
	addGo(c, appsv1.SchemeGroupVersion.WithKind("StatefulSet"), func(c *collector, d *appsv1.StatefulSet) { c.workloads(d.Spec.Selector, &d.Spec.Template) })
	addGo(c, appsv1.SchemeGroupVersion.WithKind("DaemonSet"), func(c *collector, d *appsv1.DaemonSet) { c.workloads(d.Spec.Selector, &d.Spec.Template) })
	addGo(c, networkingv1.SchemeGroupVersion.WithKind("Ingress"), ingressRules)
	addGo(c, networkingv1.SchemeGroupVersion.WithKind("IngressClass"), func(c *collector, i *networkingv1.IngressClass) {
		c.must("spec.controller", filled(i.Spec.Controller))
	})
	for _, name := range []string{"Namespace", "Secret", "ServiceAccount", "ConfigMap"} { // nothing beyond their form
		if k := c.kinds[corev1.SchemeGroupVersion.WithKind(name)]; k != nil && k.rules == nil {
			k.rules = func(*walker, *yaml.Node, map[string]any) {}
		}
	}
}

func serviceRules(c *collector, s *corev1.Service) {
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		c.must("spec.externalName", Host(s.Spec.ExternalName, false))
	} else if len(s.Spec.Ports) == 0 && s.Spec.ClusterIP != corev1.ClusterIPNone {
		c.add(Error, "spec.ports", "is required")
	}
	c.selector(s.Spec.Selector, "spec.selector")
	names := map[string]int{}
	for i, p := range s.Spec.Ports {
		at := indexed("spec.ports", i)
		if p.Port < 1 || p.Port > 65535 {
			c.add(Error, at+".port", "%d is not a port number from 1 to 65535", p.Port)
		}
		if p.Name == "" && len(s.Spec.Ports) > 1 {
			c.add(Error, at+".name", "is required when there are several ports")
		}
		if j, twice := names[p.Name]; twice && p.Name != "" {
			c.add(Error, at+".name", "%s has the name %q already", indexed("spec.ports", j), p.Name)
		}
		names[p.Name] = i
	}
}

func (c *collector) workloads(selector *metav1.LabelSelector, template *corev1.PodTemplateSpec) {
	if selector == nil || len(selector.MatchLabels)+len(selector.MatchExpressions) == 0 {
		c.add(Warning, "spec.selector", "is not set: the API server refuses that")
	} else if s, err := metav1.LabelSelectorAsSelector(selector); err != nil {
		c.add(Error, "spec.selector", "%s", err)
	} else if !s.Matches(labels.Set(template.Labels)) {
		c.add(Error, "spec.template.metadata.labels", "does not have what spec.selector looks for: %s", s)
	}
	c.pod(&template.Spec, "spec.template.spec")
}

func (c *collector) pod(p *corev1.PodSpec, at string) {
	if len(p.Containers) == 0 {
		c.add(Error, at+".containers", "is required")
	}
	volumes := map[string]bool{}
	for _, v := range p.Volumes {
		volumes[v.Name] = true
	}
	seen := map[string]bool{}
	if !p.HostNetwork {
		for i := range p.Containers {
			c.probeHosts(&p.Containers[i], indexed(at+".containers", i))
		}
		for i := range p.InitContainers {
			c.probeHosts(&p.InitContainers[i], indexed(at+".initContainers", i))
		}
	}
	for i := range p.Containers {
		k, at := &p.Containers[i], indexed(at+".containers", i)
		switch {
		case k.Name == "":
			c.add(Error, at+".name", "is required")
		case seen[k.Name]:
			c.add(Error, at+".name", "another container has the name %q already", k.Name)
		case k.Name == "istio-proxy" && (k.Image == "" || k.Image == "auto"):
			c.add(Warning, at, "is an override of an injected sidecar: nothing is injected here, and the image %q does not exist", k.Image)
			continue
		}
		seen[k.Name] = true
		if k.Image == "" {
			c.add(Warning, at+".image", "is not set: the API server refuses that, unless a webhook sets it")
		}
		for j, port := range k.Ports {
			if port.ContainerPort < 1 || port.ContainerPort > 65535 {
				c.add(Error, at+indexed(".ports", j)+".containerPort", "%d is not a port number from 1 to 65535", port.ContainerPort)
			}
		}
		for j, m := range k.VolumeMounts {
			if !volumes[m.Name] {
				c.add(Warning, at+indexed(".volumeMounts", j)+".name", "there is no volume %q", m.Name)
			}
		}
	}
}

// probeHosts warns of probes and hooks that name a host: kubelet would ask that host in the pod's place, and the mesh lets
// kubelet through to the pod's own address only.
func (c *collector) probeHosts(k *corev1.Container, at string) {
	check := func(http *corev1.HTTPGetAction, tcp *corev1.TCPSocketAction, at string) {
		for name, host := range map[string]string{".httpGet.host": hostOf(http), ".tcpSocket.host": socketHost(tcp)} {
			if host != "" {
				c.add(Warning, at+name, "kubelet asks %q instead of the pod: as a probe of this pod it is let through to the pod's own address only", host)
				c.hint("leave host out; a Host header goes into httpHeaders")
			}
		}
	}
	for name, p := range map[string]*corev1.Probe{".livenessProbe": k.LivenessProbe, ".readinessProbe": k.ReadinessProbe, ".startupProbe": k.StartupProbe} {
		if p != nil {
			check(p.HTTPGet, p.TCPSocket, at+name)
		}
	}
	if l := k.Lifecycle; l != nil {
		for name, h := range map[string]*corev1.LifecycleHandler{".lifecycle.postStart": l.PostStart, ".lifecycle.preStop": l.PreStop} {
			if h != nil {
				check(h.HTTPGet, h.TCPSocket, at+name)
			}
		}
	}
}

func hostOf(a *corev1.HTTPGetAction) string {
	if a == nil {
		return ""
	}
	return a.Host
}

func socketHost(a *corev1.TCPSocketAction) string {
	if a == nil {
		return ""
	}
	return a.Host
}

func ingressRules(c *collector, in *networkingv1.Ingress) {
	if in.Spec.DefaultBackend == nil && len(in.Spec.Rules) == 0 {
		c.add(Error, "spec.rules", "or defaultBackend is required")
	}
	if in.Spec.DefaultBackend != nil {
		c.backend(in.Spec.DefaultBackend, "spec.defaultBackend")
	}
	for i, r := range in.Spec.Rules {
		at := indexed("spec.rules", i)
		if r.Host != "" {
			c.must(at+".host", Host(r.Host, true))
		}
		if r.HTTP == nil {
			continue
		}
		for j := range r.HTTP.Paths {
			p, at := &r.HTTP.Paths[j], fmt.Sprintf("%s.http.paths[%d]", at, j)
			switch {
			case p.PathType == nil:
				c.add(Error, at+".pathType", "is required: Prefix, Exact or ImplementationSpecific")
			case *p.PathType != networkingv1.PathTypeExact && *p.PathType != networkingv1.PathTypePrefix && *p.PathType != networkingv1.PathTypeImplementationSpecific:
				c.add(Error, at+".pathType", "%q is not Prefix, Exact or ImplementationSpecific", *p.PathType)
			case !strings.HasPrefix(p.Path, "/") && *p.PathType != networkingv1.PathTypeImplementationSpecific:
				c.add(Error, at+".path", "%q does not begin with \"/\"", p.Path)
			}
			c.backend(&p.Backend, at+".backend")
		}
	}
}

func (c *collector) backend(b *networkingv1.IngressBackend, at string) {
	switch {
	case b.Service == nil && b.Resource == nil:
		c.add(Error, at, "service or resource is required")
	case b.Service != nil && b.Resource != nil:
		c.add(Error, at, "service and resource exclude each other")
	case b.Service != nil:
		if b.Service.Name == "" {
			c.add(Error, at+".service.name", "is required")
		}
		if n, name := b.Service.Port.Number, b.Service.Port.Name; (n == 0) == (name == "") || n < 0 || n > 65535 {
			c.add(Error, at+".service.port", "a number from 1 to 65535 or a name is required")
		}
	}
}
