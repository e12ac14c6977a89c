package client

import (
	"errors"
	"fmt"
	"hash/maphash"
	"slices"

	"google.golang.org/protobuf/proto"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/securityapi"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
)

// NewSnapshot builds a snapshot of the given resources, for tests, the simulation and the directory mode. It takes all
// of them or returns an error that names each bad one and its field.
func NewSnapshot(resources ...Resource) (*Snapshot, error) {
	return empty().With(1, resources, nil)
}

// With derives a snapshot of the given generation with the upserts applied, then the removals; what is unchanged is
// shared. It applies all or returns an error that names each bad resource and its field.
func (s *Snapshot) With(generation uint64, upserts []Resource, removed []Key) (*Snapshot, error) {
	all := make([]parsed, 0, len(upserts))
	var bad []error
	for _, r := range upserts {
		p, err := parse(r)
		if err != nil {
			bad = append(bad, err)
			continue
		}
		all = append(all, p)
	}
	if len(bad) > 0 {
		return nil, errors.Join(bad...)
	}
	for _, k := range removed {
		if !Understands(k.Type) {
			return nil, fmt.Errorf("remove resource %q: unknown type %q", k.Name, k.Type)
		}
	}
	return s.with(generation, all, removed), nil
}

func empty() *Snapshot {
	seed := maphash.MakeSeed()
	return &Snapshot{
		mesh:       meshDefaults(nil),
		defaults:   noDefaults(),
		config:     &meshv1alpha1.ProxyConfig{},
		workloads:  newPmap[string, *Workload](seed),
		byIP:       newPmap[ipKey, []*Workload](seed),
		byName:     newPmap[name, []*Workload](seed),
		byHostname: newPmap[string, []*Workload](seed),
		services:   newPmap[name, *Service](seed),
		byHost:     newPmap[string, []*Service](seed),
		byVIP:      newPmap[ipKey, []*Service](seed),
		networks:   newPmap[netKey, []*Service](seed),
		members:    newPmap[name, *members](seed),
		settings:   newPmap[string, *settings.WorkloadSettings](seed),
		bySettings: newPmap[string, pmap[string, struct{}]](seed),
		scopes:     newPmap[string, *settings.Scope](seed),
		policies:   newPmap[name, *securityapi.Authorization](seed),
		nsPolicies: newPmap[string, []*securityapi.Authorization](seed),
		rules:      newPmap[string, *CallRule](seed),
		rulesFor:   newPmap[name, []*CallRule](seed),
		patterns:   newPmap[string, int](seed),
		routes:     newPmap[string, *RouteRule](seed),
		routesFor:  newPmap[string, []*RouteRule](seed),
	}
}

func (s *Snapshot) with(generation uint64, upserts []parsed, removed []Key) *Snapshot {
	return s.withBatches(generation, batch{upserts, removed})
}

// withBatches applies each batch, upserts before removals, in order.
func (s *Snapshot) withBatches(generation uint64, batches ...batch) *Snapshot {
	next := *s
	next.generation = generation
	b := &builder{s: &next, edit: new(owner), fresh: map[name]bool{}}
	for _, part := range batches {
		for _, p := range part.good {
			b.put(p)
		}
		for _, k := range part.removed {
			b.remove(k)
		}
	}
	return &next
}

// builder changes a snapshot that nobody else has seen yet.
type builder struct {
	s     *Snapshot
	edit  *owner
	fresh map[name]bool // member sets that this edit made
}

func (b *builder) put(p parsed) {
	switch {
	case p.workload != nil:
		b.putWorkload(p.workload)
	case p.service != nil:
		b.putService(p.service)
	case p.policy != nil:
		b.removePolicy(name{p.policy.GetNamespace(), p.policy.GetName()})
		b.putPolicy(p.policy)
	case p.mesh != nil:
		b.setMesh(p.mesh)
		b.setDefaults(p.defaults)
		b.setDefaultConfig(p.config)
	case p.settings != nil:
		b.s.settings = b.s.settings.set(b.edit, p.name, p.settings)
		b.refreshUsers(p.name)
	case p.scope != nil:
		b.s.scopes = b.s.scopes.set(b.edit, p.name, p.scope)
	case p.rule != nil:
		b.removeRule(p.name)
		b.putRule(p.rule)
	case p.routes != nil:
		b.putRoutes(p.routes)
	}
}

func (b *builder) remove(k Key) {
	switch k.Type {
	case api.AddressType:
		if b.s.workloads.at(k.Name) != nil {
			b.removeWorkload(k.Name)
		} else {
			b.removeService(parseName(k.Name))
		}
	case api.AuthorizationType:
		b.removePolicy(parseName(k.Name))
	case api.MeshSettingsType:
		if k.Name == api.MeshSettingsName {
			b.setMesh(nil)
			b.setDefaults(noDefaults())
		}
	case api.WorkloadSettingsType:
		b.s.settings = b.s.settings.delete(b.edit, k.Name)
		b.refreshUsers(k.Name)
	case api.ScopeType:
		b.s.scopes = b.s.scopes.delete(b.edit, k.Name)
	case api.CallRuleType:
		b.removeRule(k.Name)
	case api.RouteRuleType:
		b.removeRoutes(k.Name)
	}
}

// setMesh takes new mesh settings; workloads that name no trust domain follow the mesh's.
func (b *builder) setMesh(m *settings.MeshSettings) {
	old := b.s.mesh.GetTrustDomain()
	b.s.mesh = meshDefaults(m)
	if b.s.mesh.GetTrustDomain() == old {
		return
	}
	for _, w := range b.s.Workloads() {
		if w.GetTrustDomain() == "" {
			b.putWorkload(w)
		}
	}
}

func meshDefaults(m *settings.MeshSettings) *settings.MeshSettings {
	out := &settings.MeshSettings{}
	if m != nil {
		out = proto.CloneOf(m)
	}
	out.TrustDomain = cmpOr(out.GetTrustDomain(), api.DefaultTrustDomain)
	out.RootNamespace = cmpOr(out.GetRootNamespace(), api.DefaultRootNamespace)
	out.ClusterDomain = cmpOr(out.GetClusterDomain(), api.DefaultClusterDomain)
	return out
}

// refreshUsers resolves the workloads that name the settings anew.
func (b *builder) refreshUsers(settingsName string) {
	users := b.s.bySettings.at(settingsName)
	if users.size == 0 {
		return
	}
	uids := make([]string, 0, users.size)
	for uid := range users.all() {
		uids = append(uids, uid)
	}
	for _, uid := range uids {
		b.putWorkload(b.s.workloads.at(uid))
	}
}

// resolve fills in what the resource only refers to. It returns a new value: w may be in an older snapshot.
func (b *builder) resolve(w *Workload) *Workload {
	out := *w
	out.Identity.TrustDomain = cmpOr(w.GetTrustDomain(), b.s.mesh.GetTrustDomain())
	out.Settings, out.incomplete = &settings.WorkloadSettings{}, false
	if w.settingsName != "" {
		if set, ok := b.s.settings.get(w.settingsName); ok {
			out.Settings = set
		} else {
			out.incomplete = true
		}
	}
	return &out
}

func (b *builder) putWorkload(w *Workload) {
	uid := w.GetUid()
	b.removeWorkload(uid)
	w = b.resolve(w)
	s, e := b.s, b.edit
	s.workloads = s.workloads.set(e, uid, w)
	for _, k := range ipKeys(w) {
		s.byIP = s.byIP.set(e, k, insert(s.byIP.at(k), w, byPreference))
	}
	n := name{w.GetNamespace(), w.GetName()}
	s.byName = s.byName.set(e, n, insert(s.byName.at(n), w, byUID))
	b.putHostname(w)
	for key := range w.GetServices() {
		m := b.memberSet(parseName(key))
		m.set = m.set.set(e, uid, w)
	}
	if w.settingsName != "" {
		users, ok := s.bySettings.get(w.settingsName)
		if !ok {
			users = newPmap[string, struct{}](s.bySettings.seed)
		}
		s.bySettings = s.bySettings.set(e, w.settingsName, users.set(e, uid, struct{}{}))
	}
}

func (b *builder) removeWorkload(uid string) {
	s, e := b.s, b.edit
	w := s.workloads.at(uid)
	if w == nil {
		return
	}
	s.workloads = s.workloads.delete(e, uid)
	for _, k := range ipKeys(w) {
		s.byIP = put(s.byIP, e, k, drop(s.byIP.at(k), w))
	}
	n := name{w.GetNamespace(), w.GetName()}
	s.byName = put(s.byName, e, n, drop(s.byName.at(n), w))
	b.dropHostname(w)
	for key := range w.GetServices() {
		n := parseName(key)
		m := b.memberSet(n)
		if m.set = m.set.delete(e, uid); m.set.size == 0 {
			s.members = s.members.delete(e, n)
			delete(b.fresh, n)
		}
	}
	if w.settingsName != "" {
		users := s.bySettings.at(w.settingsName).delete(e, uid)
		if users.size == 0 {
			s.bySettings = s.bySettings.delete(e, w.settingsName)
		} else {
			s.bySettings = s.bySettings.set(e, w.settingsName, users)
		}
	}
}

// memberSet returns a member set that this edit may change.
func (b *builder) memberSet(n name) *members {
	m := b.s.members.at(n)
	if m != nil && b.fresh[n] {
		return m
	}
	next := &members{}
	if m != nil {
		next.set = m.set
	} else {
		next.set = newPmap[string, *Workload](b.s.members.seed)
	}
	b.fresh[n] = true
	b.s.members = b.s.members.set(b.edit, n, next)
	return next
}

func (b *builder) putService(svc *Service) {
	n := name{svc.GetNamespace(), svc.GetHostname()}
	b.removeService(n)
	s, e := b.s, b.edit
	s.services = s.services.set(e, n, svc)
	s.byHost = s.byHost.set(e, n.name, insert(s.byHost.at(n.name), svc, byHost))
	for _, k := range vipKeys(svc) {
		s.byVIP = s.byVIP.set(e, k, insert(s.byVIP.at(k), svc, byClaim))
	}
	b.putNetworks(svc)
}

func (b *builder) removeService(n name) {
	s, e := b.s, b.edit
	svc := s.services.at(n)
	if svc == nil {
		return
	}
	s.services = s.services.delete(e, n)
	s.byHost = put(s.byHost, e, n.name, drop(s.byHost.at(n.name), svc))
	for _, k := range vipKeys(svc) {
		s.byVIP = put(s.byVIP, e, k, drop(s.byVIP.at(k), svc))
	}
	b.dropNetworks(svc)
}

func (b *builder) putPolicy(p *securityapi.Authorization) {
	s, e := b.s, b.edit
	s.policies = s.policies.set(e, name{p.GetNamespace(), p.GetName()}, p)
	switch p.GetScope() {
	case securityapi.Scope_WORKLOAD_SELECTOR: // found by the workloads that name it
	case securityapi.Scope_NAMESPACE:
		ns := p.GetNamespace()
		s.nsPolicies = s.nsPolicies.set(e, ns, insert(s.nsPolicies.at(ns), p, byPolicyName))
	default: // GLOBAL; a scope that this build does not know must not reach fewer workloads than was meant
		s.global = insert(s.global, p, byPolicyName)
	}
}

func (b *builder) removePolicy(n name) {
	s, e := b.s, b.edit
	p := s.policies.at(n)
	if p == nil {
		return
	}
	s.policies = s.policies.delete(e, n)
	s.nsPolicies = put(s.nsPolicies, e, n.namespace, drop(s.nsPolicies.at(n.namespace), p))
	s.global = drop(s.global, p)
}

// ipKeys are the addresses by which a workload is found; each once.
func ipKeys(w *Workload) []ipKey {
	if w.GetNetworkMode() == workloadapi.NetworkMode_HOST_NETWORK {
		return nil
	}
	keys := make([]ipKey, 0, len(w.Addrs))
	for _, ip := range w.Addrs {
		if k := (ipKey{w.GetNetwork(), ip}); !slices.Contains(keys, k) {
			keys = append(keys, k)
		}
	}
	return keys
}

func vipKeys(svc *Service) []ipKey {
	keys := make([]ipKey, 0, len(svc.VIPs))
	i := 0
	for _, a := range svc.GetAddresses() {
		if a.GetLength() != nil && a.GetLength().GetValue() < uint32(len(a.GetAddress())*8) {
			continue // a network
		}
		if k := (ipKey{a.GetNetwork(), svc.VIPs[i]}); !slices.Contains(keys, k) {
			keys = append(keys, k)
		}
		i++
	}
	return keys
}

// insert returns a sorted copy of list with v.
func insert[T any](list []*T, v *T, order func(a, b *T) int) []*T {
	i, _ := slices.BinarySearchFunc(list, v, order)
	return slices.Insert(slices.Clip(list), i, v)
}

// drop returns a copy of list without v, list itself when v is not in it.
func drop[T any](list []*T, v *T) []*T {
	i := slices.Index(list, v)
	if i < 0 {
		return list
	}
	return slices.Delete(slices.Clone(list), i, i+1)
}

// put stores a list, or removes the key of an empty one.
func put[K comparable, T any](m pmap[K, []*T], e *owner, k K, list []*T) pmap[K, []*T] {
	if len(list) == 0 {
		return m.delete(e, k)
	}
	return m.set(e, k, list)
}
