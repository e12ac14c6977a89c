package client

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"
)

// netKey is a network that is the address of services.
type netKey struct {
	network string
	prefix  netip.Prefix
}

// length is how many networks there are with so many bits.
type length struct{ bits, count int }

// networksOf yields the services of each network that holds the address, the longest first. It looks once for each length
// that any network has, however many networks and services there are.
func (s *Snapshot) networksOf(network string, ip netip.Addr) iter.Seq[[]*Service] {
	return func(yield func([]*Service) bool) {
		for _, l := range s.lengths {
			p, err := ip.Prefix(l.bits)
			if err != nil {
				continue // longer than the address
			}
			if list := s.networks.at(netKey{network, p}); len(list) > 0 && !yield(list) {
				return
			}
		}
	}
}

func (b *builder) putNetworks(svc *Service) {
	s := b.s
	for _, k := range svc.networks {
		list := s.networks.at(k)
		if slices.Contains(list, svc) {
			continue // it lists the network twice
		}
		if len(list) == 0 {
			b.countLength(k.prefix.Bits(), 1)
		}
		s.networks = s.networks.set(b.edit, k, insert(list, svc, byClaim))
	}
}

func (b *builder) dropNetworks(svc *Service) {
	s := b.s
	for _, k := range svc.networks {
		list := s.networks.at(k)
		left := drop(list, svc)
		if s.networks = put(s.networks, b.edit, k, left); len(left) == 0 && len(list) > 0 {
			b.countLength(k.prefix.Bits(), -1)
		}
	}
}

// countLength keeps the lengths, longest first, in a list of their own: older snapshots have the one before.
func (b *builder) countLength(bits, more int) {
	list := slices.Clone(b.s.lengths)
	i, found := slices.BinarySearchFunc(list, bits, func(l length, bits int) int { return cmp.Compare(bits, l.bits) })
	if !found {
		list = slices.Insert(list, i, length{bits: bits})
	}
	if list[i].count += more; list[i].count == 0 {
		list = slices.Delete(list, i, i+1)
	}
	b.s.lengths = list
}
