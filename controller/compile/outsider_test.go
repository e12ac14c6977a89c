package compile_test

import (
	"strings"
	"testing"

	networking "istio.io/api/networking/v1alpha3"
	securitybeta "istio.io/api/security/v1beta1"
	typebeta "istio.io/api/type/v1beta1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/validate"
)

func machine(name string, labels map[string]string) model.Event {
	o := &networkingv1.WorkloadEntry{ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: name}}
	o.Spec.Address, o.Spec.Labels, o.Spec.ServiceAccount = "192.0.2.7", labels, "vm"
	return model.Event{Kind: model.KindWorkloadEntry, Name: model.Name{Namespace: "foo", Name: name}, Object: o}
}

func denyLabelled(namespace, name string, labels map[string]string) model.Event {
	p := &securityv1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	p.Spec.Action, p.Spec.Rules = securitybeta.AuthorizationPolicy_DENY, []*securitybeta.Rule{{}}
	p.Spec.Selector = &typebeta.WorkloadSelector{MatchLabels: labels}
	return model.Event{Kind: model.KindAuthorizationPolicy, Name: model.Name{Namespace: namespace, Name: name}, Object: p}
}

func strictLabelled(namespace, name string, labels map[string]string) model.Event {
	p := &securityv1.PeerAuthentication{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	p.Spec.Mtls = &securitybeta.PeerAuthentication_MutualTLS{Mode: securitybeta.PeerAuthentication_MutualTLS_STRICT}
	if labels != nil {
		p.Spec.Selector = &typebeta.WorkloadSelector{MatchLabels: labels}
	}
	return model.Event{Kind: model.KindPeerAuthentication, Name: model.Name{Namespace: namespace, Name: name}, Object: p}
}

func machinePolicies(t *testing.T, c *compile.Compiler, name string) string {
	t.Helper()
	for _, r := range c.Resources() {
		if r.Type == api.AddressType && r.Name == "Kubernetes/networking.istio.io/WorkloadEntry/foo/"+name {
			return strings.Join(r.Message.(*workloadapi.Address).GetWorkload().GetAuthorizationPolicies(), " ")
		}
	}
	t.Fatalf("there is no workload %s", name)
	return ""
}

// TestPoliciesOfMachines: a WorkloadEntry names the policies that are for it, as they come and go, and the statuses of both say
// that nobody enforces them where there is no proxy.
func TestPoliciesOfMachines(t *testing.T) {
	c := compile.New(compile.Config{})
	vm := map[string]string{"app": "vm"}
	proxied := map[string]string{"app": "vm", "networking.istio.io/tunnel": "http"}
	gone := func(e model.Event) model.Event { e.Object = nil; return e }
	const none = "not enforced for WorkloadEntry foo/m: it has no proxy of the mesh"
	for _, step := range []struct {
		what   string
		event  model.Event
		want   string // policies of the workload
		status map[string]string
	}{
		{"no policy", machine("m", vm), "", map[string]string{"WorkloadEntry foo/m": ""}},
		{"by its labels", denyLabelled("foo", "a", vm), "foo/a", map[string]string{"AuthorizationPolicy foo/a": none,
			"WorkloadEntry foo/m": "spec: is without a proxy of the mesh, which alone would enforce foo/a"}},
		{"from the root namespace", denyLabelled("istio-system", "r", vm), "foo/a istio-system/r", map[string]string{"AuthorizationPolicy istio-system/r": none}},
		{"of others", denyLabelled("foo", "b", map[string]string{"app": "x"}), "foo/a istio-system/r", map[string]string{"AuthorizationPolicy foo/b": ""}},
		{"STRICT", strictLabelled("foo", "p", vm), "foo/a istio-system/istio_converted_static_strict istio-system/r", map[string]string{"PeerAuthentication foo/p": none}},
		{"STRICT no more", gone(strictLabelled("foo", "p", vm)), "foo/a istio-system/r", nil},
		{"of the whole mesh", strictLabelled("istio-system", "p", nil), "foo/a istio-system/istio_converted_static_strict istio-system/r", map[string]string{"PeerAuthentication istio-system/p": ""}},
		{"of the whole mesh no more", gone(strictLabelled("istio-system", "p", nil)), "foo/a istio-system/r", nil},
		{"by a service that is not there", denyService("s", "svc"), "foo/a istio-system/r", nil},
		{"by its service", serviceEvent("svc", corev1.ServiceSpec{Selector: vm}), "foo/a foo/s istio-system/r",
			map[string]string{"AuthorizationPolicy foo/s": none + "; spec.targetRefs: Service foo/svc has no workloads"}},
		{"with a proxy of its own", machine("m", proxied), "foo/a foo/s istio-system/r", map[string]string{"AuthorizationPolicy foo/a": "", "WorkloadEntry foo/m": ""}},
		{"gone from the policy", denyLabelled("foo", "a", map[string]string{"app": "x"}), "foo/s istio-system/r", map[string]string{"AuthorizationPolicy foo/a": ""}},
	} {
		said := map[string]string{}
		for _, s := range c.Apply([]model.Event{step.event}).Status {
			said[s.Key()] = s.Message
		}
		if got := machinePolicies(t, c, "m"); got != step.want {
			t.Errorf("%s: policies %q, want %q", step.what, got, step.want)
		}
		for key, want := range step.status {
			if got, ok := said[key]; !ok || got != want {
				t.Errorf("%s: %s says %q (%t), want %q", step.what, key, got, ok, want)
			}
		}
	}
}

// TestWorkloadGroupIsNotEnforced: a kind without any effect is told so, by field.
func TestWorkloadGroupIsNotEnforced(t *testing.T) {
	g := &networkingv1.WorkloadGroup{ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: "g"}}
	g.Spec.Template = &networking.WorkloadEntry{ServiceAccount: "vm"}
	d := compile.New(compile.Config{}).Apply([]model.Event{{Kind: model.KindWorkloadGroup, Name: model.Name{Namespace: "foo", Name: "g"}, Object: g}})
	if len(d.Status) != 1 {
		t.Fatalf("statuses %v", d.Status)
	}
	s := d.Status[0]
	if !s.Accepted || s.Enforced || s.EnforcedBy != validate.ReasonNotEnforced || !strings.Contains(s.Message, "spec.template.serviceAccount (nothing registers itself") {
		t.Errorf("%+v", s)
	}
}
