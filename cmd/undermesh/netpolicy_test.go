package main

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"sigs.k8s.io/yaml"
)

const (
	fromFoo    = `from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: foo}}}]`
	fromNobody = `from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: nobody}}}]`
)

// blockCases are policies of namespace shop, on nodes with pods in 10.244.0.0/16; want is what the message names, "" for no
// message.
var blockCases = map[string]struct{ spec, want string }{
	"default deny takes nothing":     {`{podSelector: {}, policyTypes: [Ingress, Egress]}`, ""},
	"types unset mean ingress":       {`{podSelector: {}, ingress: [{ports: [{port: 80}]}]}`, "spec.ingress[0] opens TCP port 80 from every pod"},
	"allow all":                      {`{podSelector: {}, ingress: [{}]}`, ""},
	"one port":                       {`{podSelector: {}, policyTypes: [Ingress], ingress: [{ports: [{port: 80}]}]}`, "(ingress)"},
	"tunnel port":                    {`{podSelector: {}, ingress: [{ports: [{port: 80}]}, {ports: [{port: 15008}]}]}`, ""},
	"range around it":                {`{podSelector: {}, ingress: [{ports: [{port: 15000, endPort: 15010}]}]}`, ""},
	"range below it":                 {`{podSelector: {}, ingress: [{ports: [{port: 15000, endPort: 15007}]}]}`, "15000-15007"},
	"tunnel port by UDP":             {`{podSelector: {}, ingress: [{ports: [{port: 80}, {port: 15008, protocol: UDP}]}]}`, "TCP port 80 "},
	"UDP alone is not mesh traffic":  {`{podSelector: {}, ingress: [{ports: [{port: 53, protocol: UDP}]}]}`, ""},
	"named port":                     {`{podSelector: {}, ingress: [{ports: [{port: http}]}]}`, "http"},
	"every port of one protocol":     {`{podSelector: {}, ingress: [{ports: [{protocol: TCP}]}]}`, ""},
	"tunnel for nobody":              {`{podSelector: {}, ingress: [{` + fromFoo + `, ports: [{port: 80}]}, {` + fromNobody + `, ports: [{port: 15008}]}]}`, "from pods of namespace foo"},
	"tunnel for the same":            {`{podSelector: {}, ingress: [{` + fromFoo + `, ports: [{port: 80}]}, {` + fromFoo + `, ports: [{port: 15008}]}]}`, ""},
	"tunnel for every pod":           {`{podSelector: {}, ingress: [{` + fromFoo + `, ports: [{port: 80}]}, {from: [{namespaceSelector: {}}], ports: [{port: 15008}]}]}`, ""},
	"tunnel for some of the pods":    {`{podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}, {from: [{podSelector: {matchLabels: {app: a}}}], ports: [{port: 15008}]}]}`, "namespace shop"},
	"own namespace by name":          {`{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: a}}}], ports: [{port: 80}]}, {from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}}], ports: [{port: 15008}]}]}`, ""},
	"second peer of a rule":          {`{podSelector: {}, ingress: [{from: [{podSelector: {}}, {namespaceSelector: {}, podSelector: {matchLabels: {app: b}}}], ports: [{port: 80}]}, {from: [{podSelector: {}}], ports: [{port: 15008}]}]}`, "pods app=b of every namespace"},
	"egress":                         {`{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 80}, {port: 53, protocol: UDP}]}]}`, "blocks port 15008 (egress): spec.egress[0] opens TCP port 80 to every pod"},
	"egress, types unset":            {`{podSelector: {}, egress: [{ports: [{port: 80}]}]}`, "(egress)"},
	"egress rules without the type":  {`{podSelector: {}, policyTypes: [Ingress], egress: [{ports: [{port: 80}]}]}`, ""},
	"egress with tunnel port":        {`{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 80}, {port: 15008}]}]}`, ""},
	"egress, ingress opens tunnel":   {`{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{}], egress: [{ports: [{port: 80}]}]}`, "add {protocol: TCP, port: 15008} to spec.egress[0].ports"},
	"egress out of the cluster":      {`{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 203.0.113.0/24}}], ports: [{port: 443}]}]}`, ""},
	"egress to all but pods":         {`{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8]}}], ports: [{port: 443}]}]}`, ""},
	"egress to every address":        {`{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}], ports: [{port: 443}]}]}`, "to 0.0.0.0/0"},
	"egress to a part of the pods":   {`{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.244.1.0/24}}], ports: [{port: 443}]}]}`, "to 10.244.1.0/24"},
	"wider block with tunnel port":   {`{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.244.1.0/24}}], ports: [{port: 443}]}, {to: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: 15008}]}]}`, ""},
	"wider block, but not for these": {`{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.244.1.0/24}}], ports: [{port: 443}]}, {to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.244.0.0/16]}}], ports: [{port: 15008}]}]}`, "10.244.1.0/24"},
}

func TestBlocksTunnel(t *testing.T) {
	nodes := []corev1.Node{{Spec: corev1.NodeSpec{PodCIDRs: []string{"10.244.0.0/16"}}}}
	for name, tc := range blockCases {
		p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p"}}
		if err := yaml.UnmarshalStrict([]byte(tc.spec), &p.Spec); err != nil {
			t.Fatal(err)
		}
		got := strings.Join(blocksTunnel(p, podRanges(nodes)), "\n")
		if tc.want == "" && got != "" || !strings.Contains(got, tc.want) {
			t.Errorf("%s: got %q, want %q", name, got, tc.want)
		}
	}
}

// TestPrecheckNamesPolicies: without ranges on the nodes, private addresses may be pods.
func TestPrecheckNamesPolicies(t *testing.T) {
	policy := func(name, cidr string) *networkingv1.NetworkPolicy {
		p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
		spec := `{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: ` + cidr + `}}], ports: [{port: 443}]}]}`
		if err := yaml.UnmarshalStrict([]byte(spec), &p.Spec); err != nil {
			t.Fatal(err)
		}
		return p
	}
	c := &cluster{kube: fake.NewClientset(node("n1", corev1.ConditionTrue), policy("private", "192.168.7.0/24"), policy("public", "203.0.113.0/24"))}
	found, err := c.checkNetworkPolicies(t.Context(), "istio-system")
	if err != nil || len(found) != 1 || found[0].Object != "NetworkPolicy shop/private" || found[0].Level != "Warning" {
		t.Errorf("got %v, %v, want policy private alone", found, err)
	}
}
