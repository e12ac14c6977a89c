package compile_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/model"
)

// carried are the labels that travel with the workloads among the resources, as "POD KEY=VALUE …".
func carried(t *testing.T, all []compile.Resource) []string {
	t.Helper()
	var out []string
	for _, r := range all {
		a, ok := r.Message.(*workloadapi.Address)
		if !ok || a.GetWorkload() == nil {
			continue
		}
		var state settings.WorkloadState
		for _, e := range a.GetWorkload().GetExtensions() {
			if e.GetName() == api.WorkloadStateExtension {
				if err := e.GetConfig().UnmarshalTo(&state); err != nil {
					t.Fatal(err)
				}
			}
		}
		line := a.GetWorkload().GetName()
		for _, k := range slices.Sorted(maps.Keys(state.GetLabels())) {
			line += " " + k + "=" + state.GetLabels()[k]
		}
		out = append(out, line)
	}
	slices.Sort(out)
	return out
}

// TestLabelsTravelWhereTheyAreAskedFor: a label goes to nodes with the workloads behind the host whose rule uses it, and with
// all that have it where callers are told apart by it; a change of a rule sends those again whose labels come or go.
func TestLabelsTravelWhereTheyAreAskedFor(t *testing.T) {
	c := compile.New(compile.Config{})
	var events []model.Event
	for _, app := range []string{"a", "b"} {
		for i := range 3 {
			p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: fmt.Sprintf("%s%d", app, i), Labels: map[string]string{
				"app": app, "version": fmt.Sprintf("v%d", i), "other": "x"}}}
			p.Status.PodIP = fmt.Sprintf("10.0.%d.%d", app[0], i)
			events = append(events, at(model.KindPod, p))
		}
		s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: app}}
		s.Spec = corev1.ServiceSpec{ClusterIP: "10.96.0." + fmt.Sprint(app[0]), Selector: map[string]string{"app": app}, Ports: []corev1.ServicePort{{Port: 80}}}
		events = append(events, at(model.KindService, s))
	}
	c.Apply(events)
	rule := func(host, key string) model.Event {
		o := &networkingv1.DestinationRule{ObjectMeta: meta("r")}
		o.Spec.Host, o.Spec.Subsets = host, []*networking.Subset{{Name: "s", Labels: map[string]string{key: "v1"}}}
		return at(model.KindDestinationRule, o)
	}
	virtual := func(labels map[string]string) model.Event {
		o := &networkingv1.VirtualService{ObjectMeta: meta("v")}
		o.Spec.Hosts = []string{"a"}
		o.Spec.Http = []*networking.HTTPRoute{{Match: []*networking.HTTPMatchRequest{{SourceLabels: labels}},
			Route: []*networking.HTTPRouteDestination{{Destination: &networking.Destination{Host: "a"}}}}}
		return at(model.KindVirtualService, o)
	}
	gone := func(e model.Event) model.Event { e.Object = nil; return e }
	versions := "a0 version=v0,a1 version=v1,a2 version=v2"
	for _, step := range []struct {
		name  string
		event model.Event
		sent  string // again, with what they carry
	}{
		{"a rule with a subset", rule("a", "version"), versions},
		{"the same rule", rule("a", "version"), ""},
		{"a label that no pod has", rule("a", "nothing"), "a0,a1,a2"},
		{"a pattern", rule("*.foo.svc.cluster.local", "version"), versions + ",b0 version=v0,b1 version=v1,b2 version=v2"},
		{"control: without the DestinationRule", gone(rule("a", "version")), "a0,a1,a2,b0,b1,b2"},
		{"callers by label", virtual(map[string]string{"other": "x", "none": ""}), "a0 other=x,a1 other=x,a2 other=x,b0 other=x,b1 other=x,b2 other=x"},
		{"other callers", virtual(map[string]string{"none": ""}), "a0,a1,a2,b0,b1,b2"},
	} {
		t.Run(step.name, func(t *testing.T) {
			d := c.Apply([]model.Event{step.event})
			if got := strings.Join(carried(t, d.Upserts), ","); got != step.sent {
				t.Errorf("sent %q, want %q", got, step.sent)
			}
		})
	}
}
