package policy

import (
	"fmt"
	"net/netip"
	"slices"
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
		{"AZ-13 any namespace, none proved", allow(&match{Namespaces: []*str{prefix("")}}), from(""), false},
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
