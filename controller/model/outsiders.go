package model

import "slices"

// WorkloadsSelected returns the workload entries of the namespace that have the labels, sorted.
func (r *Registry) WorkloadsSelected(namespace string, labels map[string]string) []*WorkloadEntry {
	var all []*WorkloadEntry
	for _, w := range r.external.workloads[namespace] {
		if Matches(labels, w.Labels) {
			all = append(all, w)
		}
	}
	slices.SortFunc(all, func(a, b *WorkloadEntry) int { return compareNames(a.Key(), b.Key()) })
	return all
}

// OutsidersOf returns the workload entries that the policy is for by its targets, sorted. A policy without targets has none: it
// is for whatever its namespace has.
func (r *Registry) OutsidersOf(p *AuthorizationPolicy) []*WorkloadEntry {
	var all []*WorkloadEntry
	for _, t := range p.Targets {
		if t.Service != "" {
			if s := r.services[Name{p.Namespace, t.Service}]; s != nil && s.Skipped == "" && len(s.Spec.Selector) > 0 {
				all = append(all, r.WorkloadsSelected(p.Namespace, s.Spec.Selector)...)
			}
			continue
		}
		for ns := range r.external.workloads {
			if ns == p.Namespace || p.Namespace == r.mesh.now.RootNamespace && !t.Local {
				all = append(all, r.WorkloadsSelected(ns, t.Labels)...)
			}
		}
	}
	slices.SortFunc(all, func(a, b *WorkloadEntry) int { return compareNames(a.Key(), b.Key()) })
	return slices.Compact(all)
}

// dirtyJudges marks the policies whose statuses speak of the workload entry.
func (r *Registry) dirtyJudges(w *WorkloadEntry, d *Dirty) {
	p := w.AsPod()
	for _, n := range r.SelectorPolicies(p, r.ServicesOf(p)) {
		d.Policies[n] = true
	}
	r.peersByPair.candidates(w.Namespace, w.Labels, func(n Name) { d.Peers[n] = true })
}

// dirtyWorkloads marks all pods and workload entries.
func (r *Registry) dirtyWorkloads(d *Dirty) {
	for n := range r.pods {
		d.Pods[n] = true
	}
	for _, all := range r.external.workloads {
		for n := range all {
			d.Workloads[n] = true
		}
	}
}

// dirtyLabelled marks the pods and workload entries of the namespace that have the labels.
func (r *Registry) dirtyLabelled(namespace string, labels map[string]string, d *Dirty) {
	r.podsByLabel.selected(namespace, labels, func(p *Pod) { d.Pods[p.Name] = true })
	r.dirtySelected(namespace, labels, d)
}
