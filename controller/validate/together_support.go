package validate

import (
	"slices"
	"strings"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "k8s.io/api/networking/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/undermesh/undermesh/controller/model/support"
)

// ineffective tells what the mesh does not act on: of kinds whose objects have no conditions in which it could say so, and of those
// whose conditions say the same once they are in a cluster. It is an info wherever it is said.
func (v *view) ineffective() {
	for _, m := range v.members {
		kind, spec := "", any(nil)
		var gateways []string
		switch o := m.body.(type) {
		case *networking.VirtualService:
			kind, spec, gateways = "VirtualService", o, Unserved(o)
			v.notCarriedOut(m, o)
		case *networking.DestinationRule:
			kind, spec = "DestinationRule", o
		case *networking.ServiceEntry:
			kind, spec = "ServiceEntry", o
		case *networking.Sidecar:
			kind, spec = "Sidecar", o
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
		fields := slices.DeleteFunc(support.Ineffective(kind, spec), func(f support.Field) bool { return f.State == support.Unused })
		if len(fields) > 0 {
			v.add(m, Info, CodeNotEnforced, "spec", "is accepted, and not enforced yet: %s", support.Text(fields, len(fields)))
		}
		if len(gateways) > 0 {
			v.add(m, Info, CodeNotEnforced, "spec", "is accepted, and not enforced yet, since gateways are not served: %s", strings.Join(gateways, ", "))
		}
	}
}

// notCarriedOut tells what the errors of a VirtualService, which are said where they are, lead to.
func (v *view) notCarriedOut(m *member, spec *networking.VirtualService) {
	c := &collector{kind: m.kind, namespace: m.namespace, name: m.name}
	virtualServiceRules(c, spec)
	if Worst(c.found) == Error {
		v.add(m, Info, CodeNotCarriedOut, "spec", "has an error: %s", Consequence(spec))
	}
}
