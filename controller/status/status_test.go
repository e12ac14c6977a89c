package status

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	fakedynamic "k8s.io/client-go/dynamic/fake"
	kubetesting "k8s.io/client-go/testing"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/undermesh/undermesh/controller/configdir"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/validate"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// flaky fails the first attempts.
type flaky struct {
	mu       sync.Mutex
	failures int
	wrote    chan validate.Status
}

func (f *flaky) Write(_ context.Context, s validate.Status, _ map[string]any) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failures > 0 {
		f.failures--
		return true, errors.New("not now")
	}
	f.wrote <- s
	return true, nil
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

// applied is a dynamic client that records the patches that it is sent.
func applied(t *testing.T, objects ...runtime.Object) (*fakedynamic.FakeDynamicClient, func() []kubetesting.PatchActionImpl) {
	t.Helper()
	lists := map[schema.GroupVersionResource]string{}
	for _, r := range model.Resources() {
		lists[schema.GroupVersionResource{Group: r.Group, Version: r.Versions[0], Resource: r.Plural}] = r.APIKind + "List"
	}
	client := fakedynamic.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), lists, objects...)
	var all []kubetesting.PatchActionImpl
	client.PrependReactor("patch", "*", func(a kubetesting.Action) (bool, runtime.Object, error) {
		p := a.(kubetesting.PatchActionImpl)
		all = append(all, p)
		if p.GetSubresource() != "status" {
			t.Errorf("patched %q", p.GetSubresource())
		}
		return true, &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "x"}}, nil
	})
	return client, func() []kubetesting.PatchActionImpl { return all }
}

// saved is the status in a patch, as an informer would deliver it.
func saved(t *testing.T, p kubetesting.PatchActionImpl) map[string]any {
	t.Helper()
	var o map[string]any
	if err := utiljson.Unmarshal(p.GetPatch(), &o); err != nil {
		t.Fatal(err)
	}
	status, ok := o["status"].(map[string]any)
	if !ok {
		t.Fatalf("no status in %s", p.GetPatch())
	}
	return status
}

func TestKubernetesAppliesOnlyChanges(t *testing.T) {
	client, patches := applied(t)
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	w := Kubernetes{Client: client, Clock: clockAt{clock.System(), &now}}
	s := validate.Status{Kind: "AuthorizationPolicy", Namespace: "foo", Name: "p", Generation: 3,
		Accepted: false, AcceptedBy: "Invalid", EnforcedBy: "DeniesAll", Message: "spec.x: unknown field"}
	write := func(status map[string]any, want bool) {
		t.Helper()
		if wrote, err := w.Write(t.Context(), s, status); err != nil || wrote != want {
			t.Fatalf("wrote %t, want %t, %v", wrote, want, err)
		}
	}
	write(nil, true)
	p := patches()[0]
	if p.GetPatchType() != types.ApplyPatchType || p.PatchOptions.FieldManager != fieldManager || !*p.PatchOptions.Force {
		t.Errorf("not a server-side apply of our own: %s %+v", p.GetPatchType(), p.PatchOptions)
	}
	status := saved(t, p)
	first := byType(status["conditions"])["Accepted"]
	if first["status"] != "False" || first["reason"] != "Invalid" || first["observedGeneration"] != int64(3) ||
		first["lastTransitionTime"] != "2026-01-01T00:00:00Z" || len(status["validationMessages"].([]any)) != 1 {
		t.Errorf("got %v", status)
	}
	status["conditions"] = append(status["conditions"].([]any), map[string]any{"type": "Other", "status": "True"})
	write(status, false)
	now = now.Add(time.Hour)
	s.Message = "spec.y: unknown field"
	write(status, true)
	again := byType(saved(t, patches()[1])["conditions"])
	if again["Accepted"]["lastTransitionTime"] != "2026-01-01T00:00:00Z" || again["Accepted"]["message"] != s.Message || again["Other"] != nil {
		t.Errorf("a new message is no transition, and others' conditions are theirs: %v", again)
	}
	s.Gone = true
	write(nil, false)
}

// clockAt is a clock whose time stands.
type clockAt struct {
	clock.Clock
	now *time.Time
}

func (c clockAt) Now() time.Time { return *c.now }

func TestRouteKeepsOthersParents(t *testing.T) {
	foreign := map[string]any{"controllerName": "example.com/other", "parentRef": map[string]any{"name": "theirs"}, "conditions": []any{}}
	client, patches := applied(t, &unstructured.Unstructured{Object: map[string]any{"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
		"metadata": map[string]any{"name": "r", "namespace": "foo", "resourceVersion": "7"},
		"status":   map[string]any{"parents": []any{foreign}}}})
	w := Kubernetes{Client: client, Clock: clock.System()}
	s := validate.Status{Kind: "HTTPRoute", Namespace: "foo", Name: "r", Accepted: true, AcceptedBy: "AcceptedNotEnforced",
		Parents: []gatewayv1.ParentReference{{Name: "gw"}}}
	before := map[string]any{"parents": []any{foreign}}
	if wrote, err := w.Write(t.Context(), s, before); err != nil || !wrote {
		t.Fatal(wrote, err)
	}
	status := saved(t, patches()[0])
	parents := status["parents"].([]any)
	if len(parents) != 2 || parents[0].(map[string]any)["controllerName"] != "example.com/other" ||
		parents[1].(map[string]any)["parentRef"].(map[string]any)["name"] != "gw" || !strings.Contains(string(patches()[0].GetPatch()), `"resourceVersion":"7"`) {
		t.Errorf("got %s", patches()[0].GetPatch())
	}
	if wrote, err := w.Write(t.Context(), s, status); err != nil || wrote {
		t.Errorf("wrote again: %t %v", wrote, err)
	}
	s.Parents = nil // it is not attached to ours any more
	list, changed, err := routeParents(s, status, time.Time{})
	if err != nil || !changed || len(list) != 1 {
		t.Errorf("got %v %t %v", list, changed, err)
	}
	if _, changed, _ := routeParents(s, before, time.Time{}); changed {
		t.Error("a route of others is written")
	}
}

func TestNotServedVersionIsTriedInOlderOnes(t *testing.T) {
	client, _ := applied(t)
	var versions []string
	client.PrependReactor("patch", "*", func(a kubetesting.Action) (bool, runtime.Object, error) {
		versions = append(versions, a.GetResource().Version)
		return true, nil, apierrors.NewNotFound(schema.GroupResource{}, "")
	})
	w := Kubernetes{Client: client, Clock: clock.System()}
	if _, err := w.Write(t.Context(), validate.Status{Kind: "VirtualService", Namespace: "foo", Name: "v"}, nil); err != nil {
		t.Errorf("an object that is gone: %v", err)
	}
	if strings.Join(versions, " ") != "v1 v1beta1 v1alpha3" {
		t.Errorf("tried %v", versions)
	}
}

// slow counts what it is asked to write, in order.
type slow struct {
	mu   sync.Mutex
	keys []string
}

func (w *slow) Write(_ context.Context, s validate.Status, now map[string]any) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now["done"] == true {
		return false, nil
	}
	w.keys = append(w.keys, s.Key())
	return true, nil
}

// TestPace: many statuses are written at a bounded rate, security first, and what objects say already costs nothing.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const routes, there = 5000, 50_000
		w := &slow{}
		m := New(Config{Writer: w, Burst: 100, Interval: 10 * time.Millisecond})
		var events []model.Event
		var statuses []validate.Status
		for i := range routes + there {
			n := model.Name{Namespace: "foo", Name: strconv.Itoa(i)}
			statuses = append(statuses, validate.Status{Kind: "VirtualService", Namespace: n.Namespace, Name: n.Name})
			if i >= routes {
				events = append(events, model.Event{Kind: model.KindVirtualService, Name: n, Object: 1, Status: map[string]any{"done": true}})
			}
		}
		statuses = append(statuses, validate.Status{Kind: "RequestAuthentication", Namespace: "zoo", Name: "z"})
		for range 3 { // changes before a status is written are one
			m.Update(statuses)
		}
		m.Observe(events)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		synctest.Wait()
		w.mu.Lock()
		if len(w.keys) != 100 || w.keys[0] != "RequestAuthentication zoo/z" {
			t.Errorf("%d at once, the first %s", len(w.keys), w.keys[0])
		}
		w.mu.Unlock()
		time.Sleep(60 * time.Second)
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if len(w.keys) != routes+1 {
			t.Errorf("wrote %d, want %d", len(w.keys), routes+1)
		}
	})
}

// TestStandbyForgets: a replica that does not lead keeps nothing of objects that are gone.
func TestStandbyForgets(t *testing.T) {
	m := New(Config{Writer: &slow{}})
	s := validate.Status{Kind: "VirtualService", Namespace: "foo", Name: "v"}
	m.Update([]validate.Status{s})
	m.Observe([]model.Event{{Kind: model.KindVirtualService, Name: model.Name{Namespace: "foo", Name: "v"}, Object: 1, Status: map[string]any{"a": 1}}})
	s.Gone = true
	m.Update([]validate.Status{s})
	m.Observe([]model.Event{{Kind: model.KindVirtualService, Name: model.Name{Namespace: "foo", Name: "v"}}})
	if len(m.want)+len(m.seen)+len(m.dirty) > 0 {
		t.Errorf("kept %v %v %v", m.want, m.seen, m.dirty)
	}
}

// TestOverwrittenIsWrittenAgain: what somebody else makes of a status is put right.
func TestOverwrittenIsWrittenAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &slow{}
		m := New(Config{Writer: w})
		m.Update([]validate.Status{{Kind: "VirtualService", Namespace: "foo", Name: "v"}})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		event := model.Event{Kind: model.KindVirtualService, Name: model.Name{Namespace: "foo", Name: "v"}, Object: 1, Status: map[string]any{"done": true}}
		synctest.Wait()
		m.Observe([]model.Event{event})
		synctest.Wait()
		event.Status = map[string]any{"done": false}
		m.Observe([]model.Event{event})
		synctest.Wait()
		cancel()
		<-done
		if len(w.keys) != 2 {
			t.Errorf("wrote %v", w.keys)
		}
	})
}

// TestCheckCounts: what a closer look finds is said, and counts.
func TestCheckCounts(t *testing.T) {
	found := []validate.Finding{{Severity: validate.Error, Field: "spec.x", Message: "is wrong"}}
	s := validate.Status{Accepted: true, AcceptedBy: "AcceptedNotEnforced", Message: "not enforced yet: spec.y"}.With(found)
	if s.Accepted || s.AcceptedBy != "Invalid" || s.Message != "spec.x: is wrong; not enforced yet: spec.y" {
		t.Errorf("%+v", s)
	}
	s = validate.Status{Accepted: true, Enforced: true}.With([]validate.Finding{{Severity: validate.Warning, Message: "perhaps"}})
	if !s.Accepted || !s.Enforced || s.Message != "perhaps" {
		t.Errorf("%+v", s)
	}
	if s = s.With([]validate.Finding{{Severity: validate.Warning, Message: "perhaps"}}); s.Message != "perhaps" {
		t.Errorf("what was said is said again: %q", s.Message)
	}
}

func TestDirectoryWriter(t *testing.T) {
	dir := t.TempDir()
	w := Directory{Dir: dir}
	s := validate.Status{Kind: "PeerAuthentication", Namespace: "foo", Name: "p", Accepted: true}
	if _, err := w.Write(t.Context(), s, nil); err != nil {
		t.Fatal(err)
	}
	view, err := configdir.New(configdir.Config{Dir: dir}).Load()
	if err != nil || len(view.Problems) != 0 || len(configdir.List[*securityv1.PeerAuthentication](view)) != 0 {
		t.Fatal(view.Problems, err)
	}
	s.Gone = true
	for range 2 {
		if _, err := w.Write(t.Context(), s, nil); err != nil {
			t.Fatal(err)
		}
	}
}
