package compile_test

import (
	"strings"
	"testing"

	securitybeta "istio.io/api/security/v1beta1"
	typebeta "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/validate"
)

func serviceEvent(name string, spec corev1.ServiceSpec) model.Event {
	n := model.Name{Namespace: "foo", Name: name}
	return model.Event{Kind: model.KindService, Name: n, Object: &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: n.Namespace, Name: name}, Spec: spec}}
}

func sliceEvent(namespace, name, service string, ips ...string) model.Event {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name,
		Labels: map[string]string{discoveryv1.LabelServiceName: service}}}
	for _, ip := range ips {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{ip}})
	}
	return model.Event{Kind: model.KindEndpointSlice, Name: model.Name{Namespace: namespace, Name: name}, Object: s}
}

func denyService(name string, services ...string) model.Event {
	p := &securityv1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: name}}
	p.Spec.Action, p.Spec.Rules = securitybeta.AuthorizationPolicy_DENY, []*securitybeta.Rule{{}}
	for _, s := range services {
		p.Spec.TargetRefs = append(p.Spec.TargetRefs, &typebeta.PolicyTargetReference{Kind: "Service", Name: s})
	}
	return model.Event{Kind: model.KindAuthorizationPolicy, Name: model.Name{Namespace: "foo", Name: name}, Object: p}
}

// TestTargetServiceBySlices: a policy of a Service without a selector is enforced on the pods that its slices name, in the
// namespace of the Service, and its status follows who they are.
func TestTargetServiceBySlices(t *testing.T) {
	c := compile.New(compile.Config{})
	gone := func(e model.Event) model.Event { e.Object = nil; return e }
	app := map[string]string{"app": "a"}
	manual := serviceEvent("s", corev1.ServiceSpec{})
	slice := sliceEvent("foo", "s-1", "s", "10.0.0.1", "10.0.0.2")
	c.Apply([]model.Event{podEvent("foo", "p", "10.0.0.1", app), podEvent("bar", "q", "10.0.0.2", nil)})
	for _, step := range []struct {
		what    string
		event   model.Event
		on      bool   // the policy is enforced on foo/p
		message string // of a new status; "none": there is no new one
	}{
		{"no such service", denyService("deny", "s"), false, "Service foo/s does not exist"},
		{"no workload", manual, false, "Service foo/s has no workloads"},
		{"slice names pod", slice, true, ""},
		{"a change of a pod is no news", podEvent("foo", "p", "10.0.0.1", map[string]string{"app": "a", "x": "y"}), true, "none"},
		{"slice names a pod of another namespace", sliceEvent("foo", "s-1", "s", "10.0.0.2"), false, "Service foo/s has no workloads"},
		{"slice names pod again", slice, true, ""},
		{"pod is gone", gone(podEvent("foo", "p", "", nil)), false, "Service foo/s has no workloads"},
		{"pod is back", podEvent("foo", "p", "10.0.0.1", app), true, ""},
		{"slice is gone", gone(slice), false, "Service foo/s has no workloads"},
		{"a selector finds the pod", serviceEvent("s", corev1.ServiceSpec{Selector: app}), true, ""},
		{"a selector wins over slices", sliceEvent("foo", "s-1", "s", "10.0.0.9"), true, "none"},
		{"external", serviceEvent("s", corev1.ServiceSpec{Selector: app, Type: corev1.ServiceTypeExternalName}), false, "type ExternalName"},
		{"one target of two", denyService("deny", "s", "t"), false, "Service foo/t does not exist"},
		{"the other one", serviceEvent("t", corev1.ServiceSpec{Selector: app}), true, "type ExternalName"},
		{"policy is gone", gone(denyService("deny")), false, ""},
	} {
		d := c.Apply([]model.Event{step.event})
		got := ""
		for _, r := range c.Resources() {
			if strings.HasSuffix(r.Name, "/foo/p") {
				got = policiesOf(t, c, "foo", "p")
			}
		}
		if (got == "foo/deny") != step.on || (got != "" && got != "foo/deny") {
			t.Errorf("%s: foo/p has policies %q", step.what, got)
		}
		if got := policiesOf(t, c, "bar", "q"); got != "" {
			t.Errorf("%s: bar/q has policies %q", step.what, got)
		}
		if step.message == "none" {
			if len(d.Status) > 0 {
				t.Errorf("%s: status %+v", step.what, d.Status)
			}
			continue
		}
		if len(d.Status) != 1 || !strings.Contains(d.Status[0].Message, step.message) || d.Status[0].Enforced != step.on ||
			(!step.on && !d.Status[0].Gone && d.Status[0].EnforcedBy != validate.ReasonNoWorkload) {
			t.Errorf("%s: status %+v", step.what, d.Status)
		}
	}
}
