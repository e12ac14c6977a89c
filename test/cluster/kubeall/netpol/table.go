package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	netv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	corelisters "k8s.io/client-go/listers/core/v1"
	netlisters "k8s.io/client-go/listers/networking/v1"
)

// world is what a table is computed from.
type world struct {
	node       string
	pods       []*corev1.Pod // those with an address of their own
	namespaces map[string]labels.Set
	policies   []*netv1.NetworkPolicy
}

// snapshot reads the caches, in an order that makes equal worlds equal tables.
func snapshot(node string, pods corelisters.PodLister, nss corelisters.NamespaceLister, pols netlisters.NetworkPolicyLister) (world, error) {
	w := world{node: node, namespaces: map[string]labels.Set{}}
	all, err := pods.List(labels.Everything())
	if err != nil {
		return w, fmt.Errorf("list pods: %w", err)
	}
	for _, p := range all {
		ended := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
		if !p.Spec.HostNetwork && len(p.Status.PodIPs) > 0 && !ended {
			w.pods = append(w.pods, p)
		}
	}
	slices.SortFunc(w.pods, func(a, b *corev1.Pod) int { return cmp.Compare(a.UID, b.UID) })
	spaces, err := nss.List(labels.Everything())
	if err != nil {
		return w, fmt.Errorf("list namespaces: %w", err)
	}
	for _, n := range spaces {
		w.namespaces[n.Name] = n.Labels
	}
	listed, err := pols.List(labels.Everything())
	if err != nil {
		return w, fmt.Errorf("list network policies: %w", err)
	}
	w.policies = slices.Clone(listed)
	slices.SortFunc(w.policies, func(a, b *netv1.NetworkPolicy) int { return cmp.Compare(a.UID, b.UID) })
	return w, nil
}

// direction is ingress or egress, seen from the isolated pod.
type direction struct {
	kind      netv1.PolicyType
	own, peer string // which address of a packet is the pod's, which the other's
}

var directions = []direction{
	{netv1.PolicyTypeEgress, "saddr", "daddr"},
	{netv1.PolicyTypeIngress, "daddr", "saddr"},
}

// render returns the nft input that replaces the table.
func (w world) render() string {
	var chains, hook strings.Builder
	for _, pod := range w.pods {
		if pod.Spec.NodeName != w.node {
			continue
		}
		for _, d := range directions {
			allowed, isolated := w.allowed(pod, d)
			if !isolated {
				continue
			}
			name := strings.ToLower(string(d.kind)) + "-" + string(pod.UID)
			fmt.Fprintf(&chains, "\tchain %s { # %s/%s\n", name, pod.Namespace, pod.Name)
			for _, match := range allowed {
				fmt.Fprintf(&chains, "\t\t%s return\n", match)
			}
			chains.WriteString("\t\tcounter drop\n\t}\n")
			for _, ip := range pod.Status.PodIPs {
				fmt.Fprintf(&hook, "\t\t%s %s %s jump %s\n", family(ip.IP), d.own, ip.IP, name)
			}
		}
	}
	// The first two lines make the deletion succeed when there is no table yet.
	return "table inet netpol\ndelete table inet netpol\ntable inet netpol {\n" + chains.String() +
		"\tchain forward {\n\t\ttype filter hook forward priority -5; policy accept;\n\t\tct state established,related accept\n" +
		hook.String() + "\t}\n}\n"
}

// allowed returns the matches that let a packet of the pod pass in direction d; isolated tells whether any policy selects it.
func (w world) allowed(pod *corev1.Pod, d direction) (matches []string, isolated bool) {
	for _, p := range w.policies {
		if p.Namespace != pod.Namespace || !slices.Contains(p.Spec.PolicyTypes, d.kind) || !selects(&p.Spec.PodSelector, pod.Labels) {
			continue
		}
		isolated = true
		if d.kind == netv1.PolicyTypeIngress {
			for _, r := range p.Spec.Ingress {
				matches = append(matches, matchesOf(pod, d, w.peers(p.Namespace, r.From), r.Ports)...)
			}
			continue
		}
		for _, r := range p.Spec.Egress {
			matches = append(matches, matchesOf(pod, d, w.peers(p.Namespace, r.To), r.Ports)...)
		}
	}
	return matches, isolated
}

// peers is the other side of one rule.
type peers struct {
	anyone bool // no restriction of the address
	pods   []*corev1.Pod
	blocks []*netv1.IPBlock
}

func (w world) peers(namespace string, list []netv1.NetworkPolicyPeer) peers {
	if len(list) == 0 {
		return peers{anyone: true, pods: w.pods}
	}
	var out peers
	for _, p := range list {
		if p.IPBlock != nil {
			out.blocks = append(out.blocks, p.IPBlock)
			continue
		}
		for _, pod := range w.pods {
			if w.inNamespaces(p.NamespaceSelector, namespace, pod) && (p.PodSelector == nil || selects(p.PodSelector, pod.Labels)) {
				out.pods = append(out.pods, pod)
			}
		}
	}
	return out
}

// inNamespaces: without a selector only the policy's own namespace counts.
func (w world) inNamespaces(s *metav1.LabelSelector, own string, pod *corev1.Pod) bool {
	if s == nil {
		return pod.Namespace == own
	}
	set, ok := w.namespaces[pod.Namespace]
	return ok && selects(s, set)
}

// selects is false for a selector that cannot be parsed: the API server lets none through.
func selects(s *metav1.LabelSelector, set labels.Set) bool {
	sel, err := metav1.LabelSelectorAsSelector(s)
	return err == nil && sel.Matches(set)
}

func family(ip string) string {
	if strings.Contains(ip, ":") {
		return "ip6"
	}
	return "ip"
}

// addresses returns one match a family and block; with none, nobody is meant.
func (p peers) addresses(field string) []string {
	if p.anyone {
		return []string{""}
	}
	ips := map[string][]string{}
	for _, pod := range p.pods {
		for _, ip := range pod.Status.PodIPs {
			ips[family(ip.IP)] = append(ips[family(ip.IP)], ip.IP)
		}
	}
	var out []string
	for _, f := range []string{"ip", "ip6"} {
		if len(ips[f]) > 0 {
			slices.Sort(ips[f])
			out = append(out, fmt.Sprintf("%s %s { %s } ", f, field, strings.Join(slices.Compact(ips[f]), ", ")))
		}
	}
	for _, b := range p.blocks {
		f := family(b.CIDR)
		match := fmt.Sprintf("%s %s %s ", f, field, b.CIDR)
		if len(b.Except) > 0 {
			match += fmt.Sprintf("%s %s != { %s } ", f, field, strings.Join(b.Except, ", "))
		}
		out = append(out, match)
	}
	return out
}

// matchesOf crosses the peers of a rule with its ports.
func matchesOf(pod *corev1.Pod, d direction, p peers, ports []netv1.NetworkPolicyPort) []string {
	if len(ports) == 0 {
		return p.addresses(d.peer)
	}
	var out []string
	add := func(p peers, match string) {
		for _, a := range p.addresses(d.peer) {
			out = append(out, a+match)
		}
	}
	for _, port := range ports {
		protocol := corev1.ProtocolTCP
		if port.Protocol != nil {
			protocol = *port.Protocol
		}
		proto := strings.ToLower(string(protocol))
		switch {
		case port.Port == nil:
			add(p, "meta l4proto "+proto)
		case port.Port.Type == intstr.Int && port.EndPort != nil:
			add(p, fmt.Sprintf("%s dport %d-%d", proto, port.Port.IntVal, *port.EndPort))
		case port.Port.Type == intstr.Int:
			add(p, fmt.Sprintf("%s dport %d", proto, port.Port.IntVal))
		case d.kind == netv1.PolicyTypeIngress:
			for _, n := range named(pod, port.Port.StrVal, protocol) {
				add(p, fmt.Sprintf("%s dport %d", proto, n))
			}
		default: // each destination pod gives the name a number of its own
			for _, other := range p.pods {
				for _, n := range named(other, port.Port.StrVal, protocol) {
					add(peers{pods: []*corev1.Pod{other}}, fmt.Sprintf("%s dport %d", proto, n))
				}
			}
		}
	}
	return out
}

// named returns the numbers of the container ports of that name.
func named(pod *corev1.Pod, name string, protocol corev1.Protocol) []int32 {
	var out []int32
	for _, c := range pod.Spec.Containers {
		for _, p := range c.Ports {
			if p.Name == name && cmp.Or(p.Protocol, corev1.ProtocolTCP) == protocol {
				out = append(out, p.ContainerPort)
			}
		}
	}
	return out
}
