package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/controller/api/securityapi"
	"github.com/undermesh/undermesh/controller/api/settings"
)

type (
	authz = securityapi.Authorization
	match = securityapi.Match
	str   = securityapi.StringMatch
)

func exact(s string) *str  { return &str{MatchType: &securityapi.StringMatch_Exact{Exact: s}} }
func prefix(s string) *str { return &str{MatchType: &securityapi.StringMatch_Prefix{Prefix: s}} }
func suffix(s string) *str { return &str{MatchType: &securityapi.StringMatch_Suffix{Suffix: s}} }
func presence() *str {
	return &str{MatchType: &securityapi.StringMatch_Presence{Presence: &emptypb.Empty{}}}
}

func cidr(s string) *securityapi.Address {
	p := netip.MustParsePrefix(s)
	return &securityapi.Address{Address: p.Addr().AsSlice(), Length: uint32(p.Bits())}
}

// policyOf has one group with one rule for each match.
func policyOf(action securityapi.Action, ms ...*match) *authz {
	g := &securityapi.Group{}
	for _, m := range ms {
		g.Rules = append(g.Rules, &securityapi.Rules{Matches: []*match{m}})
	}
	return &authz{Namespace: "foo", Name: "p", Action: action, Groups: []*securityapi.Group{g}}
}

func allow(ms ...*match) *authz { return policyOf(securityapi.Action_ALLOW, ms...) }
func deny(ms ...*match) *authz  { return policyOf(securityapi.Action_DENY, ms...) }

func from(principal string) Connection {
	c := Connection{Source: netip.MustParseAddrPort("10.0.1.5:40000"), Destination: netip.MustParseAddrPort("10.0.2.6:9000")}
	if principal != "" {
		id, err := api.ParseIdentity("spiffe://" + principal)
		if err != nil {
			panic(err)
		}
		c.Peer = id
	}
	return c
}

const sleep = "cluster.local/ns/foo/sa/sleep"

type authzCase struct {
	name string
	p    *authz
	c    Connection
	want bool
}

func run(t *testing.T, mesh *settings.MeshSettings, cases []authzCase) {
	t.Helper()
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			v := Authorize([]*authz{tc.p}, mesh, tc.c)
			if v.Allow != tc.want {
				t.Fatalf("got %+v, want allow %v", v, tc.want)
			}
			if v.Allow != (v.Reason == reason.None) {
				t.Errorf("verdict and reason differ: %+v", v)
			}
		})
	}
}

func TestAZ10Ports(t *testing.T) {
	m := &match{DestinationPorts: []uint32{9000, 9001}}
	other := from(sleep)
	other.Destination = netip.MustParseAddrPort("10.0.2.6:9002")
	run(t, nil, []authzCase{
		{"AZ-10 listed", allow(m), from(""), true}, {"AZ-10 not listed", allow(m), other, false},
		{"AZ-10 deny listed", deny(m), from(""), false}, {"AZ-10 deny not listed", deny(m), other, true},
		{"AZ-10 not_ports", allow(&match{NotDestinationPorts: []uint32{9000}}), from(""), false},
		{"AZ-10 not_ports other", allow(&match{NotDestinationPorts: []uint32{9000}}), other, true},
	})
}

func TestAZ12Principals(t *testing.T) {
	p := func(s ...*str) *match { return &match{Principals: s} }
	n := func(s ...*str) *match { return &match{NotPrincipals: s} }
	run(t, nil, []authzCase{
		{"AZ-12 exact", allow(p(exact(sleep))), from(sleep), true},
		{"AZ-12 exact other", allow(p(exact(sleep))), from("cluster.local/ns/foo/sa/sleepy"), false},
		{"AZ-12 one of two", allow(p(exact("x"), exact(sleep))), from(sleep), true},
		{"AZ-12 prefix", allow(p(prefix("cluster.local/ns/foo/"))), from(sleep), true},
		{"AZ-12 prefix other", allow(p(prefix("cluster.local/ns/bar/"))), from(sleep), false},
		{"AZ-12 suffix", allow(p(suffix("/sa/sleep"))), from(sleep), true},
		{"AZ-12 suffix other", allow(p(suffix("/sa/slee"))), from(sleep), false},
		{"AZ-12 presence", allow(p(presence())), from(sleep), true},
		{"AZ-12 presence, none proved", allow(p(presence())), from(""), false},
		{"AZ-12 empty prefix, none proved", allow(p(prefix(""))), from(""), false},
		{"AZ-12 empty exact, none proved", allow(p(exact(""))), from(""), false},
		{"AZ-12 deny not presence, none proved", deny(n(presence())), from(""), false},
		{"AZ-12 deny not presence, proved", deny(n(presence())), from(sleep), true},
		{"AZ-12 deny not exact, none proved", deny(n(exact(sleep))), from(""), false},
	})
}

func TestAZ13Namespaces(t *testing.T) {
	bar := from("cluster.local/ns/bar/sa/sleep")
	sa := []*securityapi.ServiceAccountMatch{{Namespace: "foo", ServiceAccount: "sleep"}}
	run(t, nil, []authzCase{
		{"AZ-13 namespace", allow(&match{Namespaces: []*str{exact("foo")}}), from(sleep), true},
		{"AZ-13 namespace other", allow(&match{Namespaces: []*str{exact("foo")}}), bar, false},
		{"AZ-13 namespace none proved", allow(&match{Namespaces: []*str{exact("foo")}}), from(""), false},
		{"AZ-13 not namespace", deny(&match{NotNamespaces: []*str{exact("foo")}}), bar, false},
		{"AZ-13 not namespace own", deny(&match{NotNamespaces: []*str{exact("foo")}}), from(sleep), true},
		{"AZ-13 not namespace none proved", deny(&match{NotNamespaces: []*str{exact("foo")}}), from(""), false},
		{"AZ-13 account", allow(&match{ServiceAccounts: sa}), from(sleep), true},
		{"AZ-13 account of another namespace", allow(&match{ServiceAccounts: sa}), bar, false},
		{"AZ-13 not account", deny(&match{NotServiceAccounts: sa}), bar, false},
	})
}

func TestAZ14IPBlocks(t *testing.T) {
	src := func(s ...string) *match {
		m := &match{}
		for _, v := range s {
			m.SourceIps = append(m.SourceIps, cidr(v))
		}
		return m
	}
	mapped := from("")
	mapped.Source = netip.MustParseAddrPort("[::ffff:10.0.1.5]:1")
	six := from("")
	six.Source = netip.MustParseAddrPort("[fd00::5%eth0]:1")
	run(t, nil, []authzCase{
		{"AZ-14 in the block", allow(src("10.0.1.0/24")), from(""), true},
		{"AZ-14 single", allow(src("10.0.1.5/32")), from(""), true},
		{"AZ-14 not in the block", allow(src("10.0.2.0/24")), from(""), false},
		{"AZ-14 unmasked block", allow(src("10.0.1.77/24")), from(""), true},
		{"AZ-14 deny", deny(src("10.0.1.5/32")), from(""), false},
		{"AZ-14 not block", allow(&match{NotSourceIps: []*securityapi.Address{cidr("10.0.0.0/8")}}), from(""), false},
		{"AZ-14 mapped source", deny(src("10.0.1.0/24")), mapped, false},
		{"AZ-14 mapped block", deny(src("::ffff:10.0.1.0/120")), from(""), false},
		{"AZ-14 IPv6 with a zone", deny(src("fd00::/64")), six, false},
		{"AZ-14 all IPv4 is no IPv6", deny(src("0.0.0.0/0")), six, true},
		{"AZ-14 destination", deny(&match{DestinationIps: []*securityapi.Address{cidr("10.0.2.6/32")}}), from(""), false},
		{"AZ-14 not destination", deny(&match{NotDestinationIps: []*securityapi.Address{cidr("10.0.2.6/32")}}), from(""), true},
	})
}

// TestAZ22AZ23 holds what the compiler makes of HTTP fields on TCP: the rule is gone (ALLOW), or the field is (DENY).
func TestAZ22AZ23HTTPFieldsOnTCP(t *testing.T) {
	run(t, nil, []authzCase{
		{"AZ-22 ALLOW whose rules are gone rejects", &authz{Namespace: "foo", Name: "p"}, from(sleep), false},
		{"AZ-23 DENY keeps the port", deny(&match{DestinationPorts: []uint32{9000}}), from(sleep), false},
		{"AZ-23 DENY without a field left", deny(&match{}), from(sleep), false},
	})
}

func TestAZ21EmptinessFailsClosed(t *testing.T) {
	group := func(a securityapi.Action, g *securityapi.Group) *authz {
		return &authz{Action: a, Groups: []*securityapi.Group{g}}
	}
	empty, norules := &securityapi.Group{Rules: []*securityapi.Rules{{}}}, &securityapi.Group{}
	run(t, nil, []authzCase{
		{"allow-nothing", &authz{}, from(sleep), false}, {"deny-nothing", &authz{Action: securityapi.Action_DENY}, from(sleep), true},
		{"allow-all", group(securityapi.Action_ALLOW, norules), from(""), true}, {"deny-all", group(securityapi.Action_DENY, norules), from(sleep), false},
		{"ALLOW, a rule without matches", group(securityapi.Action_ALLOW, empty), from(sleep), false},
		{"DENY, a rule without matches", group(securityapi.Action_DENY, empty), from(sleep), false},
		{"ALLOW, an empty match", allow(&match{}), from(sleep), false}, {"DENY, an empty match", deny(&match{}), from(sleep), false},
	})
}

func TestMT22MT23MT24TrustDomains(t *testing.T) {
	newTD := &settings.MeshSettings{TrustDomain: "new-td"}
	alias := &settings.MeshSettings{TrustDomain: "new-td", TrustDomainAliases: []string{"old-td"}}
	p := func(s *str) *authz { return allow(&match{Principals: []*str{s}}) }
	old, neu, foreign := "old-td/ns/foo/sa/sleep", "new-td/ns/foo/sa/sleep", "evil/ns/foo/sa/sleep"
	run(t, newTD, []authzCase{
		{"MT-22 the old principal breaks", p(exact(old)), from(neu), false},
		{"MT-24 pointer", p(exact(sleep)), from(neu), true},
		{"MT-24 pointer with a wildcard", p(prefix("cluster.local/ns/foo/sa/")), from(neu), true},
		{"MT-24 a foreign cluster.local", p(exact(sleep)), from(sleep), false},
		{"MT-24 other account", p(exact("cluster.local/ns/foo/sa/x")), from(neu), false},
	})
	run(t, alias, []authzCase{
		{"MT-23 old principal, new peer", p(exact(old)), from(neu), true},
		{"MT-23 new principal, old peer", p(exact(neu)), from(old), true},
		{"MT-23 pointer, old peer", p(exact(sleep)), from(old), true},
		{"MT-23 other account", p(exact("old-td/ns/foo/sa/default")), from(neu), false},
		{"MT-23 foreign peer", p(exact(old)), from(foreign), false},
		{"MT-23 foreign principal means itself", p(exact(foreign)), from(foreign), true},
		{"MT-23 foreign principal, own peer", p(exact(foreign)), from(neu), false},
		{"MT-23 suffix", p(suffix("old-td/ns/foo/sa/sleep")), from(neu), true},
		{"MT-23 deny by the old name", deny(&match{Principals: []*str{exact(old)}}), from(neu), false},
	})
}

func TestVerdicts(t *testing.T) {
	strict := deny(&match{NotPrincipals: []*str{presence()}})
	strict.Namespace, strict.Name = "istio-system", api.StrictPolicyName
	ports := func(a securityapi.Action, name string, p uint32) *authz {
		x := policyOf(a, &match{DestinationPorts: []uint32{p}})
		x.Name = name
		return x
	}
	dry := func(x *authz) *authz { x.DryRun = true; return x }
	D, A := securityapi.Action_DENY, securityapi.Action_ALLOW
	second := ports(A, "second", 1)
	second.Groups = append(second.Groups, ports(A, "", 9000).Groups...)
	for _, tc := range []struct {
		name     string
		policies []*authz
		peer     string
		want     Verdict
	}{
		{"none", nil, "", Verdict{Allow: true, Rule: -1}},
		{"strict, plain text", []*authz{strict}, "", Verdict{Reason: reason.StrictMTLS, Policy: "istio-system/" + api.StrictPolicyName}},
		{"strict, proved", []*authz{strict}, sleep, Verdict{Allow: true, Rule: -1}},
		{"DENY before ALLOW", []*authz{ports(A, "a", 9000), ports(D, "d", 9000)}, "", Verdict{Reason: reason.PolicyDenied, Policy: "foo/d"}},
		{"no ALLOW matches", []*authz{ports(D, "d", 1), ports(A, "a", 1), ports(A, "b", 2)}, "", Verdict{Reason: reason.PolicyNotAllowed, Policy: "foo/a", Rule: -1}},
		{"second group", []*authz{second}, "", Verdict{Allow: true, Policy: "foo/second", Rule: 1}},
		{"dry-run DENY", []*authz{dry(ports(D, "d", 9000)), dry(ports(D, "e", 1))}, "", Verdict{Allow: true, Rule: -1, DryRun: []string{"foo/d"}}},
		{"dry-run ALLOW", []*authz{dry(ports(A, "a", 1))}, "", Verdict{Allow: true, Rule: -1, DryRun: []string{"foo/a"}}},
		{"dry-run ALLOW, one matches", []*authz{dry(ports(A, "a", 1)), dry(ports(A, "b", 9000))}, "", Verdict{Allow: true, Rule: -1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := Authorize(tc.policies, nil, from(tc.peer))
			if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", tc.want) {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}

func TestUnenforceablePoliciesDeny(t *testing.T) {
	unknown := protowire.AppendVarint(protowire.AppendTag(nil, 900, protowire.VarintType), 1)
	ok := func() *authz {
		return allow(&match{Principals: []*str{presence()}, SourceIps: []*securityapi.Address{cidr("10.0.0.0/8")}})
	}
	if v := Authorize([]*authz{ok()}, nil, from(sleep)); !v.Allow {
		t.Fatalf("the control is refused: %+v", v)
	}
	for name, spoil := range map[string]func(*authz){
		"policy":      func(p *authz) { p.ProtoReflect().SetUnknown(unknown) },
		"group":       func(p *authz) { p.Groups[0].ProtoReflect().SetUnknown(unknown) },
		"rules":       func(p *authz) { p.Groups[0].Rules[0].ProtoReflect().SetUnknown(unknown) },
		"match":       func(p *authz) { p.Groups[0].Rules[0].Matches[0].ProtoReflect().SetUnknown(unknown) },
		"string":      func(p *authz) { p.Groups[0].Rules[0].Matches[0].Principals[0].ProtoReflect().SetUnknown(unknown) },
		"no string":   func(p *authz) { p.Groups[0].Rules[0].Matches[0].Principals[0].MatchType = nil },
		"address":     func(p *authz) { p.Groups[0].Rules[0].Matches[0].SourceIps[0].ProtoReflect().SetUnknown(unknown) },
		"bad address": func(p *authz) { p.Groups[0].Rules[0].Matches[0].SourceIps[0].Address = []byte{1} },
		"bad length":  func(p *authz) { p.Groups[0].Rules[0].Matches[0].SourceIps[0].Length = 33 },
		"bad port":    func(p *authz) { p.Groups[0].Rules[0].Matches[0].NotDestinationPorts = []uint32{70000} },
		"account": func(p *authz) {
			sa := &securityapi.ServiceAccountMatch{Namespace: "x", ServiceAccount: "y"}
			sa.ProtoReflect().SetUnknown(unknown)
			p.Groups[0].Rules[0].Matches[0].NotServiceAccounts = []*securityapi.ServiceAccountMatch{sa}
		},
		"action": func(p *authz) { p.Action = 7 },
		"scope":  func(p *authz) { p.Scope = 7 },
	} {
		t.Run(name, func(t *testing.T) {
			p := ok()
			spoil(p)
			if v := Authorize([]*authz{ok(), p}, nil, from(sleep)); v.Allow || v.Reason != reason.PolicyUnenforceable || v.Policy != "foo/p" {
				t.Errorf("got %+v", v)
			}
			p.DryRun = true
			if v := Authorize([]*authz{ok(), p}, nil, from(sleep)); !v.Allow || !slices.Contains(v.DryRun, "foo/p") {
				t.Errorf("dry run: got %+v", v)
			}
		})
	}
}

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
