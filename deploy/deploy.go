// Package deploy holds the Helm charts and profiles that the command line installs, and renders them. The charts are also
// usable with helm itself. Rendering is pure: nothing here talks to a cluster.
package deploy

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"sort"
	"strings"

	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	sigsyaml "sigs.k8s.io/yaml"
)

//go:embed charts profiles
var files embed.FS

// Component is one rendered chart: its objects, custom resource definitions first.
type Component struct {
	Name    string
	Objects []*unstructured.Unstructured
}

// Profile names a set of components and their values.
type Profile struct {
	Components []string       `json:"components"`
	Values     map[string]any `json:"values"`
}

// LoadProfile reads one of the embedded profiles. The error for an unknown name lists the known ones.
func LoadProfile(name string) (*Profile, error) {
	b, err := files.ReadFile("profiles/" + name + ".yaml")
	if err != nil {
		return nil, fmt.Errorf("profile %q is not known (have %s)", name, strings.Join(Profiles(), ", "))
	}
	p := &Profile{}
	if err := sigsyaml.UnmarshalStrict(b, p); err != nil {
		return nil, fmt.Errorf("parse profile %s: %w", name, err)
	}
	return p, nil
}

// Profiles lists the names of the embedded profiles.
func Profiles() []string {
	entries, _ := fs.ReadDir(files, "profiles")
	var names []string
	for _, e := range entries {
		names = append(names, strings.TrimSuffix(e.Name(), ".yaml"))
	}
	return names
}

// Render renders the components in order into namespace. values holds the user's values for all charts together; a key that
// no chart of the profile has is an error that names its path. kubeVersion may be "".
func Render(components []string, namespace, kubeVersion string, values map[string]any) ([]Component, error) {
	charts := make([]*chart.Chart, 0, len(components))
	for _, name := range components {
		c, err := load(name)
		if err != nil {
			return nil, err
		}
		charts = append(charts, c)
	}
	if err := checkKnown(values, charts); err != nil {
		return nil, err
	}
	var out []Component
	for _, c := range charts {
		objects, err := render(c, namespace, kubeVersion, values)
		if err != nil {
			return nil, fmt.Errorf("render chart %s: %w", c.Name(), err)
		}
		out = append(out, Component{Name: c.Name(), Objects: objects})
	}
	return out, nil
}

func load(name string) (*chart.Chart, error) {
	root := path.Join("charts", name)
	var buffered []*loader.BufferedFile
	err := fs.WalkDir(files, root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := files.ReadFile(p)
		if err != nil {
			return err
		}
		buffered = append(buffered, &loader.BufferedFile{Name: strings.TrimPrefix(p, root+"/"), Data: b})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("chart %q is not known: %w", name, err)
	}
	return loader.LoadFiles(buffered)
}

// only keeps the top-level values that the chart declares.
func only(values map[string]any, c *chart.Chart) map[string]any {
	out := maps.Clone(values)
	maps.DeleteFunc(out, func(k string, _ any) bool { _, ok := c.Values[k]; return !ok })
	return out
}

func render(c *chart.Chart, namespace, kubeVersion string, values map[string]any) ([]*unstructured.Unstructured, error) {
	caps := chartutil.DefaultCapabilities.Copy()
	if kubeVersion != "" {
		v, err := chartutil.ParseKubeVersion(kubeVersion)
		if err != nil {
			return nil, fmt.Errorf("parse Kubernetes version %q: %w", kubeVersion, err)
		}
		caps.KubeVersion = *v
	}
	rv, err := chartutil.ToRenderValues(c, only(values, c), chartutil.ReleaseOptions{Name: c.Name(), Namespace: namespace, IsInstall: true}, caps)
	if err != nil {
		return nil, err
	}
	texts, err := engine.Render(c, rv)
	if err != nil {
		return nil, err
	}
	var objects []*unstructured.Unstructured
	for _, crd := range c.CRDObjects() {
		list, err := parse(crd.Filename, crd.File.Data)
		if err != nil {
			return nil, err
		}
		objects = append(objects, list...)
	}
	names := slices.Sorted(maps.Keys(texts))
	for _, name := range names {
		if path.Ext(name) != ".yaml" {
			continue
		}
		list, err := parse(name, []byte(texts[name]))
		if err != nil {
			return nil, err
		}
		objects = append(objects, list...)
	}
	sort.SliceStable(objects, func(i, j int) bool { return rank(objects[i]) < rank(objects[j]) })
	return objects, nil
}

// rank orders kinds so that what is referred to comes first.
func rank(o *unstructured.Unstructured) int {
	order := []string{"CustomResourceDefinition", "Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "ConfigMap", "Secret", "Service"}
	if i := slices.Index(order, o.GetKind()); i >= 0 {
		return i
	}
	return len(order)
}

func parse(name string, text []byte) ([]*unstructured.Unstructured, error) {
	var out []*unstructured.Unstructured
	for dec := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 1<<16); ; {
		m := map[string]any{}
		if err := dec.Decode(&m); errors.Is(err, io.EOF) {
			return out, nil
		} else if err != nil {
			return nil, fmt.Errorf("parse %s: %w", name, err)
		}
		if len(m) > 0 {
			out = append(out, &unstructured.Unstructured{Object: m})
		}
	}
}

// checkKnown refuses a value that no chart reads. Below a chart value that is empty, or a free map, anything goes.
func checkKnown(values map[string]any, charts []*chart.Chart) error {
	known := map[string]any{}
	for _, c := range charts {
		known = chartutil.CoalesceTables(known, deepCopy(c.Values))
	}
	return unknownKeys("", values, known)
}

// freeMaps are values whose keys are not ours to know.
var freeMaps = []string{"meshConfig", "pilot.resources", "cni.resources", "ztunnel.resources"}

func unknownKeys(at string, values, known map[string]any) error {
	for _, k := range slices.Sorted(maps.Keys(values)) {
		p := strings.TrimPrefix(at+"."+k, ".")
		if slices.Contains(freeMaps, p) {
			continue
		}
		def, ok := known[k]
		if !ok {
			return fmt.Errorf("value %q is not known (have %s)", p, strings.Join(slices.Sorted(maps.Keys(known)), ", "))
		}
		v, isMap := values[k].(map[string]any)
		d, defMap := def.(map[string]any)
		if isMap != defMap {
			return fmt.Errorf("value %q: want %T, have %T", p, def, values[k])
		}
		if isMap {
			if err := unknownKeys(p, v, d); err != nil {
				return err
			}
		}
	}
	return nil
}

func deepCopy(v map[string]any) map[string]any {
	out := make(map[string]any, len(v))
	for k, x := range v {
		if m, ok := x.(map[string]any); ok {
			x = deepCopy(m)
		}
		out[k] = x
	}
	return out
}
