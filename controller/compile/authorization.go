package compile

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	securitybeta "istio.io/api/security/v1beta1"

	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/securityapi"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/validate"
)

// policy compiles one AuthorizationPolicy with the meaning it has on TCP.
func (c *Compiler) policy(n model.Name) ([]Resource, validate.Status) {
	p := c.reg.Policy(n)
	st := newStatus(model.KindAuthorizationPolicy, n)
	if request, ok := model.StandsFor(n); ok {
		st = newStatus(model.KindRequestAuthentication, request)
	}
	if p == nil {
		st.Gone = true
		return nil, st
	}
	st.Generation = p.Generation
	st = st.Judge(p.Findings, validate.ReasonDeniesAll,
		"the policy cannot be enforced as written and denies every connection to its workloads")
	dry, err := strconv.ParseBool(p.Annotations[validate.AnnotationDryRun])
	out := &securityapi.Authorization{Name: n.Name, Namespace: n.Namespace, Scope: c.scope(p), DryRun: dry && err == nil}
	switch {
	case !st.Accepted:
		out.Action, out.Groups = securityapi.Action_DENY, []*securityapi.Group{{}}
	case p.Spec.GetAction() == securitybeta.AuthorizationPolicy_AUDIT:
		// It decides nothing by its meaning; a DENY without rules refuses nothing and keeps the name known to nodes.
		out.Action = securityapi.Action_DENY
		st.Enforced, st.EnforcedBy = false, validate.ReasonUnsupported
	default:
		if p.Spec.GetAction() == securitybeta.AuthorizationPolicy_DENY {
			out.Action = securityapi.Action_DENY
		}
		t := translator{mesh: c.reg.Mesh(), namespace: n.Namespace, deny: out.Action == securityapi.Action_DENY}
		for _, rule := range p.Spec.GetRules() {
			if g := t.group(rule); g != nil {
				out.Groups = append(out.Groups, g)
			}
		}
	}
	if valid(p.Findings) && !st.Accepted { // the mesh, not the policy, is at fault
		st.Accepted, st.AcceptedBy = true, validate.ReasonNotEnforced
	}
	c.judgeTargets(p, &st)
	judgeOutsiders(c.reg.OutsidersOf(p), &st)
	if request, ok := model.StandsFor(n); ok {
		c.judgeKeys(request, &st)
	}
	if out.DryRun {
		st.Enforced, st.EnforcedBy = false, validate.ReasonDryRun
	}
	return []Resource{{Type: api.AuthorizationType, Name: n.String(), Message: out}}, st
}

// valid reports whether all that keeps a policy from being enforced is what this mesh cannot do.
func valid(findings []validate.Finding) bool {
	return !slices.ContainsFunc(findings, func(f validate.Finding) bool { return f.Severity == validate.Error && !f.Unsupported })
}

// judgeTargets says which targets of the policy lead to no workload, those of gateways among them; it is not enforced when none of its targets does.
func (c *Compiler) judgeTargets(p *model.AuthorizationPolicy, st *validate.Status) {
	var texts []string
	without := 0
	for _, t := range p.Targets {
		if t.Gateway != "" {
			without++
			if !strings.Contains(st.Message, validate.NoGateways) {
				texts = append(texts, "spec.targetRefs: gateway "+t.Gateway+": "+validate.NoGateways)
			}
		}
		if t.Service == "" {
			continue
		}
		if why := c.reg.WithoutWorkload(model.Name{Namespace: p.Namespace, Name: t.Service}); why != "" {
			without++
			texts = append(texts, "spec.targetRefs: Service "+p.Namespace+"/"+t.Service+" "+why)
		}
	}
	if without == 0 {
		return
	}
	if st.Message != "" {
		texts = append(texts, st.Message)
	}
	st.Message = strings.Join(texts, "; ")
	if without == len(p.Targets) {
		st.Enforced, st.EnforcedBy = false, validate.ReasonNoWorkload
	}
}

func (c *Compiler) scope(p *model.AuthorizationPolicy) securityapi.Scope {
	switch {
	case len(p.Targets) > 0:
		return securityapi.Scope_WORKLOAD_SELECTOR
	case p.Namespace == c.reg.Mesh().RootNamespace && !p.Local:
		return securityapi.Scope_GLOBAL
	}
	return securityapi.Scope_NAMESPACE
}

// translator turns the rules of one valid policy into groups.
type translator struct {
	mesh      model.Mesh
	namespace string
	deny      bool
}

// group returns nil for a rule that never matches. What cannot be judged on TCP makes a rule of an ALLOW policy never
// match (AZ-22) and is left out of a rule of a DENY policy, which then matches more (AZ-23).
func (t translator) group(rule *securitybeta.Rule) *securityapi.Group {
	from, ok := t.from(rule.GetFrom())
	if !ok {
		return nil
	}
	to, ok := t.to(rule.GetTo())
	if !ok {
		return nil
	}
	g := &securityapi.Group{}
	for _, matches := range [][]*securityapi.Match{from, to} {
		if len(matches) > 0 {
			g.Rules = append(g.Rules, &securityapi.Rules{Matches: matches})
		}
	}
	for _, cond := range rule.GetWhen() {
		m, ok := t.condition(cond)
		if !ok {
			if !t.deny {
				return nil
			}
			continue
		}
		g.Rules = append(g.Rules, &securityapi.Rules{Matches: []*securityapi.Match{m}})
	}
	return g
}

// from returns no matches when the clause is met by every connection.
func (t translator) from(list []*securitybeta.Rule_From) (matches []*securityapi.Match, ok bool) {
	all := false
	for _, f := range list {
		src := f.GetSource()
		if len(validate.HTTPSourceFields(src))+len(validate.UnsupportedSourceFields(src)) > 0 && !t.deny {
			return nil, false
		}
		m := &securityapi.Match{
			Principals: t.principals(src.GetPrincipals()), NotPrincipals: t.principals(src.GetNotPrincipals()),
			Namespaces: patterns(src.GetNamespaces()), NotNamespaces: patterns(src.GetNotNamespaces()),
			SourceIps: blocks(src.GetIpBlocks()), NotSourceIps: blocks(src.GetNotIpBlocks()),
			ServiceAccounts:    t.accounts(src.GetServiceAccounts()),
			NotServiceAccounts: t.accounts(src.GetNotServiceAccounts()),
		}
		if isEmpty(m) {
			all = true // only HTTP fields, which DENY leaves out
			continue
		}
		matches = append(matches, m)
	}
	if all {
		return nil, true
	}
	return matches, true
}

func (t translator) to(list []*securitybeta.Rule_To) (matches []*securityapi.Match, ok bool) {
	all := false
	for _, to := range list {
		op := to.GetOperation()
		if len(validate.HTTPFields(op)) > 0 && !t.deny {
			return nil, false
		}
		m := &securityapi.Match{DestinationPorts: ports(op.GetPorts()), NotDestinationPorts: ports(op.GetNotPorts())}
		if isEmpty(m) {
			all = true
			continue
		}
		matches = append(matches, m)
	}
	if all {
		return nil, true
	}
	return matches, true
}

func isEmpty(m *securityapi.Match) bool {
	return len(m.Principals)+len(m.NotPrincipals)+len(m.Namespaces)+len(m.NotNamespaces)+len(m.SourceIps)+
		len(m.NotSourceIps)+len(m.DestinationPorts)+len(m.NotDestinationPorts)+len(m.ServiceAccounts)+
		len(m.NotServiceAccounts) == 0
}

// condition returns ok=false for a key that TCP cannot answer.
func (t translator) condition(cond *securitybeta.Condition) (*securityapi.Match, bool) {
	yes, no := cond.GetValues(), cond.GetNotValues()
	switch validate.Condition(cond.GetKey()) {
	case validate.ConditionSourceIP:
		return &securityapi.Match{SourceIps: blocks(yes), NotSourceIps: blocks(no)}, true
	case validate.ConditionSourceNamespace:
		return &securityapi.Match{Namespaces: patterns(yes), NotNamespaces: patterns(no)}, true
	case validate.ConditionSourcePrincipal:
		return &securityapi.Match{Principals: t.principals(yes), NotPrincipals: t.principals(no)}, true
	case validate.ConditionSourceAccount:
		return &securityapi.Match{ServiceAccounts: t.accounts(yes), NotServiceAccounts: t.accounts(no)}, true
	case validate.ConditionDestinationIP:
		return &securityapi.Match{DestinationIps: blocks(yes), NotDestinationIps: blocks(no)}, true
	case validate.ConditionDestinationPort:
		return &securityapi.Match{DestinationPorts: ports(yes), NotDestinationPorts: ports(no)}, true
	}
	return nil, false
}

// principals expands the trust domain: cluster.local is a pointer to the mesh's own one, and the aliases count as it
// (MT-23, MT-24).
func (t translator) principals(values []string) []*securityapi.StringMatch {
	var all []string
	own := append([]string{t.mesh.TrustDomain}, t.mesh.TrustDomainAliases...)
	for _, v := range values {
		v = strings.TrimPrefix(v, "spiffe://")
		domain, rest, found := strings.Cut(v, "/")
		if !found || (domain != api.DefaultTrustDomain && !slices.Contains(own, domain)) {
			all = append(all, v)
			continue
		}
		for _, td := range own {
			all = append(all, td+"/"+rest)
		}
	}
	return patterns(all)
}

func patterns(values []string) []*securityapi.StringMatch {
	out := make([]*securityapi.StringMatch, 0, len(values))
	for _, v := range values {
		m := &securityapi.StringMatch{}
		switch {
		case v == "*":
			m.MatchType = &securityapi.StringMatch_Presence{Presence: &emptypb.Empty{}}
		case strings.HasPrefix(v, "*"):
			m.MatchType = &securityapi.StringMatch_Suffix{Suffix: v[1:]}
		case strings.HasSuffix(v, "*"):
			m.MatchType = &securityapi.StringMatch_Prefix{Prefix: v[:len(v)-1]}
		default:
			m.MatchType = &securityapi.StringMatch_Exact{Exact: v}
		}
		out = append(out, m)
	}
	return out
}

// The values were validated: what does not parse never gets here.

func (t translator) accounts(values []string) []*securityapi.ServiceAccountMatch {
	var out []*securityapi.ServiceAccountMatch
	for _, v := range values {
		if ns, account, err := validate.ServiceAccount(v, t.namespace); err == nil {
			out = append(out, &securityapi.ServiceAccountMatch{Namespace: ns, ServiceAccount: account})
		}
	}
	return out
}

func blocks(values []string) []*securityapi.Address {
	var out []*securityapi.Address
	for _, v := range values {
		if prefix, err := validate.IPBlock(v); err == nil {
			out = append(out, address(prefix))
		}
	}
	return out
}

func address(p netip.Prefix) *securityapi.Address {
	return &securityapi.Address{Address: p.Addr().AsSlice(), Length: uint32(p.Bits())}
}

func ports(values []string) []uint32 {
	var out []uint32
	for _, v := range values {
		if p, err := validate.Port(v); err == nil {
			out = append(out, p)
		}
	}
	return out
}
