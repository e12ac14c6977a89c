package e2e

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/undermesh/undermesh/controller/api"
)

// These tests run on the cluster named by NAME, with the mesh installed, when MESH_TEST_CLUSTER=1 (make test-cluster).
// They share one fixture and run one after the other, since mesh-wide policies are part of them.

var prepare = sync.OnceValue(func() error {
	w, err := Find(func(string, ...any) {})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if err := w.Fixture(ctx); err != nil {
		return err
	}
	if err := w.Enrol(ctx, Meshed...); err != nil {
		return err
	}
	return w.ExpectPairs(ctx, time.Minute)
})

// meshed gives a world in which foo and bar are enrolled.
func meshed(t *testing.T) (context.Context, *World) {
	t.Helper()
	if os.Getenv("MESH_TEST_CLUSTER") != "1" {
		t.Skip("needs a cluster with the mesh: make test-cluster")
	}
	if err := prepare(); err != nil {
		t.Fatal(err)
	}
	w, err := Find(func(format string, args ...any) { t.Logf(format, args...) })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	t.Cleanup(cancel)
	return ctx, w
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestMT26Wire(t *testing.T) {
	ctx, w := meshed(t)
	t.Run("MT-26 mesh pair is encrypted", func(t *testing.T) { check(t, w.Encrypted(ctx, "foo", "bar", true)) })
	t.Run("MT-26 control: legacy pair is in clear", func(t *testing.T) { check(t, w.Encrypted(ctx, "legacy", "bar", false)) })
}

// TestEnrolment takes namespaces out and in again: the pods stay the same ones, and all pairs answer throughout. Each state is
// the other's control.
func TestEnrolment(t *testing.T) {
	ctx, w := meshed(t)
	before, err := w.PodFacts(ctx, All)
	check(t, err)
	inClear := func(t *testing.T) { check(t, w.Encrypted(ctx, "foo", "bar", false)) }
	encrypted := func(t *testing.T) { check(t, w.Encrypted(ctx, "foo", "bar", true)) }
	t.Run("SI-02 control: with the label the link is encrypted", encrypted)
	check(t, w.Unenrol(ctx, Meshed...))
	check(t, w.ExpectPairs(ctx, 30*time.Second))
	t.Run("SI-02 without the label the link carries clear text", inClear)
	t.Run("SI-01 control: outside the mesh the link carries clear text", inClear)
	check(t, w.Enrol(ctx, Meshed...))
	check(t, w.ExpectPairs(ctx, 30*time.Second))
	t.Run("SI-01 with the label the link is encrypted", encrypted)
	after, err := w.PodFacts(ctx, All)
	check(t, err)
	check(t, Same(before, after))
}

// TestSI03PodLabel shows that a pod's own label wins over its namespace: foo's sleep leaves the mesh.
func TestSI03PodLabel(t *testing.T) {
	ctx, w := meshed(t)
	pod, err := w.OnePod(ctx, "foo", "sleep")
	check(t, err)
	set := func(value string) {
		_, err := w.Kubectl(context.WithoutCancel(ctx), "label", "pod", "-n", "foo", pod.Metadata.Name, "--overwrite", api.LabelPodInject+value)
		check(t, err)
	}
	await := func(want string) {
		check(t, Until(context.WithoutCancel(ctx), 30*time.Second, "annotation "+want, func(ctx context.Context) error {
			p, err := w.OnePod(ctx, "foo", "sleep")
			if err == nil && p.Metadata.Annotations[api.AnnotationRedirection] != want {
				err = fmt.Errorf("is %q", p.Metadata.Annotations[api.AnnotationRedirection])
			}
			return err
		}))
	}
	policy := StrictNamespace("bar") // lets only the mesh in
	check(t, w.Apply(ctx, policy))
	t.Cleanup(func() { check(t, w.Delete(context.Background(), policy)) })
	t.Cleanup(func() { set("-"); await(api.RedirectionEnabled) })
	set("=false")
	await("")
	check(t, w.ExpectPairs(ctx, 30*time.Second, "legacy→bar", "foo→bar"))
	set("-")
	await(api.RedirectionEnabled)
	t.Run("control: without the label", func(t *testing.T) { check(t, w.ExpectPairs(ctx, 30*time.Second, "legacy→bar")) })
}
