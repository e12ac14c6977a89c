package main

import (
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"

	"github.com/undermesh/undermesh/controller/api"
)

// site is a cluster whose agents go when their DaemonSet is parked, and whose kubelets end release pods.
type site struct {
	*fake.Clientset
	mu      sync.Mutex
	phase   map[string]corev1.PodPhase // of new release pods by node; default Succeeded
	created []string                   // names of release pods, in order
}

func newSite(t *testing.T, objects ...runtime.Object) *site {
	t.Helper()
	s := &site{Clientset: fake.NewClientset(objects...), phase: map[string]corev1.PodPhase{}}
	pods := corev1.SchemeGroupVersion.WithResource("pods")
	s.PrependReactor("create", "pods", func(a ktesting.Action) (bool, runtime.Object, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		p := a.(ktesting.CreateAction).GetObject().(*corev1.Pod)
		p.Status.Phase = s.phase[p.Spec.NodeName]
		if p.Status.Phase == "" {
			p.Status.Phase = corev1.PodSucceeded
		}
		err := s.Tracker().Create(pods, p, p.Namespace)
		if err == nil {
			s.created = append(s.created, p.Name)
		}
		return true, p, err
	})
	s.PrependReactor("patch", "daemonsets", func(a ktesting.Action) (bool, runtime.Object, error) {
		if strings.Contains(string(a.(ktesting.PatchAction).GetPatch()), parked) {
			for _, n := range []string{"agent-n1", "agent-n1-again", "agent-n2"} {
				_ = s.Tracker().Delete(pods, "istio-system", n)
			}
		}
		return false, nil, nil
	})
	return s
}

func (s *site) release(t *testing.T) error {
	t.Helper()
	return releaser{&cluster{kube: s}, "istio-system", time.Minute}.run(t.Context())
}

func (s *site) agentIsThere(t *testing.T) bool {
	t.Helper()
	_, err := s.AppsV1().DaemonSets("istio-system").Get(t.Context(), api.AgentName, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	return err == nil
}

func (s *site) releasePods(t *testing.T) int {
	t.Helper()
	l, err := s.CoreV1().Pods("istio-system").List(t.Context(), metav1.ListOptions{LabelSelector: "app=" + releaseName})
	if err != nil {
		t.Fatal(err)
	}
	return len(l.Items)
}

func node(name string, ready corev1.ConditionStatus) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name},
		Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}}}
}

func agentSet() *appsv1.DaemonSet {
	labels := map[string]string{"k8s-app": api.AgentName}
	return &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: api.AgentName, Labels: map[string]string{labelPartOf: partOf}},
		Spec: appsv1.DaemonSetSpec{Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: labels},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "install-cni", Args: []string{"--node-name=x"}}}},
		}}}
}

func agentPod(name, node string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: name, Labels: map[string]string{"k8s-app": api.AgentName}},
		Spec: corev1.PodSpec{NodeName: node}}
}

func captured(name, node string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: name, Annotations: map[string]string{api.AnnotationRedirection: api.RedirectionEnabled}},
		Spec: corev1.PodSpec{NodeName: node}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}
}

// TestReleaseEachNodeOnce: nodes are those of the cluster, not those whose agent happens to be there or is there twice.
func TestReleaseEachNodeOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, node("n1", corev1.ConditionTrue), node("n2", corev1.ConditionTrue), agentSet(),
			agentPod("agent-n1", "n1"), agentPod("agent-n1-again", "n1"))
		if err := s.release(t); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(s.created, " "); got != "undermesh-release-n1 undermesh-release-n2" {
			t.Errorf("released with %q, want one pod for each node", got)
		}
		if s.agentIsThere(t) || s.releasePods(t) > 0 {
			t.Errorf("left behind: agent %v, %d release pods", s.agentIsThere(t), s.releasePods(t))
		}
	})
}

// TestReleaseInterrupted: a run that did not end is not taken for one that did.
func TestReleaseInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, node("n1", corev1.ConditionTrue), node("n2", corev1.ConditionTrue), agentSet(),
			agentPod("agent-n1", "n1"), agentPod("agent-n2", "n2"))
		s.phase["n2"] = corev1.PodPending
		for range 2 {
			if err := s.release(t); err == nil || !strings.Contains(err.Error(), "node n2") || strings.Contains(err.Error(), "node n1") {
				t.Fatalf("one node does not end: got %v, want an error that names n2 only", err)
			}
			if !s.agentIsThere(t) {
				t.Fatal("the agents' DaemonSet is deleted before all nodes are released")
			}
		}
		if got := strings.Join(s.created, " "); got != "undermesh-release-n1 undermesh-release-n2" {
			t.Errorf("the second run made %q, want it to wait for the pods of the first", got)
		}
		p, err := s.CoreV1().Pods("istio-system").Get(t.Context(), "undermesh-release-n2", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		p.Status.Phase = corev1.PodSucceeded
		if _, err := s.CoreV1().Pods("istio-system").UpdateStatus(t.Context(), p, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		for range 2 { // and once more, when there is nothing to do
			if err := s.release(t); err != nil {
				t.Fatal(err)
			}
			if s.agentIsThere(t) || s.releasePods(t) > 0 {
				t.Errorf("left behind: agent %v, %d release pods", s.agentIsThere(t), s.releasePods(t))
			}
		}
	})
}

// TestReleaseWithoutAgents: pods of an earlier run stand for the agents; those that failed and those that lack are made.
func TestReleaseWithoutAgents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		spec := agentSet().Spec.Template.Spec
		first := releasePod("istio-system", "n1", &spec)
		first.Status.Phase = corev1.PodFailed
		s := newSite(t, node("n1", corev1.ConditionTrue), node("n2", corev1.ConditionTrue), first, captured("a", "n2"))
		s.phase["n2"] = corev1.PodPending
		if err := s.release(t); err == nil || !strings.Contains(err.Error(), "node n2") {
			t.Fatalf("got %v, want to wait for node n2", err)
		}
		p, err := s.CoreV1().Pods("istio-system").Get(t.Context(), "undermesh-release-n2", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(p.Spec.Containers[0].Args, " "); got != "uninstall --node-name=x" {
			t.Errorf("node n2 runs %q", got)
		}
		if got := strings.Join(s.created, " "); got != "undermesh-release-n1 undermesh-release-n2" {
			t.Errorf("made %q", got)
		}
	})
}

func TestReleaseRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		objects []runtime.Object
		want    string
	}{
		"a node that is away":        {[]runtime.Object{node("n1", corev1.ConditionTrue), node("n2", corev1.ConditionUnknown), agentSet(), agentPod("agent-n1", "n1")}, "not Ready"},
		"agents deleted by somebody": {[]runtime.Object{node("n1", corev1.ConditionTrue), captured("a", "n1")}, "foo/a"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, tc.objects...)
				if err := s.release(t); err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("got %v, want an error that says %s", err, tc.want)
				}
				for _, a := range s.Actions() {
					if v := a.GetVerb(); v != "get" && v != "list" {
						t.Errorf("%s %s all the same", v, a.GetResource().Resource)
					}
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		if err := newSite(t, node("n1", corev1.ConditionTrue)).release(t); err != nil {
			t.Errorf("control: nothing is installed: %v", err)
		}
	})
}

// TestReleaseAfterAgents: what pods of an earlier run did does not count when agents ran since.
func TestReleaseAfterAgents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		spec := agentSet().Spec.Template.Spec
		stale := releasePod("istio-system", "n1", &spec)
		stale.Status.Phase = corev1.PodSucceeded
		s := newSite(t, node("n1", corev1.ConditionTrue), agentSet(), agentPod("agent-n1", "n1"), stale)
		if err := s.release(t); err != nil {
			t.Fatal(err)
		}
		if len(s.created) != 1 {
			t.Errorf("node n1 was released %d times, want once more", len(s.created))
		}
	})
}
