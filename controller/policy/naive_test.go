package policy

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/securityapi"
	"github.com/undermesh/undermesh/controller/api/settings"
)

// The naive interpreter below works on text: it expands every value and compares strings and single bits. It shares no
// code with Authorize.

func naiveAllow(ps []*authz, tds []string, c Connection) bool {
	allows, allowed := 0, false
	for _, p := range ps {
		if p.DryRun {
			continue
		}
		hit := false
		for _, g := range p.Groups {
			all := true
			for _, r := range g.Rules {
				one := false
				for _, m := range r.Matches {
					one = one || naiveMatch(m, tds, c)
				}
				all = all && one
			}
			hit = hit || all
		}
		if p.Action == securityapi.Action_DENY && hit {
			return false
		}
		if p.Action == securityapi.Action_ALLOW {
			allows++
			allowed = allowed || hit
		}
	}
	return allows == 0 || allowed
}

func naiveMatch(m *match, tds []string, c Connection) bool {
	ns, sa, principal := "\x00", "\x00", "\x00" // no pattern of the test matches these
	if c.Peer != (api.Identity{}) {
		ns, sa = c.Peer.Namespace, c.Peer.Namespace+"/"+c.Peer.ServiceAccount
		principal = c.Peer.TrustDomain + "/ns/" + ns + "/sa/" + c.Peer.ServiceAccount
	}
	var fields []bool
	check := func(want, not int, hit func(positive bool, i int) bool) {
		ok := want == 0
		for i := range want {
			ok = ok || hit(true, i)
		}
		for i := range not {
			ok = ok && !hit(false, i)
		}
		fields = append(fields, ok)
	}
	sel := func(pos bool, a, b []*str, i int) string {
		if pos {
			return glob(a[i])
		}
		return glob(b[i])
	}
	check(len(m.Namespaces), len(m.NotNamespaces), func(p bool, i int) bool { return globMatch(sel(p, m.Namespaces, m.NotNamespaces, i), ns) })
	check(len(m.Principals), len(m.NotPrincipals), func(p bool, i int) bool {
		for _, g := range expand(sel(p, m.Principals, m.NotPrincipals, i), tds) {
			if globMatch(g, principal) {
				return true
			}
		}
		return false
	})
	bit := func(a []*securityapi.Address, ip netip.Addr) func(int) bool {
		return func(i int) bool {
			x, y := a[i].Address, ip.Unmap().AsSlice()
			if len(x) != len(y) {
				return false
			}
			for n := range int(a[i].Length) {
				if x[n/8]>>(7-n%8)&1 != y[n/8]>>(7-n%8)&1 {
					return false
				}
			}
			return true
		}
	}
	pick := func(a, b []*securityapi.Address, ip netip.Addr) func(bool, int) bool {
		return func(p bool, i int) bool {
			if p {
				return bit(a, ip)(i)
			}
			return bit(b, ip)(i)
		}
	}
	check(len(m.SourceIps), len(m.NotSourceIps), pick(m.SourceIps, m.NotSourceIps, c.Source.Addr()))
	check(len(m.DestinationIps), len(m.NotDestinationIps), pick(m.DestinationIps, m.NotDestinationIps, c.Destination.Addr()))
	check(len(m.DestinationPorts), len(m.NotDestinationPorts), func(p bool, i int) bool {
		if p {
			return int(m.DestinationPorts[i]) == int(c.Destination.Port())
		}
		return int(m.NotDestinationPorts[i]) == int(c.Destination.Port())
	})
	check(len(m.ServiceAccounts), len(m.NotServiceAccounts), func(p bool, i int) bool {
		l := m.NotServiceAccounts
		if p {
			l = m.ServiceAccounts
		}
		return l[i].Namespace+"/"+l[i].ServiceAccount == sa
	})
	return !slices.Contains(fields, false)
}

func glob(s *str) string {
	switch t := s.MatchType.(type) {
	case *securityapi.StringMatch_Exact:
		return t.Exact
	case *securityapi.StringMatch_Prefix:
		return t.Prefix + "*"
	case *securityapi.StringMatch_Suffix:
		return "*" + t.Suffix
	}
	return "*"
}

// expand writes a principal out for each trust domain, as Istio does when it generates its configuration.
func expand(g string, tds []string) []string {
	parts := strings.Split(g, "/")
	if len(parts) != 5 {
		return []string{g}
	}
	own := parts[0] == "cluster.local"
	for _, td := range tds {
		own = own || globMatch(parts[0], td)
	}
	if !own {
		return []string{g}
	}
	var out []string
	for _, td := range tds {
		if globMatch(parts[0], td) {
			out = append(out, g)
			continue
		}
		out = append(out, td+"/"+strings.Join(parts[1:], "/"))
	}
	return out
}

func globMatch(g, s string) bool {
	if s == "\x00" {
		return false
	}
	if rest, ok := strings.CutPrefix(g, "*"); ok {
		return strings.HasSuffix(s, rest)
	}
	if rest, ok := strings.CutSuffix(g, "*"); ok {
		return strings.HasPrefix(s, rest)
	}
	return g == s
}

func TestAuthorizeAgainstNaiveInterpreter(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	allowed := 0
	const rounds = 60000
	for i := range rounds {
		mesh := &settings.MeshSettings{TrustDomain: one(r, "td1", "cluster.local"), TrustDomainAliases: []string{"td2", "td3"}[:r.IntN(3)]}
		c := Connection{
			Source:      netip.AddrPortFrom(netip.MustParseAddr(one(r, "10.0.0.1", "10.0.0.2", "::ffff:10.0.0.1", "fd00::1")), 5),
			Destination: netip.AddrPortFrom(netip.MustParseAddr(one(r, "10.0.0.1", "fd00::2")), uint16(80+r.IntN(3))),
		}
		if r.IntN(4) > 0 {
			c.Peer = api.Identity{TrustDomain: one(r, "td1", "td2", "td3", "cluster.local", "evil"), Namespace: one(r, "a", "b"), ServiceAccount: one(r, "x", "y")}
		}
		ps := make([]*authz, r.IntN(4))
		for i := range ps {
			ps[i] = randomPolicy(r)
		}
		want := naiveAllow(ps, append([]string{mesh.TrustDomain}, mesh.TrustDomainAliases...), c)
		got := Authorize(ps, mesh, c)
		if got.Allow != want {
			t.Fatalf("round %d: got %+v, want allow %v\nmesh %v\nconnection %+v\npolicies %v", i, got, want, mesh, c, ps)
		}
		if want {
			allowed++
		}
	}
	if allowed < rounds/20 || allowed > rounds*19/20 {
		t.Errorf("%d of %d allowed: the policies are too simple to prove anything", allowed, rounds)
	}
}

func one(r *rand.Rand, s ...string) string { return s[r.IntN(len(s))] }

func randomPolicy(r *rand.Rand) *authz {
	p := &authz{Namespace: "n", Name: "p", Action: securityapi.Action(r.IntN(2)), DryRun: r.IntN(8) == 0}
	for range r.IntN(3) {
		g := &securityapi.Group{}
		for range r.IntN(3) {
			rules := &securityapi.Rules{}
			for range 1 + r.IntN(2) {
				rules.Matches = append(rules.Matches, randomMatch(r))
			}
			g.Rules = append(g.Rules, rules)
		}
		p.Groups = append(p.Groups, g)
	}
	return p
}

func randomMatch(r *rand.Rand) *match {
	m := &match{}
	text := func(s string) *str {
		switch {
		case s == "*":
			return presence()
		case strings.HasPrefix(s, "*"):
			return suffix(s[1:])
		case strings.HasSuffix(s, "*"):
			return prefix(s[:len(s)-1])
		}
		return exact(s)
	}
	td := func() string { return one(r, "td1", "td2", "td3", "cluster.local", "evil") }
	for emptyMatch(m) {
		for range 1 + r.IntN(2) {
			ns := text(one(r, "a", "b", "a*", "*b", "*"))
			pr := text(one(r, td()+"/ns/a/sa/x", td()+"/ns/b/sa/y", td()+"/ns/a/sa/*", td()+"/ns/a/*", "*/sa/x", "*/ns/a/sa/x", "*d2/ns/a/sa/x", "*"))
			ip := cidr(one(r, "10.0.0.0/31", "10.0.0.1/32", "10.0.0.2/32", "fd00::/64", "fd00::1/128", "0.0.0.0/0"))
			port := uint32(80 + r.IntN(3))
			sa := &securityapi.ServiceAccountMatch{Namespace: one(r, "a", "b"), ServiceAccount: one(r, "x", "y")}
			switch r.IntN(12) {
			case 0:
				m.Namespaces = append(m.Namespaces, ns)
			case 1:
				m.NotNamespaces = append(m.NotNamespaces, ns)
			case 2, 3:
				m.Principals = append(m.Principals, pr)
			case 4:
				m.NotPrincipals = append(m.NotPrincipals, pr)
			case 5:
				m.SourceIps = append(m.SourceIps, ip)
			case 6:
				m.NotSourceIps = append(m.NotSourceIps, ip)
			case 7:
				m.DestinationIps = append(m.DestinationIps, ip)
			case 8:
				m.NotDestinationIps = append(m.NotDestinationIps, ip)
			case 9:
				m.DestinationPorts = append(m.DestinationPorts, port)
			case 10:
				m.NotDestinationPorts = append(m.NotDestinationPorts, port)
			case 11:
				m.ServiceAccounts = append(m.ServiceAccounts, sa)
				m.NotServiceAccounts = append(m.NotServiceAccounts, &securityapi.ServiceAccountMatch{Namespace: "b", ServiceAccount: "x"})
			}
		}
	}
	return m
}
