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
