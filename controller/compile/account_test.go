package compile_test

import (
	"strings"
	"testing"

	networking "istio.io/api/networking/v1alpha3"
	securitybeta "istio.io/api/security/v1beta1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/securityapi"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/model"
)

// TestAccountThatIsNone: what names an account that none can have is not accepted, and nothing is served of it that a node
// would refuse: with it the node would refuse everything else that came with it.
func TestAccountThatIsNone(t *testing.T) {
	const bad = "cluster.local/ns/x/sa/y"
	c := compile.New(compile.Config{})
	w := machine("vm", nil)
	w.Object.(*networkingv1.WorkloadEntry).Spec.ServiceAccount = bad
	s := &networkingv1.ServiceEntry{ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: "out"}}
	s.Spec.Hosts, s.Spec.Resolution = []string{"out.example"}, networking.ServiceEntry_STATIC
	s.Spec.Ports = []*networking.ServicePort{{Number: 80, Name: "http", Protocol: "HTTP"}}
	s.Spec.Endpoints = []*networking.WorkloadEntry{{Address: "192.0.2.8", ServiceAccount: bad}, {Address: "192.0.2.9", ServiceAccount: "vm"}}
	d := c.Apply([]model.Event{w, {Kind: model.KindServiceEntry, Name: model.Name{Namespace: "foo", Name: "out"}, Object: s}})
	if len(d.Status) != 2 {
		t.Fatalf("%d statuses, want 2", len(d.Status))
	}
	for _, st := range d.Status {
		if st.Accepted || st.Enforced || !strings.Contains(st.Message, "serviceAccount") {
			t.Errorf("status %+v", st)
		}
	}
	workloads := 0
	for _, r := range c.Resources() {
		if r.Type != api.AddressType {
			continue
		}
		if _, err := client.NewSnapshot(client.Resource{Name: r.Name, Message: r.Message}); err != nil {
			t.Errorf("a node refuses %s: %v", r.Name, err)
		}
		if strings.Contains(r.Name, "Entry") {
			workloads++
		}
	}
	if workloads != 1 {
		t.Errorf("%d workloads are served, want the one whose account can be", workloads)
	}
}

// TestDenyOfAccountThatIsNone: a policy that refuses an account that none can have would refuse nobody: it denies everything.
func TestDenyOfAccountThatIsNone(t *testing.T) {
	p := &securityv1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: "deny"}}
	p.Spec.Action = securitybeta.AuthorizationPolicy_DENY
	p.Spec.Rules = []*securitybeta.Rule{{From: []*securitybeta.Rule_From{{Source: &securitybeta.Source{ServiceAccounts: []string{"foo/b ar"}}}}}}
	c := compile.New(compile.Config{})
	d := c.Apply([]model.Event{{Kind: model.KindAuthorizationPolicy, Name: model.Name{Namespace: "foo", Name: "deny"}, Object: p}})
	if len(d.Status) != 1 || d.Status[0].Accepted || d.Status[0].Enforced {
		t.Errorf("status %+v", d.Status)
	}
	for _, r := range c.Resources() {
		if a, ok := r.Message.(*securityapi.Authorization); ok && r.Name == "foo/deny" {
			if len(a.GetGroups()) != 1 || len(a.GetGroups()[0].GetRules()) != 0 || a.GetAction() != securityapi.Action_DENY {
				t.Errorf("it is served as %v", a)
			}
			return
		}
	}
	t.Error("it is not served")
}
