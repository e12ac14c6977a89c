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
	text := "the policy cannot be enforced as written and counts as STRICT"
	if p.Unclear {
		text = "it is not clear which workloads the policy is for: it counts as STRICT for the whole namespace"
		if n.Namespace == c.reg.Mesh().RootNamespace {
			text = "it is not clear which workloads the policy is for: it counts as STRICT for the whole mesh"
		}
	}
	st = st.Judge(p.Findings, validate.ReasonStrict, text)
	if len(p.Labels) > 0 && !p.Unclear {
		judgeOutsiders(c.reg.WorkloadsSelected(n.Namespace, p.Labels), &st)
	}
	if first := c.reg.RivalOf(p); first != p {
		st.Enforced, st.EnforcedBy = false, validate.ReasonShadowed
		st.Message = "the older policy " + first.PeerAuthentication.Name + " counts"
		if first.Unclear {
			st.Message = "the policy " + first.PeerAuthentication.Name + " counts, whose selector is not clear"
		}
	}
	return st
}
