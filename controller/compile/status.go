package compile

import (
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/validate"
)

func newStatus(kind model.Kind, n model.Name) validate.Status {
	return validate.Status{Kind: string(kind), Namespace: n.Namespace, Name: n.Name}
}

func (c *Compiler) peerStatus(n model.Name) validate.Status {
	st := newStatus(model.KindPeerAuthentication, n)
	p := c.reg.Peer(n)
	if p == nil {
		st.Gone = true
		return st
	}
	st.Generation = p.Generation
	st = st.Judge(p.Findings, validate.ReasonStrict, "the policy cannot be enforced as written and counts as STRICT")
	if first := c.reg.Oldest(n.Namespace); len(p.Spec.GetSelector().GetMatchLabels()) == 0 && first != p {
		st.Enforced, st.EnforcedBy = false, validate.ReasonShadowed
		st.Message = "the older policy " + first.PeerAuthentication.Name + " counts"
	}
	return st
}
