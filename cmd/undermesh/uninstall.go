package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/deploy"
)

func (f *frame) uninstallCommand() *cobra.Command {
	var yes, purge bool
	var limit time.Duration
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Take every pod out of the mesh and remove what install added; namespaces, labels and mesh resources stay",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !purge {
				return errors.New("flag --purge is required: it removes the whole mesh (one revision is all there is yet)")
			}
			if !yes {
				fmt.Fprint(f.out, "All pods leave the mesh and its control plane is removed. Proceed? (y/N) ")
				var answer string
				fmt.Fscanln(f.in, &answer)
				if a := strings.ToLower(answer); a != "y" && a != "yes" {
					fmt.Fprintln(f.out, "Cancelled.")
					return nil
				}
			}
			return f.uninstall(cmd.Context(), limit)
		},
	}
	cmd.Flags().BoolVar(&purge, "purge", false, "remove the whole mesh")
	cmd.Flags().BoolVarP(&yes, "skip-confirmation", "y", false, "do not ask")
	cmd.Flags().DurationVar(&limit, "node-timeout", 2*time.Minute, "how long each node may take to release its pods")
	return cmd
}

// uninstall goes the way back: pods leave the mesh while the node proxies still serve them, then the node components go,
// then the controller. Whatever fails is named, and the rest is left in place so that it can be run again.
func (f *frame) uninstall(ctx context.Context, limit time.Duration) error {
	c, err := f.connect()
	if err != nil {
		return err
	}
	if err := c.releaseNodes(ctx, f.istioNamespace, limit); err != nil {
		return err
	}
	all, err := deploy.Render([]string{"base", "istiod", "cni", "ztunnel"}, f.istioNamespace, "", nil)
	if err != nil {
		return err
	}
	slices.Reverse(all)
	for _, comp := range all {
		if comp.Name == "base" {
			continue // definitions stay: deleting them would delete the user's resources
		}
		slices.Reverse(comp.Objects)
		for _, o := range comp.Objects {
			if err := c.remove(ctx, o); err != nil {
				return fmt.Errorf("uninstall %s: %w", comp.Name, err)
			}
		}
		fmt.Fprintf(f.out, "✓ %s removed\n", title(comp.Name))
	}
	for _, o := range controllerObjects(f.istioNamespace) {
		if err := c.remove(ctx, o); err != nil {
			return err
		}
	}
	fmt.Fprintln(f.out, "✓ Uninstall complete")
	return nil
}

// controllerObjects are what the controller made for itself, the root certificate apart: with a new root every workload
// of a mesh that is installed again would be refused by peers that still hold the old one.
func controllerObjects(namespace string) []*unstructured.Unstructured {
	object := func(apiVersion, kind, name string) *unstructured.Unstructured {
		o := &unstructured.Unstructured{}
		o.SetAPIVersion(apiVersion)
		o.SetKind(kind)
		o.SetNamespace(namespace)
		o.SetName(name)
		return o
	}
	return []*unstructured.Unstructured{
		object("v1", "ConfigMap", api.CAConfigMap),
		object("coordination.k8s.io/v1", "Lease", "istiod-leader"),
	}
}

// releaseNodes replaces each node's agent by a pod of the same shape that un-enrols all its pods and removes every trace.
func (c *cluster) releaseNodes(ctx context.Context, namespace string, limit time.Duration) error {
	sets := c.kube.AppsV1().DaemonSets(namespace)
	agent, err := sets.Get(ctx, api.AgentName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	} else if err != nil {
		return fmt.Errorf("read DaemonSet %s/%s: %w", namespace, api.AgentName, err)
	}
	pods, err := c.kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(agent.Spec.Selector)})
	if err != nil {
		return fmt.Errorf("list agents: %w", err)
	}
	o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": map[string]any{"name": agent.Name, "namespace": namespace}}}
	if err := c.remove(ctx, o); err != nil {
		return err
	}
	var failed []error
	var release []*corev1.Pod
	for i := range pods.Items {
		p := releasePod(agent, &pods.Items[i])
		_, err := c.kube.CoreV1().Pods(namespace).Create(ctx, p, metav1.CreateOptions{FieldManager: fieldManager})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			failed = append(failed, fmt.Errorf("release node %s: %w", p.Spec.NodeName, err))
			continue
		}
		release = append(release, p)
	}
	for _, p := range release {
		if err := c.awaitRelease(ctx, p, limit); err != nil {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// releasePod is an agent's pod turned into one that releases its node and ends.
func releasePod(agent *appsv1.DaemonSet, p *corev1.Pod) *corev1.Pod {
	spec := agent.Spec.Template.Spec.DeepCopy()
	spec.NodeName = p.Spec.NodeName
	spec.RestartPolicy = corev1.RestartPolicyOnFailure
	main := &spec.Containers[0]
	main.Args = append([]string{"uninstall"}, main.Args...)
	main.ReadinessProbe = nil
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name:      "undermesh-release-" + p.Spec.NodeName,
			Namespace: p.Namespace,
			Labels:    map[string]string{"app": "undermesh-release", "sidecar.istio.io/inject": "false"},
		},
		Spec: *spec,
	}
}

func (c *cluster) awaitRelease(ctx context.Context, p *corev1.Pod, limit time.Duration) error {
	pods := c.kube.CoreV1().Pods(p.Namespace)
	err := poll(ctx, limit, "node "+p.Spec.NodeName+" to release its pods (see: kubectl logs -n "+p.Namespace+" "+p.Name+")", func(ctx context.Context) (string, error) {
		got, err := pods.Get(ctx, p.Name, metav1.GetOptions{})
		if err != nil {
			return "its pod is not there", ignoreTransient(err)
		}
		if got.Status.Phase == corev1.PodSucceeded {
			return "", nil
		}
		return "phase " + string(got.Status.Phase) + " " + trouble(got), nil
	})
	if err != nil {
		return err
	}
	zero := int64(0)
	if err := pods.Delete(ctx, p.Name, metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete pod %s: %w", p.Name, err)
	}
	return nil
}
