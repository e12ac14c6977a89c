package policy

import (
	"math"

	"google.golang.org/protobuf/proto"

	"github.com/undermesh/undermesh/controller/api/securityapi"
)

// sound reports whether this build understands all of a policy. A field that it does not know may narrow or widen the
// policy, so neither "matches" nor "does not match" would be safe.
func sound(p *securityapi.Authorization) bool {
	if p == nil || !known(p) {
		return false
	}
	switch p.GetAction() {
	case securityapi.Action_ALLOW, securityapi.Action_DENY:
	default:
		return false
	}
	switch p.GetScope() {
	case securityapi.Scope_GLOBAL, securityapi.Scope_NAMESPACE, securityapi.Scope_WORKLOAD_SELECTOR:
	default:
		return false
	}
	for _, g := range p.GetGroups() {
		if !known(g) {
			return false
		}
		for _, r := range g.GetRules() {
			if !known(r) {
				return false
			}
			for _, m := range r.GetMatches() {
				if !soundMatch(m) {
					return false
				}
			}
		}
	}
	return true
}

func soundMatch(m *securityapi.Match) bool {
	return known(m) &&
		each(soundString, m.GetNamespaces(), m.GetNotNamespaces(), m.GetPrincipals(), m.GetNotPrincipals()) &&
		each(soundAddress, m.GetSourceIps(), m.GetNotSourceIps(), m.GetDestinationIps(), m.GetNotDestinationIps()) &&
		each(soundPort, m.GetDestinationPorts(), m.GetNotDestinationPorts()) &&
		each(known, m.GetServiceAccounts(), m.GetNotServiceAccounts())
}

func each[T any](ok func(T) bool, lists ...[]T) bool {
	for _, list := range lists {
		for _, v := range list {
			if !ok(v) {
				return false
			}
		}
	}
	return true
}

func known[M proto.Message](m M) bool { return len(m.ProtoReflect().GetUnknown()) == 0 }

func soundString(m *securityapi.StringMatch) bool {
	switch t := m.GetMatchType().(type) {
	case *securityapi.StringMatch_Exact, *securityapi.StringMatch_Prefix, *securityapi.StringMatch_Suffix:
		return known(m)
	case *securityapi.StringMatch_Presence:
		return known(m) && known(t.Presence)
	}
	return false
}

func soundAddress(a *securityapi.Address) bool {
	_, ok := prefixOf(a)
	return ok && known(a)
}

func soundPort(p uint32) bool { return p > 0 && p <= math.MaxUint16 }
