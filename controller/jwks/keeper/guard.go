package keeper

import (
	"fmt"
	"net/netip"
	"slices"
)

// Guard says which addresses may be connected to. The zero Guard allows public ones only.
type Guard struct {
	// Private allows the private ranges (RFC 1918, RFC 2544, RFC 4193, RFC 6598): issuers inside the cluster have such addresses.
	Private bool
	// Allow lists private networks that are allowed although Private is not set.
	Allow []netip.Prefix
	// Deny lists networks that are refused, whatever else is said.
	Deny []netip.Prefix
	// Own returns the addresses of the host itself at this moment, which are refused like loopback, whatever else is said; with an
	// error everything is. nil: there are none to know.
	Own func() ([]netip.Addr, error)
}

// never are refused whatever the operator says: the host, the link, services of the cloud that give out credentials, and
// ranges that are nobody's.
var never = parsePrefixes("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "224.0.0.0/3",
	"100.100.100.200/32", "168.63.129.16/32", // metadata of clouds outside the link's range
	"64:ff9b:1::/48", "2001::/32", // hold an IPv4 address where only their owner knows
	"::/127", "fe80::/10", "fec0::/10", "ff00::/8", "fd00:ec2::/32", "fd20:ce::/32")

var private = parsePrefixes("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "198.18.0.0/15", "fc00::/7")

// embedding are IPv6 networks whose addresses hold an IPv4 address at the byte, to which they lead.
var embedding = []struct {
	prefix netip.Prefix
	at     int
}{
	{netip.MustParsePrefix("::/96"), 12}, {netip.MustParsePrefix("64:ff9b::/96"), 12},
	{netip.MustParsePrefix("2002::/16"), 2},
	{netip.MustParsePrefix("::ffff:0:0:0/96"), 12},
}

func parsePrefixes(texts ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(texts))
	for i, t := range texts {
		out[i] = netip.MustParsePrefix(t)
	}
	return out
}

func in(list []netip.Prefix, a netip.Addr) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

func (g Guard) own(a netip.Addr) (bool, error) {
	if g.Own == nil {
		return false, nil
	}
	all, err := g.Own()
	return slices.ContainsFunc(all, func(o netip.Addr) bool { return o.Unmap().WithZone("") == a }), err
}

// Check returns an error when the address may not be connected to.
func (g Guard) Check(a netip.Addr) error {
	a = a.Unmap().WithZone("")
	own, err := g.own(a)
	switch {
	case err != nil:
		return fmt.Errorf("the addresses of this host are not known")
	case own:
		return fmt.Errorf("%s is an address of the control plane's own host", a)
	case !a.IsValid():
		return fmt.Errorf("is no address")
	case in(never, a):
		return fmt.Errorf("%s belongs to the host, the link or the cloud", a)
	case in(g.Deny, a):
		return fmt.Errorf("%s is refused by the operator", a)
	case in(private, a) && !g.Private && !in(g.Allow, a):
		return fmt.Errorf("%s is private", a)
	}
	if !a.Is6() {
		return nil
	}
	for _, e := range embedding {
		if b := a.As16(); e.prefix.Contains(a) {
			if err := g.Check(netip.AddrFrom4([4]byte(b[e.at : e.at+4]))); err != nil {
				return fmt.Errorf("%s leads to it: %w", a, err)
			}
		}
	}
	return nil
}
