package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	authv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

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
	all, err := c.precheck(ctx, f.istioNamespace)
	if err != nil {
		return err
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

// precheck runs all checks. One that is not allowed to look says so, and the others go on.
func (c *cluster) precheck(ctx context.Context, namespace string) ([]finding, error) {
	all := []finding{} // an empty list, not null, in JSON
	for _, check := range []func(context.Context, string) ([]finding, error){c.checkRights, c.checkVersion, c.checkNodes, c.checkOtherMesh, c.checkNetworkPolicies} {
		found, err := check(ctx, namespace)
		if apierrors.IsForbidden(err) { // checkRights has said so too, and the other checks may be allowed
			found = append(found, finding{"Warning", "you", "not checked: " + err.Error()})
		} else if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

// minKubeMinor has admission policies and tokens that name their node.
const minKubeMinor = 30

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

// rights are what install and precheck need, each once: all that they read, and a create and a patch of each object.
func rights(components []deploy.Component, namespace string) []authv1.ResourceAttributes {
	need := []authv1.ResourceAttributes{
		{Verb: "list", Resource: "nodes"},
		{Verb: "list", Group: "networking.k8s.io", Resource: "networkpolicies"},
		{Verb: "list", Group: "apps", Resource: "deployments"},
		{Verb: "list", Resource: "pods", Namespace: namespace},
		{Verb: "create", Resource: "namespaces"},
	}
	for _, comp := range components {
		for _, o := range comp.Objects {
			plural, _ := meta.UnsafeGuessKindToResource(o.GroupVersionKind())
			for _, verb := range []string{"get", "create", "patch"} {
				r := authv1.ResourceAttributes{Verb: verb, Group: plural.Group, Resource: plural.Resource, Namespace: o.GetNamespace()}
				if !slices.ContainsFunc(need, func(n authv1.ResourceAttributes) bool {
					return n.Verb == r.Verb && n.Group == r.Group && n.Resource == r.Resource && n.Namespace == r.Namespace
				}) {
					need = append(need, r)
				}
			}
		}
	}
	return need
}

// checkRights lists all rights that are missing, those of a resource in one finding.
func (c *cluster) checkRights(ctx context.Context, namespace string) ([]finding, error) {
	components, err := deploy.Render(slices.Concat([]string{"base"}, removable), namespace, "", nil)
	if err != nil {
		return nil, err
	}
	var order []string
	missing := map[string][]string{} // resource → verbs
	for _, need := range rights(components, namespace) {
		r, err := c.kube.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authv1.SelfSubjectAccessReview{Spec: authv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &need}}, metav1.CreateOptions{})
		if err != nil {
			return nil, fmt.Errorf("ask for rights: %w", err)
		}
		if r.Status.Allowed {
			continue
		}
		what := schema.GroupResource{Group: need.Group, Resource: need.Resource}.String()
		if need.Namespace != "" {
			what += " in namespace " + need.Namespace
		}
		if missing[what] == nil {
			order = append(order, what)
		}
		missing[what] = append(missing[what], need.Verb)
	}
	var out []finding
	for _, what := range order {
		out = append(out, finding{"Error", "you", fmt.Sprintf("may not %s %s", strings.Join(missing[what], ", "), what)})
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
