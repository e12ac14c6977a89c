package validate

import (
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// Reasons of a Status.
const (
	ReasonAccepted     = "Accepted"
	ReasonInvalid      = "Invalid"             // not enforceable as written
	ReasonNotEnforced  = "AcceptedNotEnforced" // right as written, and the mesh does not do all of it yet
	ReasonEnforced     = "Enforced"            // as written
	ReasonPartially    = "PartiallyIgnored"    // what TCP connections have not was treated as the documents say
	ReasonDeniesAll    = "DeniesAll"           // refuses everything, because it is not enforceable as written
	ReasonStrict       = "TreatedAsStrict"     // counts as STRICT, because it is not enforceable as written
	ReasonShadowed     = "Shadowed"            // an older policy of the same level counts
	ReasonPartShadowed = "PartiallyShadowed"   // an older policy counts for some of its workloads
	ReasonNoWorkload   = "NoWorkload"          // a service that it targets does not exist or has no workload
	ReasonUnsupported  = "NotSupported"
	ReasonDryRun       = "DryRun" // recorded only, as its annotation asks
)

// Status is what users should be told about one policy.
type Status struct {
	Kind, Namespace, Name string
	Gone                  bool  // the policy was removed
	Generation            int64 // of the object
	Accepted              bool
	Enforced              bool
	AcceptedBy            string // reason of Accepted
	EnforcedBy            string // reason of Enforced
	Message               string
	Findings              []Finding
	// Object is what the status is about, so that whoever writes it may look closer; nil for policies, which were.
	Object metav1.Object
	// Parents are those of a route under which the status is said.
	Parents []gatewayv1.ParentReference
}

// Key is Kind Namespace/Name.
func (s Status) Key() string { return s.Kind + " " + s.Namespace + "/" + s.Name }

// Judge fills in the outcome of the findings. An error makes the policy not enforced, for the given reason and text.
func (s Status) Judge(findings []Finding, reason, text string) Status {
	s.Findings = findings
	s.Accepted, s.AcceptedBy = true, ReasonAccepted
	s.Enforced, s.EnforcedBy = true, ReasonEnforced
	worst := Worst(findings)
	var texts []string
	for _, f := range findings {
		if f.Severity == worst && worst > Info {
			texts = append(texts, f.Field+": "+f.Message)
		}
	}
	s.Message = strings.Join(texts, "; ")
	switch worst {
	case Error:
		s.Accepted, s.AcceptedBy = false, ReasonInvalid
		s.Enforced, s.EnforcedBy = false, reason
		s.Message = text + ": " + s.Message
	case Warning:
		s.EnforcedBy = ReasonPartially
	}
	return s
}

// With adds what a closer look found: an error means that the object is not accepted. What the status said is kept, and said once.
func (s Status) With(findings []Finding) Status {
	worst := Worst(findings)
	if worst == Info || !s.Accepted {
		return s
	}
	var texts []string
	for _, f := range findings {
		said := func(g Finding) bool { return g.Severity == f.Severity && g.Field == f.Field && g.Message == f.Message }
		if f.Severity == worst && !slices.ContainsFunc(s.Findings, said) {
			texts = append(texts, strings.TrimPrefix(f.Field+": "+f.Message, ": "))
		}
	}
	s.Findings = append(s.Findings[:len(s.Findings):len(s.Findings)], findings...)
	if worst == Error {
		s.Accepted, s.AcceptedBy = false, ReasonInvalid
		s.Enforced, s.EnforcedBy = false, ReasonInvalid
	}
	if s.Message != "" {
		texts = append(texts, s.Message)
	}
	s.Message = strings.Join(texts, "; ")
	return s
}
