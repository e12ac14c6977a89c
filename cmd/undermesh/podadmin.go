package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/undermesh/undermesh/controller/api"
)

// maxStats bounds what is read of one pod's statistics, in bytes: a cluster has about 10 kB.
const maxStats = 256 << 20

// statsCommand prints the statistics of a pod's calls under Envoy's names (RS-08), as "pilot-agent request GET stats" does.
func (f *frame) statsCommand() *cobra.Command {
	var filter string
	var used, prometheus bool
	cmd := &cobra.Command{
		Use:     "stats POD[.NAMESPACE]",
		Short:   "Print the statistics of a pod's calls under Envoy's names",
		Example: "  undermesh stats deployment/fortio-deploy --filter 'httpbin.*pending'\n  undermesh stats fortio-deploy-7dd87cc47d-abcde.foo --prometheus",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q, path := url.Values{}, "stats"
			if prometheus {
				path += "/prometheus"
			}
			if filter != "" {
				q.Set("filter", filter)
			}
			if used {
				q.Set("usedonly", "")
			}
			return f.printOfPod(cmd.Context(), args[0], http.MethodGet, path, q, maxStats)
		},
	}
	cmd.Flags().StringVar(&filter, "filter", "", "only those whose name contains this regular expression")
	cmd.Flags().BoolVar(&used, "usedonly", false, "only those that are not zero")
	cmd.Flags().BoolVar(&prometheus, "prometheus", false, "in the text format of Prometheus")
	return cmd
}

// clustersCommand prints the endpoints of a pod's clusters with their counters, as "pilot-agent request GET clusters" does.
func (f *frame) clustersCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "clusters POD[.NAMESPACE]",
		Short: "Print the clusters that a pod has called with their endpoints and counters, in Envoy's format",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.printOfPod(cmd.Context(), args[0], http.MethodGet, "clusters", nil, maxStats)
		},
	}
}

// drainCommand has a pod's node refuse connections to it (LB-12). It lasts until it is undone or the node's ztunnel starts anew.
func (f *frame) drainCommand() *cobra.Command {
	var undo bool
	cmd := &cobra.Command{
		Use:   "drain POD[.NAMESPACE]",
		Short: "Refuse new connections to a pod, so that its clients go elsewhere",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := url.Values{}
			if undo {
				q.Set("undo", "")
			}
			return f.printOfPod(cmd.Context(), args[0], http.MethodPost, "drain_listeners", q, 4<<10)
		},
	}
	cmd.Flags().BoolVar(&undo, "undo", false, "take connections again")
	return cmd
}

// printOfPod prints what the ztunnel of a pod's node answers about the pod.
func (f *frame) printOfPod(ctx context.Context, arg, method, path string, q url.Values, limit int64) error {
	c, err := f.connect()
	if err != nil {
		return err
	}
	raw, err := c.askOfPod(ctx, f, arg, method, path, q, limit)
	if err != nil {
		return err
	}
	_, err = f.out.Write(raw)
	return err
}

// askOfPod asks the ztunnel of the pod's node for a page about the pod.
func (c *cluster) askOfPod(ctx context.Context, f *frame, arg, method, path string, q url.Values, limit int64) ([]byte, error) {
	pod, err := c.podOf(ctx, arg, f.namespace)
	if err != nil {
		return nil, err
	}
	if pod.Annotations[api.AnnotationRedirection] != api.RedirectionEnabled {
		return nil, fmt.Errorf("pod %s/%s is not in the mesh", pod.Namespace, pod.Name)
	}
	zts, err := c.ztunnels(ctx, f.istioNamespace, pod.Spec.NodeName)
	if err != nil {
		return nil, err
	}
	target := (&url.URL{Path: "/pods/" + pod.Namespace + "/" + pod.Name + "/" + path, RawQuery: q.Encode()}).String()
	var failed []error
	for _, zt := range zts { // during an update there are two, and one of them has the pod
		raw, err := c.call(ctx, method, zt.Namespace, zt.Name, api.PortAdmin, target, limit)
		if err == nil {
			return raw, nil
		}
		failed = append(failed, err)
	}
	return nil, errors.Join(failed...)
}
