package compile_test

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/model"
)

// TestTerminating: an endpoint that is being deleted is unhealthy to every peer, and our nodes are told when it still serves.
// Nodes that are told are asked what they read.
func TestTerminating(t *testing.T) {
	deleted := &metav1.Time{Time: time.Unix(1, 0)}
	pod := func(ready corev1.ConditionStatus, deletion *metav1.Time) model.Event {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: "p", DeletionTimestamp: deletion},
			Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.1",
				Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}}}
		return model.Event{Kind: model.KindPod, Name: model.Name{Namespace: "foo", Name: "p"}, Object: p}
	}
	yes, no := ptr(true), ptr(false)
	slice := func(c discoveryv1.EndpointConditions) model.Event {
		s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: "s",
			Labels: map[string]string{discoveryv1.LabelServiceName: "manual"}},
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"192.0.2.1"}, Conditions: c}}}
		return model.Event{Kind: model.KindEndpointSlice, Name: model.Name{Namespace: "foo", Name: "s"}, Object: s}
	}
	manual := model.Event{Kind: model.KindService, Name: model.Name{Namespace: "foo", Name: "manual"},
		Object: &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: "manual"}}}
	for _, tc := range []struct {
		name           string
		event          model.Event
		healthy, state bool
	}{
		{"ready pod", pod(corev1.ConditionTrue, nil), true, false},
		{"pod that is not ready", pod(corev1.ConditionFalse, nil), false, false},
		{"terminating pod that serves", pod(corev1.ConditionTrue, deleted), false, true},
		{"terminating pod that does not", pod(corev1.ConditionFalse, deleted), false, false},
		{"endpoint without conditions", slice(discoveryv1.EndpointConditions{}), true, false},
		{"endpoint that is not ready", slice(discoveryv1.EndpointConditions{Ready: no}), false, false},
		{"terminating endpoint that serves", slice(discoveryv1.EndpointConditions{Ready: no, Serving: yes, Terminating: yes}), false, true},
		{"terminating endpoint, nothing said of serving", slice(discoveryv1.EndpointConditions{Ready: no, Terminating: yes}), false, true},
		{"terminating endpoint that does not", slice(discoveryv1.EndpointConditions{Ready: no, Serving: no, Terminating: yes}), false, false},
		{"terminating endpoint published as ready", slice(discoveryv1.EndpointConditions{Ready: yes, Serving: no, Terminating: yes}), true, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := compile.New(compile.Config{})
			c.Apply([]model.Event{manual, tc.event})
			var rs []client.Resource
			for _, r := range c.Resources() {
				if a, ok := r.Message.(*workloadapi.Address); ok && a.GetWorkload() != nil {
					rs = append(rs, client.Resource{Name: r.Name, Message: a})
				}
			}
			snap, err := client.NewSnapshot(rs...)
			if err != nil {
				t.Fatal(err)
			}
			all := snap.Workloads()
			if len(all) != 1 {
				t.Fatalf("%d workloads", len(all))
			}
			if got := all[0].GetStatus() == workloadapi.WorkloadStatus_HEALTHY; got != tc.healthy {
				t.Errorf("healthy: %v", got)
			}
			if all[0].Terminating != tc.state {
				t.Errorf("serving while it terminates: %v", all[0].Terminating)
			}
		})
	}
}
