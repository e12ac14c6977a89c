package policy

import (
	"slices"
	"strings"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/securityapi"
)

// matchPrincipal matches the peer's principal (AZ-12). A policy's principal whose trust domain is the mesh's own, one of
// its aliases, or the pointer "cluster.local" stands for the same account in the mesh's trust domain and in every alias
// (MT-22…24); a principal of any other trust domain means just itself. The pointer does not stand for a foreign trust
// domain that happens to be called cluster.local. As in Istio only principals of all five parts
// (TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT, wildcards at either end included) name a trust domain in this sense.
func (j *judge) matchPrincipal(m *securityapi.StringMatch) bool {
	if j.peer.IsZero() {
		return false
	}
	text, suffix := "", false
	switch t := m.GetMatchType().(type) {
	case *securityapi.StringMatch_Exact:
		text = t.Exact
	case *securityapi.StringMatch_Prefix:
		text = t.Prefix
	case *securityapi.StringMatch_Suffix:
		text, suffix = t.Suffix, true
	default:
		return matchString(m, j.principal)
	}
	domain, account, ok := splitPrincipal(text)
	if !ok || !j.ownDomain(domain, suffix) {
		return matchString(m, j.principal)
	}
	if suffix && matchString(m, j.principal) {
		return true // "*local/ns/…" is kept as it is beside its expansions
	}
	if !j.inBundle(j.peer.TrustDomain) {
		return false
	}
	own := j.principal[len(j.peer.TrustDomain)+1:]
	if _, ok := m.GetMatchType().(*securityapi.StringMatch_Prefix); ok {
		return strings.HasPrefix(own, account)
	}
	return own == account
}

// splitPrincipal cuts a principal of five parts after its trust domain.
func splitPrincipal(s string) (domain, account string, ok bool) {
	if strings.Count(s, "/") != 4 {
		return "", "", false
	}
	domain, account, _ = strings.Cut(s, "/")
	return domain, account, true
}

// ownDomain reports whether a policy's trust domain stands for the mesh's; in a suffix match it is the end of a name.
func (j *judge) ownDomain(domain string, suffix bool) bool {
	if domain == api.DefaultClusterDomain || j.inBundle(domain) {
		return true
	}
	if !suffix {
		return false
	}
	if strings.HasSuffix(j.trustDomain(), domain) {
		return true
	}
	return slices.ContainsFunc(j.mesh.GetTrustDomainAliases(), func(a string) bool { return strings.HasSuffix(a, domain) })
}

func (j *judge) inBundle(domain string) bool {
	return domain == j.trustDomain() || slices.Contains(j.mesh.GetTrustDomainAliases(), domain)
}

func (j *judge) trustDomain() string {
	if td := j.mesh.GetTrustDomain(); td != "" {
		return td
	}
	return api.DefaultTrustDomain
}
