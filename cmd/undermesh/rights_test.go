package main

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	authv1 "k8s.io/api/authorization/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"
	"sigs.k8s.io/yaml"
)

// refuse makes a fake API server refuse what its user has no right to, and tell so when it is asked.
func refuse(t *testing.T, kube *fake.Clientset, denied func(verb, resource string) bool) {
	t.Helper()
	kube.PrependReactor("create", "selfsubjectaccessreviews", func(a ktesting.Action) (bool, runtime.Object, error) {
		r := a.(ktesting.CreateAction).GetObject().(*authv1.SelfSubjectAccessReview).DeepCopy()
		r.Status.Allowed = !denied(r.Spec.ResourceAttributes.Verb, r.Spec.ResourceAttributes.Resource)
		return true, r, nil
	})
	kube.PrependReactor("list", "*", func(a ktesting.Action) (bool, runtime.Object, error) {
		gr := a.GetResource().GroupResource()
		if !denied("list", gr.Resource) {
			return false, nil, nil
		}
		return true, nil, apierrors.NewForbidden(gr, "", nil)
	})
}

// TestPrecheckListsMissingRights: all of them, first, and the checks that are allowed run all the same.
func TestPrecheckListsMissingRights(t *testing.T) {
	c, _ := meshOn(t, "istio-system", same)
	policy := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p"}}
	if err := yaml.UnmarshalStrict([]byte(`{podSelector: {}, ingress: [{ports: [{port: 80}]}]}`), &policy.Spec); err != nil {
		t.Fatal(err)
	}
	kube := fake.NewClientset(policy)
	c.kube = kube
	refuse(t, kube, func(verb, resource string) bool {
		return resource == "nodes" || resource == "daemonsets" && verb != "get" || resource == "customresourcedefinitions" && verb == "create"
	})
	found, err := c.precheck(t.Context(), "istio-system")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, x := range found {
		lines = append(lines, x.Level+" ["+x.Object+"] "+x.Message)
	}
	want := []string{
		"Error [you] may not list nodes",
		"Error [you] may not create customresourcedefinitions.apiextensions.k8s.io",
		"Error [you] may not create, patch daemonsets.apps in namespace istio-system",
	}
	if len(lines) < 3 || !slices.Equal(lines[:3], want) {
		t.Errorf("got %s\nwant first %s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
	for _, w := range []string{"Warning [you] not checked: list nodes: ", "Warning [NetworkPolicy shop/p] blocks port 15008"} {
		if !slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, w) }) {
			t.Errorf("got %s\nwant %s", strings.Join(lines, "\n"), w)
		}
	}
	refuse(t, kube, func(string, string) bool { return false })
	if found, err = c.checkRights(t.Context(), "istio-system"); err != nil || len(found) > 0 {
		t.Errorf("control: with all rights: %v, %v", found, err)
	}
}

// TestVersionWithoutRights prints what it knows and names the rest; a server that answers otherwise is an error.
func TestVersionWithoutRights(t *testing.T) {
	code := http.StatusForbidden
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		reason := metav1.StatusReasonForbidden
		if code != http.StatusForbidden {
			reason = metav1.StatusReasonInternalError
		}
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure",
			Message: "pods is forbidden", Reason: reason, Code: int32(code)})
	}))
	defer api.Close()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	text := `{clusters: [{name: a, cluster: {server: "` + api.URL + `"}}], contexts: [{name: a, context: {cluster: a}}], current-context: a}`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	run := func() (string, error) {
		var out, errw strings.Builder
		root := newRoot("undermesh", strings.NewReader(""), &out, &errw)
		root.SetArgs([]string{"version", "--kubeconfig", path})
		err := root.Execute()
		return out.String(), err
	}
	out, err := run()
	if err != nil || !strings.Contains(out, "client version:") || !strings.Contains(out, "not seen:") || !strings.Contains(out, "list pods of namespace istio-system") {
		t.Errorf("no right to list pods: %v\n%s", err, out)
	}
	code = http.StatusInternalServerError
	if out, err = run(); err == nil || !strings.Contains(out, "client version:") {
		t.Errorf("a server that fails: %v\n%s", err, out)
	}
}
