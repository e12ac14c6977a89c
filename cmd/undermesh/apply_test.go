package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	appsv1 "k8s.io/api/apps/v1"
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
	if s := deploymentState(d); s != "1 of 2 replicas are available" {
		t.Errorf("got %q", s)
	}
	d.Status.AvailableReplicas = 2
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
