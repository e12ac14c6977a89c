package main

import (
	"context"
	"encoding/json"
	"fmt"

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
	opts := metav1.ListOptions{LabelSelector: "app=" + api.ZtunnelName}
	if node != "" {
		opts.FieldSelector = "spec.nodeName=" + node
	}
	list, err := c.kube.CoreV1().Pods(namespace).List(ctx, opts)
	if err != nil {
		return nil, fmt.Errorf("list pods of ztunnel: %w", err)
	}
	var out []corev1.Pod
	for _, p := range list.Items {
		if p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil {
			out = append(out, p)
		}
	}
	if len(out) == 0 {
		where := ""
		if node != "" {
			where = " on node " + node
		}
		return nil, fmt.Errorf("no ztunnel runs in namespace %s%s", namespace, where)
	}
	return out, nil
}
