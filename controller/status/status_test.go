package status

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	fakedynamic "k8s.io/client-go/dynamic/fake"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/undermesh/undermesh/controller/configdir"
	"github.com/undermesh/undermesh/controller/validate"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// flaky fails the first attempts.
type flaky struct {
	mu       sync.Mutex
	failures int
	wrote    chan validate.Status
}

func (f *flaky) Write(_ context.Context, s validate.Status) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failures > 0 {
		f.failures--
		return errors.New("not now")
	}
	f.wrote <- s
	return nil
}

func TestManagerWritesUntilItIsThere(t *testing.T) {
	w := &flaky{failures: 3, wrote: make(chan validate.Status, 10)}
	m := New(Config{Writer: w, Backoff: time.Millisecond})
	m.Update([]validate.Status{{Kind: "AuthorizationPolicy", Namespace: "foo", Name: "p", Message: "old"}})
	m.Update([]validate.Status{{Kind: "AuthorizationPolicy", Namespace: "foo", Name: "p", Message: "new"}})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	select {
	case s := <-w.wrote:
		if s.Message != "new" {
			t.Errorf("wrote %q", s.Message)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("never written")
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestKubernetesKeepsForeignConditions(t *testing.T) {
	gvr := schema.GroupVersionResource{Group: group, Version: "v1", Resource: "authorizationpolicies"}
	obj := &unstructured.Unstructured{Object: map[string]any{"apiVersion": apiVersion, "kind": "AuthorizationPolicy",
		"metadata": map[string]any{"name": "p", "namespace": "foo"},
		"status":   map[string]any{"conditions": []any{map[string]any{"type": "Other", "status": "True"}}}}}
	client := fakedynamic.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(),
		map[schema.GroupVersionResource]string{gvr: "AuthorizationPolicyList"}, obj)
	w := Kubernetes{Client: client, Clock: clock.System()}
	s := validate.Status{Kind: "AuthorizationPolicy", Namespace: "foo", Name: "p", Generation: 3,
		Accepted: false, AcceptedBy: "Invalid", EnforcedBy: "DeniesAll", Message: "spec.x: unknown field"}
	for range 2 {
		if err := w.Write(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	patches := 0
	for _, a := range client.Actions() {
		if a.GetVerb() == "patch" {
			patches++
			if a.GetSubresource() != "status" {
				t.Errorf("patched %q", a.GetSubresource())
			}
		}
	}
	if patches != 1 {
		t.Errorf("%d patches for the same status twice", patches)
	}
	got, err := client.Resource(gvr).Namespace("foo").Get(t.Context(), "p", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	list, _, err := unstructured.NestedSlice(got.Object, "status", "conditions")
	if err != nil || len(list) != 3 {
		t.Fatal(list, err)
	}
	accepted := list[1].(map[string]any)
	if list[0].(map[string]any)["type"] != "Other" || accepted["type"] != "Accepted" || accepted["status"] != "False" ||
		accepted["reason"] != "Invalid" || accepted["lastTransitionTime"] == nil {
		t.Errorf("got %v", list)
	}
	s.Name = "gone"
	if err := w.Write(t.Context(), s); err != nil {
		t.Errorf("a policy that is gone: %v", err)
	}
}

func TestDirectoryWriter(t *testing.T) {
	dir := t.TempDir()
	w := Directory{Dir: dir}
	s := validate.Status{Kind: "PeerAuthentication", Namespace: "foo", Name: "p", Accepted: true}
	if err := w.Write(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	view, err := configdir.New(configdir.Config{Dir: dir}).Load()
	if err != nil || len(view.Problems) != 0 || len(configdir.List[*securityv1.PeerAuthentication](view)) != 0 {
		t.Fatal(view.Problems, err)
	}
	s.Gone = true
	for range 2 {
		if err := w.Write(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
}
