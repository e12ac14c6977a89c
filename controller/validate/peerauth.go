package validate

import (
	"fmt"
	"maps"
	"slices"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"
)

// PeerAuthentication checks one policy; issues are fields that its decoder did not understand.
func PeerAuthentication(p *securityv1.PeerAuthentication, issues []Field) []Finding {
	c := &collector{kind: "PeerAuthentication", namespace: p.Namespace, name: p.Name}
	c.fields(issues)
	c.selector(p.Spec.GetSelector().GetMatchLabels(), "spec.selector.matchLabels")
	ports := p.Spec.GetPortLevelMtls()
	if len(ports) > 0 && len(p.Spec.GetSelector().GetMatchLabels()) == 0 {
		c.add(Error, "spec.portLevelMtls", "needs a selector")
	}
	for _, port := range slices.Sorted(maps.Keys(ports)) {
		if port == 0 || port > 65535 {
			c.add(Error, fmt.Sprintf("spec.portLevelMtls.%d", port), "is not a port number from 1 to 65535")
		}
	}
	return c.found
}
