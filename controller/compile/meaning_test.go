package compile_test

import (
	"net/netip"
	"testing"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/policy"
)

func snapshot(t *testing.T, input string) *client.Snapshot {
	t.Helper()
	c := compile.New(compile.Config{})
	c.Apply(read(t, copyFile(t, input)))
	return servedTo(t, c)
}

// TestMeaning judges connections by what was compiled: the meaning of a policy, whatever its resources look like.
func TestMeaning(t *testing.T) {
	plain := api.Identity{}
	id := func(td, ns, sa string) api.Identity {
		return api.Identity{TrustDomain: td, Namespace: ns, ServiceAccount: sa}
	}
	mesh := id("cluster.local", "x", "y")
	for _, c := range []struct {
		input, namespace, pod string
		port                  uint16
		peer                  api.Identity
		want                  reason.Reason
	}{
		// The mesh is STRICT, the older of two policies counts; UNSET inherits.
		{"mtls", "inherits", "plain", 1, plain, reason.StrictMTLS},
		{"mtls", "inherits", "plain", 1, mesh, reason.None},
		// Ports 80 (DISABLE) and 81 (PERMISSIVE) are open, 9999 is bound to no service: ignored.
		{"mtls", "inherits", "ports", 80, plain, reason.None},
		{"mtls", "inherits", "ports", 81, plain, reason.None},
		{"mtls", "inherits", "ports", 82, plain, reason.StrictMTLS},
		{"mtls", "inherits", "ports", 9999, plain, reason.StrictMTLS},
		// The namespace is PERMISSIVE, one port of one workload STRICT.
		{"mtls", "open", "plain", 80, plain, reason.None},
		{"mtls", "open", "ports", 80, plain, reason.StrictMTLS},
		{"mtls", "open", "ports", 80, mesh, reason.None},
		{"mtls", "open", "ports", 81, plain, reason.None},
		{"mtls", "open", "ports", 9999, plain, reason.None},
		// A mode that does not exist is STRICT.
		{"mtls", "open", "broken", 80, plain, reason.StrictMTLS},

		{"tcp", "foo", "web", 9001, plain, reason.None},             // AZ-22: the rule with ports only stands
		{"tcp", "foo", "web", 9000, plain, reason.PolicyNotAllowed}, // AZ-22: the rule with methods is ignored
		{"tcp", "foo", "web", 9003, plain, reason.PolicyDenied},     // AZ-23: methods are left out of the DENY
		{"tcp", "foo", "db", 1, id("cluster.local", "foo", "sleep"), reason.None},
		{"tcp", "foo", "db", 1, id("old-td", "foo", "sleep"), reason.None},
		{"tcp", "foo", "db", 1, id("new-td", "foo", "sleep"), reason.None},
		{"tcp", "foo", "db", 1, id("other", "foo", "sleep"), reason.PolicyNotAllowed},
		{"tcp", "foo", "db", 1, plain, reason.PolicyNotAllowed},
		{"tcp", "foo", "typo", 1, mesh, reason.PolicyDenied},         // an unknown field: denies
		{"tcp", "foo", "custom", 1, mesh, reason.PolicyDenied},       // CUSTOM: denies
		{"tcp", "foo", "dry", 1, plain, reason.None},                 // dry run decides nothing
		{"tcp", "bar", "free", 1, plain, reason.None},                // no policy there
		{"tcp", "nothing", "shut", 1, mesh, reason.PolicyNotAllowed}, // spec: {}
	} {
		s := snapshot(t, "testdata/"+c.input+".yaml")
		w := s.WorkloadByName(c.namespace, c.pod)
		if w == nil || !s.PoliciesComplete(w) {
			t.Fatalf("%s/%s: workload %v", c.namespace, c.pod, w)
		}
		v := policy.Authorize(s.Policies(w), s.Mesh(), policy.Connection{
			Source: netip.MustParseAddrPort("10.9.9.9:1"), Destination: netip.AddrPortFrom(w.Addrs[0], c.port), Peer: c.peer})
		if v.Reason != c.want || v.Allow != (c.want == reason.None) {
			t.Errorf("%s %s/%s port %d peer %q: %v by %s, want %v", c.input, c.namespace, c.pod, c.port, c.peer.String(), v.Reason, v.Policy, c.want)
		}
	}
}
