package enroll

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/undermesh/undermesh/controller/api"
)

// Exclusions is the traffic of a pod that its annotations take out of the mesh (CN-07). The zero value takes out nothing.
type Exclusions struct {
	OutboundPrefixes     []netip.Prefix // not captured, longest first; the complement of the include list is in it
	ExcludeOutboundPorts []uint16
	IncludeOutboundPorts []uint16 // captured whatever the prefixes say
	ExcludeInboundPorts  []uint16
}

// maxListed bounds the elements of one annotation.
const maxListed = 256

// ParseExclusions reads the traffic annotations of the pod named pod. An annotation with a bad value has no effect as a
// whole, so that the traffic stays captured, and gives an error that names pod, annotation and value.
func ParseExclusions(pod string, annotations map[string]string) (Exclusions, []error) {
	var e Exclusions
	var errs []error
	parse := func(name string, into func(value string) error) {
		value, ok := annotations[name]
		if !ok {
			return
		}
		if err := into(value); err != nil {
			errs = append(errs, fmt.Errorf("pod %s: annotation %s=%q is ignored, the traffic stays captured: %w", pod, name, value, err))
		}
	}
	parse(api.AnnotationIncludeOutboundIPRanges, func(v string) error {
		if strings.TrimSpace(v) == "*" {
			return nil
		}
		in, err := prefixes(v)
		e.OutboundPrefixes = append(e.OutboundPrefixes, complement(in, err)...)
		return err
	})
	parse(api.AnnotationExcludeOutboundIPRanges, func(v string) error {
		out, err := prefixes(v)
		e.OutboundPrefixes = append(e.OutboundPrefixes, out...)
		return err
	})
	for name, target := range map[string]*[]uint16{
		api.AnnotationIncludeOutboundPorts: &e.IncludeOutboundPorts,
		api.AnnotationExcludeOutboundPorts: &e.ExcludeOutboundPorts,
		api.AnnotationExcludeInboundPorts:  &e.ExcludeInboundPorts,
	} {
		parse(name, func(v string) (err error) { *target, err = ports(v); return err })
	}
	parse(api.AnnotationIncludeInboundPorts, func(v string) error {
		if strings.TrimSpace(v) == "*" {
			return nil
		}
		return fmt.Errorf("only * is supported; use %s", api.AnnotationExcludeInboundPorts)
	})
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	slices.SortFunc(e.OutboundPrefixes, func(a, b netip.Prefix) int {
		if a.Bits() != b.Bits() {
			return b.Bits() - a.Bits()
		}
		return a.Addr().Compare(b.Addr())
	})
	e.OutboundPrefixes = slices.Compact(e.OutboundPrefixes)
	return e, errs
}

// elements splits a comma-separated list; an empty list is allowed, an empty element is not.
func elements(v string) ([]string, error) {
	if strings.TrimSpace(v) == "" {
		return nil, nil
	}
	list := strings.Split(v, ",")
	if len(list) > maxListed {
		return nil, fmt.Errorf("%d elements, at most %d are allowed", len(list), maxListed)
	}
	for i := range list {
		list[i] = strings.TrimSpace(list[i])
	}
	return list, nil
}

func prefixes(v string) ([]netip.Prefix, error) {
	list, err := elements(v)
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil || p.Addr().Is4In6() {
			return nil, fmt.Errorf("%q is not a CIDR", s)
		}
		if p != p.Masked() {
			return nil, fmt.Errorf("%q has bits set beyond its length; did you mean %s", s, p.Masked())
		}
		out = append(out, p)
	}
	return out, nil
}

func ports(v string) ([]uint16, error) {
	list, err := elements(v)
	if err != nil {
		return nil, err
	}
	var out []uint16
	for _, s := range list {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("%q is not a port", s)
		}
		out = append(out, uint16(n))
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// complement returns what the prefixes do not cover, of both families; nothing when err is set.
func complement(in []netip.Prefix, err error) []netip.Prefix {
	if err != nil {
		return nil
	}
	var out []netip.Prefix
	for _, all := range []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)} {
		out = append(out, without(all, in)...)
	}
	return out
}

// without returns the parts of p that no prefix of in covers.
func without(p netip.Prefix, in []netip.Prefix) []netip.Prefix {
	touched := false
	for _, q := range in {
		if q.Bits() <= p.Bits() && q.Contains(p.Addr()) {
			return nil
		}
		touched = touched || p.Overlaps(q)
	}
	if !touched {
		return []netip.Prefix{p}
	}
	low, high := halves(p)
	return append(without(low, in), without(high, in)...)
}

func halves(p netip.Prefix) (low, high netip.Prefix) {
	bits := p.Bits()
	b := p.Addr().AsSlice()
	b[bits/8] |= 0x80 >> (bits % 8)
	upper, _ := netip.AddrFromSlice(b) // the length is that of an address
	return netip.PrefixFrom(p.Addr(), bits+1), netip.PrefixFrom(upper, bits+1)
}
