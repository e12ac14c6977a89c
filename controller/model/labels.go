package model

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	networking "istio.io/api/networking/v1alpha3"
)

// labelKeys counts which labels of workloads nodes are asked about, and by how many rules: those of subsets for the workloads
// behind the hosts, those of callers and of failover priorities for all.
type labelKeys struct {
	uses map[labelUse]int
	keys map[string]int // of uses and of wide, by label
	// What is asked of workloads wherever they are is not counted but admitted, within limits: see admit.
	wide   map[labelUse]bool
	askers map[asker]asking
	stale  bool // wide is not what the askers make it
}

func newLabelKeys() labelKeys {
	return labelKeys{uses: map[labelUse]int{}, keys: map[string]int{}, wide: map[labelUse]bool{}, askers: map[asker]asking{}}
}

// count changes how many rules ask about a label, and reports whether it is the first or was the last.
func (x labelKeys) count(u labelUse, change int) bool {
	before := x.uses[u]
	x.uses[u] += change
	if x.uses[u] == 0 {
		delete(x.uses, u)
	}
	x.key(u.key, change)
	return before == 0 || x.uses[u] == 0
}

func (x labelKeys) key(k string, change int) {
	if x.keys[k] += change; x.keys[k] == 0 {
		delete(x.keys, k)
	}
}

// labelUse is one label; host is in full or a pattern, "" stands for every workload.
type labelUse struct{ host, key string }

// wide reports whether it is a label of workloads in any namespace.
func (u labelUse) wide() bool { return u.host == "" || strings.HasPrefix(u.host, "*") }

// uses are labels that an object asks about, with the field that does so first.
type uses map[labelUse]string

func (x uses) note(u labelUse, field string) {
	if _, known := x[u]; !known {
		x[u] = field
	}
}

// usesOf are the labels that a DestinationRule asks about; nil is none.
func usesOf(rule *DestinationRule) uses {
	if rule == nil {
		return nil
	}
	out := uses{}
	take := func(p *networking.TrafficPolicy, at string) {
		balancer(p.GetLoadBalancer(), at, out)
		for i, port := range p.GetPortLevelSettings() {
			balancer(port.GetLoadBalancer(), fmt.Sprintf("%s.portLevelSettings[%d]", at, i), out)
		}
	}
	take(rule.Spec.GetTrafficPolicy(), "spec.trafficPolicy")
	for i, s := range rule.Spec.GetSubsets() {
		at := fmt.Sprintf("spec.subsets[%d]", i)
		for _, k := range slices.Sorted(maps.Keys(s.GetLabels())) {
			out.note(labelUse{rule.Host, k}, at+".labels."+k)
		}
		take(s.GetTrafficPolicy(), at+".trafficPolicy")
	}
	return out
}

func balancer(lb *networking.LoadBalancerSettings, at string, out uses) {
	usePriorities(lb.GetLocalityLbSetting().GetFailoverPriority(), at+".loadBalancer.localityLbSetting", out)
	usePriorities(lb.GetZoneAwareLbSetting().GetFailoverPriority(), at+".loadBalancer.zoneAwareLbSetting", out)
}

// usePriorities takes the labels of a failoverPriority, which are compared with the caller's. Where a workload is says its
// locality.
func usePriorities(list []string, at string, out uses) {
	for i, item := range list {
		key, _, _ := strings.Cut(item, "=")
		if !strings.HasPrefix(key, "topology.") && key != "kubernetes.io/hostname" {
			out.note(labelUse{"", key}, fmt.Sprintf("%s.failoverPriority[%d]", at, i))
		}
	}
}

// callerUses are the labels of callers that a VirtualService asks about; nil is none.
func callerUses(v *VirtualService) uses {
	if v == nil || !v.Mesh {
		return nil
	}
	out := uses{}
	use := func(labels map[string]string, part string, i, j int) {
		for _, k := range slices.Sorted(maps.Keys(labels)) {
			out.note(labelUse{"", k}, fmt.Sprintf("spec.%s[%d].match[%d].sourceLabels.%s", part, i, j, k))
		}
	}
	for i, h := range v.Spec.GetHttp() {
		for j, m := range h.GetMatch() {
			use(m.GetSourceLabels(), "http", i, j)
		}
	}
	for i, h := range v.Spec.GetTcp() {
		for j, m := range h.GetMatch() {
			use(m.GetSourceLabels(), "tcp", i, j)
		}
	}
	for i, h := range v.Spec.GetTls() {
		for j, m := range h.GetMatch() {
			use(m.GetSourceLabels(), "tls", i, j)
		}
	}
	return out
}

// meshUses are those of the mesh's configuration.
func meshUses(m Mesh) uses {
	out := uses{}
	usePriorities(m.Config.GetLocalityLbSetting().GetFailoverPriority(), "localityLbSetting", out)
	usePriorities(m.Config.GetZoneAwareLbSetting().GetFailoverPriority(), "zoneAwareLbSetting", out)
	return out
}

// use counts what a rule asks about now in the place of what it asked about before, and marks the workloads whose labels travel
// or cease to; those of wide uses are marked when all is settled.
func (r *Registry) use(who asker, created time.Time, before, now uses, d *Dirty) {
	keys := &r.traffic.labels
	for u := range before {
		if _, still := now[u]; !u.wide() && !still && keys.count(u, -1) {
			r.dirtyBehind(u, d)
		}
	}
	for u := range now {
		if _, was := before[u]; !u.wide() && !was && keys.count(u, 1) {
			r.dirtyBehind(u, d)
		}
	}
	keys.ask(who, created, now)
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
		if keys.keys[k] == 0 || !keys.wide[labelUse{"", k}] && !keys.behind(behind, k) {
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
		if x.uses[labelUse{h, key}] > 0 || x.wide[labelUse{"*", key}] {
			return true
		}
		for i := 1; i < len(h); i++ { // "*" stands for one character at least
			if x.wide[labelUse{"*" + h[i:], key}] {
				return true
			}
		}
	}
	return false
}
