package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/undermesh/undermesh/controller/api"
)

// checkNetworkPolicies names the policies that let pods talk on some TCP port and not on the tunnel port: once both sides are
// in the mesh, traffic between nodes arrives there. A policy that opens it opens every port to mesh peers (DESIGN, NetworkPolicy).
func (c *cluster) checkNetworkPolicies(ctx context.Context, _ string) ([]finding, error) {
	list, err := c.kube.NetworkingV1().NetworkPolicies("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list network policies: %w", err)
	}
	if len(list.Items) == 0 {
		return nil, nil
	}
	nodes, err := c.kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if apierrors.IsForbidden(err) { // then as if the nodes did not say
		nodes = &corev1.NodeList{}
	} else if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	pods := podRanges(nodes.Items)
	var out []finding
	for i := range list.Items {
		p := &list.Items[i]
		for _, message := range blocksTunnel(p, pods) {
			out = append(out, finding{"Warning", "NetworkPolicy " + p.Namespace + "/" + p.Name, message})
		}
	}
	return out, nil
}

// podRanges are the addresses that pods may have: those that nodes were given, otherwise (the network plugin keeps its own
// books) all private ones.
func podRanges(nodes []corev1.Node) []netip.Prefix {
	var out []netip.Prefix
	for i := range nodes {
		for _, cidr := range nodes[i].Spec.PodCIDRs {
			if p, err := netip.ParsePrefix(cidr); err == nil {
				out = append(out, p)
			}
		}
	}
	if len(out) == 0 {
		for _, cidr := range []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"} {
			out = append(out, netip.MustParsePrefix(cidr))
		}
	}
	return out
}

// direction is one half of a policy, with what its rules are called.
type direction struct {
	name, peers, where string // ingress, from, from other nodes; egress, to, to other nodes
	rules              []policyRule
}

type policyRule struct {
	ports []networkingv1.NetworkPolicyPort // none: every port
	peers []networkingv1.NetworkPolicyPeer // never none: everybody is everyPod
}

// everyPod stands for a rule without peers: what is no pod does not use the tunnel.
var everyPod = networkingv1.NetworkPolicyPeer{NamespaceSelector: &metav1.LabelSelector{}}

// directions returns the halves of a policy that isolate its pods.
func directions(p *networkingv1.NetworkPolicy) []direction {
	rule := func(ports []networkingv1.NetworkPolicyPort, peers []networkingv1.NetworkPolicyPeer) policyRule {
		if len(peers) == 0 {
			peers = []networkingv1.NetworkPolicyPeer{everyPod}
		}
		return policyRule{ports, peers}
	}
	types := p.Spec.PolicyTypes
	var out []direction
	if len(types) == 0 || slices.Contains(types, networkingv1.PolicyTypeIngress) {
		d := direction{name: "ingress", peers: "from", where: "from other nodes"}
		for _, r := range p.Spec.Ingress {
			d.rules = append(d.rules, rule(r.Ports, r.From))
		}
		out = append(out, d)
	}
	if len(types) == 0 || slices.Contains(types, networkingv1.PolicyTypeEgress) { // without types, no egress rules mean no isolation
		d := direction{name: "egress", peers: "to", where: "to other nodes"}
		for _, r := range p.Spec.Egress {
			d.rules = append(d.rules, rule(r.Ports, r.To))
		}
		out = append(out, d)
	}
	return out
}

// blocksTunnel says for each direction which rule opens a TCP port to pods that no rule of the policy opens the tunnel port
// to. A policy without such a rule takes nothing away that it gives outside the mesh.
func blocksTunnel(p *networkingv1.NetworkPolicy, pods []netip.Prefix) []string {
	var out []string
	for _, d := range directions(p) {
		for i, r := range d.rules {
			ports := tcpPorts(r.ports)
			j := slices.IndexFunc(r.peers, func(peer networkingv1.NetworkPolicyPeer) bool {
				return ports != "" && mayBePod(peer, pods) && !d.opensTunnelTo(peer, p.Namespace)
			})
			if j < 0 {
				continue
			}
			out = append(out, fmt.Sprintf("blocks port %d (%s): spec.%s[%d] opens %s %s %s, and mesh traffic %s uses that port: add {protocol: TCP, port: %d} to spec.%s[%d].ports",
				api.PortTunnel, d.name, d.name, i, ports, d.peers, peerName(r.peers[j], p.Namespace), d.where, api.PortTunnel, d.name, i))
			break
		}
	}
	return out
}

// opensTunnelTo reports whether some rule opens the tunnel port to a peer, or to a wider one.
func (d direction) opensTunnelTo(peer networkingv1.NetworkPolicyPeer, namespace string) bool {
	return slices.ContainsFunc(d.rules, func(r policyRule) bool {
		return (len(r.ports) == 0 || slices.ContainsFunc(r.ports, opensTunnel)) &&
			slices.ContainsFunc(r.peers, func(wide networkingv1.NetworkPolicyPeer) bool { return peerCovers(wide, peer, namespace) })
	})
}

// tcpPorts names the TCP ports of a rule; "" when there are none.
func tcpPorts(ports []networkingv1.NetworkPolicyPort) string {
	if len(ports) == 0 {
		return "every port"
	}
	var names []string
	for _, p := range ports {
		switch {
		case p.Protocol != nil && *p.Protocol != corev1.ProtocolTCP:
		case p.Port == nil:
			return "every TCP port"
		case p.EndPort != nil:
			names = append(names, fmt.Sprintf("%s-%d", p.Port, *p.EndPort))
		default:
			names = append(names, p.Port.String())
		}
	}
	if len(names) == 0 {
		return ""
	}
	return "TCP port " + strings.Join(names, ", ")
}

func opensTunnel(p networkingv1.NetworkPolicyPort) bool {
	if p.Protocol != nil && *p.Protocol != corev1.ProtocolTCP {
		return false
	}
	if p.Port == nil {
		return true
	}
	if p.Port.Type != intstr.Int {
		return false
	}
	last := p.Port.IntVal
	if p.EndPort != nil {
		last = *p.EndPort
	}
	return p.Port.IntVal <= api.PortTunnel && api.PortTunnel <= last
}

// mayBePod is false only for addresses outside the ranges of pods. An address block that cannot be read counts as pods.
func mayBePod(peer networkingv1.NetworkPolicyPeer, pods []netip.Prefix) bool {
	if peer.IPBlock == nil {
		return true
	}
	block, excepted, err := ipBlock(peer.IPBlock)
	return err != nil || slices.ContainsFunc(pods, func(p netip.Prefix) bool {
		part := p // what the block and the range have in common is the narrower of the two
		if block.Bits() > p.Bits() {
			part = block
		}
		return block.Overlaps(p) && !slices.ContainsFunc(excepted, func(e netip.Prefix) bool { return contains(e, part) })
	})
}

func ipBlock(b *networkingv1.IPBlock) (block netip.Prefix, excepted []netip.Prefix, err error) {
	if block, err = netip.ParsePrefix(b.CIDR); err != nil {
		return block, nil, fmt.Errorf("parse address block %s: %w", b.CIDR, err)
	}
	for _, e := range b.Except {
		p, err := netip.ParsePrefix(e)
		if err != nil {
			return block, nil, fmt.Errorf("parse address block %s: %w", e, err)
		}
		excepted = append(excepted, p)
	}
	return block, excepted, nil
}

func contains(wide, narrow netip.Prefix) bool {
	return wide.Bits() <= narrow.Bits() && wide.Overlaps(narrow)
}

// peerCovers reports whether every pod of the narrow peer is surely one of the wide peer, in a policy of the namespace.
func peerCovers(wide, narrow networkingv1.NetworkPolicyPeer, namespace string) bool {
	if wide.IPBlock == nil {
		ns, pods := selectors(wide, namespace)
		if narrow.IPBlock != nil { // any pod
			return isEverything(ns) && isEverything(pods)
		}
		narrowNS, narrowPods := selectors(narrow, namespace)
		return selectorCovers(ns, narrowNS) && selectorCovers(pods, narrowPods)
	}
	if narrow.IPBlock == nil { // whether address blocks hold for pods is up to the network plugin
		return false
	}
	block, excepted, err := ipBlock(wide.IPBlock)
	inner, innerExcepted, innerErr := ipBlock(narrow.IPBlock)
	return err == nil && innerErr == nil && contains(block, inner) && !slices.ContainsFunc(excepted, func(e netip.Prefix) bool {
		return e.Overlaps(inner) && !slices.ContainsFunc(innerExcepted, func(i netip.Prefix) bool { return contains(i, e) })
	})
}

// selectors fills in what an unset selector means: the policy's own namespace, and every pod.
func selectors(p networkingv1.NetworkPolicyPeer, namespace string) (ns, pods metav1.LabelSelector) {
	ns = metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: namespace}}
	if p.NamespaceSelector != nil {
		ns = *p.NamespaceSelector
	}
	if p.PodSelector != nil {
		pods = *p.PodSelector
	}
	return ns, pods
}

func isEverything(s metav1.LabelSelector) bool {
	return len(s.MatchLabels) == 0 && len(s.MatchExpressions) == 0
}

// selectorCovers holds when each requirement of wide is one of narrow too.
func selectorCovers(wide, narrow metav1.LabelSelector) bool {
	for k, v := range wide.MatchLabels {
		if got, ok := narrow.MatchLabels[k]; !ok || got != v {
			return false
		}
	}
	return !slices.ContainsFunc(wide.MatchExpressions, func(w metav1.LabelSelectorRequirement) bool {
		return !slices.ContainsFunc(narrow.MatchExpressions, func(n metav1.LabelSelectorRequirement) bool { return equality.Semantic.DeepEqual(w, n) })
	})
}

func peerName(p networkingv1.NetworkPolicyPeer, namespace string) string {
	if p.IPBlock != nil {
		return p.IPBlock.CIDR
	}
	ns, pods := selectors(p, namespace)
	if isEverything(ns) && isEverything(pods) {
		return "every pod"
	}
	what, where := "pods", "every namespace"
	if !isEverything(pods) {
		what = "pods " + metav1.FormatLabelSelector(&pods)
	}
	if name, ok := ns.MatchLabels[corev1.LabelMetadataName]; ok && len(ns.MatchExpressions) == 0 && len(ns.MatchLabels) == 1 {
		where = "namespace " + name
	} else if !isEverything(ns) {
		where = "namespaces " + metav1.FormatLabelSelector(&ns)
	}
	return what + " of " + where
}
