package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/deploy"
)

const (
	// Every object that install makes carries this label.
	labelPartOf, partOf = "app.kubernetes.io/part-of", "undermesh"
	// controllerManager is how the API server calls the writer of objects that the controller makes for itself.
	controllerManager = "undermesh-controller"
)

func ours(o metav1.Object) bool {
	return o.GetLabels()[labelPartOf] == partOf || slices.ContainsFunc(o.GetManagedFields(), func(f metav1.ManagedFieldsEntry) bool {
		return f.Manager == controllerManager
	})
}

func describe(kind string, o metav1.Object) string {
	if o.GetNamespace() == "" {
		return kind + " " + o.GetName()
	}
	return kind + " " + o.GetNamespace() + "/" + o.GetName()
}

// get returns nil when there is no such object, or no such kind.
func (c *cluster) get(ctx context.Context, o *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	r, err := c.resource(o)
	if meta.IsNoMatchError(errors.Unwrap(err)) || meta.IsNoMatchError(err) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	got, err := r.Get(ctx, o.GetName(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("read %s: %w", describe(o.GetKind(), o), err)
	}
	return got, nil
}

// foreign names those objects of the components that are on the cluster and are not ours. Definitions do not count: they
// hold the user's resources, whoever serves them.
func (c *cluster) foreign(ctx context.Context, components []deploy.Component) ([]string, error) {
	var out []string
	for _, comp := range components {
		for _, o := range comp.Objects {
			if o.GetKind() == "CustomResourceDefinition" {
				continue
			}
			got, err := c.get(ctx, o)
			if err != nil {
				return nil, err
			}
			if got != nil && !ours(got) {
				out = append(out, describe(o.GetKind(), got))
			}
		}
	}
	return out, nil
}

// otherMeshes names the control planes of the cluster that are not the one of this installation.
func (c *cluster) otherMeshes(ctx context.Context, namespace string) ([]string, error) {
	list, err := c.kube.AppsV1().Deployments("").List(ctx, metav1.ListOptions{LabelSelector: "app=" + api.ControllerName})
	if err != nil {
		return nil, fmt.Errorf("list control planes: %w", err)
	}
	var out []string
	for i := range list.Items {
		if d := &list.Items[i]; !ours(d) || d.Namespace != namespace {
			out = append(out, describe("Deployment", d))
		}
	}
	return out, nil
}

// mayInstall refuses to write over a mesh that is not ours, or into one that is being removed.
func (c *cluster) mayInstall(ctx context.Context, components []deploy.Component, namespace string) error {
	names, err := c.otherMeshes(ctx, namespace)
	if err != nil {
		return err
	}
	more, err := c.foreign(ctx, components)
	if err != nil {
		return err
	}
	if names = append(names, more...); len(names) > 0 {
		slices.Sort(names)
		return fmt.Errorf("another mesh is installed: remove it first: %s", strings.Join(slices.Compact(names), ", "))
	}
	pods, err := c.kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=" + releaseName})
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	agent, err := c.kube.AppsV1().DaemonSets(namespace).Get(ctx, api.AgentName, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("read DaemonSet %s/%s: %w", namespace, api.AgentName, err)
	}
	if len(pods.Items) > 0 {
		return fmt.Errorf("%s releases a node: finish the uninstallation first (uninstall --purge)", describe("Pod", &pods.Items[0]))
	}
	if err == nil && agent.Spec.Template.Spec.NodeSelector[parked] != "" {
		return fmt.Errorf("%s is parked by an uninstallation: finish it first (uninstall --purge)", describe("DaemonSet", agent))
	}
	return nil
}

// mayUninstall refuses when the control plane or a node component of the namespace is not ours.
func (c *cluster) mayUninstall(ctx context.Context, components []deploy.Component, namespace string) error {
	names, err := c.otherMeshes(ctx, namespace)
	if err != nil {
		return err
	}
	names = slices.DeleteFunc(names, func(n string) bool { return !strings.HasPrefix(n, "Deployment "+namespace+"/") })
	more, err := c.foreign(ctx, components)
	if err != nil {
		return err
	}
	for _, n := range more {
		if strings.HasPrefix(n, "Deployment ") || strings.HasPrefix(n, "DaemonSet ") {
			names = append(names, n)
		}
	}
	if len(names) > 0 {
		slices.Sort(names)
		return fmt.Errorf("the mesh of namespace %s is not ours (no label %s=%s), nothing was removed: %s", namespace, labelPartOf, partOf,
			strings.Join(slices.Compact(names), ", "))
	}
	return nil
}

// removal is what remove did.
type removal int

const (
	objectAbsent  removal = iota // neither it nor, perhaps, its kind was there
	objectKept                   // it is not ours
	objectRemoved                // it was there, and is gone
)

// remove deletes one object of ours and waits until it is gone. One that is not ours stays.
func (c *cluster) remove(ctx context.Context, o *unstructured.Unstructured) (removal, error) {
	got, err := c.get(ctx, o)
	if err != nil || got == nil {
		return objectAbsent, err
	}
	what := describe(o.GetKind(), got)
	if !ours(got) {
		return objectKept, nil
	}
	r, err := c.resource(o)
	if err != nil {
		return objectAbsent, err
	}
	foreground, uid := metav1.DeletePropagationForeground, got.GetUID()
	err = r.Delete(ctx, o.GetName(), metav1.DeleteOptions{PropagationPolicy: &foreground, Preconditions: &metav1.Preconditions{UID: &uid}})
	if apierrors.IsNotFound(err) {
		return objectAbsent, nil
	} else if err != nil {
		return objectAbsent, fmt.Errorf("delete %s: %w", what, err)
	}
	return objectRemoved, poll(ctx, time.Minute, what+" to be gone", func(ctx context.Context) (string, error) {
		_, err := r.Get(ctx, o.GetName(), metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return "", nil
		}
		return "it is still there", ignoreTransient(err)
	})
}
