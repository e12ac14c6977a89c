package main

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	netv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func pod(ns, name, node string, ips ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, UID: types.UID(ns + "-" + name),
		Labels: map[string]string{"app": name}}}
	p.Spec.NodeName = node
	p.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}}}}
	for _, ip := range ips {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
	}
	return p
}

func app(name string) metav1.LabelSelector {
	return metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}
}

func testWorld(spec netv1.NetworkPolicySpec) world {
	return world{
		node: "node1",
		pods: []*corev1.Pod{pod("a", "server", "node1", "10.0.1.2", "fd::2"), pod("a", "client", "node2", "10.0.2.2", "fd::3"),
			pod("b", "client", "node2", "10.0.2.9")},
		namespaces: map[string]labels.Set{"a": {"team": "x"}, "b": {"team": "y"}},
		policies:   []*netv1.NetworkPolicy{{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "p"}, Spec: spec}},
	}
}

// TestRender compares what the chain of the server lets pass; "none" is a pod that no policy isolates.
func TestRender(t *testing.T) {
	port := func(v intstr.IntOrString) *intstr.IntOrString { return &v }
	end := int32(9000)
	udp := corev1.ProtocolUDP
	server, client, teamY := app("server"), app("client"), metav1.LabelSelector{MatchLabels: map[string]string{"team": "y"}}
	in, out := []netv1.PolicyType{netv1.PolicyTypeIngress}, []netv1.PolicyType{netv1.PolicyTypeEgress}
	ingress := func(r ...netv1.NetworkPolicyIngressRule) netv1.NetworkPolicySpec {
		return netv1.NetworkPolicySpec{PodSelector: server, PolicyTypes: in, Ingress: r}
	}
	for _, c := range []struct {
		name string
		spec netv1.NetworkPolicySpec
		want string
	}{
		{"another pod", netv1.NetworkPolicySpec{PodSelector: client, PolicyTypes: in}, "none"},
		{"deny all", ingress(), ""},
		{"allow all", ingress(netv1.NetworkPolicyIngressRule{}), " return"},
		{"peer of the same namespace, both families", ingress(netv1.NetworkPolicyIngressRule{
			From: []netv1.NetworkPolicyPeer{{PodSelector: &client}}}), "ip saddr { 10.0.2.2 }  return|ip6 saddr { fd::3 }  return"},
		{"peer of another namespace", ingress(netv1.NetworkPolicyIngressRule{
			From: []netv1.NetworkPolicyPeer{{NamespaceSelector: &teamY}}}), "ip saddr { 10.0.2.9 }  return"},
		{"nobody matches", ingress(netv1.NetworkPolicyIngressRule{
			From: []netv1.NetworkPolicyPeer{{NamespaceSelector: &teamY, PodSelector: &server}}}), ""},
		{"block with exception", ingress(netv1.NetworkPolicyIngressRule{From: []netv1.NetworkPolicyPeer{{IPBlock: &netv1.IPBlock{
			CIDR: "10.0.0.0/8", Except: []string{"10.1.0.0/16"}}}}}), "ip saddr 10.0.0.0/8 ip saddr != { 10.1.0.0/16 }  return"},
		{"named port, range and protocol", ingress(netv1.NetworkPolicyIngressRule{Ports: []netv1.NetworkPolicyPort{
			{Port: port(intstr.FromString("web"))}, {Port: port(intstr.FromInt32(8000)), EndPort: &end}, {Protocol: &udp}}}),
			"tcp dport 8080 return|tcp dport 8000-9000 return|meta l4proto udp return"},
		{"egress to the named port of a pod", netv1.NetworkPolicySpec{PodSelector: server, PolicyTypes: out,
			Egress: []netv1.NetworkPolicyEgressRule{{To: []netv1.NetworkPolicyPeer{{PodSelector: &client}},
				Ports: []netv1.NetworkPolicyPort{{Port: port(intstr.FromString("web"))}}}}},
			"ip daddr { 10.0.2.2 } tcp dport 8080 return|ip6 daddr { fd::3 } tcp dport 8080 return"},
	} {
		t.Run(c.name, func(t *testing.T) {
			table := testWorld(c.spec).render()
			if got := serverChain(table); got != c.want {
				t.Errorf("got %q, want %q in\n%s", got, c.want, table)
			}
		})
	}
}

// serverChain returns the lines of the only chain that belongs to a pod, without its last one, which drops.
func serverChain(table string) string {
	_, rest, ok := strings.Cut(table, " { # a/server\n")
	if !ok {
		return "none"
	}
	body, _, _ := strings.Cut(rest, "\t\tcounter drop\n\t}\n")
	var lines []string
	for _, l := range strings.Split(body, "\n") {
		if l = strings.TrimPrefix(l, "\t\t"); l != "" {
			lines = append(lines, l)
		}
	}
	return strings.Join(lines, "|")
}

// TestRenderLeavesOtherNodesAlone: only pods of this node have chains, and each address jumps to its own.
func TestRenderLeavesOtherNodesAlone(t *testing.T) {
	w := testWorld(netv1.NetworkPolicySpec{PolicyTypes: []netv1.PolicyType{netv1.PolicyTypeIngress}})
	table := w.render()
	if n := strings.Count(table, "counter drop"); n != 1 {
		t.Errorf("got %d isolated pods, want 1 in\n%s", n, table)
	}
	for _, want := range []string{"ip daddr 10.0.1.2 jump ", "ip6 daddr fd::2 jump "} {
		if !strings.Contains(table, want) {
			t.Errorf("no %q in\n%s", want, table)
		}
	}
}
