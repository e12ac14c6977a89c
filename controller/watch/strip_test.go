package watch

import (
	"maps"
	"reflect"
	"strconv"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/undermesh/undermesh/controller/model"
)

func examplePod(name string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: name, ResourceVersion: "7" + name, Labels: map[string]string{"app": "a", "v": "1"}},
		Spec: corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "main", ContainerPort: 80}}}}}}
}

// TestSlimPod: an informer knows the record by the pod's key and version, and the model reads the same of it as of the pod.
func TestSlimPod(t *testing.T) {
	p := newPool()
	first, err := p.slim(examplePod("x"))
	if err != nil {
		t.Fatal(err)
	}
	if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(first); err != nil || key != "foo/x" {
		t.Errorf("key %q, %v", key, err)
	}
	if m, err := meta.Accessor(first); err != nil || m.GetResourceVersion() != "7x" {
		t.Errorf("metadata %v, %v", m, err)
	}
	if got, want := first.(*slimPod).pod, model.NewPod(examplePod("x")); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if again, _ := p.slim(first); again != first {
		t.Error("what was replaced is replaced again")
	}
	second, _ := p.slim(examplePod("y"))
	same := func(a, b any) bool { return reflect.ValueOf(a).Pointer() == reflect.ValueOf(b).Pointer() }
	if a, b := first.(*slimPod).pod, second.(*slimPod).pod; !same(a.Labels, b.Labels) || !same(a.Ports, b.Ports) {
		t.Error("equal labels or ports are not shared")
	}
	other := examplePod("z")
	other.Labels = maps.Clone(other.Labels)
	other.Labels["v"] = "2"
	if third, _ := p.slim(other); third.(*slimPod).pod.Labels["v"] != "2" {
		t.Error("different labels are shared")
	}
	done := examplePod("x")
	done.Status.Phase = corev1.PodSucceeded
	if o, _ := p.slim(done); o.(*slimPod).pod != nil {
		t.Error("a pod that has finished is still one")
	}
}

// TestPoolIsBounded: names that never come again do not stay.
func TestPoolIsBounded(t *testing.T) {
	p := newPool()
	for i := range 2 * poolSize {
		pod := examplePod("x")
		pod.Labels = map[string]string{"i": strconv.Itoa(i)}
		if _, err := p.slim(pod); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(p.labels) + len(p.texts) + len(p.ports); n > poolSize+10 {
		t.Errorf("%d entries, want at most %d", n, poolSize)
	}
}

// TestAnnotationsAreText: whoever may write a Service can store bytes that no message of ours can carry.
func TestAnnotationsAreText(t *testing.T) {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"a": "x\xffy", "b": "ü"}}}
	if _, err := strip(svc); err != nil || !maps.Equal(svc.Annotations, map[string]string{"a": "x\uFFFDy", "b": "ü"}) {
		t.Errorf("%q, %v", svc.Annotations, err)
	}
}
