package model

import (
	"net/netip"
	"slices"
	"time"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// Config holds what the mesh's ConfigMap may change and what it may not.
type Config struct {
	Mesh             Mesh   // defaults
	InstallNamespace string // where the mesh's ConfigMap is
	RequireMesh      bool   // the installation makes that ConfigMap: without it the configuration is not known
	ClusterDomain    string // of short host names; default cluster.local
}

// Registry is the state of all objects.
type Registry struct {
	cfg      Config
	mesh     meshState
	pods     map[Name]*Pod
	services map[Name]*Service
	slices   map[Name]*Slice
	nodes    map[string]Node
	peers    map[Name]*PeerAuthentication
	policies map[Name]*AuthorizationPolicy

	podsByLabel    labelIndex
	podsByNode     map[string]map[Name]*Pod
	podsByIP       map[netip.Addr][]*Pod // not those on the host network
	nodesByIP      map[netip.Addr]map[string]bool
	servicesByPair selectorIndex
	slicesByIP     map[netip.Addr]map[Name]bool
	slicesOf       map[Name]map[Name]bool // service → slices
	policiesByPair selectorIndex          // those with label targets
	policiesOf     map[Name]map[Name]bool // service → policies that target it
	peersByPair    selectorIndex
	without        map[Name]string // service that policies target → why it has no workload, "" when it has one
	external       external
	traffic        traffic
	keyring        keyring
}

// Dirty names what must be compiled again.
type Dirty struct {
	All      bool // everything
	Mesh     bool
	Pods     map[Name]bool
	Services map[Name]bool
	Slices   map[Name]bool
	Policies map[Name]bool
	Peers    map[Name]bool
	Rules    map[Name]bool // DestinationRules
	Virtual  map[Name]bool // VirtualServices
	// ServiceEntries and WorkloadEntries.
	Entries   map[Name]bool
	Workloads map[Name]bool
	Keys      map[string]bool // sources of keys
	Keyring   bool            // Registry.KeyFindings

	targets map[Name]bool // services that policies target and whose workloads may have changed
}

func newDirty() *Dirty {
	return &Dirty{Pods: map[Name]bool{}, Services: map[Name]bool{}, Slices: map[Name]bool{}, Policies: map[Name]bool{},
		Peers: map[Name]bool{}, Rules: map[Name]bool{}, Virtual: map[Name]bool{}, Entries: map[Name]bool{}, Workloads: map[Name]bool{}, Keys: map[string]bool{}, targets: map[Name]bool{}}
}

// New returns an empty registry.
func New(cfg Config) *Registry {
	r := &Registry{cfg: cfg, mesh: meshState{now: cfg.Mesh}, pods: map[Name]*Pod{}, services: map[Name]*Service{},
		slices: map[Name]*Slice{}, nodes: map[string]Node{}, peers: map[Name]*PeerAuthentication{},
		policies: map[Name]*AuthorizationPolicy{}, podsByLabel: labelIndex{}, podsByNode: map[string]map[Name]*Pod{},
		podsByIP: map[netip.Addr][]*Pod{}, nodesByIP: map[netip.Addr]map[string]bool{}, servicesByPair: selectorIndex{}, slicesByIP: map[netip.Addr]map[Name]bool{},
		slicesOf: map[Name]map[Name]bool{}, policiesByPair: selectorIndex{}, policiesOf: map[Name]map[Name]bool{},
		peersByPair: selectorIndex{}, without: map[Name]string{}, external: newExternal(), traffic: newTraffic(), keyring: newKeyring()}
	r.traffic.labels.ask(asker{kind: KindConfigMap}, time.Time{}, meshUses(cfg.Mesh))
	return r
}

// Apply takes in the events and returns what depends on them, on the objects as they were and as they are.
// An object of the wrong type for its kind panics: it is a defect of the caller.
func (r *Registry) Apply(events []Event) *Dirty {
	d := newDirty()
	for _, e := range events {
		switch e.Kind {
		case KindPod:
			r.applyPod(e, d)
		case KindService:
			r.applyService(e, d)
		case KindEndpointSlice:
			r.applySlice(e, d)
		case KindNode:
			r.applyNode(e, d)
		case KindConfigMap:
			r.applyMesh(e, d)
			r.applyKeys(e, d)
		case KindPeerAuthentication:
			r.applyPeer(e, d)
		case KindAuthorizationPolicy:
			r.applyPolicy(e, d)
		case KindRequestAuthentication:
			r.applyRequest(e, d)
			r.applyIssuers(e, d)
		case KindServiceEntry:
			r.applyEntry(e, d)
		case KindWorkloadEntry:
			r.applyWorkload(e, d)
		case KindDestinationRule, KindVirtualService, KindSidecar:
			r.applyTraffic(e, d)
		}
	}
	r.settleMesh(d)
	r.settleLabels(d)
	r.settleTargets(d)
	r.settleEntries(d)
	r.settleKeys(d)
	if d.All {
		r.markAll(d)
	}
	return d
}

// settleTargets marks the policies of services that got their first workload or lost their last one: their status says it.
func (r *Registry) settleTargets(d *Dirty) {
	for service := range d.targets {
		policies := r.policiesOf[service]
		if len(policies) == 0 {
			delete(r.without, service)
			continue
		}
		now := r.WithoutWorkload(service)
		if was, known := r.without[service]; known && was == now {
			continue
		}
		r.without[service] = now
		for n := range policies {
			d.Policies[n] = true
		}
	}
}

func (r *Registry) markAll(d *Dirty) {
	for n := range r.pods {
		d.Pods[n] = true
	}
	for n := range r.services {
		d.Services[n] = true
	}
	for n := range r.slices {
		d.Slices[n] = true
	}
	for n := range r.policies {
		d.Policies[n] = true
	}
	for n := range r.peers {
		d.Peers[n] = true
	}
	r.markExternal(d)
	r.markRules(d)
	r.markKeys(d)
	d.Mesh = true
}

func (r *Registry) applyPod(e Event, d *Dirty) {
	d.Pods[e.Name] = true
	if old := r.pods[e.Name]; old != nil {
		r.dirtyServices(old, d)
		delete(r.pods, e.Name)
		r.podsByLabel.remove(old)
		unlink(r.podsByNode, old.Node, old.Name)
		for _, ip := range old.IPs {
			if !old.HostNetwork {
				r.unlinkIP(ip, old)
				r.occupy(ip, -1)
			}
			r.dirtyAddress(ip, d)
		}
	}
	if e.Object == nil {
		return
	}
	pod := PodOf(e.Object)
	if pod == nil {
		return
	}
	r.pods[e.Name] = pod
	r.podsByLabel.add(pod)
	link(r.podsByNode, pod.Node, pod.Name, pod)
	for _, ip := range pod.IPs {
		if !pod.HostNetwork {
			r.podsByIP[ip] = append(r.podsByIP[ip], pod)
			r.occupy(ip, 1)
		}
		r.dirtyAddress(ip, d)
	}
	r.dirtyServices(pod, d)
}

// unlinkIP forgets that the pod has the address; hardly an address has more than one.
func (r *Registry) unlinkIP(ip netip.Addr, p *Pod) {
	left := slices.DeleteFunc(r.podsByIP[ip], func(o *Pod) bool { return o == p })
	if len(left) == 0 {
		delete(r.podsByIP, ip)
	} else {
		r.podsByIP[ip] = left
	}
}

// dirtyServices marks the targeted services that the pod is in.
func (r *Registry) dirtyServices(p *Pod, d *Dirty) {
	if len(r.policiesOf) == 0 {
		return
	}
	r.servicesByPair.candidates(p.Namespace, p.Labels, func(n Name) { d.target(r, n) })
	for _, slice := range r.SlicesOf(p) {
		d.target(r, slice.Service)
	}
}

func (d *Dirty) target(r *Registry, service Name) {
	if len(r.policiesOf[service]) > 0 {
		d.targets[service] = true
	}
}

// dirtyAddress marks what depends on whether a pod has the address: slices that list it, and the other pods with it.
func (r *Registry) dirtyAddress(ip netip.Addr, d *Dirty) {
	for n := range r.slicesByIP[ip] {
		d.Slices[n] = true
	}
	r.dirtyClaims(ip, d)
}

func (r *Registry) applyService(e Event, d *Dirty) {
	d.Services[e.Name] = true
	d.target(r, e.Name)
	mark := func(s *Service) {
		if len(s.Spec.Selector) > 0 {
			r.podsByLabel.selected(s.Namespace, s.Spec.Selector, func(p *Pod) { d.Pods[p.Name] = true })
		}
	}
	if old := r.services[e.Name]; old != nil {
		mark(old)
		r.dirtyHost(old, false, d)
		delete(r.services, e.Name)
		r.servicesByPair.remove(e.Name, old.Spec.Selector)
	}
	if e.Object != nil {
		s := newService(e.Object.(*corev1.Service))
		r.services[e.Name] = s
		r.servicesByPair.add(e.Name, s.Spec.Selector)
		mark(s)
		r.dirtyHost(s, true, d)
	}
	for n := range r.slicesOf[e.Name] {
		r.dirtySlice(r.slices[n], d)
	}
}

func (r *Registry) dirtySlice(s *Slice, d *Dirty) {
	d.Slices[Name{s.Namespace, s.EndpointSlice.Name}] = true
	d.target(r, s.Service)
	for _, ip := range s.Addresses() {
		for _, p := range r.podsByIP[ip] {
			d.Pods[p.Name] = true
		}
	}
}

func (r *Registry) applySlice(e Event, d *Dirty) {
	d.Slices[e.Name] = true
	if old := r.slices[e.Name]; old != nil {
		r.dirtySlice(old, d)
		delete(r.slices, e.Name)
		unlink(r.slicesOf, old.Service, e.Name)
		for _, ip := range old.Addresses() {
			unlink(r.slicesByIP, ip, e.Name)
		}
	}
	if e.Object == nil {
		return
	}
	s := newSlice(e.Object.(*discoveryv1.EndpointSlice))
	if s == nil {
		return
	}
	r.slices[e.Name] = s
	link(r.slicesOf, s.Service, e.Name, true)
	for _, ip := range s.Addresses() {
		link(r.slicesByIP, ip, e.Name, true)
	}
	r.dirtySlice(s, d)
}

func (r *Registry) applyNode(e Event, d *Dirty) {
	old := r.nodes[e.Name.Name]
	var now Node
	delete(r.nodes, e.Name.Name)
	if e.Object != nil {
		now = newNode(e.Object.(*corev1.Node))
		r.nodes[e.Name.Name] = now
	}
	if !slices.Equal(old.IPs, now.IPs) {
		for _, ip := range old.IPs {
			unlink(r.nodesByIP, ip, e.Name.Name)
			r.occupy(ip, -1)
			r.dirtyAddress(ip, d)
		}
		for _, ip := range now.IPs {
			link(r.nodesByIP, ip, e.Name.Name, true)
			r.occupy(ip, 1)
			r.dirtyAddress(ip, d)
		}
	}
	if old.Locality != now.Locality {
		for n := range r.podsByNode[e.Name.Name] {
			d.Pods[n] = true
		}
	}
}

func link[K, I comparable, V any](index map[K]map[I]V, key K, item I, value V) {
	if index[key] == nil {
		index[key] = map[I]V{}
	}
	index[key][item] = value
}

func unlink[K, I comparable, V any](index map[K]map[I]V, key K, item I) {
	delete(index[key], item)
	if len(index[key]) == 0 {
		delete(index, key)
	}
}

// Addresses of the slice that are IP addresses.
func (s *Slice) Addresses() []netip.Addr {
	var all []netip.Addr
	for _, e := range s.Endpoints {
		for _, text := range e.Addresses {
			if ip, err := netip.ParseAddr(text); err == nil {
				all = append(all, ip.Unmap())
			}
		}
	}
	return all
}

func (r *Registry) applyPeer(e Event, d *Dirty) {
	mark := func(p *PeerAuthentication) {
		if len(p.Labels) == 0 && p.Namespace == r.mesh.now.RootNamespace {
			r.dirtyWorkloads(d)
			return
		}
		r.dirtyLabelled(p.Namespace, p.Labels, d)
	}
	d.Peers[e.Name] = true
	if old := r.peers[e.Name]; old != nil {
		mark(old)
		delete(r.peers, e.Name)
		r.peersByPair.remove(e.Name, old.Labels)
		r.dirtyRivals(old, d)
	}
	if e.Object != nil {
		now := newPeer(e.Object.(*securityv1.PeerAuthentication), e.Issues)
		r.peers[e.Name] = now
		r.peersByPair.add(e.Name, now.Labels)
		mark(now)
		r.dirtyRivals(now, d)
	}
}

// dirtyRivals marks the policies of the level that may be for the same workloads: which of them counts may have changed.
func (r *Registry) dirtyRivals(p *PeerAuthentication, d *Dirty) {
	for _, names := range r.peersByPair[p.Namespace] {
		for n := range names {
			if o := r.peers[n]; (len(o.Labels) == 0) == (len(p.Labels) == 0) && agree(o.Labels, p.Labels) {
				d.Peers[n] = true
			}
		}
	}
}

func (r *Registry) applyPolicy(e Event, d *Dirty) {
	d.Policies[e.Name] = true
	if old := r.policies[e.Name]; old != nil {
		r.dirtyTargets(old, d)
		delete(r.policies, e.Name)
		for _, t := range old.Targets {
			if t.Service != "" {
				unlink(r.policiesOf, Name{e.Name.Namespace, t.Service}, e.Name)
				d.targets[Name{e.Name.Namespace, t.Service}] = true
			} else {
				r.policiesByPair.remove(e.Name, t.Labels)
			}
		}
	}
	if e.Object == nil {
		return
	}
	r.addPolicy(e.Name, newAuthorization(e.Object.(*securityv1.AuthorizationPolicy), e.Issues), d)
}

func (r *Registry) addPolicy(n Name, p *AuthorizationPolicy, d *Dirty) {
	r.policies[n] = p
	for _, t := range p.Targets {
		if t.Service != "" {
			link(r.policiesOf, Name{n.Namespace, t.Service}, n, true)
			d.targets[Name{n.Namespace, t.Service}] = true
		} else {
			r.policiesByPair.add(n, t.Labels)
		}
	}
	r.dirtyTargets(p, d)
}

func (r *Registry) dirtyTargets(p *AuthorizationPolicy, d *Dirty) {
	for _, t := range p.Targets {
		if t.Service != "" {
			if s := r.services[Name{p.Namespace, t.Service}]; s != nil {
				r.members(s, func(p *Pod) bool { d.Pods[p.Name] = true; return false })
				if len(s.Spec.Selector) > 0 {
					r.dirtySelected(s.Namespace, s.Spec.Selector, d)
				}
			}
			continue
		}
		if p.Namespace != r.mesh.now.RootNamespace {
			r.dirtyLabelled(p.Namespace, t.Labels, d)
			continue
		}
		for ns := range r.podsByLabel {
			r.podsByLabel.selected(ns, t.Labels, func(p *Pod) { d.Pods[p.Name] = true })
		}
		for ns := range r.external.workloads {
			r.dirtySelected(ns, t.Labels, d)
		}
	}
}
