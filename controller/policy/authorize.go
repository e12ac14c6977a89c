// Package policy holds the mesh's decisions as pure functions of a snapshot: whether a connection is allowed
// (Authorize), on which path it travels (PathFor) and which endpoint of a service takes it (Pick). Agent, ztunnel, CLI
// and simulation call the same code, so that what explain prints is what happened.
//
// Invariants: no I/O, no state, no clock; every refusal carries a reason of the registry; what cannot be judged is
// refused.
package policy

import (
	"net/netip"
	"strings"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/controller/api/securityapi"
	"github.com/undermesh/undermesh/controller/api/settings"
)

// Connection is what a policy may ask about.
type Connection struct {
	Source, Destination netip.AddrPort
	Peer                api.Identity // zero: none proved
}

// Verdict is the outcome of Authorize.
type Verdict struct {
	Allow  bool
	Reason reason.Reason // None when allowed
	// Policy is the "namespace/name" of the policy that decided: the one that matched; for PolicyNotAllowed the first of
	// the ALLOW policies, none of which matched; empty when there was no policy.
	Policy string
	Rule   int // index of the group that matched, -1 for none
	// DryRun names the dry-run policies that would have refused the connection: the DENY ones that match (or cannot be
	// judged), and the ALLOW ones when neither they nor an enforced ALLOW policy matches.
	DryRun []string
}

// generatedPrefixes begin the names of policies that PeerAuthentication compiles to. A Kubernetes name cannot hold an
// underscore, so no user's policy is taken for one.
var generatedPrefixes = []string{api.StrictPolicyName, "converted_peer_authentication_"}

// Authorize decides one connection. No policy: allowed. A DENY policy matches: denied. ALLOW policies exist and none
// matches: denied; an ALLOW policy without groups matches nothing. A policy that this build cannot judge (unknown fields,
// unknown actions, malformed addresses or ports) denies. Dry-run policies are recorded and never decide.
//
// The structure is that of authorization.proto: any group, all of its rules, any of their matches, all fields of a match,
// any value of a field. Emptiness: a group without rules matches every connection (it is `rules: [{}]`, AZ's allow-all);
// rules without matches and a match without fields say nothing, so they match in a DENY policy and not in an ALLOW one.
//
// principals, namespaces and service_accounts need a proved identity: without one they match nothing, and their not_*
// forms, being the negation, match. That is Istio's meaning (the STRICT policy is "DENY not_principals: presence"), and it
// is why a DENY with notPrincipals also stops plain text, and why an ALLOW that has only not_* sources wants STRICT beside
// it. mesh supplies the trust domain and its aliases (MT-22…24); nil means the defaults.
func Authorize(policies []*securityapi.Authorization, mesh *settings.MeshSettings, c Connection) Verdict {
	j := judge{mesh: mesh, peer: c.Peer, c: Connection{
		Source:      netip.AddrPortFrom(c.Source.Addr().Unmap().WithZone(""), c.Source.Port()),
		Destination: netip.AddrPortFrom(c.Destination.Addr().Unmap().WithZone(""), c.Destination.Port()),
	}, principal: c.Peer.Principal()}
	var dry []string
	var unsound, deny, allow, firstAllow *securityapi.Authorization
	denyRule, allowRule := -1, -1
	for _, p := range policies {
		isDeny := p.GetAction() == securityapi.Action_DENY
		switch ok := sound(p); {
		case !ok && p.GetDryRun():
			dry = append(dry, fullName(p))
		case !ok:
			if unsound == nil {
				unsound = p
			}
		case p.GetDryRun():
			if rule := j.policy(p); isDeny && rule >= 0 {
				dry = append(dry, fullName(p))
			}
		case isDeny && deny == nil:
			if rule := j.policy(p); rule >= 0 {
				deny, denyRule = p, rule
			}
		case !isDeny:
			if firstAllow == nil {
				firstAllow = p
			}
			if allow == nil {
				if rule := j.policy(p); rule >= 0 {
					allow, allowRule = p, rule
				}
			}
		}
	}
	if allow == nil {
		dry = append(dry, j.unmatchedDryAllows(policies)...)
	}
	v := Verdict{Rule: -1, DryRun: dry}
	switch {
	case deny != nil:
		v.Reason, v.Policy, v.Rule = reason.PolicyDenied, fullName(deny), denyRule
		if generated(deny.GetName()) {
			v.Reason = reason.StrictMTLS
		}
	case unsound != nil:
		v.Reason, v.Policy = reason.PolicyUnenforceable, fullName(unsound)
	case allow != nil:
		v.Allow, v.Policy, v.Rule = true, fullName(allow), allowRule
	case firstAllow != nil:
		v.Reason, v.Policy = reason.PolicyNotAllowed, fullName(firstAllow)
	default:
		v.Allow = true
	}
	return v
}

func generated(name string) bool {
	for _, prefix := range generatedPrefixes {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

func fullName(p *securityapi.Authorization) string { return p.GetNamespace() + "/" + p.GetName() }

// judge is one connection being judged; addresses are unmapped.
type judge struct {
	mesh      *settings.MeshSettings
	peer      api.Identity
	principal string
	c         Connection
}

// unmatchedDryAllows names the dry-run ALLOW policies when none of them matches.
func (j *judge) unmatchedDryAllows(policies []*securityapi.Authorization) []string {
	var out []string
	for _, p := range policies {
		if !p.GetDryRun() || p.GetAction() != securityapi.Action_ALLOW || !sound(p) {
			continue
		}
		if j.policy(p) >= 0 {
			return nil
		}
		out = append(out, fullName(p))
	}
	return out
}

// policy returns the index of the first group that matches, -1 for none.
func (j *judge) policy(p *securityapi.Authorization) int {
	deny := p.GetAction() == securityapi.Action_DENY
	for i, g := range p.GetGroups() {
		if j.group(g, deny) {
			return i
		}
	}
	return -1
}

func (j *judge) group(g *securityapi.Group, deny bool) bool {
	for _, r := range g.GetRules() {
		if !j.rules(r, deny) {
			return false
		}
	}
	return true
}

func (j *judge) rules(r *securityapi.Rules, deny bool) bool {
	for _, m := range r.GetMatches() {
		if emptyMatch(m) {
			if deny {
				return true
			}
			continue
		}
		if j.match(m) {
			return true
		}
	}
	return deny && len(r.GetMatches()) == 0
}

func emptyMatch(m *securityapi.Match) bool {
	return len(m.GetNamespaces())+len(m.GetNotNamespaces())+len(m.GetPrincipals())+len(m.GetNotPrincipals())+
		len(m.GetSourceIps())+len(m.GetNotSourceIps())+len(m.GetDestinationIps())+len(m.GetNotDestinationIps())+
		len(m.GetDestinationPorts())+len(m.GetNotDestinationPorts())+
		len(m.GetServiceAccounts())+len(m.GetNotServiceAccounts()) == 0
}

func (j *judge) match(m *securityapi.Match) bool {
	return field(m.GetDestinationPorts(), m.GetNotDestinationPorts(), j.port) &&
		field(m.GetSourceIps(), m.GetNotSourceIps(), j.sourceIP) &&
		field(m.GetDestinationIps(), m.GetNotDestinationIps(), j.destinationIP) &&
		field(m.GetNamespaces(), m.GetNotNamespaces(), j.namespace) &&
		field(m.GetServiceAccounts(), m.GetNotServiceAccounts(), j.account) &&
		field(m.GetPrincipals(), m.GetNotPrincipals(), j.matchPrincipal)
}

// field reports whether any of want matches, or want is empty, and none of not does.
func field[T any](want, not []T, ok func(T) bool) bool {
	found := len(want) == 0
	for _, v := range want {
		if ok(v) {
			found = true
			break
		}
	}
	if !found {
		return false
	}
	for _, v := range not {
		if ok(v) {
			return false
		}
	}
	return true
}

func (j *judge) port(p uint32) bool { return p == uint32(j.c.Destination.Port()) }

func (j *judge) sourceIP(a *securityapi.Address) bool { return contains(a, j.c.Source.Addr()) }
func (j *judge) destinationIP(a *securityapi.Address) bool {
	return contains(a, j.c.Destination.Addr())
}

func (j *judge) namespace(m *securityapi.StringMatch) bool {
	return !j.peer.IsZero() && matchString(m, j.peer.Namespace)
}

func (j *judge) account(m *securityapi.ServiceAccountMatch) bool {
	return !j.peer.IsZero() && m.GetNamespace() == j.peer.Namespace && m.GetServiceAccount() == j.peer.ServiceAccount
}

func contains(a *securityapi.Address, ip netip.Addr) bool {
	p, ok := prefixOf(a)
	return ok && p.Contains(ip)
}

// prefixOf reads an address of a policy; a v4-mapped network of at least 96 bits counts as IPv4.
func prefixOf(a *securityapi.Address) (netip.Prefix, bool) {
	ip, ok := netip.AddrFromSlice(a.GetAddress())
	if !ok || a.GetLength() > uint32(ip.BitLen()) {
		return netip.Prefix{}, false
	}
	length := int(a.GetLength())
	if ip.Is4In6() && length >= 96 {
		ip, length = ip.Unmap(), length-96
	}
	return netip.PrefixFrom(ip, length), true
}

func matchString(m *securityapi.StringMatch, s string) bool {
	switch t := m.GetMatchType().(type) {
	case *securityapi.StringMatch_Exact:
		return s == t.Exact
	case *securityapi.StringMatch_Prefix:
		return strings.HasPrefix(s, t.Prefix)
	case *securityapi.StringMatch_Suffix:
		return strings.HasSuffix(s, t.Suffix)
	case *securityapi.StringMatch_Presence:
		return s != ""
	}
	return false
}
