package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
)

const fieldManager = "undermesh"

// resource finds the API of an object. A kind that was installed a moment ago may take a few seconds to be served.
func (c *cluster) resource(o *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	gvk := o.GroupVersionKind()
	m, err := c.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if err != nil {
		c.mapper.Reset()
		return nil, fmt.Errorf("find API of %s %s: %w", gvk.Kind, o.GetName(), err)
	}
	r := c.dynamic.Resource(m.Resource)
	if m.Scope.Name() == meta.RESTScopeNameNamespace {
		return r.Namespace(o.GetNamespace()), nil
	}
	return r, nil
}

// apply creates or updates one object by server-side apply, so that it is idempotent and keeps what others own.
func (c *cluster) apply(ctx context.Context, o *unstructured.Unstructured) error {
	r, err := c.resource(o)
	if err != nil {
		return err
	}
	b, err := json.Marshal(o)
	if err != nil {
		return err
	}
	force := true
	if _, err := r.Patch(ctx, o.GetName(), types.ApplyPatchType, b, metav1.PatchOptions{FieldManager: fieldManager, Force: &force}); err != nil {
		return fmt.Errorf("apply %s %s: %w", o.GetKind(), o.GetName(), err)
	}
	return nil
}

// poll calls check until it answers "" (done). Past the deadline the error says what was waited for and the last answer.
func poll(ctx context.Context, limit time.Duration, what string, check func(context.Context) (string, error)) error {
	outer := ctx
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for last := ""; ; {
		state, err := check(ctx)
		switch {
		case err == nil && state == "":
			return nil
		case outer.Err() != nil:
			return fmt.Errorf("wait for %s: interrupted: %s", what, last)
		case err != nil && ctx.Err() == nil:
			return fmt.Errorf("wait for %s: %w", what, err)
		case err == nil:
			last = state
		}
		select {
		case <-outer.Done():
			return fmt.Errorf("wait for %s: interrupted: %s", what, last)
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: gave up after %s: %s", what, limit, last)
		case <-tick.C:
		}
	}
}

// ignoreTransient keeps only errors that waiting does not mend.
func ignoreTransient(err error) error {
	if err == nil || apierrors.IsNotFound(err) || apierrors.IsServerTimeout(err) || apierrors.IsTimeout(err) || apierrors.IsTooManyRequests(err) {
		return nil
	}
	return err
}

// ready reports "" when a workload of the mesh runs as wished, otherwise what is missing, with the pods' own reasons.
func (c *cluster) ready(ctx context.Context, o *unstructured.Unstructured) (string, error) {
	switch o.GetKind() {
	case "Deployment":
		d, err := c.kube.AppsV1().Deployments(o.GetNamespace()).Get(ctx, o.GetName(), metav1.GetOptions{})
		if err != nil {
			return "not there yet", ignoreTransient(err)
		}
		if s := deploymentState(d); s != "" {
			return s + c.podTrouble(ctx, d.Namespace, d.Spec.Selector), nil
		}
	case "DaemonSet":
		d, err := c.kube.AppsV1().DaemonSets(o.GetNamespace()).Get(ctx, o.GetName(), metav1.GetOptions{})
		if err != nil {
			return "not there yet", ignoreTransient(err)
		}
		if s := daemonSetState(d); s != "" {
			return s + c.podTrouble(ctx, d.Namespace, d.Spec.Selector), nil
		}
	}
	return "", nil
}

func deploymentState(d *appsv1.Deployment) string {
	want := int32(1)
	if d.Spec.Replicas != nil {
		want = *d.Spec.Replicas
	}
	s := d.Status
	if s.ObservedGeneration < d.Generation {
		return "the cluster has not looked at its new settings yet"
	}
	if s.UpdatedReplicas < want || s.AvailableReplicas < want || s.Replicas > want {
		return fmt.Sprintf("replicas: %d updated, %d available, %d in all, %d desired", s.UpdatedReplicas, s.AvailableReplicas, s.Replicas, want)
	}
	return ""
}

func daemonSetState(d *appsv1.DaemonSet) string {
	s := d.Status
	switch {
	case s.ObservedGeneration < d.Generation:
		return "the cluster has not looked at its new settings yet"
	case s.DesiredNumberScheduled == 0:
		return "no node has been chosen yet"
	case s.UpdatedNumberScheduled < s.DesiredNumberScheduled || s.NumberReady < s.DesiredNumberScheduled:
		return fmt.Sprintf("nodes: %d updated, %d ready, %d desired", s.UpdatedNumberScheduled, s.NumberReady, s.DesiredNumberScheduled)
	}
	return ""
}

// podTrouble names why pods are not ready: what a user would look for next.
func (c *cluster) podTrouble(ctx context.Context, namespace string, sel *metav1.LabelSelector) string {
	pods, err := c.kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(sel)})
	if err != nil {
		return ""
	}
	var out []string
	for i := range pods.Items {
		if t := trouble(&pods.Items[i]); t != "" {
			out = append(out, t)
		}
	}
	if len(out) == 0 {
		return ""
	}
	return " (" + strings.Join(out, "; ") + ")"
}

// trouble says why a pod is not ready, "" for one that is: what its containers wait for, how they ended, why it has no node.
func trouble(p *corev1.Pod) string {
	if p.DeletionTimestamp != nil {
		return "pod " + p.Name + ": is ending"
	}
	for _, cs := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		w, t := cs.State.Waiting, cs.LastTerminationState.Terminated
		if t == nil {
			t = cs.State.Terminated
		}
		switch {
		case w != nil && w.Reason == "PodInitializing": // an init container says why
		case t != nil && t.ExitCode != 0 && !cs.Ready:
			return fmt.Sprintf("pod %s: container %s: ended with exit code %d%s", p.Name, cs.Name, t.ExitCode, reasons(t.Reason, t.Message, waiting(w)))
		case w != nil:
			return fmt.Sprintf("pod %s: container %s: waits%s", p.Name, cs.Name, reasons(w.Reason, w.Message))
		}
	}
	for _, cond := range p.Status.Conditions {
		if cond.Status == corev1.ConditionFalse && cond.Type == corev1.PodScheduled {
			return fmt.Sprintf("pod %s: has no node%s", p.Name, reasons(cond.Reason, cond.Message))
		}
	}
	for _, cs := range p.Status.ContainerStatuses {
		if cs.State.Running != nil && !cs.Ready {
			return fmt.Sprintf("pod %s: container %s: runs and is not ready", p.Name, cs.Name)
		}
	}
	return ""
}

func waiting(w *corev1.ContainerStateWaiting) string {
	if w == nil {
		return ""
	}
	return w.Reason
}

// reasons joins what is known, each part after a colon.
func reasons(parts ...string) string {
	out := ""
	for _, p := range parts {
		if p != "" {
			out += ": " + p
		}
	}
	return out
}
