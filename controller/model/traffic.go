package model

import (
	"cmp"
	"slices"
	"time"

	networking "istio.io/api/networking/v1alpha3"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/validate"
)

// meshGateway is the name under which a VirtualService binds to the calls of workloads.
const meshGateway = "mesh"

// DestinationRule is a rule with its host in full.
type DestinationRule struct {
	*networkingv1.DestinationRule
	Host     string
	Findings []validate.Finding
}

// VirtualService is a VirtualService with its hosts in full.
type VirtualService struct {
	*networkingv1.VirtualService
	Hosts []string
	Mesh  bool // it applies to calls of workloads (SR-15), not only to gateways
	// Delegates are the VirtualServices that it leads to, each once.
	Delegates []Name
	Findings  []validate.Finding
}

// traffic holds the objects that say how workloads call, by namespace.
type traffic struct {
	rules    map[string]map[Name]*DestinationRule
	virtual  map[Name]*VirtualService
	roots    map[Name]map[Name]bool // delegate → who delegates to it
	sidecars map[string]map[Name]*Sidecar
	labels   labelKeys
}

func newTraffic() traffic {
	return traffic{rules: map[string]map[Name]*DestinationRule{}, virtual: map[Name]*VirtualService{},
		labels: newLabelKeys(), roots: map[Name]map[Name]bool{}, sidecars: map[string]map[Name]*Sidecar{}}
}

func (r *Registry) applyTraffic(e Event, d *Dirty) {
	t := &r.traffic
	switch e.Kind {
	case KindDestinationRule:
		d.Rules[e.Name] = true
		old, now := t.rules[e.Name.Namespace][e.Name], (*DestinationRule)(nil)
		r.dirtyRule(old, d)
		unlink(t.rules, e.Name.Namespace, e.Name)
		if o, ok := e.Object.(*networkingv1.DestinationRule); ok {
			now = &DestinationRule{o, r.Resolve(o.Spec.GetHost(), o.Namespace), validate.DestinationRule(o)}
			link(t.rules, e.Name.Namespace, e.Name, now)
			r.dirtyRule(now, d)
		}
		r.use(asker{e.Kind, e.Name}, now.created(), usesOf(old), usesOf(now), d)
	case KindVirtualService:
		d.Virtual[e.Name] = true
		mark(d.Virtual, t.roots[e.Name])
		old := t.virtual[e.Name]
		if old != nil {
			t.delegate(old, false)
			delete(t.virtual, e.Name)
		}
		if o, ok := e.Object.(*networkingv1.VirtualService); ok {
			t.virtual[e.Name] = r.newVirtual(o)
			t.delegate(t.virtual[e.Name], true)
		}
		now := t.virtual[e.Name]
		r.use(asker{e.Kind, e.Name}, now.created(), callerUses(old), callerUses(now), d)
	case KindSidecar:
		if old := t.sidecars[e.Name.Namespace][e.Name]; old != nil {
			r.dirtySidecar(old, d)
			unlink(t.sidecars, e.Name.Namespace, e.Name)
		}
		if o, ok := e.Object.(*networkingv1.Sidecar); ok {
			now := newSidecar(o)
			link(t.sidecars, e.Name.Namespace, e.Name, now)
			r.dirtySidecar(now, d)
		}
	}
}

// delegate files who leads to whom.
func (t *traffic) delegate(v *VirtualService, add bool) {
	for _, n := range v.Delegates {
		file(t.roots, n, v.Key(), add)
	}
}

// Resolve returns the full name of a host as an object of the namespace writes it.
func (r *Registry) Resolve(host, namespace string) string {
	return ResolveHost(host, namespace, r.clusterDomain())
}

func (r *Registry) clusterDomain() string {
	return cmp.Or(r.cfg.ClusterDomain, api.DefaultClusterDomain)
}

func (r *Registry) newVirtual(o *networkingv1.VirtualService) *VirtualService {
	out := &VirtualService{VirtualService: o, Findings: validate.VirtualService(o),
		Mesh: len(o.Spec.GetGateways()) == 0 || slices.Contains(o.Spec.GetGateways(), meshGateway)}
	for _, h := range o.Spec.GetHosts() {
		out.Hosts = append(out.Hosts, r.Resolve(h, o.Namespace))
	}
	for _, h := range o.Spec.GetHttp() {
		if to := h.GetDelegate(); to != nil {
			n := Name{cmp.Or(to.GetNamespace(), o.Namespace), to.GetName()}
			if !slices.Contains(out.Delegates, n) {
				out.Delegates = append(out.Delegates, n)
			}
		}
	}
	return out
}

// created is zero for nil.
func (v *VirtualService) created() time.Time {
	if v == nil {
		return time.Time{}
	}
	return v.CreationTimestamp.Time
}

// created is zero for nil.
func (d *DestinationRule) created() time.Time {
	if d == nil {
		return time.Time{}
	}
	return d.CreationTimestamp.Time
}

// Key is the rule's name.
func (v *VirtualService) Key() Name { return Name{v.Namespace, v.VirtualService.Name} }

// VirtualService returns nil when there is none.
func (r *Registry) VirtualService(n Name) *VirtualService { return r.traffic.virtual[n] }

// VirtualExportTo returns from where the VirtualService counts.
func (r *Registry) VirtualExportTo(v *VirtualService) ExportTo {
	return NewExportTo(v.Spec.GetExportTo(), v.Namespace, r.mesh.now.Config.GetDefaultVirtualServiceExportTo())
}

// Selector is nil for a rule that is not for some workloads of its namespace only.
func (d *DestinationRule) Selector() map[string]string {
	return d.Spec.GetWorkloadSelector().GetMatchLabels()
}

// ruleExportTo returns from where the rule counts, its own namespace apart.
func (r *Registry) ruleExportTo(rule *DestinationRule) ExportTo {
	return NewExportTo(rule.Spec.GetExportTo(), rule.Namespace, r.mesh.now.Config.GetDefaultDestinationRuleExportTo())
}

// DestinationRule returns the rule of that name and from where it counts, nil when there is none.
func (r *Registry) DestinationRule(n Name) (*DestinationRule, ExportTo) {
	rule := r.traffic.rules[n.Namespace][n]
	if rule == nil {
		return nil, nil
	}
	return rule, r.ruleExportTo(rule)
}

// RulesSelecting returns the names of the rules that select a workload of their namespace by its labels, sorted.
func (r *Registry) RulesSelecting(namespace string, labels map[string]string) []Name {
	var out []Name
	for n, rule := range r.traffic.rules[namespace] {
		if s := rule.Selector(); len(s) > 0 && Matches(s, labels) {
			out = append(out, n)
		}
	}
	slices.SortFunc(out, compareNames)
	return out
}

// dirtyRule marks the pods that the rule selects; nil is none.
func (r *Registry) dirtyRule(rule *DestinationRule, d *Dirty) {
	if rule != nil && len(rule.Selector()) > 0 {
		r.dirtyLabelled(rule.Namespace, rule.Selector(), d)
	}
}

func (r *Registry) markRules(d *Dirty) {
	for _, rules := range r.traffic.rules {
		for n := range rules {
			d.Rules[n] = true
		}
	}
	for n := range r.traffic.virtual {
		d.Virtual[n] = true
	}
}

// DestinationRules returns the rules that a workload of the namespace, with the labels, follows when it calls the host of a
// service in serviceNamespace ("" when it is not known). They are those of the first place that has any for it (SR-17):
// the caller's namespace, unless that is the root namespace; the service's namespace; the root namespace. Of the last two
// only what is exported to the caller counts. All have one host, the most specific; those that select the workload come
// first, then the oldest.
func (r *Registry) DestinationRules(namespace string, labels map[string]string, serviceNamespace, host string) []*DestinationRule {
	root := r.mesh.now.RootNamespace
	places := []string{namespace, serviceNamespace, root}
	if namespace == root {
		places = places[1:]
	}
	for i, place := range places {
		if place == "" || slices.Contains(places[:i], place) {
			continue
		}
		if found := r.rulesIn(place, namespace, labels, host); len(found) > 0 {
			return found
		}
	}
	return nil
}

func (r *Registry) rulesIn(place, namespace string, labels map[string]string, host string) []*DestinationRule {
	var found []*DestinationRule
	for _, rule := range r.traffic.rules[place] {
		selector := rule.Selector()
		switch {
		case !HostMatches(rule.Host, host):
		case len(selector) > 0 && (place != namespace || !Matches(selector, labels)): // it is for workloads of its namespace
		case place != namespace && !r.ruleExportTo(rule).Visible(namespace):
		default:
			found = append(found, rule)
		}
	}
	slices.SortFunc(found, func(a, b *DestinationRule) int {
		if d := moreSpecific(a.Host, b.Host); d != 0 {
			return d
		}
		if sa, sb := selects(a.Selector()), selects(b.Selector()); sa != sb {
			return sb - sa
		}
		return byAge(a.CreationTimestamp.Time, b.CreationTimestamp.Time, a.DestinationRule.Name, b.DestinationRule.Name)
	})
	for i, rule := range found {
		if rule.Host != found[0].Host {
			return found[:i]
		}
	}
	return found
}

func selects(selector map[string]string) int {
	if len(selector) > 0 {
		return 1
	}
	return 0
}

func byAge(a, b time.Time, aName, bName string) int {
	if olderThan(a, b, Name{Name: aName}, Name{Name: bName}) {
		return -1
	}
	return 1
}

// VirtualServices returns those that apply to the calls of workloads in the namespace to the host: bound to the mesh
// (SR-15), exported to the namespace, and with the most specific host that covers it; oldest first.
func (r *Registry) VirtualServices(namespace, host string) []*VirtualService {
	type match struct {
		*VirtualService
		host string
	}
	var found []match
	for _, v := range r.traffic.virtual {
		if !v.Mesh || !r.VirtualExportTo(v).Visible(namespace) {
			continue
		}
		best := ""
		for _, h := range v.Hosts {
			if HostMatches(h, host) && (best == "" || moreSpecific(h, best) < 0) {
				best = h
			}
		}
		if best != "" {
			found = append(found, match{v, best})
		}
	}
	slices.SortFunc(found, func(a, b match) int {
		if d := moreSpecific(a.host, b.host); d != 0 {
			return d
		}
		return byAge(a.CreationTimestamp.Time, b.CreationTimestamp.Time, a.Key().String(), b.Key().String())
	})
	var out []*VirtualService
	for _, m := range found {
		if m.host == found[0].host {
			out = append(out, m.VirtualService)
		}
	}
	return out
}

// outboundMode is a Sidecar's policy for hosts in no registry; ok is false when it leaves that to the mesh.
func outboundMode(p *networking.OutboundTrafficPolicy) (registryOnly, ok bool) {
	if p == nil {
		return false, false
	}
	return p.GetMode() == networking.OutboundTrafficPolicy_REGISTRY_ONLY, true
}
