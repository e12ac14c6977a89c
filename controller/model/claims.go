package model

import (
	"maps"
	"net/netip"
	"slices"
)

// claims is who declares which addresses and networks.
type claims struct {
	of      map[netip.Prefix][]*ServiceEntry // by age
	lengths map[int]int                      // of family and length → how many networks and addresses of it there are
	holds   map[netip.Prefix]bool            // networks that hold addresses of the cluster
	hosted  map[Name]bool                    // entries that have a host, and so a service
	near    occupied
	moved   map[netip.Addr]bool // addresses that the cluster may have got or lost since the last settling
}

func newClaims() claims {
	return claims{of: map[netip.Prefix][]*ServiceEntry{}, lengths: map[int]int{}, holds: map[netip.Prefix]bool{}, hosted: map[Name]bool{},
		near: occupied{}, moved: map[netip.Addr]bool{}}
}

// lengthKey tells the lengths of the families apart.
func lengthKey(p netip.Prefix) int { return p.Addr().BitLen()<<8 | p.Bits() }

// fileClaims files what an entry declares, or takes it out.
func (r *Registry) fileClaims(e *ServiceEntry, add bool) {
	c := &r.external.claims
	for _, p := range e.Prefixes {
		list := c.of[p]
		i, _ := slices.BinarySearchFunc(list, e, byEntryAge)
		if add {
			if len(list) == 0 {
				c.lengths[lengthKey(p)]++
				if !p.IsSingleIP() && c.near.any(p, r.inCluster) {
					c.holds[p] = true
				}
			}
			c.of[p] = slices.Insert(list, i, e)
			continue
		}
		if c.of[p] = slices.Delete(list, i, i+1); len(c.of[p]) == 0 {
			delete(c.of, p)
			delete(c.holds, p)
			if c.lengths[lengthKey(p)]--; c.lengths[lengthKey(p)] == 0 {
				delete(c.lengths, lengthKey(p))
			}
		}
	}
	if !add {
		delete(c.hosted, e.Key())
	}
}

// around calls f for the address or network and those around it that are declared, until f returns false.
func (c *claims) around(p netip.Prefix, f func(netip.Prefix) bool) {
	for key := range c.lengths {
		if bits := key & 0xff; key>>8 == p.Addr().BitLen() && bits <= p.Bits() {
			if q, _ := p.Addr().Prefix(bits); len(c.of[q]) > 0 && !f(q) {
				return
			}
		}
	}
}

// AddressRefused says why nobody gets an address or a network by the entry, "" when nothing is against it: nobody takes the
// traffic of a service, a pod or a node by declaring its address. With resolution NONE a pod or a node may be named: that changes
// no path.
func (r *Registry) AddressRefused(e *ServiceEntry, p netip.Prefix) string {
	ip := p.Addr()
	switch {
	case !p.IsSingleIP() && r.external.claims.holds[p]:
		return "holds addresses of the cluster's pods, services or nodes"
	case !p.IsSingleIP():
	case len(r.external.clusterIPs[ip]) > 0:
		return "is the address of a Kubernetes service"
	case r.HasPod(ip) && !e.Original():
		return "is the address of a pod"
	case r.IsNode(ip) && !e.Original():
		return "is the address of a node"
	}
	return ""
}

// NamesNode reports whether the address of the entry is a node's and counts for the entry's own namespace alone: what is in the
// root namespace is the operator's, and counts for all.
func (r *Registry) NamesNode(e *ServiceEntry, p netip.Prefix) bool {
	return p.IsSingleIP() && r.IsNode(p.Addr()) && e.Namespace != r.Mesh().RootNamespace
}

// Rivals returns, for each address and network of the entry, the older entry that has it, nil when there is none. One of another
// namespace has it for all but the entry's own namespace: it is the oldest that declares it, or a network around it, and is seen
// from where the entry is seen. One of the entry's namespace has it altogether.
func (r *Registry) Rivals(e *ServiceEntry) []*ServiceEntry {
	out := make([]*ServiceEntry, len(e.Prefixes))
	shares := map[*ServiceEntry]bool{}
	for i, p := range e.Prefixes {
		first, own := r.rivals(e, p)
		if first != nil && first.Namespace != e.Namespace {
			out[i] = first
			continue
		}
		if own == nil {
			continue
		}
		same, known := shares[own]
		if !known {
			same = r.sharesHost(own, e)
			shares[own] = same
		}
		if !same {
			out[i] = own
		}
	}
	return out
}

// rivals returns the oldest entry that declares the address or network, or one around it, and the oldest of the entry's
// namespace that declares the same; nil for none that is older than the entry.
func (r *Registry) rivals(e *ServiceEntry, p netip.Prefix) (first, own *ServiceEntry) {
	c, seen := &r.external.claims, r.EntryExportTo(e)
	c.around(p, func(q netip.Prefix) bool {
		for _, o := range c.of[q] {
			if !o.olderThan(e) {
				break
			}
			if !c.hosted[o.Key()] || !seenTogether(r.EntryExportTo(o), seen) {
				continue
			}
			if first == nil || o.olderThan(first) {
				first = o
			}
			if own == nil && q == p && o.Namespace == e.Namespace {
				own = o
			}
			if q != p || own != nil {
				break
			}
		}
		return true
	})
	return first, own
}

// dirtyRivalsOf marks the entries that do not get an address because of this one, which is filed.
func (r *Registry) dirtyRivalsOf(e *ServiceEntry, d *Dirty) {
	c := &r.external.claims
	check := func(q netip.Prefix) {
		list := c.of[q]
		i, _ := slices.BinarySearchFunc(list, e, byEntryAge)
		for _, o := range list[i:] {
			if o == e || d.Entries[o.Key()] {
				continue
			}
			if first, own := r.rivals(o, q); first == e || own == e {
				d.Entries[o.Key()] = true
			}
		}
	}
	networks, lengths := map[netip.Prefix]bool{}, map[int]bool{}
	for _, p := range e.Prefixes {
		check(p)
		if !p.IsSingleIP() {
			networks[p], lengths[lengthKey(p)] = true, true
		}
	}
	if len(networks) == 0 {
		return
	}
	for q := range c.of {
		for key := range lengths {
			if bits := key & 0xff; key>>8 == q.Addr().BitLen() && bits < q.Bits() {
				if p, _ := q.Addr().Prefix(bits); networks[p] {
					check(q)
					break
				}
			}
		}
	}
}

// settleClaims marks the entries with networks that hold the first address of the cluster now, or no longer any, and those that
// depend on whether the entries that are marked already have a host.
func (r *Registry) settleClaims(d *Dirty) {
	c := &r.external.claims
	for ip := range c.moved {
		c.around(netip.PrefixFrom(ip, ip.BitLen()), func(p netip.Prefix) bool {
			if p.IsSingleIP() {
				return true
			}
			if now := c.near.any(p, r.inCluster); now != c.holds[p] {
				c.holds[p] = now
				for _, e := range c.of[p] {
					d.Entries[e.Key()] = true
				}
			}
			return true
		})
	}
	clear(c.moved)
	for _, n := range slices.Collect(maps.Keys(d.Entries)) {
		e := r.external.entries[n]
		if e == nil {
			continue
		}
		now := r.hasHost(e)
		if now == c.hosted[n] {
			continue
		}
		r.dirtyRivalsOf(e, d)
		c.hosted[n] = now
		r.dirtyRivalsOf(e, d)
	}
}

// occupy notes that the cluster got (n is 1) or lost (-1) an address.
func (r *Registry) occupy(ip netip.Addr, n int) {
	r.external.claims.near.add(ip, n)
	r.external.claims.moved[ip] = true
}
