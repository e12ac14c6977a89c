package compile

import (
	"strings"

	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/validate"
)

// Reasons of conditions.
const (
	ReasonAccepted   = "Accepted"
	ReasonInvalid    = "Invalid"          // not enforceable as written: denies
	ReasonEnforced   = "Enforced"         // as written
	ReasonPartially  = "PartiallyIgnored" // fields that TCP has not were treated as the documents say
	ReasonDeniesAll  = "DeniesAll"        // the policy refuses everything, because it is not enforceable as written
	ReasonStrict     = "TreatedAsStrict"
	ReasonShadowed   = "Shadowed" // an older policy of the same level counts
	ReasonUnsuported = "NotSupported"
)

// Status is what users should be told about one policy. Gone is set for a policy that was removed.
type Status struct {
	Kind       model.Kind
	Name       model.Name
	Gone       bool
	Generation int64 // of the object
	Accepted   bool
	Enforced   bool
	AcceptedBy string // reason of Accepted
	EnforcedBy string // reason of Enforced
	Message    string
	Findings   []validate.Finding
}

func (s Status) sortKey() string { return string(s.Kind) + " " + s.Name.String() }

func statusOf(kind model.Kind, n model.Name, generation int64, findings []validate.Finding, badReason, badText string) Status {
	st := Status{Kind: kind, Name: n, Generation: generation, Accepted: true, Enforced: true, AcceptedBy: ReasonAccepted,
		EnforcedBy: ReasonEnforced, Findings: findings}
	worst := validate.Worst(findings)
	var texts []string
	for _, f := range findings {
		if f.Severity == worst && worst > validate.Info {
			texts = append(texts, f.Field+": "+f.Message)
		}
	}
	st.Message = strings.Join(texts, "; ")
	switch worst {
	case validate.Error:
		st.Accepted, st.AcceptedBy = false, ReasonInvalid
		st.Enforced, st.EnforcedBy = false, badReason
		st.Message = badText + ": " + st.Message
	case validate.Warning:
		st.EnforcedBy = ReasonPartially
	}
	return st
}

func (c *Compiler) peerStatus(n model.Name) Status {
	p := c.reg.Peer(n)
	if p == nil {
		return Status{Kind: model.KindPeerAuthentication, Name: n, Gone: true}
	}
	st := statusOf(model.KindPeerAuthentication, n, p.Generation, p.Findings, ReasonStrict,
		"the policy cannot be enforced as written and counts as STRICT")
	if first := c.reg.Oldest(n.Namespace); len(p.Spec.GetSelector().GetMatchLabels()) == 0 && first != p {
		st.Enforced, st.EnforcedBy = false, ReasonShadowed
		st.Message = "the older policy " + first.PeerAuthentication.Name + " counts"
	}
	return st
}
