package model

import "net/netip"

// occupied counts the addresses of pods, nodes and services in the networks around them whose length is a multiple of eight, so
// that whether a network holds any is found without looking at all of them.
type occupied map[netip.Prefix]int

const stride = 8 // bits

func (o occupied) add(ip netip.Addr, n int) {
	for bits := stride; bits < ip.BitLen(); bits += stride {
		p, _ := ip.Prefix(bits)
		if o[p] += n; o[p] == 0 {
			delete(o, p)
		}
	}
}

// any reports whether the network holds an address; one is asked for the single addresses, at most 128 of them.
func (o occupied) any(p netip.Prefix, one func(netip.Addr) bool) bool {
	bits := max((p.Bits()+stride-1)/stride*stride, stride)
	raw, at := p.Addr().AsSlice(), bits/stride-1
	base := raw[at]
	for i := range 1 << (bits - p.Bits()) {
		raw[at] = base | byte(i)
		ip, _ := netip.AddrFromSlice(raw)
		if bits == ip.BitLen() {
			if one(ip) {
				return true
			}
		} else if o[netip.PrefixFrom(ip, bits)] > 0 {
			return true
		}
	}
	return false
}

// inCluster reports whether the address is that of a pod, a node or a service.
func (r *Registry) inCluster(ip netip.Addr) bool {
	return r.HasPod(ip) || r.IsNode(ip) || len(r.external.clusterIPs[ip]) > 0
}
