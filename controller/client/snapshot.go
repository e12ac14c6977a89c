// Package client is the nodes' and the CLI's view of the mesh: a delta ADS client that keeps an immutable,
// generation-stamped Snapshot of workloads, services, policies and settings.
//
// Invariants: a Snapshot never changes and may be read from any goroutine; a change of one resource derives the next one
// in O(log n); what has not arrived is never taken for "nothing applies" (Client.Snapshot is nil until every type arrived,
// PoliciesComplete is false while something that a workload names is missing).
package client

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
	"time"

	meshv1alpha1 "istio.io/api/mesh/v1alpha1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/securityapi"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
)

// Workload is one workload of a snapshot, with what its resource only refers to. It never changes.
type Workload struct {
	*workloadapi.Workload
	Addrs    []netip.Addr               // unmapped
	Settings *settings.WorkloadSettings // never nil; the default when none are named or arrived
	Identity api.Identity               // trust domain of the mesh and account "default" filled in
	// Labels are those that some rule asks for, and nil without any.
	Labels map[string]string
	// Terminating: it is being deleted and still serves. Its status is UNHEALTHY.
	Terminating bool
	// Weights by service (namespace/host), in the place of the capacity.
	Weights map[string]uint32

	settingsName string
	incomplete   bool // the settings that it names are not there
}

// SettingsName is the name of the settings that it names, "" for none.
func (w *Workload) SettingsName() string { return w.settingsName }

// Service is one service of a snapshot. It never changes.
type Service struct {
	*workloadapi.Service
	VIPs     []netip.Addr              // single addresses, unmapped; networks are found by ServiceByIP only
	Settings *settings.ServiceSettings // never nil

	networks []netKey
}

// Created is when the service was declared; zero for services of Kubernetes that lead to no name of DNS.
func (s *Service) Created() time.Time {
	if s.Settings.GetCreated() == nil {
		return time.Time{}
	}
	return s.Settings.GetCreated().AsTime()
}

// name is a key of two parts, "namespace/name", that is looked up without joining them.
type name struct{ namespace, name string }

type ipKey struct {
	network string
	ip      netip.Addr
}

// members are the workloads of one service; the sorted list is made when it is first asked for.
type members struct {
	set  pmap[string, *Workload]
	once sync.Once
	list []*Workload
}

// Snapshot is the mesh at one moment. All methods are safe for concurrent use, do not block, and return shared values
// that must not be modified.
type Snapshot struct {
	generation uint64
	mesh       *settings.MeshSettings
	defaults   *CallDefaults
	config     *meshv1alpha1.ProxyConfig

	workloads  pmap[string, *Workload]
	byIP       pmap[ipKey, []*Workload]  // sorted by preference; host-network workloads are not listed
	byName     pmap[name, []*Workload]   // sorted by uid
	byHostname pmap[string, []*Workload] // sorted by uid
	services   pmap[name, *Service]
	byHost     pmap[string, []*Service] // by hostname, sorted by namespace
	byVIP      pmap[ipKey, []*Service]  // sorted by claim
	networks   pmap[netKey, []*Service] // sorted as byVIP
	lengths    []length                 // of networks, longest first
	members    pmap[name, *members]
	settings   pmap[string, *settings.WorkloadSettings]
	bySettings pmap[string, pmap[string, struct{}]] // settings name -> uids
	scopes     pmap[string, *settings.Scope]

	policies   pmap[name, *securityapi.Authorization]
	nsPolicies pmap[string, []*securityapi.Authorization] // scope NAMESPACE, sorted by name
	global     []*securityapi.Authorization               // scope GLOBAL, sorted by namespace/name

	rules    pmap[string, *CallRule] // by namespace/name
	rulesFor pmap[name, []*CallRule] // by namespace of the rule and host
	patterns pmap[string, int]       // how many rules of a namespace are for a host that begins with "*"

	routes    pmap[string, *RouteRule]   // by namespace/name
	routesFor pmap[string, []*RouteRule] // by host, sorted by age
}

// Generation counts the controller's compiled snapshots; connections are logged with it.
func (s *Snapshot) Generation() uint64 { return s.generation }

// Mesh is never nil; fields that the controller left empty have their defaults.
func (s *Snapshot) Mesh() *settings.MeshSettings { return s.mesh }

// WorkloadByUID returns nil when there is none.
func (s *Snapshot) WorkloadByUID(uid string) *Workload { return s.workloads.at(uid) }

// WorkloadByIP returns the workload that owns an address, nil when there is none. An address of a node's own network
// belongs to no workload, since all host-network pods share it. When several claim one (a pod that ended and its
// successor), the healthy one wins, then the one with the smaller uid.
func (s *Snapshot) WorkloadByIP(network string, ip netip.Addr) *Workload {
	return first(s.byIP.at(ipKey{network, ip.Unmap()}))
}

// WorkloadByName returns nil when there is none; of several clusters' pods of one name it returns the one with the
// smallest uid.
func (s *Snapshot) WorkloadByName(namespace, pod string) *Workload {
	return first(s.byName.at(name{namespace, pod}))
}

// ServiceByIP returns the service with that virtual address, else the one with the longest network that holds it, else
// nil. Of several with one address that of Kubernetes is returned, else the oldest.
func (s *Snapshot) ServiceByIP(network string, ip netip.Addr) *Service {
	ip = ip.Unmap()
	if svc := first(s.byVIP.at(ipKey{network, ip})); svc != nil {
		return svc
	}
	for list := range s.networksOf(network, ip) {
		return list[0]
	}
	return nil
}

// ServiceByHost returns nil when there is none. The hostname is the fully qualified one.
func (s *Snapshot) ServiceByHost(namespace, hostname string) *Service {
	return s.services.at(name{namespace, hostname})
}

// ServicesByHost returns the services of that full hostname, which several namespaces may declare, sorted by namespace. The slice
// is shared.
func (s *Snapshot) ServicesByHost(hostname string) []*Service { return s.byHost.at(hostname) }

// Endpoints returns all members of a service, of any status, sorted by uid. The slice is shared.
func (s *Snapshot) Endpoints(svc *Service) []*Workload {
	if svc == nil {
		return nil
	}
	return s.Members(svc.GetNamespace(), svc.GetHostname())
}

// Members is Endpoints for a service by its name, which need not have arrived.
func (s *Snapshot) Members(namespace, hostname string) []*Workload {
	m := s.members.at(name{namespace, hostname})
	if m == nil {
		return nil
	}
	m.once.Do(func() {
		m.list = make([]*Workload, 0, m.set.size)
		for _, w := range m.set.all() {
			m.list = append(m.list, w)
		}
		slices.SortFunc(m.list, byUID)
	})
	return m.list
}

// Workloads returns every workload, sorted by uid: O(n log n), for the CLI and for reconciliation.
func (s *Snapshot) Workloads() []*Workload {
	list := make([]*Workload, 0, s.workloads.size)
	for _, w := range s.workloads.all() {
		list = append(list, w)
	}
	slices.SortFunc(list, byUID)
	return list
}

// Services returns every service, sorted by namespace and hostname: O(n log n), for the CLI and for name resolution.
func (s *Snapshot) Services() []*Service {
	list := make([]*Service, 0, s.services.size)
	for _, svc := range s.services.all() {
		list = append(list, svc)
	}
	slices.SortFunc(list, byHost)
	return list
}

// Policy returns the policy of that name whatever its scope, nil when there is none.
func (s *Snapshot) Policy(namespace, policy string) *securityapi.Authorization {
	return s.policies.at(name{namespace, policy})
}

// Policies returns the policies in force for a workload: those that it names, those of its namespace, those of the mesh
// (AZ-07). Check PoliciesComplete as well: a named policy that has not arrived is not in the list.
func (s *Snapshot) Policies(w *Workload) []*securityapi.Authorization {
	if w == nil {
		return nil
	}
	ns := s.nsPolicies.at(w.GetNamespace())
	out := make([]*securityapi.Authorization, 0, len(w.GetAuthorizationPolicies())+len(ns)+len(s.global))
	for _, ref := range w.GetAuthorizationPolicies() {
		p := s.policies.at(parseName(ref))
		if p == nil || p.GetScope() == securityapi.Scope_GLOBAL ||
			p.GetScope() == securityapi.Scope_NAMESPACE && p.GetNamespace() == w.GetNamespace() {
			continue // not arrived, or in one of the lists below
		}
		out = append(out, p)
	}
	return append(append(out, ns...), s.global...)
}

// PoliciesComplete is false while a policy or the settings that the workload names have not arrived; callers then fail
// closed with reason.NotReady. It is true for nil: what the mesh does not know has no policies.
func (s *Snapshot) PoliciesComplete(w *Workload) bool {
	if w == nil {
		return true
	}
	if w.incomplete {
		return false
	}
	for _, ref := range w.GetAuthorizationPolicies() {
		if s.policies.at(parseName(ref)) == nil {
			return false
		}
	}
	return true
}

// ScopeOf returns what limits the workload's view of the mesh (SR-16), nil when nothing does. ok is false while its settings,
// or the scope that they name, have not arrived: what it may reach is not known then.
func (s *Snapshot) ScopeOf(w *Workload) (scope *settings.Scope, ok bool) {
	switch {
	case w == nil:
		return nil, true
	case w.incomplete:
		return nil, false
	case w.Settings.GetScope() == "":
		return nil, true
	}
	return s.scopes.get(w.Settings.GetScope())
}

func first[T any](list []*T) *T {
	if len(list) == 0 {
		return nil
	}
	return list[0]
}

func byUID(a, b *Workload) int { return cmp.Compare(a.GetUid(), b.GetUid()) }

func byHost(a, b *Service) int {
	return cmp.Or(cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetHostname(), b.GetHostname()))
}

func byPreference(a, b *Workload) int {
	return cmp.Or(cmp.Compare(a.GetStatus(), b.GetStatus()), byUID(a, b))
}

func byPolicyName(a, b *securityapi.Authorization) int {
	return cmp.Or(cmp.Compare(a.GetNamespace(), b.GetNamespace()), cmp.Compare(a.GetName(), b.GetName()))
}
