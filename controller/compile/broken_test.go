package compile_test

import (
	"strings"
	"testing"

	"github.com/undermesh/undermesh/controller/policy"
)

// TestBrokenRulesOfOthers: a VirtualService that cannot be carried out ends what is asked of hosts of its own namespace and of hosts that
// are no service, and nothing that belongs to somebody else.
func TestBrokenRulesOfOthers(t *testing.T) {
	const pay = `apiVersion: v1
kind: Service
metadata: {name: pay, namespace: shop}
spec: {clusterIP: 10.96.0.9, clusterIPs: [10.96.0.9], selector: {app: pay}, ports: [{name: http, port: 80}]}
---
`
	for name, c := range map[string]struct {
		namespace, host, asked string
		refused                bool
	}{
		"of another namespace":             {"b", "pay.shop.svc.cluster.local", "pay.shop.svc.cluster.local", false},
		"a pattern of another namespace":   {"b", "*.local", "pay.shop.svc.cluster.local", false},
		"of its namespace":                 {"shop", "pay.shop.svc.cluster.local", "pay.shop.svc.cluster.local", true},
		"a host that is no service":        {"b", "api.bank.example", "api.bank.example", true},
		"a pattern for what is no service": {"b", "*.example", "api.bank.example", true},
	} {
		t.Run(name, func(t *testing.T) {
			_, snap := meshOf(t, victims, pay+"apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: broken, namespace: "+c.namespace+
				"}\nspec: {hosts: ['"+c.host+"'], http: [{redirect: {redirectCode: 299}}]}\n")
			caller, _ := policy.NewCaller(snap, snap.WorkloadByUID("Kubernetes//Pod/third/client"))
			vh, _ := caller.VirtualHost(caller.Target(80, c.asked, nil))
			if got := vh.GetRoutes()[0]; strings.Contains(got.GetDirectResponse().GetBody().GetInlineString(), "cannot be carried out") != c.refused {
				t.Errorf("route %v", got)
			}
		})
	}
}

// TestRulesThatGrow: an object whose rules become larger than any memory when they are written out for nodes is refused by name, and
// costs no more than it is long.
func TestRulesThatGrow(t *testing.T) {
	const head = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: %s, namespace: b}\n"
	matches := func(n int) string {
		return "match: [" + strings.TrimSuffix(strings.Repeat("{uri: {prefix: /}}, ", n), ", ") + "]"
	}
	answer := func(size int) string {
		return "directResponse: {status: 200, body: {string: " + strings.Repeat("x", size) + "}}"
	}
	root := func(http string) string {
		return strings.Replace(head, "%s", "root", 1) + "spec: {hosts: [api.bank.example], http: [{" + http + "}]}\n"
	}
	leaf := func(http string) string {
		return "---\n" + strings.Replace(head, "%s", "leaf", 1) + "spec: {http: [{" + http + "}]}\n"
	}
	const delegate = ", delegate: {name: leaf}"
	for name, c := range map[string]struct{ text, want string }{
		"an answer for each condition":   {root(matches(3000) + ", " + answer(100_000)), "more than 4 MiB"},
		"conditions before a delegate":   {root(matches(3000)+delegate) + leaf(matches(3000)+", "+answer(10)), "more than 4 MiB"},
		"long conditions of a delegate":  {root(matches(3000)+delegate) + leaf("match: [{headers: {a: {exact: "+strings.Repeat("x", 100_000)+"}}}], "+answer(10)), "more than 4 MiB"},
		"control: many conditions":       {root(matches(3000) + ", " + answer(10)), ""},
		"control: a delegate with a few": {root(matches(30)+delegate) + leaf(matches(30)+", "+answer(10)), ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, snap := meshOf(t, victims, c.text)
			caller, _ := policy.NewCaller(snap, snap.WorkloadByUID("Kubernetes//Pod/third/client"))
			vh, _ := caller.VirtualHost(caller.Target(80, "api.bank.example", nil))
			got := vh.GetRoutes()[0].GetDirectResponse().GetBody().GetInlineString()
			if strings.Contains(got, "cannot be carried out") != (c.want != "") || !strings.Contains(got, c.want) {
				t.Errorf("answer %.300q", got)
			}
		})
	}
}
