package client

import (
	"iter"
	"net/netip"
)

// WorkloadsByHostname returns the workloads whose address is what the name resolves to, sorted by uid.
func (s *Snapshot) WorkloadsByHostname(host string) []*Workload { return s.byHostname.at(host) }

// Hostnames are the names that WorkloadsByHostname knows, in no order.
func (s *Snapshot) Hostnames() iter.Seq[string] {
	return func(yield func(string) bool) {
		for host := range s.byHostname.all() {
			if !yield(host) {
				return
			}
		}
	}
}

// SameHostnames reports whether both have the same workloads with hostnames, at no cost; false is no proof.
func (s *Snapshot) SameHostnames(o *Snapshot) bool { return s.byHostname.root == o.byHostname.root }

// ServicesByIP returns all services with that virtual address, sorted by namespace and hostname, then those with a network
// that holds it, the longest first.
func (s *Snapshot) ServicesByIP(network string, ip netip.Addr) []*Service {
	ip = ip.Unmap()
	exact := s.byVIP.at(ipKey{network, ip})
	out := exact[:len(exact):len(exact)]
	for _, p := range s.prefixes {
		if p.network == network && p.prefix.Contains(ip) {
			out = append(out, p.service)
		}
	}
	return out
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
