package model

import (
	"net/netip"
	"slices"
	"strings"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/validate"
)

const (
	labelGatewayName  = "gateway.networking.k8s.io/gateway-name"
	labelGatewayClass = "gateway.networking.k8s.io/gateway-class-name"
	labelSubzone      = "topology.istio.io/subzone"
)

// PodOf returns the pod of an event: a *Pod as it is, a *corev1.Pod as NewPod reads it; nil when there is none.
func PodOf(object any) *Pod {
	switch o := object.(type) {
	case nil:
		return nil
	case *Pod:
		return o
	default:
		return NewPod(o.(*corev1.Pod))
	}
}

// NewPod reads a pod. It returns nil for a pod that has finished: its addresses may belong to another one.
func NewPod(p *corev1.Pod) *Pod {
	if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return nil
	}
	out := &Pod{
		Name: Name{p.Namespace, p.Name}, UID: p.UID, Labels: p.Labels, Node: p.Spec.NodeName,
		ServiceAccount: p.Spec.ServiceAccountName, HostNetwork: p.Spec.HostNetwork,
		Captured: p.Annotations[api.AnnotationRedirection] == api.RedirectionEnabled && !p.Spec.HostNetwork,
		Ports:    namedPorts(p), IPs: podIPs(p),
	}
	_, out.Mirrored = p.Annotations[corev1.MirrorPodAnnotationKey]
	if out.ServiceAccount == "" {
		out.ServiceAccount = "default"
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			out.Ready, out.Terminating = p.DeletionTimestamp == nil, p.DeletionTimestamp != nil
		}
	}
	out.OwnerKind, out.OwnerName = owner(p)
	return out
}

func podIPs(p *corev1.Pod) []netip.Addr {
	var ips []netip.Addr
	texts := []string{p.Status.PodIP}
	for _, ip := range p.Status.PodIPs {
		texts = append(texts, ip.IP)
	}
	for _, text := range texts {
		if ip, err := netip.ParseAddr(text); err == nil && !slices.Contains(ips, ip.Unmap()) {
			ips = append(ips, ip.Unmap())
		}
	}
	return ips
}

func namedPorts(p *corev1.Pod) map[string]uint32 {
	var ports map[string]uint32
	add := func(c *corev1.Container) {
		for _, port := range c.Ports {
			if _, taken := ports[port.Name]; port.Name != "" && !taken && isTCP(port.Protocol) {
				if ports == nil {
					ports = map[string]uint32{}
				}
				ports[port.Name] = uint32(port.ContainerPort)
			}
		}
	}
	for i := range p.Spec.Containers {
		add(&p.Spec.Containers[i])
	}
	for i, c := range p.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			add(&p.Spec.InitContainers[i])
		}
	}
	return ports
}

func isTCP(p corev1.Protocol) bool { return p == "" || p == corev1.ProtocolTCP }

// owner names the workload a pod belongs to as users know it: the Deployment of a ReplicaSet, the CronJob of a Job.
func owner(p *corev1.Pod) (kind, name string) {
	ref := metav1.GetControllerOfNoCopy(p)
	if ref == nil {
		return "Pod", p.Name
	}
	switch ref.Kind {
	case "ReplicaSet":
		if base, ok := strings.CutSuffix(ref.Name, "-"+p.Labels["pod-template-hash"]); ok && p.Labels["pod-template-hash"] != "" {
			return "Deployment", base
		}
	case "Job":
		base, number, _ := cutLast(ref.Name, "-")
		if len(number) >= 8 && strings.Trim(number, "0123456789") == "" {
			return "CronJob", base
		}
	}
	return ref.Kind, ref.Name
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

func newService(s *corev1.Service) *Service {
	out := &Service{Service: s}
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		out.Skipped = "type ExternalName has no endpoints: connections go to what its name resolves to"
	}
	return out
}

// newSlice returns nil for a slice that belongs to no service or that Kubernetes made from a selector: members of those
// are found by their labels.
// SliceController is who manages the slices of services with a selector, which the mesh does not read.
const SliceController = "endpointslice-controller.k8s.io"

func newSlice(s *discoveryv1.EndpointSlice) *Slice {
	service := s.Labels[discoveryv1.LabelServiceName]
	if service == "" || s.Labels[discoveryv1.LabelManagedBy] == SliceController {
		return nil
	}
	return &Slice{s, Name{s.Namespace, service}}
}

func newNode(n *corev1.Node) Node {
	out := Node{Locality: Locality{n.Labels[corev1.LabelTopologyRegion], n.Labels[corev1.LabelTopologyZone], n.Labels[labelSubzone]}}
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil {
			out.IPs = append(out.IPs, ip.Unmap())
		}
	}
	return out
}

func newAuthorization(p *securityv1.AuthorizationPolicy, issues []validate.Field) *AuthorizationPolicy {
	out := &AuthorizationPolicy{AuthorizationPolicy: p, Findings: validate.AuthorizationPolicy(p, issues)}
	refs := p.Spec.GetTargetRefs()
	if p.Spec.GetTargetRef() != nil {
		refs = append(refs[:len(refs):len(refs)], p.Spec.GetTargetRef())
	}
	for _, f := range out.Findings {
		// What the policy is for is not certain: it is for all that it may be for, and denies. A selector of the root namespace
		// is for the whole mesh, a target for its own namespace only.
		if f.Severity == validate.Error && (strings.HasPrefix(f.Field, "spec.selector") || strings.HasPrefix(f.Field, "spec.targetRef")) {
			out.Local = len(refs) > 0
			return out
		}
	}
	for _, ref := range refs {
		if ref.GetKind() == "Service" {
			out.Targets = append(out.Targets, Target{Service: ref.GetName()})
		} else {
			label := labelGatewayName
			if ref.GetKind() == "GatewayClass" {
				label = labelGatewayClass
			}
			out.Targets = append(out.Targets, Target{Labels: map[string]string{label: ref.GetName()}, Gateway: ref.GetName(), Local: ref.GetKind() == "Gateway"})
		}
	}
	if labels := p.Spec.GetSelector().GetMatchLabels(); len(labels) > 0 {
		out.Targets = append(out.Targets, Target{Labels: labels})
	}
	return out
}

func newPeer(p *securityv1.PeerAuthentication, issues []validate.Field) *PeerAuthentication {
	out := &PeerAuthentication{PeerAuthentication: p, Findings: validate.PeerAuthentication(p, issues),
		Labels: p.Spec.GetSelector().GetMatchLabels()}
	for _, f := range out.Findings {
		certain := strings.HasPrefix(f.Field, "spec.mtls") || strings.HasPrefix(f.Field, "spec.portLevelMtls")
		if f.Severity == validate.Error && (strings.HasPrefix(f.Field, "spec.selector") || (len(out.Labels) == 0 && !certain)) {
			out.Labels, out.Unclear = nil, true
			return out
		}
	}
	return out
}
