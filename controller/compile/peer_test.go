package compile_test

import (
	"strings"
	"testing"

	securitybeta "istio.io/api/security/v1beta1"
	typebeta "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/validate"
)

func peerEvent(namespace, name string, age int64, selector map[string]string, mode securitybeta.PeerAuthentication_MutualTLS_Mode) model.Event {
	p := &securityv1.PeerAuthentication{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, CreationTimestamp: metav1.Unix(100-age, 0)}}
	p.Spec.Mtls = &securitybeta.PeerAuthentication_MutualTLS{Mode: mode}
	if selector != nil {
		p.Spec.Selector = &typebeta.WorkloadSelector{MatchLabels: selector}
	}
	return model.Event{Kind: model.KindPeerAuthentication, Name: model.Name{Namespace: namespace, Name: name}, Object: p}
}

func podEvent(namespace, name, ip string, labels map[string]string) model.Event {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels}}
	p.Status.PodIP = ip
	return model.Event{Kind: model.KindPod, Name: model.Name{Namespace: namespace, Name: name}, Object: p}
}

// policiesOf returns what the pod's workload names, joined by spaces.
func policiesOf(t *testing.T, c *compile.Compiler, namespace, pod string) string {
	t.Helper()
	for _, r := range c.Resources() {
		if r.Type == api.AddressType && r.Name == "Kubernetes//Pod/"+namespace+"/"+pod {
			return strings.Join(r.Message.(*workloadapi.Address).GetWorkload().GetAuthorizationPolicies(), " ")
		}
	}
	t.Fatalf("no workload %s/%s", namespace, pod)
	return ""
}

// TestPeerWithAnUnclearSelectorIsStrict: a policy for nobody knows whom is STRICT for all whom it may be for, although an
// older policy of the namespace is PERMISSIVE.
func TestPeerWithAnUnclearSelectorIsStrict(t *testing.T) {
	const strict, permissive = securitybeta.PeerAuthentication_MutualTLS_STRICT, securitybeta.PeerAuthentication_MutualTLS_PERMISSIVE
	for name, change := range map[string]func(*model.Event){
		"wildcard": func(e *model.Event) {
			e.Object.(*securityv1.PeerAuthentication).Spec.Selector = &typebeta.WorkloadSelector{MatchLabels: map[string]string{"app": "*"}}
		},
		"no label value": func(e *model.Event) {
			e.Object.(*securityv1.PeerAuthentication).Spec.Selector = &typebeta.WorkloadSelector{MatchLabels: map[string]string{"app": "a b"}}
		},
		"no label name": func(e *model.Event) {
			e.Object.(*securityv1.PeerAuthentication).Spec.Selector = &typebeta.WorkloadSelector{MatchLabels: map[string]string{"app ": "a"}}
		},
		"decoder": func(e *model.Event) { e.Issues = []validate.Field{{Path: "spec.slector", Message: "unknown field"}} },
	} {
		t.Run(name, func(t *testing.T) {
			c := compile.New(compile.Config{})
			c.Apply([]model.Event{podEvent("foo", "p", "10.0.0.1", map[string]string{"app": "a"}), podEvent("bar", "p", "10.0.0.2", nil),
				peerEvent("foo", "old", 9, nil, permissive)})
			if got := policiesOf(t, c, "foo", "p"); got != "" {
				t.Fatal("before it there is", got)
			}
			bad := peerEvent("foo", "bad", 1, nil, permissive)
			change(&bad)
			d := c.Apply([]model.Event{bad})
			if got := policiesOf(t, c, "foo", "p"); got != "istio-system/"+api.StrictPolicyName {
				t.Errorf("the pod has policies %q", got)
			}
			if got := policiesOf(t, c, "bar", "p"); got != "" {
				t.Errorf("another namespace has policies %q", got)
			}
			if len(d.Status) != 2 || d.Status[0].EnforcedBy != validate.ReasonStrict || !strings.Contains(d.Status[0].Message, "for the whole namespace") ||
				d.Status[1].EnforcedBy != validate.ReasonShadowed {
				t.Errorf("status %+v", d.Status)
			}
			d = c.Apply([]model.Event{{Kind: bad.Kind, Name: bad.Name}})
			if got := policiesOf(t, c, "foo", "p"); got != "" || len(d.Status) != 2 || d.Status[1].EnforcedBy != validate.ReasonEnforced {
				t.Errorf("after it there is %q, status %+v", got, d.Status)
			}
		})
	}
	// Of two policies for the same workloads one counts, and the other one does not claim to.
	c := compile.New(compile.Config{})
	app := map[string]string{"app": "a", "version": "v1"}
	d := c.Apply([]model.Event{podEvent("foo", "p", "10.0.0.1", app), peerEvent("foo", "young", 1, app, strict), peerEvent("foo", "old", 9, app, permissive)})
	if got := policiesOf(t, c, "foo", "p"); got != "" || d.Status[1].Name != "young" || d.Status[1].Enforced || !d.Status[0].Enforced {
		t.Errorf("policies %q, status %+v", got, d.Status)
	}
}
