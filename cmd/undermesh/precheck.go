package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	authv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/deploy"
)

// finding is one thing that precheck has to say.
type finding struct {
	Level   string `json:"level"` // Error or Warning
	Object  string `json:"object"`
	Message string `json:"message"`
}

func (f *frame) precheckCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "precheck",
		Short: "Say whether the mesh can be installed or upgraded on this cluster",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return f.precheck(cmd.Context()) },
	}
	f.outputFlag(cmd)
	return cmd
}

func (f *frame) precheck(ctx context.Context) error {
	c, err := f.connect()
	if err != nil {
		return err
	}
	var all []finding
	for _, check := range []func(context.Context, string) ([]finding, error){c.checkVersion, c.checkNodes, c.checkRights, c.checkOtherMesh, c.checkNetworkPolicies} {
		found, err := check(ctx, f.istioNamespace)
		if err != nil {
			return err
		}
		all = append(all, found...)
	}
	if f.output != "" {
		if err := f.print(all, nil); err != nil {
			return err
		}
	}
	errs := 0
	for _, x := range all {
		if x.Level == "Error" {
			errs++
		}
		if f.output == "" {
			fmt.Fprintf(f.out, "%s [%s] %s\n", x.Level, x.Object, x.Message)
		}
	}
	if errs > 0 {
		return fmt.Errorf("precheck found %d errors", errs)
	}
	if len(all) == 0 && f.output == "" {
		fmt.Fprintln(f.out, "✓ No issues found when checking the cluster. Istio is safe to install or upgrade!")
		fmt.Fprintln(f.out, "  To get started, check out https://istio.io/latest/docs/setup/getting-started/")
	}
	return nil
}

const minKubeMinor = 29

func (c *cluster) checkVersion(context.Context, string) ([]finding, error) {
	v, err := c.kube.Discovery().ServerVersion()
	if err != nil {
		return nil, fmt.Errorf("reach the API server: %w", err)
	}
	minor, err := strconv.Atoi(strings.TrimRight(v.Minor, "+"))
	if err != nil || v.Major != "1" || minor < minKubeMinor {
		return []finding{{"Error", "cluster", fmt.Sprintf("Kubernetes %s is older than 1.%d", v.GitVersion, minKubeMinor)}}, nil
	}
	return nil, nil
}

// checkNodes reads what nodes report of themselves; the agent probes the kernel's features when it starts.
func (c *cluster) checkNodes(ctx context.Context, _ string) ([]finding, error) {
	nodes, err := c.kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	var out []finding
	for i := range nodes.Items {
		n := &nodes.Items[i]
		if k := n.Status.NodeInfo.KernelVersion; kernelBelow(k, 5, 17) {
			out = append(out, finding{"Error", "Node " + n.Name, "kernel " + k + " is older than 5.17"})
		}
		if os := n.Status.NodeInfo.OperatingSystem; os != "linux" && os != "" {
			out = append(out, finding{"Warning", "Node " + n.Name, "operating system " + os + ": its pods stay outside the mesh"})
		}
	}
	return out, nil
}

func kernelBelow(version string, major, minor int) bool {
	var a, b int
	if n, _ := fmt.Sscanf(version, "%d.%d", &a, &b); n < 2 {
		return true
	}
	return a < major || a == major && b < minor
}

func (c *cluster) checkRights(ctx context.Context, namespace string) ([]finding, error) {
	need := []authv1.ResourceAttributes{
		{Verb: "create", Group: "apiextensions.k8s.io", Resource: "customresourcedefinitions"},
		{Verb: "create", Group: "rbac.authorization.k8s.io", Resource: "clusterroles"},
		{Verb: "create", Group: "rbac.authorization.k8s.io", Resource: "clusterrolebindings"},
		{Verb: "create", Resource: "namespaces"},
		{Verb: "create", Group: "apps", Resource: "daemonsets", Namespace: namespace},
		{Verb: "create", Group: "apps", Resource: "deployments", Namespace: namespace},
		{Verb: "create", Resource: "serviceaccounts", Namespace: namespace},
		{Verb: "create", Resource: "configmaps", Namespace: namespace},
	}
	var out []finding
	for i := range need {
		r, err := c.kube.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authv1.SelfSubjectAccessReview{Spec: authv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &need[i]}}, metav1.CreateOptions{})
		if err != nil {
			return nil, fmt.Errorf("ask for rights: %w", err)
		}
		if !r.Status.Allowed {
			out = append(out, finding{"Error", "you", fmt.Sprintf("may not %s %s", need[i].Verb, need[i].Resource)})
		}
	}
	return out, nil
}

// checkOtherMesh looks for control planes that are not ours, and for objects in the way of an installation.
func (c *cluster) checkOtherMesh(ctx context.Context, namespace string) ([]finding, error) {
	components, err := deploy.Render(removable, namespace, "", nil)
	if err != nil {
		return nil, err
	}
	names, err := c.otherMeshes(ctx, namespace)
	if err != nil {
		return nil, err
	}
	more, err := c.foreign(ctx, components)
	if err != nil {
		return nil, err
	}
	names = append(names, more...)
	slices.Sort(names)
	var out []finding
	for _, n := range slices.Compact(names) {
		out = append(out, finding{"Error", n, "belongs to another mesh; remove it first"})
	}
	return out, nil
}
