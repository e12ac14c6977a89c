package validate

import (
	"fmt"
	"net/netip"
)

// Pools returns the networks that addresses of hosts without one are taken from. No network routes them; Istio uses the same.
func Pools() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("240.240.0.0/16"), netip.MustParsePrefix("2001:2::/48")}
}

// Declarable says why no ServiceEntry may have an address or network: it has, or is of, the pools of assigned addresses, or
// addresses that mean the pod itself or its own link.
func Declarable(p netip.Prefix) error {
	for _, pool := range Pools() {
		if p.Overlaps(pool) {
			return fmt.Errorf("%s overlaps %s, from which the mesh assigns addresses", p, pool)
		}
	}
	for _, own := range []struct{ what, network string }{
		{"the loopback addresses", "127.0.0.0/8"}, {"the loopback address", "::1/128"}, {"the link-local addresses", "169.254.0.0/16"},
		{"the link-local addresses", "fe80::/10"}, {"the unspecified address", "0.0.0.0/32"}, {"the unspecified address", "::/128"},
	} {
		if p.Overlaps(netip.MustParsePrefix(own.network)) {
			return fmt.Errorf("%s overlaps %s %s", p, own.what, own.network)
		}
	}
	return nil
}
