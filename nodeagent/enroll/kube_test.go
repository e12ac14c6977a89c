package enroll

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"

	"github.com/undermesh/undermesh/controller/api"
)

// TestAnnotateByStatus: the agent's rights end at the status subresource, which cannot change what a pod runs.
func TestAnnotateByStatus(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: "a", UID: "u1"}, Spec: corev1.PodSpec{NodeName: "n1"}}
	client := fake.NewClientset(pod)
	k := NewKube(client, "n1")
	annotation := func() string {
		t.Helper()
		p, err := client.CoreV1().Pods("foo").Get(t.Context(), "a", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return p.Annotations[api.AnnotationRedirection]
	}
	if err := k.Annotate(t.Context(), pod, true); err != nil {
		t.Fatal(err)
	}
	if got := annotation(); got != api.RedirectionEnabled {
		t.Errorf("enrolled: the annotation is %q", got)
	}
	if err := k.Clear(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := annotation(); got != "" {
		t.Errorf("cleared: the annotation is %q", got)
	}
	writes := 0
	for _, a := range client.Actions() {
		if p, ok := a.(ktesting.PatchAction); ok {
			writes++
			if p.GetSubresource() != "status" {
				t.Errorf("patch of %s/%s goes to subresource %q, want status", p.GetNamespace(), p.GetName(), p.GetSubresource())
			}
		}
	}
	if writes != 2 {
		t.Errorf("%d patches, want 2", writes)
	}
}
