package client

import (
	"cmp"
	"iter"
	"net/netip"
	"strings"
)

// WorkloadsByHostname returns the workloads whose address is what the name resolves to, sorted by uid.
func (s *Snapshot) WorkloadsByHostname(host string) []*Workload { return s.byHostname.at(host) }

// Hostnames are the names that WorkloadsByHostname knows, after the namespace that declared them, in no order; some twice.
func (s *Snapshot) Hostnames() iter.Seq2[string, string] {
	return func(yield func(namespace, host string) bool) {
		for host, list := range s.byHostname.all() {
			for _, w := range list {
				if !yield(w.GetNamespace(), host) {
					return
				}
			}
		}
	}
}

// SameHostnames reports whether both have the same workloads with hostnames, at no cost; false is no proof.
func (s *Snapshot) SameHostnames(o *Snapshot) bool { return s.byHostname.root == o.byHostname.root }

// WorkloadFor returns the workload that an address is for callers of a namespace: a pod, or what that namespace itself declared by
// a WorkloadEntry or an EndpointSlice. What other namespaces declare is nil: nobody takes part in calls to an address by naming it.
func (s *Snapshot) WorkloadFor(namespace, network string, ip netip.Addr) *Workload {
	var own *Workload
	for _, w := range s.byIP.at(ipKey{network, ip.Unmap()}) {
		if w.IsPod() {
			return w
		}
		if own == nil && w.GetNamespace() == namespace {
			own = w
		}
	}
	return own
}

// IsPod tells pods from what users declare.
func (w *Workload) IsPod() bool { return w != nil && strings.Contains(w.GetUid(), "//Pod/") }

// ServicesByIP returns all services with that virtual address, then those with a network that holds it, the longest first. Of one
// address or network those of Kubernetes come first, then the declared ones by age.
func (s *Snapshot) ServicesByIP(network string, ip netip.Addr) []*Service {
	ip = ip.Unmap()
	exact := s.byVIP.at(ipKey{network, ip})
	out := exact[:len(exact):len(exact)]
	for list := range s.networksOf(network, ip) {
		out = append(out, list...)
	}
	return out
}

// byClaim orders the services of one address: those of Kubernetes, then the declared ones by age, then by name.
func byClaim(a, b *Service) int {
	declared := func(s *Service) int {
		if s.Settings.GetDeclared() {
			return 1
		}
		return 0
	}
	return cmp.Or(declared(a)-declared(b), a.Created().Compare(b.Created()), byHost(a, b))
}

func (b *builder) putHostname(w *Workload) {
	if h := w.GetHostname(); h != "" {
		b.s.byHostname = b.s.byHostname.set(b.edit, h, insert(b.s.byHostname.at(h), w, byUID))
	}
}

func (b *builder) dropHostname(w *Workload) {
	if h := w.GetHostname(); h != "" {
		b.s.byHostname = put(b.s.byHostname, b.edit, h, drop(b.s.byHostname.at(h), w))
	}
}
