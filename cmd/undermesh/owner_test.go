package main

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/deploy"
)

type fixedMapper struct{ meta.RESTMapper }

func (fixedMapper) Reset() {}

// meshOn returns a cluster with a mesh as install makes it and as the controller completes it, after change.
func meshOn(t *testing.T, namespace string, change func(*unstructured.Unstructured)) (*cluster, []deploy.Component) {
	t.Helper()
	components, err := deploy.Render(removable, namespace, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	made := controllerObjects(namespace)
	for _, o := range made {
		o.SetManagedFields([]metav1.ManagedFieldsEntry{{Manager: controllerManager}})
	}
	for _, c := range components {
		made = append(made, c.Objects...)
	}
	mapper := meta.NewDefaultRESTMapper(nil)
	var raw, typed []runtime.Object
	for _, o := range made {
		scope := meta.RESTScopeNamespace
		if o.GetNamespace() == "" {
			scope = meta.RESTScopeRoot
		}
		mapper.Add(o.GroupVersionKind(), scope)
		if o.GetKind() == "CustomResourceDefinition" {
			continue
		}
		o = o.DeepCopy()
		change(o)
		o.SetUID("u")
		raw = append(raw, o)
		if k := o.GetKind(); k == "Deployment" { // no DaemonSet: the nodes are released
			obj, err := scheme.Scheme.New(o.GroupVersionKind())
			if err != nil {
				t.Fatal(err)
			}
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, obj); err != nil {
				t.Fatal(err)
			}
			typed = append(typed, obj)
		}
	}
	return &cluster{kube: fake.NewClientset(typed...), dynamic: dynamicfake.NewSimpleDynamicClient(scheme.Scheme, raw...), mapper: fixedMapper{mapper}}, components
}

func same(*unstructured.Unstructured) {}

func foreignOf(kind string) func(*unstructured.Unstructured) {
	return func(o *unstructured.Unstructured) {
		if o.GetKind() == kind {
			o.SetLabels(map[string]string{"app": o.GetLabels()["app"], "release": "istio"})
			o.SetManagedFields(nil)
		}
	}
}

// TestInstallRefusesAnotherMesh: what is not ours is named and never written over.
func TestInstallRefusesAnotherMesh(t *testing.T) {
	for _, tc := range []struct {
		title, at string
		change    func(*unstructured.Unstructured)
		want      string // "" for none
	}{
		{"control: our own", "istio-system", same, ""},
		{"its control plane", "istio-system", foreignOf("Deployment"), "Deployment istio-system/istiod"},
		{"its control plane in another namespace", "other", foreignOf("Deployment"), "Deployment other/istiod"},
		{"ours in another namespace", "other", same, "Deployment other/istiod"},
		{"its agents", "istio-system", foreignOf("DaemonSet"), "DaemonSet istio-system/ztunnel"},
		{"its settings", "istio-system", foreignOf("ConfigMap"), "ConfigMap istio-system/istio"},
		{"its rights", "istio-system", foreignOf("ClusterRole"), "ClusterRole istio-cni"},
	} {
		c, _ := meshOn(t, tc.at, tc.change)
		mine, err := deploy.Render(removable, "istio-system", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		err = c.mayInstall(t.Context(), mine, "istio-system")
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: got %v, want an error that names %q", tc.title, err, tc.want)
		}
		found, err := c.checkOtherMesh(t.Context(), "istio-system")
		if err != nil || (tc.want != "") != slices.ContainsFunc(found, func(f finding) bool { return f.Level == "Error" && f.Object == tc.want }) {
			t.Errorf("%s: precheck says %v %v, want %q", tc.title, found, err, tc.want)
		}
	}
}

// TestInstallRefusesHalfRemoved: the pods that release nodes would take out what the new agents enrol.
func TestInstallRefusesHalfRemoved(t *testing.T) {
	spec := agentSet().Spec.Template.Spec
	set := agentSet()
	set.Spec.Template.Spec.NodeSelector = map[string]string{parked: "true"}
	for want, o := range map[string]runtime.Object{
		"Pod istio-system/undermesh-release-n1":   releasePod("istio-system", "n1", &spec),
		"DaemonSet istio-system/" + api.AgentName: set,
	} {
		c, components := meshOn(t, "istio-system", same)
		c.kube = fake.NewClientset(o)
		if err := c.mayInstall(t.Context(), components, "istio-system"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error that names %s", err, want)
		}
	}
}

// TestUninstallKeepsWhatIsNotOurs deletes by owner, not by name.
func TestUninstallKeepsWhatIsNotOurs(t *testing.T) {
	left := func(c *cluster, components []deploy.Component) (names []string) {
		objects := controllerObjects("istio-system")
		for _, comp := range components {
			objects = append(objects, comp.Objects...)
		}
		for _, o := range objects {
			if o.GetKind() == "CustomResourceDefinition" {
				continue
			}
			got, err := c.get(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if got != nil {
				names = append(names, describe(o.GetKind(), o))
			}
		}
		return names
	}
	for _, tc := range []struct {
		title  string
		change func(*unstructured.Unstructured)
		err    string
		left   string
	}{
		{"control: our own", same, "", ""},
		{"some objects", foreignOf("ConfigMap"), "", "ConfigMap istio-system/istio-ca-root-cert, ConfigMap istio-system/istio-jwks, ConfigMap istio-system/istio"},
		{"another control plane", foreignOf("Deployment"), "Deployment istio-system/istiod", "all"},
		{"other agents", foreignOf("DaemonSet"), "DaemonSet istio-system/istio-cni-node", "all"},
	} {
		t.Run(tc.title, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, components := meshOn(t, "istio-system", tc.change)
				all := strings.Join(left(c, components), ", ")
				var out strings.Builder
				err := c.uninstall(t.Context(), &out, "istio-system", time.Minute)
				if tc.err == "" && err != nil || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
					t.Errorf("got %v, want an error that names %q", err, tc.err)
				}
				if tc.left == "all" {
					tc.left = all
				} else if tc.left != "" && !strings.Contains(out.String(), "! ConfigMap istio-system/istio stays") {
					t.Errorf("what stays is not named: %s", out.String())
				}
				if got := strings.Join(left(c, components), ", "); got != tc.left {
					t.Errorf("there is left: %s\nwant: %s", got, tc.left)
				}
			})
		})
	}
}

// TestUninstallTwice: the second run, like one on a cluster that never had the mesh, does not claim to have removed anything.
func TestUninstallTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := meshOn(t, "istio-system", same)
		run := func() string {
			var out strings.Builder
			if err := c.uninstall(t.Context(), &out, "istio-system", time.Minute); err != nil {
				t.Fatal(err)
			}
			return out.String()
		}
		first := run()
		for _, want := range []string{"✓ Ztunnel removed\n", "✓ CNI removed\n", "✓ Istiod removed\n", "✓ Uninstall complete\n"} {
			if !strings.Contains(first, want) {
				t.Errorf("first run: %s\nwant %s", first, want)
			}
		}
		second := run()
		if strings.Contains(second, "removed") || strings.Contains(second, "complete") || !strings.Contains(second, "Ztunnel is not installed") ||
			!strings.Contains(second, "Namespace istio-system has no mesh: nothing to remove") {
			t.Errorf("second run: %s", second)
		}
	})
}
