package validate

import (
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/undermesh/undermesh/controller/model/support"
)

// withoutStatus tells what the mesh does not act on of the kinds whose objects have no conditions in which it could say so.
// It is an info wherever it is said.
func (v *view) withoutStatus() {
	for _, m := range v.members {
		kind, spec := "", any(nil)
		switch o := m.body.(type) {
		case *networkingv1.Ingress:
			kind, spec = "Ingress", &o.Spec
		case *networkingv1.IngressClass:
			kind, spec = "IngressClass", &o.Spec
		case *gatewayv1.ReferenceGrant:
			kind, spec = "ReferenceGrant", &o.Spec
		case *gatewayv1.BackendTLSPolicy:
			kind, spec = "BackendTLSPolicy", &o.Spec
		default:
			continue
		}
		var fields []string
		for _, f := range support.Ineffective(kind, spec) {
			fields = append(fields, "spec."+strings.ReplaceAll(f.Path, "{}", ""))
		}
		if len(fields) > 0 {
			v.add(m, Info, CodeNotEnforced, "spec", "is accepted, and not enforced yet: %s", strings.Join(fields, ", "))
		}
	}
}
