package enroll

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/undermesh/undermesh/controller/api"
)

// Exclusions is the traffic of a pod that its annotations take out of the mesh (CN-07). The zero value takes out nothing.
type Exclusions struct {
	OutboundPrefixes     []netip.Prefix // not captured, longest first
	IncludeOnly          bool           // beside OutboundPrefixes, what IncludePrefixes do not cover is not captured either
	IncludePrefixes      []netip.Prefix // longest first
	ExcludeOutboundPorts []uint16
	IncludeOutboundPorts []uint16 // captured whatever the prefixes say
	ExcludeInboundPorts  []uint16
}

// The bounds of what one pod takes of the node's tables. An annotation that goes beyond is ignored.
const (
	maxListed   = 256 // elements of one annotation
	maxPrefixes = 256 // of all annotations together
	maxPorts    = 128 // of all annotations together; as many are left for probes
)

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
			errs = append(errs, fmt.Errorf("pod %s: annotation %s=%.128q is ignored, the traffic stays captured: %w", pod, name, value, err))
		}
	}
	parse(api.AnnotationIncludeOutboundIPRanges, func(v string) error {
		if strings.TrimSpace(v) == "*" {
			return nil
		}
		in, err := prefixes(v)
		e.IncludePrefixes, e.IncludeOnly = in, err == nil
		return err
	})
	parse(api.AnnotationExcludeOutboundIPRanges, func(v string) error {
		out, err := prefixes(v)
		if n := len(e.IncludePrefixes) + len(out); err == nil && n > maxPrefixes {
			return fmt.Errorf("%d prefixes with those of %s, at most %d are allowed", n, api.AnnotationIncludeOutboundIPRanges, maxPrefixes)
		}
		e.OutboundPrefixes = out
		return err
	})
	listed := 0
	for _, l := range []struct {
		name   string
		target *[]uint16
	}{
		{api.AnnotationIncludeOutboundPorts, &e.IncludeOutboundPorts},
		{api.AnnotationExcludeOutboundPorts, &e.ExcludeOutboundPorts},
		{api.AnnotationExcludeInboundPorts, &e.ExcludeInboundPorts},
	} {
		parse(l.name, func(v string) error {
			list, err := ports(v)
			if err == nil && listed+len(list) > maxPorts {
				err = fmt.Errorf("%d ports with those of the other annotations, at most %d are allowed", listed+len(list), maxPorts)
			}
			if err != nil {
				return err
			}
			*l.target, listed = list, listed+len(list)
			return nil
		})
	}
	parse(api.AnnotationIncludeInboundPorts, func(v string) error {
		if strings.TrimSpace(v) == "*" {
			return nil
		}
		return fmt.Errorf("only * is supported; use %s", api.AnnotationExcludeInboundPorts)
	})
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
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

// prefixes gives them longest first, without duplicates.
func prefixes(v string) ([]netip.Prefix, error) {
	list, err := elements(v)
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil || p.Addr().Is4In6() {
			return nil, fmt.Errorf("%.128q is not a CIDR", s)
		}
		if p != p.Masked() {
			return nil, fmt.Errorf("%.128q has bits set beyond its length; did you mean %s", s, p.Masked())
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int { return cmp.Or(b.Bits()-a.Bits(), a.Addr().Compare(b.Addr())) })
	return slices.Compact(out), nil
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
			return nil, fmt.Errorf("%.128q is not a port", s)
		}
		out = append(out, uint16(n))
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}
