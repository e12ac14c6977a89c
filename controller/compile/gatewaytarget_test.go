package compile_test

import (
	"strings"
	"testing"

	securitybeta "istio.io/api/security/v1beta1"
	typebeta "istio.io/api/type/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/api/securityapi"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/validate"
)

// TestGatewayTargets: a policy for gateways is for nobody else, says that nothing enforces it, and one whose target is no
// target denies in its own namespace at the most.
func TestGatewayTargets(t *testing.T) {
	const group = "gateway.networking.k8s.io"
	for _, x := range []struct {
		namespace, kind string
		action          securitybeta.AuthorizationPolicy_Action
		accepted        bool
		scope           securityapi.Scope
		reason          string
	}{
		{"foo", "Gateway", securitybeta.AuthorizationPolicy_DENY, true, securityapi.Scope_WORKLOAD_SELECTOR, validate.ReasonNoWorkload},
		{"foo", "Gateway", securitybeta.AuthorizationPolicy_ALLOW, true, securityapi.Scope_WORKLOAD_SELECTOR, validate.ReasonNoWorkload},
		{"istio-system", "Gateway", securitybeta.AuthorizationPolicy_DENY, true, securityapi.Scope_WORKLOAD_SELECTOR, validate.ReasonNoWorkload},
		{"istio-system", "GatewayClass", securitybeta.AuthorizationPolicy_DENY, true, securityapi.Scope_WORKLOAD_SELECTOR, validate.ReasonNoWorkload},
		{"istio-system", "HTTPRoute", securitybeta.AuthorizationPolicy_DENY, false, securityapi.Scope_NAMESPACE, validate.ReasonDeniesAll},
		{"foo", "HTTPRoute", securitybeta.AuthorizationPolicy_ALLOW, false, securityapi.Scope_NAMESPACE, validate.ReasonDeniesAll},
	} {
		p := &securityv1.AuthorizationPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: x.namespace, Name: "p"}}
		p.Spec.Action, p.Spec.Rules = x.action, []*securitybeta.Rule{{}}
		p.Spec.TargetRefs = []*typebeta.PolicyTargetReference{{Group: group, Kind: x.kind, Name: "g"}}
		c := compile.New(compile.Config{})
		// A pod of another namespace that is called like the gateway is none of the policy's workloads.
		c.Apply([]model.Event{podEvent("foo", "a", "10.0.0.1", nil), podEvent("bar", "b", "10.0.0.2", map[string]string{group + "/gateway-name": "g"})})
		d := c.Apply([]model.Event{{Kind: model.KindAuthorizationPolicy, Name: model.Name{Namespace: x.namespace, Name: "p"}, Object: p}})
		if len(d.Status) != 1 || d.Status[0].Accepted != x.accepted || d.Status[0].Enforced || d.Status[0].EnforcedBy != x.reason ||
			(x.accepted && strings.Count(d.Status[0].Message, validate.NoGateways) != 1) {
			t.Errorf("%s in %s: status %+v", x.kind, x.namespace, d.Status)
		}
		for _, r := range c.Resources() {
			if a, ok := r.Message.(*securityapi.Authorization); ok && a.GetName() == "p" && a.GetScope() != x.scope {
				t.Errorf("%s in %s: scope %s, want %s", x.kind, x.namespace, a.GetScope(), x.scope)
			}
		}
		if got := policiesOf(t, c, "bar", "b") + policiesOf(t, c, "foo", "a"); got != "" {
			t.Errorf("%s in %s: pods have policies %q", x.kind, x.namespace, got)
		}
	}
	r := &securityv1.RequestAuthentication{ObjectMeta: metav1.ObjectMeta{Namespace: "foo", Name: "jwt"}}
	r.Spec.TargetRefs = []*typebeta.PolicyTargetReference{{Group: group, Kind: "Gateway", Name: "g"}}
	r.Spec.JwtRules = []*securitybeta.JWTRule{{Issuer: "x", Jwks: `{"keys":[]}`}}
	d := compile.New(compile.Config{}).Apply([]model.Event{{Kind: model.KindRequestAuthentication, Name: model.Name{Namespace: "foo", Name: "jwt"}, Object: r}})
	if len(d.Status) != 1 || d.Status[0].Enforced || d.Status[0].EnforcedBy != validate.ReasonNoWorkload || !strings.Contains(d.Status[0].Message, validate.NoGateways) {
		t.Errorf("status %+v", d.Status)
	}
}
