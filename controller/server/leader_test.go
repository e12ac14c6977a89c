package server

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/ca"
	"github.com/undermesh/undermesh/controller/watch"
)

func TestLeaseIsHeldByOneAndPassedOn(t *testing.T) {
	client := fake.NewClientset()
	leading := make(chan string, 10)
	replica := func(name string) (stop func() error) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- ByLease(client, "istio-system", name, slog.New(slog.DiscardHandler))(ctx, func(ctx context.Context) error {
				leading <- name
				<-ctx.Done()
				return nil
			})
		}()
		return func() error { cancel(); return <-done }
	}
	wait := func(want string) {
		t.Helper()
		select {
		case got := <-leading:
			if got != want {
				t.Fatalf("%s leads, want %s", got, want)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("%s never leads", want)
		}
	}
	stopA := replica("a")
	wait("a")
	stopB := replica("b")
	if err := stopA(); err != nil {
		t.Fatal(err)
	}
	wait("b") // a released the Lease
	if err := stopB(); err != nil {
		t.Fatal(err)
	}
}

func TestLeaderErrorEndsTheServer(t *testing.T) {
	term := &term{lead: func(context.Context) error { return errors.New("broken") }, done: make(chan error, 1)}
	term.start(t.Context())
	if err := term.end(); err == nil {
		t.Error("the error is lost")
	}
	term.start(t.Context()) // too late: it must not run, nobody would wait for it
	if len(term.done) != 0 {
		t.Error("work started after the end")
	}
}

func TestNodeAuthorizerReadsOnAMiss(t *testing.T) {
	pod := func(ns, name, node, account string, phase corev1.PodPhase) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, UID: "uid-1"},
			Spec: corev1.PodSpec{NodeName: node, ServiceAccountName: account}, Status: corev1.PodStatus{Phase: phase}}
	}
	ending := pod("bar", "ending", "n1", "ending", corev1.PodRunning) // it serves until its containers ended
	ending.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
	mirror := pod("mirrors", "claimed", "n1", "default", corev1.PodRunning)
	mirror.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "made by the node"}
	client := fake.NewClientset(pod("istio-system", "z1", "n1", "ztunnel", ""), pod("foo", "late", "n1", "late", ""),
		pod("foo", "done", "n1", "done", corev1.PodSucceeded), ending, mirror)
	n := nodeAuthorizer{runsOn{index: watch.NewIndex(), direct: client}}
	id := func(account string) api.Identity {
		return api.Identity{TrustDomain: "cluster.local", Namespace: "foo", ServiceAccount: account}
	}
	caller := ca.Caller{Namespace: "istio-system", ServiceAccount: "ztunnel", Node: "n1"}
	if err := n.MayImpersonate(t.Context(), caller, id("late")); err != nil {
		t.Error("a pod whose event is late:", err)
	}
	if err := n.MayImpersonate(t.Context(), caller, api.Identity{TrustDomain: "cluster.local", Namespace: "bar", ServiceAccount: "ending"}); err != nil {
		t.Error("a pod that is being deleted:", err)
	}
	if err := n.MayImpersonate(t.Context(), caller, api.Identity{TrustDomain: "cluster.local", Namespace: "mirrors", ServiceAccount: "default"}); err == nil {
		t.Error("a node has the identity of a pod that it made up")
	}
	byPod := ca.Caller{Namespace: "istio-system", ServiceAccount: "ztunnel", PodName: "z1", PodUID: "uid-1"}
	if err := n.MayImpersonate(t.Context(), byPod, id("late")); err != nil {
		t.Error("a token that names its pod only:", err)
	}
	// The fake API server does not evaluate field selectors: only the finished pod may be left to be found.
	if err := client.CoreV1().Pods("foo").Delete(t.Context(), "late", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, x := range map[string]struct {
		caller ca.Caller
		want   string
	}{
		"done":   {caller, "no pod of foo/done runs on node n1"},
		"stolen": {ca.Caller{Namespace: "istio-system", PodName: "z1", PodUID: "other"}, "it is not the pod with uid other"},
		"free":   {ca.Caller{Namespace: "istio-system"}, "bound to no pod and no node"},
	} {
		if err := n.MayImpersonate(t.Context(), x.caller, id(name)); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v, want %q", name, err, x.want)
		}
	}
}
