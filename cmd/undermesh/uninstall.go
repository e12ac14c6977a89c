package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
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
	if err := (releaser{c, f.istioNamespace, limit}).run(ctx); err != nil {
		return fmt.Errorf("release nodes: %w", err)
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
