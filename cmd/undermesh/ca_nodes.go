package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/ztunnel/identity"
)

// held is what a node's ztunnel says of its certificates.
type held struct {
	Certificates []identity.Info `json:"certificates"`
	Roots        []identity.Part `json:"roots"` // of the root file
}

// maxDump bounds what is read of a node: 10,000 certificates have about 20 MB.
const maxDump = 64 << 20

// heldBy asks a ztunnel.
func (c *cluster) heldBy(ctx context.Context, namespace, pod string) (*held, error) {
	raw, err := c.ask(ctx, namespace, pod, api.PortAdmin, "/config_dump?section=certificates&section=roots", maxDump)
	if err != nil {
		return nil, err
	}
	out := &held{}
	if err := json.Unmarshal(raw, out); err != nil {
		return nil, fmt.Errorf("parse answer of pod %s/%s: %w", namespace, pod, err)
	}
	return out, nil
}

// ztunnels are the running ones, of one node or, for "", of all. An error names what is missing.
func (c *cluster) ztunnels(ctx context.Context, namespace, node string) ([]corev1.Pod, error) {
	on := ""
	if node != "" {
		on = "spec.nodeName=" + node
	}
	return c.running(ctx, namespace, "app="+api.ZtunnelName, on)
}

// controllers are the running replicas of the control plane.
func (c *cluster) controllers(ctx context.Context, namespace string) ([]corev1.Pod, error) {
	return c.running(ctx, namespace, "app="+api.ControllerName, "")
}

// running are the pods with the labels, on the node that fields name, that run and are not being deleted: those end within
// seconds, or their node is dead and does not answer. That there is none is an error.
func (c *cluster) running(ctx context.Context, namespace, labels, fields string) ([]corev1.Pod, error) {
	list, err := c.kube.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: labels, FieldSelector: fields})
	if err != nil {
		return nil, fmt.Errorf("list pods of namespace %s with %s: %w", namespace, labels, err)
	}
	out := slices.DeleteFunc(list.Items, func(p corev1.Pod) bool {
		return p.Status.Phase != corev1.PodRunning || p.DeletionTimestamp != nil
	})
	if len(out) == 0 {
		return nil, fmt.Errorf("namespace %s: no pod with %s runs", namespace, strings.TrimSuffix(labels+", "+fields, ", "))
	}
	return out, nil
}
