package e2e

import "testing"

func foosPolicy(name, spec string) string {
	return `---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ` + name + `, namespace: foo}
spec: ` + spec + "\n"
}

// unenforceableRows are security policies that this mesh, or any, cannot enforce as they are written.
func unenforceableRows() []modeRow {
	shut, open := pairsAre(pairsTo("foo")...), pairsAre()
	denies := func(kind, name, text string) seen {
		return all(shut, says(kind, "foo", name, "Enforced", "False DeniesAll", text))
	}
	const policies = "authorizationpolicies"
	return []modeRow{
		{ids: "deny", title: "a RequestAuthentication, whose tokens nobody checks", resource: `---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: jwt, namespace: foo}
spec: {selector: {matchLabels: {app: httpbin}}, jwtRules: [{issuer: "testing@secure.istio.io", jwksUri: "http://issuer.example.org/keys"}]}
`, holds: all(denies("requestauthentications", "jwt", "tokens are not checked yet"), echo(EchoCase{"bar", 9000, "accepted"})), without: open, outside: open},
		{ids: "deny", title: "a policy of the action CUSTOM", resource: foosPolicy("custom", `{selector: {matchLabels: {app: httpbin}}, action: CUSTOM, provider: {name: none}, rules: [{to: [{operation: {ports: ["1"]}}]}]}`),
			holds: denies(policies, "custom", "CUSTOM is not supported"), without: open, outside: open},
		{ids: "deny", title: "a policy of the action CUSTOM for a service", resource: foosPolicy("service", `{targetRefs: [{group: "", kind: Service, name: httpbin}], action: CUSTOM, provider: {name: none}, rules: [{}]}`),
			holds: denies(policies, "service", "CUSTOM is not supported"), without: open, outside: open},
		{ids: "deny", title: "a policy that allows by one rule and has another that cannot be read", resource: foosPolicy("half", `{action: ALLOW, rules: [{}, {to: [{operation: {ports: ["http"]}}]}]}`),
			holds: denies(policies, "half", "spec.rules[1].to[0].operation.ports"), without: open, outside: open},
		{ids: "deny", title: "a policy that allows what is in no request of TCP", resource: foosPolicy("paths", `{selector: {matchLabels: {app: httpbin}}, action: ALLOW, rules: [{to: [{operation: {paths: ["/ip"]}}]}]}`),
			holds: all(shut, says(policies, "foo", "paths", "Enforced", "True PartiallyIgnored", "paths")), without: open, outside: open},
	}
}

// TestUnenforceableDenies: a security policy that cannot be enforced lets nobody through, and its status says why.
func TestUnenforceableDenies(t *testing.T) {
	ctx, w := meshed(t)
	withoutAdmission(ctx, t, w) // it would refuse some
	observeModes(t, unenforceableRows())
}
