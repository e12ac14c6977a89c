package e2e

import (
	"context"
	"strings"
	"testing"
	"time"
)

// ingress is a NetworkPolicy on foo's tcp-echo with one rule.
func ingress(name, rule string) string {
	return `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: ` + name + `, namespace: foo}
spec:
  podSelector: {matchLabels: {app: tcp-echo}}
  policyTypes: [Ingress]
  ingress:
  - ` + rule + "\n"
}

func fromNamespace(name string) string {
	return `from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ` + name + `}}}]`
}

const (
	only9000   = `ports: [{port: 9000}]`
	withTunnel = `ports: [{port: 9000}, {port: 15008}]`
)

// networkPolicies are the promises of DESIGN §2. foo's sleep is on the server's node, bar's on the other, legacy's is outside.
// "outside" is what Kubernetes promises without a mesh, where it differs.
var networkPolicies = []struct {
	title, policy string
	enrolled      []EchoCase
	outside       []EchoCase
}{
	{"by peer, the other node", ingress("by-peer-bar", fromNamespace("bar")),
		[]EchoCase{{"bar", 9000, "accepted"}, {"bar", 9001, "accepted"}, {"foo", 9000, "rejected"}, {"legacy", 9000, "rejected"}}, nil},
	{"by peer, the same node", ingress("by-peer-foo", fromNamespace("foo")),
		[]EchoCase{{"foo", 9000, "accepted"}, {"foo", 9001, "accepted"}, {"bar", 9000, "rejected"}, {"legacy", 9000, "rejected"}}, nil},
	{"by port, the tunnel port is not open: it blocks the other node", ingress("by-port", only9000),
		[]EchoCase{{"foo", 9000, "accepted"}, {"foo", 9001, "rejected"}, {"legacy", 9000, "accepted"}, {"legacy", 9001, "rejected"}, {"bar", 9000, "rejected"}},
		[]EchoCase{{"foo", 9000, "accepted"}, {"foo", 9001, "rejected"}, {"bar", 9000, "accepted"}, {"bar", 9001, "rejected"}}},
	{"by port, with the tunnel port: it opens every port to the other node's mesh pods", ingress("by-port-tunnel", withTunnel),
		[]EchoCase{{"foo", 9000, "accepted"}, {"foo", 9001, "rejected"}, {"legacy", 9000, "accepted"}, {"legacy", 9001, "rejected"}, {"bar", 9000, "accepted"}, {"bar", 9001, "accepted"}},
		[]EchoCase{{"bar", 9000, "accepted"}, {"bar", 9001, "rejected"}}},
}

// TestNetworkPolicy runs each policy inside and outside the mesh; without the policy everything is accepted.
func TestNetworkPolicy(t *testing.T) {
	ctx, w := meshed(t)
	// What is refused is lost packets: each such case takes seconds.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 8*time.Minute)
	defer cancel()
	for _, p := range networkPolicies {
		t.Run(p.title, func(t *testing.T) { check(t, w.ExpectEcho(ctx, p.policy, p.enrolled...)) })
	}
	t.Run("control: outside the mesh", func(t *testing.T) {
		t.Cleanup(func() { check(t, w.Enrol(context.Background(), Meshed...)) })
		check(t, w.Unenrol(ctx, Meshed...))
		for _, p := range networkPolicies {
			cases := p.outside
			if cases == nil {
				cases = p.enrolled
			}
			check(t, w.Apply(ctx, p.policy))
			err := w.echoCases(ctx, cases)
			check(t, w.Delete(ctx, p.policy))
			check(t, err)
		}
	})
}

// TestIN13PrecheckNetworkPolicy names the policies that would block the tunnel, and those alone.
func TestIN13PrecheckNetworkPolicy(t *testing.T) {
	ctx, w := meshed(t)
	names := map[string]bool{}
	for _, p := range networkPolicies {
		check(t, w.Apply(ctx, p.policy))
		t.Cleanup(func() { check(t, w.Delete(context.Background(), p.policy)) })
	}
	out, err := w.Undermesh(ctx, "precheck")
	check(t, err)
	for line := range strings.Lines(out) {
		if name, ok := strings.CutPrefix(line, "Warning [NetworkPolicy foo/"); ok && strings.Contains(line, "15008") {
			name, _, _ = strings.Cut(name, "]")
			names[name] = true
		}
	}
	if !names["by-port"] {
		t.Errorf("precheck does not name policy by-port:\n%s", out)
	}
	t.Run("control: policies that let the tunnel in are not named", func(t *testing.T) {
		for _, name := range []string{"by-peer-bar", "by-peer-foo", "by-port-tunnel"} {
			if names[name] {
				t.Errorf("precheck names policy %s:\n%s", name, out)
			}
		}
	})
}
