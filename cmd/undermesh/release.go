package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/undermesh/undermesh/controller/api"
)

const (
	releaseName = "undermesh-release"
	// parked is a node selector that no node has. It keeps the agents away while their DaemonSet stays: as the template of
	// release pods, and as the sign that not every node is released yet.
	parked = "undermesh.io/parked-by-uninstall"
)

// releaser takes the pods of all nodes out of the mesh: it parks the agents, runs on each node a pod of the agent's shape
// that un-enrols all pods and removes every trace, and deletes the agents' DaemonSet when the last one has succeeded. It may
// be interrupted at any point and run again.
type releaser struct {
	*cluster
	namespace string
	limit     time.Duration // for each node
}

// run returns nil only when no pod of any node is captured.
func (r releaser) run(ctx context.Context) error {
	old, err := r.list(ctx, "app="+releaseName)
	if err != nil {
		return err
	}
	agent, err := r.kube.AppsV1().DaemonSets(r.namespace).Get(ctx, api.AgentName, metav1.GetOptions{})
	var spec *corev1.PodSpec
	switch {
	case err == nil:
		spec = &agent.Spec.Template.Spec
	case !apierrors.IsNotFound(err):
		return fmt.Errorf("read DaemonSet %s/%s: %w", r.namespace, api.AgentName, err)
	case len(old) > 0:
		agent, spec = nil, &old[0].Spec
	default:
		return r.nobodyCaptured(ctx)
	}
	nodes, err := r.nodes(ctx)
	if err != nil {
		return err
	}
	if agent != nil {
		if _, ok := spec.NodeSelector[parked]; !ok { // what earlier pods did does not count: agents ran since
			if err := r.deleteAll(ctx, old); err != nil {
				return err
			}
		}
		if err := r.park(ctx, agent); err != nil {
			return err
		}
	}
	if err := r.releaseAll(ctx, nodes, spec); err != nil {
		return err
	}
	if agent != nil {
		if err := r.removeAgent(ctx); err != nil {
			return err
		}
	}
	if old, err = r.list(ctx, "app="+releaseName); err != nil {
		return err
	}
	return r.deleteAll(ctx, old)
}

func (r releaser) list(ctx context.Context, selector string) ([]corev1.Pod, error) {
	pods, err := r.kube.CoreV1().Pods(r.namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, fmt.Errorf("list pods %s of %s: %w", selector, r.namespace, err)
	}
	return pods.Items, nil
}

// nobodyCaptured is asked when there is neither an agent nor a pod that releases: the nodes are clean, or somebody else
// deleted the agents, and then their pods need the proxies.
func (r releaser) nobodyCaptured(ctx context.Context) error {
	pods, err := r.kube.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	var captured []string
	for i := range pods.Items {
		if p := &pods.Items[i]; p.Annotations[api.AnnotationRedirection] != "" && p.Status.Phase == corev1.PodRunning {
			captured = append(captured, p.Namespace+"/"+p.Name)
		}
	}
	if len(captured) == 0 {
		return nil
	}
	return fmt.Errorf("pods are in the mesh and DaemonSet %s/%s, which could release them, is gone: run install, then uninstall: %s",
		r.namespace, api.AgentName, strings.Join(captured, ", "))
}

// nodes are all that may have run an agent, whether or not one is there now. One that cannot run a pod cannot be released.
func (r releaser) nodes(ctx context.Context) ([]string, error) {
	list, err := r.kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	var names, away []string
	for i := range list.Items {
		n := &list.Items[i]
		if os := n.Labels[corev1.LabelOSStable]; os != "" && os != "linux" {
			continue
		}
		names = append(names, n.Name)
		if !slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
		}) {
			away = append(away, n.Name)
		}
	}
	if len(away) > 0 {
		return nil, fmt.Errorf("nodes are not Ready, so that their pods cannot be released: %s (bring them back, or delete their Node objects)", strings.Join(away, ", "))
	}
	return names, nil
}

// park takes the agents away from all nodes and waits until they are gone: they would enrol again what is released.
func (r releaser) park(ctx context.Context, agent *appsv1.DaemonSet) error {
	patch := fmt.Appendf(nil, `{"spec":{"template":{"spec":{"nodeSelector":{%q:"true"}}}}}`, parked)
	_, err := r.kube.AppsV1().DaemonSets(r.namespace).Patch(ctx, agent.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager})
	if err != nil {
		return fmt.Errorf("park DaemonSet %s/%s: %w", r.namespace, agent.Name, err)
	}
	return poll(ctx, r.limit, "agents to be gone", func(ctx context.Context) (string, error) {
		pods, err := r.list(ctx, metav1.FormatLabelSelector(agent.Spec.Selector))
		if err != nil || len(pods) == 0 {
			return "", err
		}
		return "pod " + pods[0].Name + " is there", nil
	})
}

// releaseAll has one pod for each node, of this run or of an earlier one, and waits until all have succeeded.
func (r releaser) releaseAll(ctx context.Context, nodes []string, spec *corev1.PodSpec) error {
	var failed []error
	release := map[string]*corev1.Pod{}
	for _, n := range nodes {
		p := releasePod(r.namespace, n, spec)
		if err := r.ensurePod(ctx, p); err != nil {
			failed = append(failed, fmt.Errorf("release node %s: %w", n, err))
			continue
		}
		release[n] = p
	}
	for _, n := range slices.Sorted(maps.Keys(release)) {
		if err := r.awaitRelease(ctx, release[n]); err != nil {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// releasePod is an agent's pod, or an earlier release pod, turned into one that releases a node and ends.
func releasePod(namespace, node string, from *corev1.PodSpec) *corev1.Pod {
	spec := from.DeepCopy()
	spec.NodeName = node
	spec.NodeSelector, spec.Affinity = nil, nil // of the agent now; it may have run on other nodes before
	spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
	spec.RestartPolicy = corev1.RestartPolicyOnFailure
	main := &spec.Containers[0]
	if len(main.Args) == 0 || main.Args[0] != "uninstall" {
		main.Args = append([]string{"uninstall"}, main.Args...)
	}
	main.ReadinessProbe = nil
	// What the API server added to the pod that this is made from.
	spec.Volumes = slices.DeleteFunc(spec.Volumes, func(v corev1.Volume) bool { return strings.HasPrefix(v.Name, "kube-api-access-") })
	for i := range spec.Containers {
		c := &spec.Containers[i]
		c.VolumeMounts = slices.DeleteFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return strings.HasPrefix(m.Name, "kube-api-access-") })
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: releaseName + "-" + node, Namespace: namespace,
			Labels: map[string]string{"app": releaseName, labelPartOf: partOf, api.LabelPodInject: "false"}},
		Spec: *spec,
	}
}

// ensurePod creates a pod. One of an earlier run is kept, unless it has failed or is going away.
func (r releaser) ensurePod(ctx context.Context, p *corev1.Pod) error {
	pods := r.kube.CoreV1().Pods(p.Namespace)
	return poll(ctx, r.limit, "pod "+p.Name+" to be created", func(ctx context.Context) (string, error) {
		_, err := pods.Create(ctx, p, metav1.CreateOptions{FieldManager: fieldManager})
		if !apierrors.IsAlreadyExists(err) {
			return "", err
		}
		got, err := pods.Get(ctx, p.Name, metav1.GetOptions{})
		switch {
		case err != nil:
			return "it is there and cannot be read", ignoreTransient(err)
		case got.DeletionTimestamp != nil:
			return "an earlier one is going away", nil
		case got.Labels["app"] != releaseName:
			return "", fmt.Errorf("pod %s/%s is there and is not ours", p.Namespace, p.Name)
		case got.Status.Phase == corev1.PodFailed || got.Spec.NodeName != p.Spec.NodeName:
			return "an earlier one failed", r.deleteAll(ctx, []corev1.Pod{*got})
		}
		return "", nil
	})
}

func (r releaser) awaitRelease(ctx context.Context, p *corev1.Pod) error {
	what := "node " + p.Spec.NodeName + " to release its pods (see: kubectl logs -n " + p.Namespace + " " + p.Name + ")"
	return poll(ctx, r.limit, what, func(ctx context.Context) (string, error) {
		got, err := r.kube.CoreV1().Pods(p.Namespace).Get(ctx, p.Name, metav1.GetOptions{})
		if err != nil {
			return "its pod is not there", ignoreTransient(err)
		}
		if got.Status.Phase == corev1.PodSucceeded {
			return "", nil
		}
		return "phase " + string(got.Status.Phase) + " " + trouble(got), nil
	})
}

// removeAgent comes when all nodes are released: without the DaemonSet the next run takes them for clean.
func (r releaser) removeAgent(ctx context.Context) error {
	sets := r.kube.AppsV1().DaemonSets(r.namespace)
	if err := sets.Delete(ctx, api.AgentName, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete DaemonSet %s/%s: %w", r.namespace, api.AgentName, err)
	}
	return poll(ctx, r.limit, "DaemonSet "+r.namespace+"/"+api.AgentName+" to be gone", func(ctx context.Context) (string, error) {
		_, err := sets.Get(ctx, api.AgentName, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return "", nil
		}
		return "it is still there", ignoreTransient(err)
	})
}

func (r releaser) deleteAll(ctx context.Context, pods []corev1.Pod) error {
	zero := int64(0)
	for i := range pods {
		p := &pods[i]
		err := r.kube.CoreV1().Pods(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: &zero})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete pod %s/%s: %w", p.Namespace, p.Name, err)
		}
	}
	return nil
}
