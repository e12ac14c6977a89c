package model

import (
	"strings"

	networking "istio.io/api/networking/v1alpha3"
)

// labelKeys counts which labels of workloads nodes are asked about, and by how many rules: those of subsets for the workloads
// behind the hosts, those of callers and of failover priorities for all.
type labelKeys struct {
	uses map[labelUse]int
	keys map[string]int // of uses, by label
}

func newLabelKeys() labelKeys { return labelKeys{map[labelUse]int{}, map[string]int{}} }

// count changes how many rules ask about a label, and reports whether it is the first or was the last.
func (x labelKeys) count(u labelUse, change int) bool {
	before := x.uses[u]
	x.uses[u] += change
	x.keys[u.key] += change
	if x.uses[u] == 0 {
		delete(x.uses, u)
	}
	if x.keys[u.key] == 0 {
		delete(x.keys, u.key)
	}
	return before == 0 || x.uses[u] == 0
}

// labelUse is one label; host is in full or a pattern, "" stands for every workload.
type labelUse struct{ host, key string }

// usesOf are the labels that a DestinationRule asks about; nil is none.
func usesOf(rule *DestinationRule) map[labelUse]bool {
	if rule == nil {
		return nil
	}
	out := map[labelUse]bool{}
	take := func(p *networking.TrafficPolicy) {
		balancers := []*networking.LoadBalancerSettings{p.GetLoadBalancer()}
		for _, port := range p.GetPortLevelSettings() {
			balancers = append(balancers, port.GetLoadBalancer())
		}
		for _, lb := range balancers {
			usePriorities(lb.GetLocalityLbSetting().GetFailoverPriority(), out)
			usePriorities(lb.GetZoneAwareLbSetting().GetFailoverPriority(), out)
		}
	}
	take(rule.Spec.GetTrafficPolicy())
	for _, s := range rule.Spec.GetSubsets() {
		for k := range s.GetLabels() {
			out[labelUse{rule.Host, k}] = true
		}
		take(s.GetTrafficPolicy())
	}
	return out
}

// usePriorities takes the labels of a failoverPriority, which are compared with the caller's. Where a workload is says its
// locality.
func usePriorities(list []string, out map[labelUse]bool) {
	for _, item := range list {
		key, _, _ := strings.Cut(item, "=")
		if !strings.HasPrefix(key, "topology.") && key != "kubernetes.io/hostname" {
			out[labelUse{"", key}] = true
		}
	}
}

// callerUses are the labels of callers that a VirtualService asks about; nil is none.
func callerUses(v *VirtualService) map[labelUse]bool {
	if v == nil {
		return nil
	}
	out := map[labelUse]bool{}
	use := func(labels map[string]string) {
		for k := range labels {
			out[labelUse{"", k}] = true
		}
	}
	for _, h := range v.Spec.GetHttp() {
		for _, m := range h.GetMatch() {
			use(m.GetSourceLabels())
		}
	}
	for _, h := range v.Spec.GetTcp() {
		for _, m := range h.GetMatch() {
			use(m.GetSourceLabels())
		}
	}
	for _, h := range v.Spec.GetTls() {
		for _, m := range h.GetMatch() {
			use(m.GetSourceLabels())
		}
	}
	return out
}

// meshUses are those of the mesh's configuration.
func meshUses(m Mesh) map[labelUse]bool {
	out := map[labelUse]bool{}
	usePriorities(m.Config.GetLocalityLbSetting().GetFailoverPriority(), out)
	usePriorities(m.Config.GetZoneAwareLbSetting().GetFailoverPriority(), out)
	return out
}

// use counts what a rule asks about now in the place of what it asked about before, and marks the workloads whose labels travel
// or cease to.
func (r *Registry) use(before, now map[labelUse]bool, d *Dirty) {
	keys := r.traffic.labels
	for u := range before {
		if !now[u] && keys.count(u, -1) {
			r.dirtyBehind(u, d)
		}
	}
	for u := range now {
		if !before[u] && keys.count(u, 1) {
			r.dirtyBehind(u, d)
		}
	}
}

// dirtyBehind marks the workloads with the label that are behind the host.
func (r *Registry) dirtyBehind(u labelUse, d *Dirty) {
	if u.host == "" {
		for n, p := range r.pods {
			if _, ok := p.Labels[u.key]; ok {
				d.Pods[n] = true
			}
		}
		r.markExternal(d)
		return
	}
	if !strings.HasPrefix(u.host, "*") {
		if s := r.ServiceAt(u.host); s != nil {
			r.dirtyServiceMembers(s, u.key, d)
		}
		for n := range r.external.byHost[u.host] {
			d.Entries[n] = true
		}
		return
	}
	for n, s := range r.services {
		if HostMatches(u.host, r.Resolve(n.Name, n.Namespace)) {
			r.dirtyServiceMembers(s, u.key, d)
		}
	}
	for h, names := range r.external.byHost {
		if HostMatches(u.host, h) {
			mark(d.Entries, names)
		}
	}
}

// dirtyServiceMembers marks the workloads with the label that are behind a Kubernetes service. Those of entries are marked when
// the entries settle.
func (r *Registry) dirtyServiceMembers(s *Service, key string, d *Dirty) {
	if len(s.Spec.Selector) > 0 {
		r.podsByLabel.selected(s.Namespace, s.Spec.Selector, func(p *Pod) {
			if _, ok := p.Labels[key]; ok {
				d.Pods[p.Name] = true
			}
		})
		r.dirtySelected(s.Namespace, s.Spec.Selector, d)
	}
	for n := range r.slicesOf[Name{s.Namespace, s.Name}] {
		r.dirtySlice(r.slices[n], d)
	}
}

// LabelsFor returns those of a workload's labels that nodes are asked about, nil for none: behind are the hosts that it is behind.
func (r *Registry) LabelsFor(labels map[string]string, behind []string) map[string]string {
	keys := r.traffic.labels
	var out map[string]string
	for k, v := range labels {
		if keys.keys[k] == 0 || keys.uses[labelUse{"", k}] == 0 && !keys.behind(behind, k) {
			continue
		}
		if out == nil {
			out = map[string]string{}
		}
		out[k] = v
	}
	return out
}

func (x labelKeys) behind(hosts []string, key string) bool {
	for _, h := range hosts {
		if x.uses[labelUse{h, key}] > 0 || x.uses[labelUse{"*", key}] > 0 {
			return true
		}
		for i := 1; i < len(h); i++ { // "*" stands for one character at least
			if x.uses[labelUse{"*" + h[i:], key}] > 0 {
				return true
			}
		}
	}
	return false
}
