package proxy

import (
	"container/list"
	"net/netip"
	"sync"
	"time"

	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/policy"
	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/proxy/calls"
)

// affinity remembers where services with ClientIP affinity led the clients of this node, so that a living client stays where
// it is when endpoints are added. As with kube-proxy each port of a service is remembered on its own, a use counts even if the
// endpoint does not answer, and the timeout runs from the last use.
//
// What one pod causes is forgotten first when it is much: a pod that has too many clients, or the most of all when the node
// has too many, loses its oldest. Safe for concurrent use.
type affinity struct {
	clock  clock.Clock
	limits affinityLimits

	mu    sync.Mutex // protects below
	pods  map[*Pod]*podPins
	total int
}

// affinityLimits bound the pins of the node, of one pod, and of one pod at one service.
type affinityLimits struct{ node, pod, service int }

// podPins are what one pod's clients caused.
type podPins struct {
	pins     map[pinKey]*pin
	byAge    *list.List // of *pin, the one used last first
	services map[serviceName]*list.List
}

type serviceName struct{ namespace, hostname string }

type pinKey struct {
	service serviceName
	port    uint16 // of the service
	client  netip.Addr
}

type pin struct {
	pinKey
	to                policy.Endpoint
	used              time.Time
	inPod, inServices *list.Element
}

func newAffinity(c clock.Clock, limits affinityLimits) *affinity {
	return &affinity{clock: c, limits: limits, pods: map[*Pod]*podPins{}}
}

func pinOf(svc *client.Service, port uint16, addr netip.Addr) pinKey {
	return pinKey{serviceName{svc.GetNamespace(), svc.GetHostname()}, port, addr.Unmap()}
}

// add begins to remember for the pod, and remove forgets all that its clients caused.
func (a *affinity) add(pod *Pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pods[pod] = &podPins{pins: map[pinKey]*pin{}, byAge: list.New(), services: map[serviceName]*list.List{}}
}

func (a *affinity) remove(pod *Pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p := a.pods[pod]; p != nil {
		a.total -= len(p.pins)
		delete(a.pods, pod)
	}
}

// last is where the client was led within the timeout, zero when that is nowhere.
func (a *affinity) last(pod *Pod, key pinKey, timeout time.Duration) policy.Endpoint {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.pods[pod]
	if p == nil {
		return policy.Endpoint{}
	}
	e := p.pins[key]
	switch {
	case e == nil:
		return policy.Endpoint{}
	case a.clock.Now().Sub(e.used) >= timeout:
		a.dropLocked(p, e)
		return policy.Endpoint{}
	}
	return e.to
}

// note says where the client was led now; zero is nowhere. It is without effect for a pod that was removed.
func (a *affinity) note(pod *Pod, key pinKey, to policy.Endpoint, timeout time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.pods[pod]
	if p == nil {
		return
	}
	e := p.pins[key]
	if to == (policy.Endpoint{}) {
		if e != nil {
			a.dropLocked(p, e)
		}
		return
	}
	now := a.clock.Now()
	if e != nil {
		e.to, e.used = to, now
		p.byAge.MoveToFront(e.inPod)
		p.services[key.service].MoveToFront(e.inServices)
		return
	}
	service := p.services[key.service]
	for service != nil { // what is over gives its place
		oldest := oldestOf(service)
		if now.Sub(oldest.used) < timeout && service.Len() < a.limits.service {
			break
		}
		a.dropLocked(p, oldest)
		service = p.services[key.service]
	}
	if len(p.pins) >= a.limits.pod {
		a.dropLocked(p, oldestOf(p.byAge))
	}
	if a.total >= a.limits.node {
		largest := a.largestLocked()
		a.dropLocked(largest, oldestOf(largest.byAge))
	}
	if service = p.services[key.service]; service == nil {
		service = list.New()
		p.services[key.service] = service
	}
	e = &pin{pinKey: key, to: to, used: now}
	e.inPod, e.inServices = p.byAge.PushFront(e), service.PushFront(e)
	p.pins[key] = e
	a.total++
}

func oldestOf(l *list.List) *pin { return l.Back().Value.(*pin) }

func (a *affinity) largestLocked() *podPins {
	var largest *podPins
	for _, p := range a.pods {
		if largest == nil || len(p.pins) > len(largest.pins) {
			largest = p
		}
	}
	return largest
}

func (a *affinity) dropLocked(p *podPins, e *pin) {
	delete(p.pins, e.pinKey)
	p.byAge.Remove(e.inPod)
	service := p.services[e.service]
	service.Remove(e.inServices)
	if service.Len() == 0 {
		delete(p.services, e.service)
	}
	a.total--
}

// pin is where the affinity of a service holds the pod's requests now (calls.Pin).
func (pod *Pod) pin(c policy.Caller, svc *client.Service, port uint16) (calls.Endpoint, bool) {
	if c.Workload == nil || len(c.Workload.Addrs) == 0 {
		return calls.Endpoint{}, false
	}
	own := netip.AddrPortFrom(c.Workload.Addrs[0], port)
	s := &session{p: pod.p, pod: pod, src: own, dst: own}
	choice, why := s.pickEndpoint(&way{snap: c.Snapshot, source: c.Workload, view: c.View, svc: svc}, own)
	if why != reason.None {
		return calls.Endpoint{}, false
	}
	return calls.Endpoint{UID: choice.Workload.GetUid(), Port: choice.Port}, true
}

// pickEndpoint asks policy for an endpoint of r.svc, the next in turn, and keeps the promise of its ClientIP affinity.
func (s *session) pickEndpoint(r *way, dst netip.AddrPort) (policy.Choice, reason.Reason) {
	svc := r.svc
	q := policy.PickQuery{
		Snapshot: r.snap, Service: svc, Port: dst.Port(), Source: r.source, Client: s.judgedSource(dst.Addr()).Addr(),
	}
	if svc.Settings.GetClientIpAffinity() == nil {
		turn := turnKey{serviceName{svc.GetNamespace(), svc.GetHostname()}, q.Port}
		return policy.Pick(q, s.pod.turns.of(turn, s.p.cfg.Rand))
	}
	timeout := svc.Settings.GetClientIpAffinity().AsDuration()
	key := pinOf(svc, q.Port, q.Client)
	q.Last = s.p.affinity.last(s.pod, key, timeout)
	choice, why := policy.Pick(q, s.p.cfg.Rand)
	var to policy.Endpoint
	if why == reason.None {
		to = choice.Endpoint()
	}
	s.p.affinity.note(s.pod, key, to, timeout)
	return choice, why
}
