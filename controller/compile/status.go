package compile

import (
	"strings"

	"k8s.io/apimachinery/pkg/labels"

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
	switch whole, part := c.reg.ShadowsOf(p); {
	case whole != nil:
		st.Enforced, st.EnforcedBy = false, validate.ReasonShadowed
		st.Message = "the older policy " + whole.PeerAuthentication.Name + " counts"
		if whole.Unclear {
			st.Message = "the policy " + whole.PeerAuthentication.Name + " counts, whose selector is not clear"
		}
	case part != nil && st.Accepted:
		if st.EnforcedBy == validate.ReasonEnforced {
			st.EnforcedBy = validate.ReasonPartShadowed
		}
		text := "the older policy " + part.PeerAuthentication.Name + " counts for the workloads that have its labels too: " + labels.FormatLabels(part.Labels)
		st.Message = strings.TrimSuffix(text+"; "+st.Message, "; ")
	}
	return st
}
