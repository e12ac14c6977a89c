package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/jwks"
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

// removable are the components that uninstall removes, in the order of installation. Definitions stay: deleting them would
// delete the user's resources.
var removable = []string{"istiod", "cni", "ztunnel"}

// uninstall goes the way back: pods leave the mesh while the node proxies still serve them, then the node components go,
// then the controller. Whatever fails is named, and the rest is left in place so that it can be run again.
func (f *frame) uninstall(ctx context.Context, limit time.Duration) error {
	c, err := f.connect()
	if err != nil {
		return err
	}
	return c.uninstall(ctx, f.out, f.istioNamespace, limit)
}

func (c *cluster) uninstall(ctx context.Context, out io.Writer, namespace string, limit time.Duration) error {
	all, err := deploy.Render(removable, namespace, "", nil)
	if err != nil {
		return err
	}
	if err := c.mayUninstall(ctx, all, namespace); err != nil {
		return fmt.Errorf("uninstall: %w", err)
	}
	if err := (releaser{c, namespace, limit}).run(ctx); err != nil {
		return fmt.Errorf("release nodes: %w", err)
	}
	total := 0
	for _, comp := range slices.Backward(all) {
		n, err := c.removeAll(ctx, out, comp.Objects)
		if err != nil {
			return fmt.Errorf("uninstall %s: %w", comp.Name, err)
		}
		if total += n; n == 0 {
			fmt.Fprintf(out, "✓ %s is not installed: nothing to remove\n", title(comp.Name))
			continue
		}
		fmt.Fprintf(out, "✓ %s removed\n", title(comp.Name))
	}
	state, err := installedState(namespace, operatorSpec{})
	if err != nil {
		return err
	}
	n, err := c.removeAll(ctx, out, append(controllerObjects(namespace), state))
	if err != nil {
		return fmt.Errorf("uninstall: %w", err)
	}
	if total+n == 0 {
		fmt.Fprintf(out, "✓ Namespace %s has no mesh: nothing to remove\n", namespace)
		return nil
	}
	fmt.Fprintln(out, "✓ Uninstall complete")
	return nil
}

// removeAll deletes those of the objects that are ours, last first, and returns how many there were. It names the others.
func (c *cluster) removeAll(ctx context.Context, out io.Writer, objects []*unstructured.Unstructured) (removed int, err error) {
	for _, o := range slices.Backward(objects) {
		was, err := c.remove(ctx, o)
		if err != nil {
			return removed, err
		}
		switch was {
		case objectRemoved:
			removed++
		case objectKept:
			fmt.Fprintf(out, "! %s stays: it is not ours (no label %s=%s)\n", describe(o.GetKind(), o), labelPartOf, partOf)
		case objectAbsent:
		}
	}
	return removed, nil
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
		object("v1", "ConfigMap", jwks.ConfigMap),
		object("coordination.k8s.io/v1", "Lease", "istiod-leader"),
	}
}
