package enroll

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"github.com/undermesh/undermesh/controller/api"
)

// Policy is what the administrator chose; labels decide the rest.
type Policy struct {
	// ExcludedNamespaces are never enrolled, whatever their labels say (CN-05).
	ExcludedNamespaces []string
	// EnrollByDefault enrols pods without any label (SI-06, enableNamespacesByDefault). Default false.
	EnrollByDefault bool
}

// Decision says whether a pod belongs to the mesh.
type Decision struct {
	Enrolled bool
	// Why is one clause for logs and events.
	Why string
	// Warnings name labels whose value nobody defined; such a pod is not enrolled.
	Warnings []string
}

// vote is what one label says.
type vote int

const (
	silent vote = iota
	enable
	disable
)

// ballot is one label of one object.
type ballot struct {
	object, label, value string
	vote                 vote
	unknown              bool
}

// Decide applies SI-01 to SI-06: istio-injection beats istio.io/rev on a namespace; any disabled label wins; else any
// enabled one; else the default. A label with an unknown value counts as disabled and gives a warning. Pods in the
// host's network namespace, static pods, finished pods and excluded namespaces are never enrolled. Pure.
func Decide(ns *corev1.Namespace, pod *corev1.Pod, p Policy) Decision {
	switch {
	case pod.Spec.HostNetwork:
		return Decision{Why: "the pod uses the host's network"}
	case pod.Annotations[corev1.MirrorPodAnnotationKey] != "":
		return Decision{Why: "the pod is a static one, which has no service account"}
	case pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed:
		return Decision{Why: "the pod has finished"}
	}
	for _, excluded := range p.ExcludedNamespaces {
		if excluded == ns.Name {
			return Decision{Why: "namespace " + ns.Name + " is excluded by configuration"}
		}
	}
	ballots := collect(ns, pod)
	var d Decision
	for _, b := range ballots {
		if b.unknown {
			d.Warnings = append(d.Warnings, fmt.Sprintf("%s: label %s has the unknown value %q; the pod is not enrolled",
				b.object, b.label, b.value))
		}
	}
	for _, want := range []vote{disable, enable} {
		for _, b := range ballots {
			if b.vote == want {
				d.Enrolled = want == enable
				d.Why = fmt.Sprintf("%s has label %s=%s", b.object, b.label, b.value)
				return d
			}
		}
	}
	d.Enrolled = p.EnrollByDefault
	d.Why = "no label decides; the default is not to enrol"
	if d.Enrolled {
		d.Why = "no label decides; the default is to enrol"
	}
	return d
}

// NamespaceOpen reports whether pods of the namespace may start without the agent: nothing about the namespace itself
// enrols them. A pod that its own labels enrol starts, too, and is enrolled live when the agent is back.
func NamespaceOpen(ns *corev1.Namespace, p Policy) bool {
	d := Decide(ns, &corev1.Pod{}, p)
	return !d.Enrolled && len(d.Warnings) == 0
}

func collect(ns *corev1.Namespace, pod *corev1.Pod) []ballot {
	nsName, podName := "namespace "+ns.Name, "pod "+pod.Namespace+"/"+pod.Name
	out := []ballot{
		read(nsName, ns.Labels, api.LabelInjection, "enabled", "disabled"),
		read(podName, pod.Labels, api.LabelPodInject, "true", "false"),
		read(nsName, ns.Labels, api.LabelDataplaneMode, "ambient", "none"),
		read(podName, pod.Labels, api.LabelDataplaneMode, "ambient", "none"),
	}
	if out[0].vote == silent { // istio-injection beats istio.io/rev
		out = append(out, revision(nsName, ns.Labels))
	}
	return append(out, revision(podName, pod.Labels))
}

func read(object string, labels map[string]string, label, enabled, disabled string) ballot {
	value, ok := labels[label]
	b := ballot{object: object, label: label, value: value}
	switch {
	case !ok:
	case value == enabled:
		b.vote = enable
	case value == disabled:
		b.vote = disable
	default:
		b.vote, b.unknown = disable, true
	}
	return b
}

// revision reads istio.io/rev: any revision enrols, because one agent serves them all (SI-04).
func revision(object string, labels map[string]string) ballot {
	value, ok := labels[api.LabelRevision]
	b := ballot{object: object, label: api.LabelRevision, value: value}
	switch {
	case ok && value == "":
		b.vote, b.unknown = disable, true
	case ok:
		b.vote = enable
	}
	return b
}
