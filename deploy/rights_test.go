package deploy

import (
	"slices"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// may tells whether the named role of the default profile grants a verb; name "" asks for every object of the resource.
func may(t *testing.T, kind, role, verb, group, resource, name string) bool {
	t.Helper()
	p, err := LoadProfile("default")
	if err != nil {
		t.Fatal(err)
	}
	components, err := Render(p.Components, "istio-system", "", p.Values)
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, c := range components {
		for _, o := range c.Objects {
			if o.GetKind() != kind || o.GetName() != role {
				continue
			}
			found = true
			var r rbacv1.ClusterRole
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &r); err != nil {
				t.Fatal(err)
			}
			for _, rule := range r.Rules {
				has := func(list []string, want string) bool { return slices.Contains(list, want) || slices.Contains(list, "*") }
				if has(rule.APIGroups, group) && has(rule.Resources, resource) && has(rule.Verbs, verb) &&
					(len(rule.ResourceNames) == 0 || slices.Contains(rule.ResourceNames, name)) {
					return true
				}
			}
		}
	}
	if !found {
		t.Fatalf("there is no %s %s", kind, role)
	}
	return false
}

// TestAgentRights: an agent that was taken over must not be able to change what other nodes run.
func TestAgentRights(t *testing.T) {
	for _, tc := range []struct {
		verb, resource string
		want           bool
	}{
		{"list", "pods", true}, {"watch", "namespaces", true}, {"patch", "pods/status", true}, {"create", "events", true},
		{"patch", "pods", false}, {"update", "pods", false}, {"create", "pods", false}, {"delete", "pods", false},
		{"update", "pods/status", false}, {"get", "secrets", false}, {"get", "nodes", false}, {"patch", "nodes", false},
	} {
		if got := may(t, "ClusterRole", "istio-cni", tc.verb, "", tc.resource, ""); got != tc.want {
			t.Errorf("the agent may %s %s: %v, want %v", tc.verb, tc.resource, got, tc.want)
		}
	}
}
