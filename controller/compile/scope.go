package compile

import (
	"google.golang.org/protobuf/proto"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/settings"
)

// scopeOf compiles what the pod sees where that is not everything that is exported to its namespace. The name is "" and there
// is no resource when it is. Equal ones are one resource: "." stays in it, for the namespace of whoever uses it.
func (c *Compiler) scopeOf(namespace string, labels map[string]string) (name string, shared []Resource) {
	sidecar := c.reg.SidecarOf(namespace, labels)
	if sidecar == nil {
		return "", nil
	}
	out := &settings.Scope{}
	for _, e := range sidecar.Egress {
		out.Egress = append(out.Egress, &settings.Egress{Port: e.Port, Hosts: e.Hosts})
	}
	if sidecar.OwnPolicy {
		policy := settings.OutboundPolicy_ALLOW_ANY
		if sidecar.RegistryOnly {
			policy = settings.OutboundPolicy_REGISTRY_ONLY
		}
		out.OutboundPolicy = &policy
		if to := sidecar.Spec.GetOutboundTrafficPolicy().GetEgressProxy(); to != nil && !sidecar.RegistryOnly {
			out.EgressProxy = c.destination(to, sidecar.Namespace)
		}
	}
	if unlimitedScope(out) {
		return "", nil
	}
	name = contentName(out)
	return name, []Resource{{Type: api.ScopeType, Name: name, Message: out}}
}

// unlimitedScope reports whether the scope says nothing that is not the default.
func unlimitedScope(s *settings.Scope) bool {
	return proto.Equal(s, &settings.Scope{}) ||
		proto.Equal(s, &settings.Scope{Egress: []*settings.Egress{{Hosts: []string{"*/*"}}}})
}
