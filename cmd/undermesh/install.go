package main

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/strvals"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/undermesh/undermesh/controller/api/version"
	"github.com/undermesh/undermesh/deploy"
)

// choice is what a user asked to install: flags and IstioOperator files, merged.
type choice struct {
	set   []string
	files []string
	yes   bool
	wait  time.Duration
}

func (c *choice) flags(cmd *cobra.Command) {
	cmd.Flags().StringArrayVarP(&c.set, "set", "s", nil, "KEY=VALUE: profile, hub, tag, meshConfig.KEY, values.CHART-VALUE")
	cmd.Flags().StringArrayVarP(&c.files, "filename", "f", nil, "IstioOperator file; later files and --set win")
}

func (f *frame) installCommand() *cobra.Command {
	var ch choice
	cmd := &cobra.Command{
		Use:     "install",
		Short:   "Install the mesh, or bring an installed one to these settings",
		Example: "  undermesh install -y\n  undermesh install --set profile=demo --set meshConfig.outboundTrafficPolicy.mode=REGISTRY_ONLY -y",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return f.install(cmd.Context(), &ch) },
	}
	ch.flags(cmd)
	cmd.Flags().BoolVarP(&ch.yes, "skip-confirmation", "y", false, "do not ask")
	cmd.Flags().DurationVar(&ch.wait, "readiness-timeout", 5*time.Minute, "how long each component may take to be ready")
	return cmd
}

func (f *frame) install(ctx context.Context, ch *choice) error {
	spec, components, err := f.render(ch)
	if err != nil {
		return err
	}
	state, err := installedState(f.istioNamespace, spec)
	if err != nil {
		return err
	}
	if !ch.yes {
		fmt.Fprintf(f.out, "This will install the %s profile into the cluster. Proceed? (y/N) ", spec.Profile)
		answer, _ := bufio.NewReader(f.in).ReadString('\n')
		if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
			fmt.Fprintln(f.out, "Cancelled.")
			return nil
		}
	}
	c, err := f.connect()
	if err != nil {
		return err
	}
	record := deploy.Component{Name: "installed-state", Objects: []*unstructured.Unstructured{state}}
	if err := c.mayInstall(ctx, append(slices.Clone(components), record), f.istioNamespace); err != nil {
		return fmt.Errorf("install: %w", err)
	}
	ns := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": f.istioNamespace}}}
	if err := c.ensure(ctx, ns); err != nil {
		return err
	}
	for _, comp := range components {
		if err := c.installComponent(ctx, comp, f.istioNamespace, ch.wait); err != nil {
			return fmt.Errorf("install %s: %w", comp.Name, err)
		}
		fmt.Fprintf(f.out, "✓ %s installed\n", title(comp.Name))
	}
	if err := c.apply(ctx, state); err != nil {
		return fmt.Errorf("install: %w", err)
	}
	fmt.Fprintln(f.out, "✓ Installation complete")
	return nil
}

// installedState is the record of what the mesh was installed with (EG-08). It is a file that install -f takes.
func installedState(namespace string, spec operatorSpec) (*unstructured.Unstructured, error) {
	b, err := yaml.Marshal(operator{APIVersion: "install.istio.io/v1alpha1", Kind: "IstioOperator", Spec: spec,
		Metadata: map[string]any{"name": "installed-state", "namespace": namespace, "labels": map[string]any{labelPartOf: partOf}}})
	if err != nil {
		return nil, err
	}
	o := &unstructured.Unstructured{}
	return o, yaml.Unmarshal(b, &o.Object)
}

// title is how the documents call a component.
func title(component string) string {
	switch component {
	case "base":
		return "Istio core"
	case "istiod":
		return "Istiod"
	case "cni":
		return "CNI"
	case "ztunnel":
		return "Ztunnel"
	}
	return component
}

// ensure creates an object that may be there already and is then left alone.
func (c *cluster) ensure(ctx context.Context, o *unstructured.Unstructured) error {
	r, err := c.resource(o)
	if err != nil {
		return err
	}
	if _, err = r.Create(ctx, o, metav1.CreateOptions{FieldManager: fieldManager}); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create %s %s: %w", o.GetKind(), o.GetName(), err)
	}
	return nil
}

func (c *cluster) installComponent(ctx context.Context, comp deploy.Component, namespace string, limit time.Duration) error {
	for _, o := range comp.Objects {
		if err := c.apply(ctx, o); err != nil {
			return err
		}
	}
	for _, o := range comp.Objects {
		switch o.GetKind() {
		case "CustomResourceDefinition":
			err := poll(ctx, time.Minute, "definition "+o.GetName()+" to be served", func(ctx context.Context) (string, error) { return c.established(ctx, o) })
			if err != nil {
				return err
			}
		case "Deployment", "DaemonSet":
			err := poll(ctx, limit, o.GetKind()+" "+namespace+"/"+o.GetName(), func(ctx context.Context) (string, error) { return c.ready(ctx, o) })
			if err != nil {
				return err
			}
		}
	}
	c.mapper.Reset()
	return nil
}

func (c *cluster) established(ctx context.Context, o *unstructured.Unstructured) (string, error) {
	r, err := c.resource(o)
	if err != nil {
		return "", err
	}
	got, err := r.Get(ctx, o.GetName(), metav1.GetOptions{})
	if err != nil {
		return "not there yet", ignoreTransient(err)
	}
	conditions, _, _ := unstructured.NestedSlice(got.Object, "status", "conditions")
	for _, cond := range conditions {
		if m, ok := cond.(map[string]any); ok && m["type"] == "Established" && m["status"] == "True" {
			return "", nil
		}
	}
	return "not established yet", nil
}

// operator is the part of IstioOperator that this build understands.
type operator struct {
	APIVersion string         `json:"apiVersion"`
	Kind       string         `json:"kind"`
	Metadata   map[string]any `json:"metadata"`
	Spec       operatorSpec   `json:"spec"`
}

type operatorSpec struct {
	Profile    string         `json:"profile,omitempty"`
	Hub        string         `json:"hub,omitempty"`
	Tag        any            `json:"tag,omitempty"`
	MeshConfig map[string]any `json:"meshConfig,omitempty"`
	Values     map[string]any `json:"values,omitempty"`
	Components components     `json:"components,omitzero"`
}

// merged reads files and --set into one specification.
func (ch *choice) merged() (operatorSpec, error) {
	spec := map[string]any{}
	for _, name := range ch.files {
		b, err := os.ReadFile(name)
		if err != nil {
			return operatorSpec{}, err
		}
		op := operator{}
		if err := yaml.UnmarshalStrict(b, &op); err != nil {
			return operatorSpec{}, fmt.Errorf("%s: %w", name, err)
		}
		if op.Kind != "IstioOperator" {
			return operatorSpec{}, fmt.Errorf("%s: kind: want IstioOperator, have %q", name, op.Kind)
		}
		raw := map[string]any{}
		if err := yaml.Unmarshal(b, &raw); err != nil {
			return operatorSpec{}, fmt.Errorf("%s: %w", name, err)
		}
		fileSpec, _ := raw["spec"].(map[string]any)
		spec = chartutil.CoalesceTables(fileSpec, spec)
	}
	for _, s := range ch.set {
		if err := strvals.ParseInto(s, spec); err != nil {
			return operatorSpec{}, fmt.Errorf("flag --set %s: %w", s, err)
		}
	}
	b, err := yaml.Marshal(spec)
	if err != nil {
		return operatorSpec{}, err
	}
	var out operatorSpec
	if err := yaml.UnmarshalStrict(b, &out); err != nil {
		return operatorSpec{}, fmt.Errorf("settings: %w (have profile, hub, tag, meshConfig, values, components.pilot.k8s.env)", err)
	}
	return out, nil
}

// render turns the choice into objects. It returns the merged specification too, whose profile is set.
func (f *frame) render(ch *choice) (operatorSpec, []deploy.Component, error) {
	spec, err := ch.merged()
	if err != nil {
		return spec, nil, err
	}
	if spec.Profile == "" {
		spec.Profile = "default"
	}
	profile, err := deploy.LoadProfile(spec.Profile)
	if err != nil {
		return spec, nil, err
	}
	global := map[string]any{"tag": imageTag()}
	if spec.Hub != "" {
		global["hub"] = spec.Hub
	}
	if spec.Tag != nil {
		global["tag"] = fmt.Sprint(spec.Tag)
	}
	values := map[string]any{"global": global}
	if len(spec.MeshConfig) > 0 {
		values["meshConfig"] = maps.Clone(spec.MeshConfig)
	}
	if env := spec.Components.pilotEnv(f.err); len(env) > 0 {
		values["pilot"] = map[string]any{"env": env}
	}
	// The user's values win over the profile's, those over the charts' own.
	values = chartutil.CoalesceTables(chartutil.CoalesceTables(spec.Values, values), profile.Values)
	components, err := deploy.Render(profile.Components, f.istioNamespace, "", values)
	if err != nil {
		return spec, nil, err
	}
	return spec, components, checkMeshConfig(components, f.istioNamespace)
}

// imageTag is the tag of the images that belong to this binary.
func imageTag() string { return version.Version }

func (f *frame) manifestCommand() *cobra.Command {
	var ch choice
	gen := &cobra.Command{
		Use:   "generate",
		Short: "Print the manifests that install would apply",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, components, err := f.render(&ch)
			if err != nil {
				return err
			}
			for _, comp := range components {
				for _, o := range comp.Objects {
					b, err := yaml.Marshal(o.Object)
					if err != nil {
						return err
					}
					fmt.Fprintf(f.out, "---\n%s", b)
				}
			}
			return nil
		},
	}
	ch.flags(gen)
	cmd := &cobra.Command{Use: "manifest", Short: "Work with installation manifests"}
	cmd.AddCommand(gen)
	return cmd
}

func (f *frame) profileCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "profile", Short: "The built-in sets of settings"}
	cmd.AddCommand(&cobra.Command{Use: "list", Short: "List the profiles", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
		for _, p := range deploy.Profiles() {
			fmt.Fprintln(f.out, p)
		}
		return nil
	}}, &cobra.Command{Use: "dump [PROFILE]", Short: "Print a profile", Args: cobra.MaximumNArgs(1), RunE: func(_ *cobra.Command, args []string) error {
		p, err := deploy.LoadProfile(slices.Concat(args, []string{"default"})[0])
		if err != nil {
			return err
		}
		b, err := yaml.Marshal(p)
		if err != nil {
			return err
		}
		_, err = f.out.Write(b)
		return err
	}})
	return cmd
}
