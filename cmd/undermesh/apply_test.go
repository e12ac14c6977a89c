package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		if err := poll(t.Context(), time.Minute, "x", func(context.Context) (string, error) {
			if n++; n < 3 {
				return "not yet", nil
			}
			return "", nil
		}); err != nil || n != 3 {
			t.Errorf("after %d looks: %v", n, err)
		}
		err := poll(t.Context(), time.Minute, "pod p", func(context.Context) (string, error) { return "it is pending", nil })
		if err == nil || !strings.Contains(err.Error(), "pod p") || !strings.Contains(err.Error(), "1m0s") || !strings.Contains(err.Error(), "it is pending") {
			t.Errorf("time ran out: got %v, want what was waited for, how long and the last state", err)
		}
		if err := poll(t.Context(), time.Minute, "x", func(context.Context) (string, error) { return "", errors.New("broken") }); err == nil || !strings.Contains(err.Error(), "broken") {
			t.Errorf("a look that fails: got %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := poll(ctx, time.Minute, "x", func(context.Context) (string, error) { return "pending", nil }); err == nil || !strings.Contains(err.Error(), "interrupted") {
			t.Errorf("interrupted: got %v", err)
		}
	})
}

func TestReadyStates(t *testing.T) {
	two := int32(2)
	d := &appsv1.Deployment{Spec: appsv1.DeploymentSpec{Replicas: &two}, Status: appsv1.DeploymentStatus{Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: 1}}
	if s := deploymentState(d); s != "replicas: 2 updated, 1 available, 2 in all, 2 desired" {
		t.Errorf("got %q", s)
	}
	d.Status.UpdatedReplicas, d.Status.AvailableReplicas = 1, 2 // the old one still serves
	if s := deploymentState(d); s != "replicas: 1 updated, 2 available, 2 in all, 2 desired" {
		t.Errorf("got %q", s)
	}
	d.Status.UpdatedReplicas = 2
	if s := deploymentState(d); s != "" {
		t.Errorf("got %q", s)
	}
	d.Status.Replicas = 3 // one of the old ones is still there
	if s := deploymentState(d); s == "" {
		t.Error("a rollout that goes on counts as ready")
	}
	ds := &appsv1.DaemonSet{Status: appsv1.DaemonSetStatus{DesiredNumberScheduled: 2, UpdatedNumberScheduled: 2, NumberReady: 2}}
	if s := daemonSetState(ds); s != "" {
		t.Errorf("got %q", s)
	}
	for _, change := range []func(*appsv1.DaemonSet){
		func(d *appsv1.DaemonSet) { d.Generation = 2 },
		func(d *appsv1.DaemonSet) { d.Status.NumberReady = 1 },
		func(d *appsv1.DaemonSet) { d.Status.DesiredNumberScheduled = 0 },
	} {
		c := ds.DeepCopy()
		change(c)
		if daemonSetState(c) == "" {
			t.Errorf("%+v counts as ready", c.Status)
		}
	}
}

// TestTrouble says of each pod that is not ready why.
func TestTrouble(t *testing.T) {
	ended := &corev1.ContainerStateTerminated{ExitCode: 2, Message: "no route"}
	waits := func(reason, message string) corev1.ContainerState {
		return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
	}
	main := func(s corev1.ContainerStatus) corev1.PodStatus {
		s.Name = "main"
		return corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{s}}
	}
	running := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	starts := main(corev1.ContainerStatus{State: waits("PodInitializing", "")})
	starts.InitContainerStatuses = []corev1.ContainerStatus{{Name: "init", State: waits("ImagePullBackOff", "no such image")}}
	for want, status := range map[string]corev1.PodStatus{
		"": main(corev1.ContainerStatus{State: running, Ready: true}),
		"pod p: container main: waits: ContainerCreating":                               main(corev1.ContainerStatus{State: waits("ContainerCreating", "")}),
		"pod p: container main: waits: ErrImagePull: not found":                         main(corev1.ContainerStatus{State: waits("ErrImagePull", "not found")}),
		"pod p: container init: waits: ImagePullBackOff: no such image":                 starts,
		"pod p: container main: ended with exit code 2: no route: CrashLoopBackOff":     main(corev1.ContainerStatus{State: waits("CrashLoopBackOff", "back-off"), LastTerminationState: corev1.ContainerState{Terminated: ended}}),
		"pod p: container main: ended with exit code 2: no route":                       main(corev1.ContainerStatus{State: corev1.ContainerState{Terminated: ended}}),
		"pod p: container main: runs and is not ready":                                  main(corev1.ContainerStatus{State: running}),
		"pod p: has no node: Unschedulable: 0/2 nodes are available: too little memory": {Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: "Unschedulable", Message: "0/2 nodes are available: too little memory"}}},
	} {
		if got := trouble(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Status: status}); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
