package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/api"
)

// podState is one line of "undermesh pods".
type podState struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Node      string `json:"node"`
	IP        string `json:"ip"`
	Status    string `json:"status"` // enrolled, or outside
}

func (f *frame) podsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pods",
		Short: "List pods and whether they are in the mesh (SI-11)",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return f.pods(cmd.Context()) },
	}
	f.outputFlag(cmd)
	return cmd
}

// pods reads the fact, not the wish: the annotation that the node agent writes when a pod's capture is complete.
func (f *frame) pods(ctx context.Context) error {
	c, err := f.connect()
	if err != nil {
		return err
	}
	list, err := c.kube.CoreV1().Pods(f.namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	states := []podState{}
	rows := [][]string{{"NAMESPACE", "NAME", "NODE", "IP", "STATUS"}}
	for i := range list.Items {
		p := &list.Items[i]
		if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			continue
		}
		s := podState{Namespace: p.Namespace, Name: p.Name, Node: p.Spec.NodeName, IP: p.Status.PodIP, Status: "outside"}
		if p.Annotations[api.AnnotationRedirection] == api.RedirectionEnabled {
			s.Status = "enrolled"
		}
		states = append(states, s)
		rows = append(rows, []string{s.Namespace, s.Name, s.Node, s.IP, s.Status})
	}
	return f.print(states, rows)
}
