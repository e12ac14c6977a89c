package watch

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	fakediscovery "k8s.io/client-go/discovery/fake"
	fakedynamic "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	kubetesting "k8s.io/client-go/testing"

	"github.com/undermesh/undermesh/controller/configdir"
	"github.com/undermesh/undermesh/controller/model"
)

// collect runs the source and returns a function that waits for an event that satisfies the condition.
func collect(t *testing.T, s Source) (next func(what string, ok func(model.Event) bool) model.Event) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	batches, done := make(chan []model.Event, 100), make(chan error, 1)
	go func() { done <- s.Run(ctx, func(b []model.Event) { batches <- b }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	var queue []model.Event
	return func(what string, ok func(model.Event) bool) model.Event {
		t.Helper()
		deadline := time.After(20 * time.Second)
		for {
			for i, e := range queue {
				if ok(e) {
					queue = queue[i+1:]
					return e
				}
			}
			queue = nil
			select {
			case b := <-batches:
				queue = b
			case err := <-done:
				done <- err
				t.Fatalf("the source ended: %v", err)
			case <-deadline:
				t.Fatalf("never saw %s", what)
			}
		}
	}
}

func is(kind model.Kind, name string, gone bool) func(model.Event) bool {
	return func(e model.Event) bool { return e.Kind == kind && e.Name.Name == name && (e.Object == nil) == gone }
}

func policy(name string, spec map[string]any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{"apiVersion": "security.istio.io/v1beta1",
		"kind": "AuthorizationPolicy", "metadata": map[string]any{"name": name, "namespace": "foo", "labels": map[string]any{"a": "b"}},
		"spec": spec}}
}

func TestKubernetesPicksUpLateKinds(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: "p", ManagedFields: []metav1.ManagedFieldsEntry{{}}},
		Spec: corev1.PodSpec{NodeName: "n", Volumes: []corev1.Volume{{Name: "v"}}}}
	client := fake.NewClientset(pod, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "istio"}})
	var served atomic.Bool
	client.Discovery().(*fakediscovery.FakeDiscovery).Resources = []*metav1.APIResourceList{{
		GroupVersion: "security.istio.io/v1beta1", APIResources: []metav1.APIResource{{Name: "authorizationpolicies"}}}}
	client.PrependReactor("get", "resource", func(kubetesting.Action) (bool, runtime.Object, error) {
		if served.Load() {
			return false, nil, nil
		}
		return true, nil, apierrors.NewNotFound(schema.GroupResource{}, "security.istio.io")
	})
	gvr := schema.GroupVersionResource{Group: "security.istio.io", Version: "v1beta1", Resource: "authorizationpolicies"}
	dyn := fakedynamic.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(),
		map[schema.GroupVersionResource]string{gvr: "AuthorizationPolicyList"},
		policy("good", map[string]any{"action": "DENY"}),
		policy("unknown", map[string]any{"rules": []any{map[string]any{"form": []any{}}}}),
		policy("undecodable", map[string]any{"selector": "x"}))
	next := collect(t, NewKubernetes(KubeConfig{Client: client, Dynamic: dyn, Namespace: "istio-system",
		CRDPoll: 20 * time.Millisecond, Quiet: time.Millisecond}))

	if got := next("the pod without any policy kind being served", is(model.KindPod, "p", false)).Object.(*model.Pod); got.Node != "n" {
		t.Errorf("got %+v", got)
	}
	served.Store(true)
	seen := map[string]model.Event{}
	for len(seen) < 3 {
		e := next("three policies", func(e model.Event) bool { return e.Kind == model.KindAuthorizationPolicy })
		seen[e.Name.Name] = e
	}
	good := seen["good"]
	if p := good.Object.(*securityv1.AuthorizationPolicy); p.Spec.Action.String() != "DENY" || len(good.Issues) != 0 || p.Labels["a"] != "b" {
		t.Errorf("got %v %v", p, good.Issues)
	}
	for name, field := range map[string]string{"undecodable": "spec.selector", "unknown": "spec.rules[0].form"} {
		if e := seen[name]; len(e.Issues) != 1 || e.Issues[0].Path != field {
			t.Errorf("%s: issues %v", name, e.Issues)
		}
	}
	if err := client.CoreV1().Pods("foo").Delete(t.Context(), "p", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	next("the pod's end", is(model.KindPod, "p", true))
}

const podYAML = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: foo}\nspec: {nodeName: n1}\nstatus: {podIP: 10.0.0.1}\n"

func TestDirectory(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f.yaml")
	if err := os.WriteFile(path, []byte(podYAML), 0o644); err != nil {
		t.Fatal(err)
	}
	next := collect(t, NewDirectory(configdir.New(configdir.Config{Dir: dir})))
	p := next("the pod", is(model.KindPod, "p", false)).Object.(*corev1.Pod)
	if len(p.Status.Conditions) != 1 || p.Status.Conditions[0].Type != corev1.PodReady {
		t.Errorf("a pod without a kubelet is not ready: %+v", p.Status)
	}
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(podYAML, "name: p,", "name: q,")), 0o644); err != nil {
		t.Fatal(err)
	}
	next("the pod's end", is(model.KindPod, "p", true))
}

func TestDirectoryRefusesToStartWithoutAGoodState(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f.yaml"), []byte(podYAML+"sepc: {}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	err := NewDirectory(configdir.New(configdir.Config{Dir: dir})).Run(t.Context(), func([]model.Event) { t.Error("emitted") })
	if err == nil || !strings.Contains(err.Error(), "file f.yaml, document 1, Pod foo/p, field sepc") {
		t.Fatal(err)
	}
}

func TestIndex(t *testing.T) {
	x := NewIndex()
	pod := func(name, node string, phase corev1.PodPhase) model.Event {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: name}, Spec: corev1.PodSpec{NodeName: node}}
		p.Status.Phase = phase
		return model.Event{Kind: model.KindPod, Name: nameOf("foo", name), Object: p}
	}
	x.Apply([]model.Event{pod("a", "n1", ""), pod("b", "n1", ""), pod("c", "n2", corev1.PodSucceeded)})
	if !x.Runs("n1", "foo", "default") || x.Runs("n2", "foo", "default") || x.NodeOf(nameOf("foo", "a"), "") != "n1" || x.NodeOf(nameOf("foo", "a"), "other") != "" {
		t.Error("the index is wrong after the first pods")
	}
	x.Apply([]model.Event{pod("a", "n1", corev1.PodFailed)})
	if !x.Runs("n1", "foo", "default") {
		t.Error("one of two pods ended and the other is forgotten")
	}
	ending := pod("b", "n1", corev1.PodRunning)
	ending.Object.(*corev1.Pod).DeletionTimestamp = &metav1.Time{}
	if x.Apply([]model.Event{ending}); !x.Runs("n1", "foo", "default") {
		t.Error("a pod that is being deleted still runs and is forgotten")
	}
	x.Apply([]model.Event{{Kind: model.KindPod, Name: nameOf("foo", "b")}})
	if x.Runs("n1", "foo", "default") {
		t.Error("no pod is left and the account still runs there")
	}
	static := pod("static-n1", "n1", "")
	static.Object.(*corev1.Pod).Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"}
	if x.Apply([]model.Event{static}); x.Runs("n1", "foo", "default") {
		t.Error("a node gets an account by a pod that it declares itself")
	}
}

// TestIndexOfNodes: an address is a node's, or its proxy's, as long as one of them has it; that of any other pod is not.
func TestIndexOfNodes(t *testing.T) {
	x := NewIndex("istio-system/ztunnel")
	pod := func(namespace, name, ip string) model.Event {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: corev1.PodSpec{NodeName: "n1", ServiceAccountName: "ztunnel"}}
		p.Status.PodIP = ip
		return model.Event{Kind: model.KindPod, Name: nameOf(namespace, name), Object: p}
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
		{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}, {Type: corev1.NodeHostName, Address: "n1"}}}}
	nodeEvent := model.Event{Kind: model.KindNode, Name: nameOf("", "n1"), Object: node}
	of := func(ip string) bool { return x.OfNode(netip.MustParseAddr(ip)) }
	for range 2 { // events may come again
		x.Apply([]model.Event{pod("istio-system", "z", "10.0.0.1"), pod("tenant", "z", "10.0.0.2"), nodeEvent})
	}
	if !of("10.0.0.1") || !of("::ffff:10.0.0.1") || !of("192.0.2.1") || of("10.0.0.2") || of("10.0.0.3") {
		t.Error("the index is wrong")
	}
	x.Apply([]model.Event{pod("istio-system", "z", "10.0.0.4"), {Kind: model.KindNode, Name: nodeEvent.Name}})
	if of("10.0.0.1") || of("192.0.2.1") || !of("10.0.0.4") {
		t.Error("the index is wrong after a change")
	}
}
