package model

import (
	"slices"
	"strings"
)

// Together returns the entries that are one service for a host, the oldest of the namespace first: those that say the same of
// it but for ports, addresses and endpoints. It is nil when the host is refused.
func (r *Registry) Together(namespace, host string) []*ServiceEntry {
	if r.hostRefused(namespace, host) != "" {
		return nil
	}
	all := r.claimants(namespace, host)
	return slices.DeleteFunc(all, func(e *ServiceEntry) bool { return r.unlike(all[0], e) != "" })
}

// claimants are the entries of the namespace with the host, the oldest first.
func (r *Registry) claimants(namespace, host string) []*ServiceEntry {
	var all []*ServiceEntry
	for n := range r.external.byHost[host] {
		if n.Namespace == namespace {
			all = append(all, r.external.entries[n])
		}
	}
	slices.SortFunc(all, byEntryAge)
	return all
}

func byEntryAge(a, b *ServiceEntry) int {
	switch {
	case a == b:
		return 0
	case a.olderThan(b):
		return -1
	}
	return 1
}

// unlike names the field in which two entries differ so that they cannot be one service, "" when they can.
func (r *Registry) unlike(a, b *ServiceEntry) string {
	names := func(e *ServiceEntry) []string { return slices.Sorted(slices.Values(e.Spec.GetSubjectAltNames())) }
	switch {
	case a == b:
	case a.Spec.GetResolution() != b.Spec.GetResolution():
		return "resolution"
	case a.Spec.GetLocation() != b.Spec.GetLocation():
		return "location"
	case !slices.Equal(r.EntryExportTo(a), r.EntryExportTo(b)):
		return "exportTo"
	case !slices.Equal(names(a), names(b)):
		return "subjectAltNames"
	case a.Resolved() && (a.Selector == nil) != (b.Selector == nil):
		return "workloadSelector"
	}
	return ""
}

// HostTaken says who has a host of the entry, "" when the entry has it, alone or together with others: a Kubernetes service of
// any namespace wins, then the oldest entry of the namespace.
func (r *Registry) HostTaken(e *ServiceEntry, host string) string {
	if why := r.hostRefused(e.Namespace, host); why != "" {
		return why
	}
	first := e
	for n := range r.external.byHost[host] {
		if o := r.external.entries[n]; o.Namespace == e.Namespace && o.olderThan(first) {
			first = o
		}
	}
	if field := r.unlike(first, e); field != "" {
		return "is a host of the older ServiceEntry " + first.ServiceEntry.Name + ", which has another spec." + field
	}
	return ""
}

// hostRefused says why no entry of the namespace may have the host: it is a name of a Kubernetes service in any of its forms, a name
// that means a service of another namespace, or one that means another in each.
func (r *Registry) hostRefused(namespace, host string) string {
	name, wild := strings.CutPrefix(host, "*.")
	labels := strings.Split(name, ".")
	if !wild && len(labels) == 1 {
		return "is a short name, which means a service of its own in each namespace"
	}
	domain := "svc." + r.clusterDomain()
	full := name
	switch {
	case len(labels) == 2 && !wild:
		full += "." + domain
	case strings.HasSuffix(name, ".svc"):
		full += "." + r.clusterDomain()
	}
	if s := r.ServiceAt(full); s != nil && !wild {
		return "is the Kubernetes service " + s.Namespace + "/" + s.Name
	}
	if wild && (name == "svc" || name == domain || strings.HasSuffix(domain, "."+name)) {
		return "covers the services of all namespaces"
	}
	if rest, in := strings.CutSuffix(full, "."+domain); in && !(len(labels) == 2 && !wild) {
		if of := rest[strings.LastIndexByte(rest, '.')+1:]; of != namespace {
			return "is a name of the namespace " + of
		}
	}
	return ""
}

// hasHost reports whether any host of the entry is its own.
func (r *Registry) hasHost(e *ServiceEntry) bool {
	return slices.ContainsFunc(e.Hosts, func(h string) bool { return r.HostTaken(e, h) == "" })
}

// sharesHost reports whether two entries are one service for some host.
func (r *Registry) sharesHost(a, b *ServiceEntry) bool {
	return a.Namespace == b.Namespace && slices.ContainsFunc(a.Hosts, func(h string) bool {
		return slices.Contains(b.Hosts, h) && r.HostTaken(a, h) == "" && r.HostTaken(b, h) == ""
	})
}
