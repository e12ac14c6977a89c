package validate

import "strings"

// Reasons of a Status.
const (
	ReasonAccepted    = "Accepted"
	ReasonInvalid     = "Invalid"             // not enforceable as written
	ReasonNotEnforced = "AcceptedNotEnforced" // right as written, and the mesh does not do all of it yet
	ReasonEnforced    = "Enforced"            // as written
	ReasonPartially   = "PartiallyIgnored"    // what TCP connections have not was treated as the documents say
	ReasonDeniesAll   = "DeniesAll"           // refuses everything, because it is not enforceable as written
	ReasonStrict      = "TreatedAsStrict"     // counts as STRICT, because it is not enforceable as written
	ReasonShadowed    = "Shadowed"            // an older policy of the same level counts
	ReasonNoWorkload  = "NoWorkload"          // a service that it targets does not exist or has no workload
	ReasonUnsupported = "NotSupported"
	ReasonDryRun      = "DryRun" // recorded only, as its annotation asks
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
