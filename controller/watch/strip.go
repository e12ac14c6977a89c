package watch

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// strip removes what the mesh never reads before an informer stores the object: most of a pod.
func strip(o any) (any, error) {
	if m, ok := o.(metav1.Object); ok {
		m.SetManagedFields(nil)
	}
	switch v := o.(type) {
	case *corev1.Pod:
		stripPod(v)
	case *corev1.Node:
		v.Annotations, v.Spec, v.Status = nil, corev1.NodeSpec{}, corev1.NodeStatus{Addresses: v.Status.Addresses}
	}
	return o, nil
}

func stripPod(p *corev1.Pod) {
	var conditions []corev1.PodCondition
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			conditions = append(conditions, corev1.PodCondition{Type: c.Type, Status: c.Status})
		}
	}
	p.Status = corev1.PodStatus{Phase: p.Status.Phase, PodIP: p.Status.PodIP, PodIPs: p.Status.PodIPs, Conditions: conditions}
	p.Spec = corev1.PodSpec{NodeName: p.Spec.NodeName, ServiceAccountName: p.Spec.ServiceAccountName,
		HostNetwork: p.Spec.HostNetwork, Containers: stripContainers(p.Spec.Containers),
		InitContainers: stripContainers(p.Spec.InitContainers)}
}

func stripContainers(in []corev1.Container) []corev1.Container {
	out := make([]corev1.Container, 0, len(in))
	for _, c := range in {
		out = append(out, corev1.Container{Name: c.Name, Ports: c.Ports, RestartPolicy: c.RestartPolicy})
	}
	return out
}
