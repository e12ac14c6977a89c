package policy

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/undermesh/undermesh/controller/client"
)

// compare orders services that claim one host or address for callers of the view: those of Kubernetes first, then those of the
// view's own namespace, then by age. Nobody changes how others reach a host or an address by declaring it too.
func (v View) compare(a, b Callee) int {
	return cmp.Or(truth(a.Declared, b.Declared), v.byAge(a, b))
}

// byAge puts services of the view's own namespace first.
func (v View) byAge(a, b Callee) int {
	return cmp.Or(truth(a.Namespace != v.Namespace, b.Namespace != v.Namespace), a.Created.Compare(b.Created),
		cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Hostname, b.Hostname))
}

// truth orders false before true.
func truth(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// Choose returns which of several services of one host counts: of those that are seen on the port that of Kubernetes, else that
// of the view's own namespace, else the oldest. It returns false when none is seen.
func (v View) Choose(all []Callee, port uint32) (Callee, bool) {
	var best Callee
	found := false
	for _, s := range all {
		if v.Sees(s, port) && (!found || v.compare(s, best) < 0) {
			best, found = s, true
		}
	}
	return best, found
}

// ServiceAt returns the service whose connections those to an address are for callers of the view, nil for none: a service of
// Kubernetes, which nobody else stands in for where it is not seen; else one of the view's own namespace; else one of the
// namespace that was the first to declare the address or a network around it. Of several of one namespace the most specific
// counts, then the oldest.
func (v View) ServiceAt(s *client.Snapshot, network string, addr netip.AddrPort) *client.Service {
	var seen []*client.Service // the most specific first, then by age
	kubernetes := false
	for _, svc := range s.ServicesByIP(network, addr.Addr()) {
		declared, sees := svc.Settings.GetDeclared(), v.Sees(CalleeOf(svc), uint32(addr.Port()))
		if !declared && sees {
			return svc
		}
		kubernetes = kubernetes || !declared
		if sees && (!svc.Settings.GetOwnNamespace() || svc.GetNamespace() == v.Namespace) {
			seen = append(seen, svc)
		}
	}
	if kubernetes || len(seen) == 0 {
		return nil
	}
	first := slices.MinFunc(seen, func(a, b *client.Service) int { return v.compare(CalleeOf(a), CalleeOf(b)) })
	return seen[slices.IndexFunc(seen, func(svc *client.Service) bool { return svc.GetNamespace() == first.GetNamespace() })]
}

// Prefers reports whether callers of the view take the first service rather than the second, which may be nil, for one name of DNS
// that both lead to.
func (v View) Prefers(a, b *client.Service) bool {
	return b == nil || v.byAge(CalleeOf(a), CalleeOf(b)) < 0
}
