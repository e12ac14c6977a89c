package model

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	corev1 "k8s.io/api/core/v1"
)

// external holds what users declare beside Kubernetes' own services and pods, with the indexes for what depends on it.
type external struct {
	entries     map[Name]*ServiceEntry
	byHost      map[string]map[Name]bool
	claims      claims
	byAssigned  map[netip.Addr]map[Name]bool
	byEndpoint  map[netip.Addr]map[Name]bool // of spec.endpoints
	byPair      selectorIndex                // entries that select
	workloads   map[string]map[Name]*WorkloadEntry
	workloadsAt map[netip.Addr]map[Name]bool
	clusterIPs  map[netip.Addr]map[Name]bool // of Kubernetes services
	byTarget    map[string]map[Name]bool     // what services of type ExternalName stand for → these services
}

func newExternal() external {
	return external{entries: map[Name]*ServiceEntry{}, byHost: map[string]map[Name]bool{}, claims: newClaims(),
		byAssigned: map[netip.Addr]map[Name]bool{}, byEndpoint: map[netip.Addr]map[Name]bool{}, byPair: selectorIndex{},
		workloads: map[string]map[Name]*WorkloadEntry{}, workloadsAt: map[netip.Addr]map[Name]bool{},
		clusterIPs: map[netip.Addr]map[Name]bool{}, byTarget: map[string]map[Name]bool{}}
}

// Entry returns nil when there is none.
func (r *Registry) Entry(n Name) *ServiceEntry { return r.external.entries[n] }

// WorkloadEntry returns nil when there is none.
func (r *Registry) WorkloadEntry(n Name) *WorkloadEntry { return r.external.workloads[n.Namespace][n] }

func (r *Registry) applyEntry(e Event, d *Dirty) {
	x := &r.external
	d.Entries[e.Name] = true
	if old := x.entries[e.Name]; old != nil {
		r.dirtyEntry(old, d)
		r.dirtyRivalsOf(old, d)
		delete(x.entries, e.Name)
		x.index(old, false)
		r.fileClaims(old, false)
	}
	o, ok := e.Object.(*networkingv1.ServiceEntry)
	if !ok {
		return
	}
	now := newEntry(o, e.Issues)
	x.entries[e.Name] = now
	x.index(now, true)
	r.fileClaims(now, true) // its rivals are marked when it is known to have a host
	r.dirtyEntry(now, d)
}

// index files an entry, or takes it out.
func (x *external) index(e *ServiceEntry, add bool) {
	n := e.Key()
	for _, h := range e.Hosts {
		file(x.byHost, h, n, add)
	}
	for _, ips := range e.Assigned {
		for _, ip := range ips {
			file(x.byAssigned, ip, n, add)
		}
	}
	for _, ep := range e.Endpoints {
		if ep.IP.IsValid() {
			file(x.byEndpoint, ep.IP, n, add)
		}
	}
	switch {
	case e.Selector == nil:
	case add:
		x.byPair.add(n, e.Selector)
	default:
		x.byPair.remove(n, e.Selector)
	}
}

func file[K comparable](index map[K]map[Name]bool, key K, n Name, add bool) {
	if add {
		link(index, key, n, true)
	} else {
		unlink(index, key, n)
	}
}

// dirtyEntry marks what depends on an entry that is filed: its rivals, and its workloads.
func (r *Registry) dirtyEntry(e *ServiceEntry, d *Dirty) {
	x := &r.external
	for _, h := range e.Hosts {
		mark(d.Entries, x.byHost[h])
	}
	for _, ips := range e.Assigned {
		for _, ip := range ips {
			mark(d.Entries, x.byAssigned[ip])
		}
	}
	r.dirtyMembers(e, d)
}

// dirtyMembers marks the workloads behind the hosts of the entry.
func (r *Registry) dirtyMembers(e *ServiceEntry, d *Dirty) {
	for _, ep := range e.Endpoints {
		for _, p := range r.podsByIP[ep.IP] {
			d.Pods[p.Name] = true
		}
	}
	if e.Selector == nil {
		return
	}
	r.podsByLabel.selected(e.Namespace, e.Selector, func(p *Pod) { d.Pods[p.Name] = true })
	r.dirtySelected(e.Namespace, e.Selector, d)
}

// settleEntries marks what depends on the hosts that entries may have got or lost: claims to their addresses, and the
// workloads behind them.
func (r *Registry) settleEntries(d *Dirty) {
	for _, n := range slices.Collect(maps.Keys(d.Entries)) {
		if e := r.external.entries[n]; e != nil {
			for _, h := range e.Hosts { // the oldest speaks for all
				mark(d.Entries, r.external.byHost[h])
			}
		}
	}
	r.settleClaims(d)
	for n := range d.Entries {
		if e := r.external.entries[n]; e != nil {
			r.dirtyMembers(e, d)
		}
	}
}

// dirtySelected marks the workload entries of a namespace that have the labels.
func (r *Registry) dirtySelected(namespace string, selector map[string]string, d *Dirty) {
	for n, w := range r.external.workloads[namespace] {
		if Matches(selector, w.Labels) {
			d.Workloads[n] = true
		}
	}
}

// mark adds the names to what is dirty.
func mark(dirty, names map[Name]bool) {
	for n := range names {
		dirty[n] = true
	}
}

func (r *Registry) applyWorkload(e Event, d *Dirty) {
	x := &r.external
	d.Workloads[e.Name] = true
	if old := r.WorkloadEntry(e.Name); old != nil {
		r.dirtyJudges(old, d)
		unlink(x.workloads, e.Name.Namespace, e.Name)
		unlink(x.workloadsAt, old.Endpoint.IP, e.Name)
		mark(d.Workloads, x.workloadsAt[old.Endpoint.IP])
	}
	o, ok := e.Object.(*networkingv1.WorkloadEntry)
	if !ok {
		return
	}
	now := newWorkload(o, e.Issues)
	link(x.workloads, e.Name.Namespace, e.Name, now)
	r.dirtyJudges(now, d)
	if now.Endpoint.IP.IsValid() {
		mark(d.Workloads, x.workloadsAt[now.Endpoint.IP])
		link(x.workloadsAt, now.Endpoint.IP, e.Name, true)
	}
}

func (r *Registry) markExternal(d *Dirty) {
	for n := range r.external.entries {
		d.Entries[n] = true
	}
	for _, all := range r.external.workloads {
		for n := range all {
			d.Workloads[n] = true
		}
	}
}

// dirtyClaims marks what depends on who an address belongs to.
func (r *Registry) dirtyClaims(ip netip.Addr, d *Dirty) {
	for _, e := range r.external.claims.of[netip.PrefixFrom(ip, ip.BitLen())] {
		d.Entries[e.Key()] = true
	}
	mark(d.Entries, r.external.byEndpoint[ip])
	mark(d.Workloads, r.external.workloadsAt[ip])
}

// dirtyHost marks what depends on whether a Kubernetes service is there: entries with its name or one of its addresses,
// services that stand for it, and the workload entries that it selects.
func (r *Registry) dirtyHost(s *Service, add bool, d *Dirty) {
	x := &r.external
	n := Name{s.Namespace, s.Name}
	host := r.Resolve(s.Name, s.Namespace)
	for _, form := range []string{host, s.Name + "." + s.Namespace + ".svc", s.Name + "." + s.Namespace} {
		mark(d.Entries, x.byHost[form])
	}
	mark(d.Services, x.byTarget[host])
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		file(x.byTarget, ResolveHost(s.Spec.ExternalName, "", ""), n, add)
	}
	for _, ip := range ClusterIPs(s.Service) {
		r.dirtyClaims(ip, d)
		file(x.clusterIPs, ip, n, add)
		r.occupy(ip, sign(add))
	}
	if len(s.Spec.Selector) > 0 {
		r.dirtySelected(s.Namespace, s.Spec.Selector, d)
		if len(x.workloads[s.Namespace]) > 0 {
			mark(d.Policies, r.policiesOf[n])
		}
	}
}

// ClusterIPs are the virtual addresses of a Kubernetes service, each once; a headless one has none.
func ClusterIPs(s *corev1.Service) []netip.Addr {
	var ips []netip.Addr
	for _, text := range append([]string{s.Spec.ClusterIP}, s.Spec.ClusterIPs...) {
		if ip, err := netip.ParseAddr(text); err == nil && !slices.Contains(ips, ip) { // "None" and "" are no addresses
			ips = append(ips, ip)
		}
	}
	return ips
}

// EntryExportTo returns from where the hosts of the entry are seen.
func (r *Registry) EntryExportTo(e *ServiceEntry) ExportTo {
	return NewExportTo(e.Spec.GetExportTo(), e.Namespace, r.mesh.now.Config.GetDefaultServiceExportTo())
}

// ServiceAt returns the Kubernetes service with the full host name, nil when there is none.
func (r *Registry) ServiceAt(host string) *Service {
	name, rest, _ := strings.Cut(host, ".")
	namespace, _, _ := strings.Cut(rest, ".")
	if s := r.services[Name{namespace, name}]; s != nil && r.Resolve(name, namespace) == host {
		return s
	}
	return nil
}

func sign(add bool) int {
	if add {
		return 1
	}
	return -1
}

func compareNames(a, b Name) int { return strings.Compare(a.String(), b.String()) }

// seenTogether reports whether some namespace sees both.
func seenTogether(a, b ExportTo) bool {
	switch {
	case slices.Equal(a, ExportTo{exportNone}), slices.Equal(b, ExportTo{exportNone}):
		return false
	case a == nil || b == nil:
		return true
	}
	return slices.ContainsFunc(a, func(ns string) bool { return slices.Contains(b, ns) })
}

// Assigned returns the addresses that the leader stored for a host of the entry, without those that an older entry has: a
// restored backup may bring one twice.
func (r *Registry) Assigned(e *ServiceEntry, host string) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(e.Assigned[host]), func(ip netip.Addr) bool {
		for n := range r.external.byAssigned[ip] {
			if o := r.external.entries[n]; o.olderThan(e) {
				return true
			}
		}
		return false
	})
}

// EntriesSelecting returns the entries that select a workload of the namespace by its labels, the oldest first.
func (r *Registry) EntriesSelecting(namespace string, labels map[string]string) []*ServiceEntry {
	var all []*ServiceEntry
	r.external.byPair.candidates(namespace, labels, func(n Name) {
		if e := r.external.entries[n]; Matches(e.Selector, labels) {
			all = append(all, e)
		}
	})
	return sortedEntries(all)
}

// EntriesListing returns the entries that list an address of the pod as an endpoint, the oldest first.
func (r *Registry) EntriesListing(p *Pod) []*ServiceEntry {
	if p.HostNetwork {
		return nil
	}
	var all []*ServiceEntry
	for _, ip := range p.IPs {
		for n := range r.external.byEndpoint[ip] {
			all = append(all, r.external.entries[n])
		}
	}
	return sortedEntries(all)
}

func sortedEntries(all []*ServiceEntry) []*ServiceEntry {
	slices.SortFunc(all, byEntryAge)
	return slices.Compact(all)
}

// ServicesSelecting returns the Kubernetes services that select a workload of the namespace by its labels, sorted.
func (r *Registry) ServicesSelecting(namespace string, labels map[string]string) []*Service {
	return r.ServicesOf(&Pod{Name: Name{Namespace: namespace}, Labels: labels})
}

// OwnsAddress reports whether connections of the workload entry's namespace to its address are the workload's: it is no pod's and
// no node's, and no older entry of the namespace has it.
func (r *Registry) OwnsAddress(w *WorkloadEntry) bool {
	ip := w.Endpoint.IP
	if !ip.IsValid() || ip.IsLoopback() || r.inCluster(ip) {
		return false
	}
	for n := range r.external.workloadsAt[ip] {
		if o := r.WorkloadEntry(n); n.Namespace == w.Namespace && olderThan(o.CreationTimestamp.Time, w.CreationTimestamp.Time, n, w.Key()) {
			return false
		}
	}
	return true
}
