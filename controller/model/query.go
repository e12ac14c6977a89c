package model

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Pod returns nil when there is none.
func (r *Registry) Pod(n Name) *Pod { return r.pods[n] }

// Service returns nil when there is none.
func (r *Registry) Service(n Name) *Service { return r.services[n] }

// Slice returns nil when there is none.
func (r *Registry) Slice(n Name) *Slice { return r.slices[n] }

// Peer returns nil when there is none.
func (r *Registry) Peer(n Name) *PeerAuthentication { return r.peers[n] }

// Policy returns nil when there is none.
func (r *Registry) Policy(n Name) *AuthorizationPolicy { return r.policies[n] }

// Locality of a node; zero when it is not known.
func (r *Registry) Locality(node string) Locality { return r.nodes[node].Locality }

// HasPod reports whether a pod that is not on the host network has the address.
func (r *Registry) HasPod(ip netip.Addr) bool { return len(r.podsByIP[ip]) > 0 }

// IsNode reports whether the address is that of a node.
func (r *Registry) IsNode(ip netip.Addr) bool { return len(r.nodesByIP[ip]) > 0 }

// ServicesOf returns the services whose selector matches the pod, sorted.
func (r *Registry) ServicesOf(p *Pod) []*Service {
	var all []*Service
	r.servicesByPair.candidates(p.Namespace, p.Labels, func(n Name) {
		s := r.services[n]
		if s.Skipped == "" && len(s.Spec.Selector) > 0 && Matches(s.Spec.Selector, p.Labels) {
			all = append(all, s)
		}
	})
	slices.SortFunc(all, func(a, b *Service) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// SlicesOf returns the manual slices that list an address of the pod, sorted.
func (r *Registry) SlicesOf(p *Pod) []*Slice {
	if p.HostNetwork {
		return nil
	}
	seen := map[Name]bool{}
	var all []*Slice
	for _, ip := range p.IPs {
		for n := range r.slicesByIP[ip] {
			if !seen[n] {
				seen[n] = true
				all = append(all, r.slices[n])
			}
		}
	}
	slices.SortFunc(all, func(a, b *Slice) int {
		return strings.Compare(a.Namespace+"/"+a.EndpointSlice.Name, b.Namespace+"/"+b.EndpointSlice.Name)
	})
	return all
}

// SelectorPolicies returns the policies that name the pod by labels or by one of its services, sorted and once each.
func (r *Registry) SelectorPolicies(p *Pod, services []*Service) []Name {
	var all []Name
	check := func(n Name) {
		for _, t := range r.policies[n].Targets {
			if t.Service == "" && (!t.Local || n.Namespace == p.Namespace) && Matches(t.Labels, p.Labels) {
				all = append(all, n)
				return
			}
		}
	}
	r.policiesByPair.candidates(p.Namespace, p.Labels, check)
	if root := r.mesh.now.RootNamespace; root != p.Namespace {
		r.policiesByPair.candidates(root, p.Labels, check)
	}
	for _, s := range services {
		all = slices.AppendSeq(all, maps.Keys(r.policiesOf[Name{s.Namespace, s.Name}]))
	}
	for _, slice := range r.SlicesOf(p) {
		// Only the service's own namespace: nobody may open, or shut, the pods of another one by listing their addresses.
		if slice.Service.Namespace == p.Namespace && r.ManualService(slice) != nil {
			all = slices.AppendSeq(all, maps.Keys(r.policiesOf[slice.Service]))
		}
	}
	slices.SortFunc(all, func(a, b Name) int { return strings.Compare(a.String(), b.String()) })
	return slices.Compact(all)
}

// ManualService is the service of the slice when slices, not a selector, say who its members are; nil when it is not so.
func (r *Registry) ManualService(slice *Slice) *Service {
	s := r.services[slice.Service]
	if s == nil || s.Skipped != "" || len(s.Spec.Selector) > 0 {
		return nil
	}
	return s
}

// WithoutWorkload says why a policy that targets the service reaches no workload, "" when it reaches one.
func (r *Registry) WithoutWorkload(service Name) string {
	s := r.services[service]
	switch {
	case s == nil:
		return "does not exist"
	case s.Skipped != "":
		return "has no workloads: " + s.Skipped
	case !r.members(s, func(*Pod) bool { return true }):
		return "has no workloads"
	}
	return ""
}

// members calls f for the pods of the service in its namespace until f returns true, and reports whether it did.
func (r *Registry) members(s *Service, f func(*Pod) bool) bool {
	if len(s.Spec.Selector) > 0 {
		return r.podsByLabel.some(s.Namespace, s.Spec.Selector, f)
	}
	for n := range r.slicesOf[Name{s.Namespace, s.Name}] {
		for _, ip := range r.slices[n].Addresses() {
			for _, p := range r.podsByIP[ip] {
				if p.Namespace == s.Namespace && f(p) {
					return true
				}
			}
		}
	}
	return false
}

// PeersOf returns the PeerAuthentications in force for the pod, nil where there is none: of several of one level the
// oldest counts (MT-11).
func (r *Registry) PeersOf(p *Pod) (mesh, namespace, workload *PeerAuthentication) {
	mesh = r.Oldest(r.mesh.now.RootNamespace)
	if p.Namespace != r.mesh.now.RootNamespace {
		namespace = r.Oldest(p.Namespace)
	}
	r.peersByPair.candidates(p.Namespace, p.Labels, func(n Name) {
		pa := r.peers[n]
		if len(pa.Labels) > 0 && Matches(pa.Labels, p.Labels) {
			workload = older(workload, pa)
		}
	})
	return mesh, namespace, workload
}

// Oldest returns the PeerAuthentication without a selector that counts in the namespace, nil when there is none.
func (r *Registry) Oldest(namespace string) *PeerAuthentication {
	var oldest *PeerAuthentication
	for n := range r.peersByPair[namespace][""] {
		oldest = older(oldest, r.peers[n])
	}
	return oldest
}

// ShadowsOf returns what counts instead of the PeerAuthentication: whole is an older one of its level for all the workloads
// that p may be for, part one for some of them; each the oldest of its sort, nil when there is none. The selectors alone are
// judged, so that the answer is the same whatever pods come and go.
func (r *Registry) ShadowsOf(p *PeerAuthentication) (whole, part *PeerAuthentication) {
	for _, names := range r.peersByPair[p.Namespace] {
		for n := range names {
			other := r.peers[n]
			switch {
			case other == p || (len(other.Labels) == 0) != (len(p.Labels) == 0) || older(p, other) == p:
			case Matches(other.Labels, p.Labels):
				whole = older(whole, other)
			case agree(other.Labels, p.Labels):
				part = older(part, other)
			}
		}
	}
	return whole, part
}

// agree reports whether there may be a workload that two selectors have both.
func agree(a, b map[string]string) bool {
	for k, v := range a {
		if w, ok := b[k]; ok && w != v {
			return false
		}
	}
	return true
}

// older returns the one that counts: one that may be for any workload, and counts as STRICT, comes before all others.
func older(a, b *PeerAuthentication) *PeerAuthentication {
	if a == nil || (b.Unclear && !a.Unclear) {
		return b
	}
	if a.Unclear == b.Unclear && olderThan(b.CreationTimestamp.Time, a.CreationTimestamp.Time,
		Name{b.Namespace, b.PeerAuthentication.Name}, Name{a.Namespace, a.PeerAuthentication.Name}) {
		return b
	}
	return a
}
