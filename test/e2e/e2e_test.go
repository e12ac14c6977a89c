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

func TestMT03Permissive(t *testing.T) {
	ctx, w := meshed(t)
	check(t, w.ExpectPairs(ctx, time.Minute))
}

func TestMT26Wire(t *testing.T) {
	ctx, w := meshed(t)
	t.Run("MT-26 mesh pair is encrypted", func(t *testing.T) { check(t, w.Encrypted(ctx, "foo", "bar", true)) })
	t.Run("MT-26 control: legacy pair is in clear", func(t *testing.T) { check(t, w.Encrypted(ctx, "legacy", "bar", false)) })
}

func TestMT04StrictMesh(t *testing.T) {
	ctx, w := meshed(t)
	check(t, w.Apply(ctx, StrictMesh))
	t.Cleanup(func() { check(t, w.Delete(context.Background(), StrictMesh)) })
	check(t, w.ExpectPairs(ctx, time.Minute, "legacy→foo", "legacy→bar"))
	for _, to := range Meshed {
		check(t, w.RefusedAlways(ctx, "legacy", to, 50))
	}
	check(t, w.Delete(ctx, StrictMesh))
	check(t, w.ExpectPairs(ctx, time.Minute)) // control: without the policy nothing is refused
}

func TestMT05StrictNamespace(t *testing.T) {
	ctx, w := meshed(t)
	policy := StrictNamespace("foo")
	check(t, w.Apply(ctx, policy))
	t.Cleanup(func() { check(t, w.Delete(context.Background(), policy)) })
	check(t, w.ExpectPairs(ctx, time.Minute, "legacy→foo"))
	check(t, w.Delete(ctx, policy))
	check(t, w.ExpectPairs(ctx, time.Minute))
}

func TestAuthorizationTCP(t *testing.T) {
	ctx, w := meshed(t)
	for _, p := range EchoPolicies {
		t.Run(p.ID+" "+p.Title, func(t *testing.T) {
			check(t, w.ExpectEcho(ctx, p.Policy, p.Cases...))
		})
	}
}

// TestSI01Enrolment takes namespaces out and in again: the pods stay the same ones, and all pairs answer throughout.
func TestSI01Enrolment(t *testing.T) {
	ctx, w := meshed(t)
	before, err := w.PodFacts(ctx, All)
	check(t, err)
	check(t, w.Unenrol(ctx, Meshed...))
	check(t, w.ExpectPairs(ctx, 30*time.Second))
	t.Run("control: outside the mesh the link carries clear text", func(t *testing.T) { check(t, w.Encrypted(ctx, "foo", "bar", false)) })
	check(t, w.Enrol(ctx, Meshed...))
	check(t, w.ExpectPairs(ctx, 30*time.Second))
	check(t, w.Encrypted(ctx, "foo", "bar", true))
	after, err := w.PodFacts(ctx, All)
	check(t, err)
	check(t, Same(before, after))
}

// TestSI03PodLabel shows that a pod's own label wins over its namespace.
func TestSI03PodLabel(t *testing.T) {
	ctx, w := meshed(t)
	pod, err := w.OnePod(ctx, "foo", "httpbin")
	check(t, err)
	set := func(value string) {
		_, err := w.Kubectl(ctx, "label", "pod", "-n", "foo", pod.Metadata.Name, "--overwrite", api.LabelPodInject+value)
		check(t, err)
	}
	await := func(want string) {
		check(t, Until(ctx, 30*time.Second, "annotation "+want, func(ctx context.Context) error {
			p, err := w.OnePod(ctx, "foo", "httpbin")
			if err == nil && p.Metadata.Annotations[api.AnnotationRedirection] != want {
				err = fmt.Errorf("is %q", p.Metadata.Annotations[api.AnnotationRedirection])
			}
			return err
		}))
	}
	set("=false")
	await("")
	set("-")
	await(api.RedirectionEnabled)
	check(t, w.ExpectPairs(ctx, 30*time.Second))
}
