package deploy

import (
	"slices"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/undermesh/undermesh/controller/model"
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
				has := func(list []string, want string) bool {
					return slices.Contains(list, want) || slices.Contains(list, "*")
				}
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

// TestControllerRights: what the controller watches and writes, and no more.
func TestControllerRights(t *testing.T) {
	const security = "security.istio.io"
	for _, tc := range []struct {
		kind, verb, group, resource, name string
		want                              bool
	}{
		{"ClusterRole", "watch", "", "pods", "", true},
		{"ClusterRole", "get", "", "pods", "", true},
		{"ClusterRole", "list", "", "nodes", "", true},
		{"ClusterRole", "watch", "", "services", "", true},
		{"ClusterRole", "watch", "discovery.k8s.io", "endpointslices", "", true},
		{"ClusterRole", "watch", security, "authorizationpolicies", "", true},
		{"ClusterRole", "get", security, "peerauthentications", "", true},
		{"ClusterRole", "patch", security, "authorizationpolicies/status", "", true},
		{"ClusterRole", "patch", security, "peerauthentications/status", "", true},
		{"ClusterRole", "create", "authentication.k8s.io", "tokenreviews", "", true},
		{"ClusterRole", "patch", security, "authorizationpolicies", "", false},
		{"ClusterRole", "get", "", "configmaps", "", false},
		{"ClusterRole", "get", "", "secrets", "", false},
		{"ClusterRole", "patch", "", "pods", "", false},
		{"ClusterRole", "create", "", "events", "", false},
		{"ClusterRole", "get", "apiextensions.k8s.io", "customresourcedefinitions", "", false},
		{"ClusterRole", "patch", "networking.istio.io", "virtualservices", "", false},
		{"ClusterRole", "get", "networking.k8s.io", "networkpolicies", "", false},
		{"ClusterRole", "patch", "networking.k8s.io", "ingresses/status", "", false},
		{"ClusterRole", "get", "admissionregistration.k8s.io", "validatingwebhookconfigurations", "istio-validator-istio-system", true},
		{"ClusterRole", "update", "admissionregistration.k8s.io", "validatingwebhookconfigurations", "istio-validator-istio-system", true},
		{"ClusterRole", "update", "admissionregistration.k8s.io", "validatingwebhookconfigurations", "another", false},
		{"ClusterRole", "create", "admissionregistration.k8s.io", "validatingwebhookconfigurations", "", false},
		{"ClusterRole", "update", "admissionregistration.k8s.io", "mutatingwebhookconfigurations", "", false},
		{"credentials", "get", "", "secrets", "", true},
		{"credentials", "list", "", "secrets", "", false},
		{"credentials", "watch", "", "secrets", "", false},
		{"credentials", "get", "", "configmaps", "", false},
		{"Role", "get", "", "secrets", "istio-ca-secret", true},
		{"Role", "get", "", "secrets", "cacerts", true},
		{"Role", "create", "", "secrets", "", true},
		{"Role", "watch", "", "configmaps", "istio", true},
		{"Role", "list", "", "configmaps", "istio", true},
		{"Role", "update", "", "configmaps", "istio-ca-root-cert", true},
		{"Role", "watch", "", "configmaps", "istio-jwks", true},
		{"Role", "patch", "", "configmaps", "istio-jwks", true},
		{"Role", "patch", "", "configmaps", "istio", false},
		{"Role", "create", "", "configmaps", "", true},
		{"Role", "get", "coordination.k8s.io", "leases", "istiod-leader", true},
		{"Role", "update", "coordination.k8s.io", "leases", "istiod-leader", true},
		{"Role", "create", "coordination.k8s.io", "leases", "", true},
		{"Role", "get", "", "secrets", "another", false},
		{"Role", "list", "", "secrets", "", false},
		{"Role", "update", "", "secrets", "istio-ca-secret", true}, // by a rotation
		{"Role", "update", "", "secrets", "istio-ca-rotation", true},
		{"Role", "update", "", "secrets", "cacerts", false},
		{"Role", "get", "", "secrets", "external-ca-cert", false}, // nothing of an external signer unless there is one
		{"ClusterRole", "create", "certificates.k8s.io", "certificatesigningrequests", "", false},
		{"ClusterRole", "approve", "certificates.k8s.io", "signers", "", false},
		{"Role", "update", "", "configmaps", "istio", false},
		{"Role", "update", "coordination.k8s.io", "leases", "another", false},
	} {
		kind, role := tc.kind, "istiod"
		switch tc.kind {
		case "ClusterRole":
			role = "istiod-istio-system"
		case "credentials":
			kind, role = "ClusterRole", "istiod-credentials-istio-system"
		}
		if got := may(t, kind, role, tc.verb, tc.group, tc.resource, tc.name); got != tc.want {
			t.Errorf("%s: the controller may %s %s %q: %v, want %v", tc.kind, tc.verb, tc.resource, tc.name, got, tc.want)
		}
	}
}

// TestControllerWatchesKinds: a kind that it may not list would keep the controller from ever being ready.
func TestControllerWatchesKinds(t *testing.T) {
	for _, r := range model.Resources() {
		for _, verb := range []string{"get", "list", "watch"} {
			if !may(t, "ClusterRole", "istiod-istio-system", verb, r.Group, r.Plural, "") {
				t.Errorf("the controller may not %s %s of %s", verb, r.Plural, r.Group)
			}
		}
		status := r.Group != model.GroupIngress && r.Kind != model.KindReferenceGrant // these have no conditions
		if got := may(t, "ClusterRole", "istiod-istio-system", "patch", r.Group, r.Plural+"/status", ""); got != status {
			t.Errorf("the controller may patch the status of %s of %s: %v, want %v", r.Plural, r.Group, got, status)
		}
	}
}
