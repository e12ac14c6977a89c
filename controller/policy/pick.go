package policy

import (
	"math"
	"net/netip"
	"slices"

	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
)

// Rand chooses: by chance, as *math/rand/v2.Rand does, or in turn. IntN returns a number in [0, n), n > 0.
type Rand interface{ IntN(n int) int }

// PickQuery is what Pick decides on.
type PickQuery struct {
	Snapshot *client.Snapshot
	Service  *client.Service
	Port     uint16           // of the service
	Source   *client.Workload // nil: not known; it then matches no scope
	Client   netip.Addr       // the source's address as the endpoint would see it
	// Last is where the service's ClientIP affinity led this client at last and within its timeout. Zero: nowhere.
	Last Endpoint
}

// Endpoint is one member of a service, as kube-proxy tells them apart: a pod made anew under the old name is another one.
type Endpoint struct {
	UID  string // of the workload
	Addr netip.Addr
	Port uint16
}

// Choice is the outcome of Pick.
type Choice struct {
	Workload *client.Workload
	Port     uint16 // on the workload: named target ports are resolved
}

// Endpoint is what was chosen, to be remembered as PickQuery.Last.
func (c Choice) Endpoint() Endpoint {
	e := Endpoint{UID: c.Workload.GetUid(), Port: c.Port}
	if len(c.Workload.Addrs) > 0 {
		e.Addr = c.Workload.Addrs[0]
	}
	return e
}

// Pick chooses an endpoint of a service as kube-proxy would. Endpoints count that serve the port and are ready, or any
// with publishNotReadyAddresses (HealthPolicy ALLOW_ALL); without any, those that are terminating and still serve.
// internalTrafficPolicy Local is mode STRICT: only endpoints that match every scope, be they ready or terminating. FAILOVER
// takes the ready ones that match the longest run of scopes, and the terminating ones wherever they are. Among the equally
// good ones, in the order of their uids, r decides in proportion to their weights. With ClientIP affinity the client stays at
// q.Last while that is one of them; without it, a rendezvous hash of the client's address decides, so that no node needs to have
// seen the client for it to come to the same place, as long as the endpoints are the same. The address of a workload without one
// is what its hostname resolves to. It returns reason.NoEndpoint when nothing qualifies, else reason.None.
func Pick(q PickQuery, r Rand) (Choice, reason.Reason) {
	svc := q.Service
	if q.Snapshot == nil || svc == nil {
		return Choice{}, reason.NoEndpoint
	}
	p := picker{svc: svc, key: svc.GetNamespace() + "/" + svc.GetHostname(), port: q.Port, source: q.Source}
	list := q.Snapshot.Endpoints(svc)
	best, total := -1, 0
	for _, w := range list {
		switch rank := p.rank(w); {
		case rank < 0 || rank < best:
		case rank > best:
			best, total = rank, p.weight(w)
		default:
			total += p.weight(w)
		}
	}
	if best < 0 {
		return Choice{}, reason.NoEndpoint
	}
	if svc.Settings.GetClientIpAffinity() != nil {
		if c, ok := p.stay(list, best, q.Last); ok {
			return c, reason.None
		}
		return p.byHash(list, best, q.Client), reason.None
	}
	n := r.IntN(total)
	for _, w := range list {
		if p.rank(w) != best {
			continue
		}
		if n -= p.weight(w); n < 0 {
			return Choice{Workload: w, Port: p.target(w)}, reason.None
		}
	}
	return Choice{}, reason.NoEndpoint
}

type picker struct {
	svc    *client.Service
	key    string
	port   uint16
	source *client.Workload
}

// target is the port of the workload behind the service port, 0 when it does not serve it.
func (p *picker) target(w *client.Workload) uint16 {
	for _, port := range w.GetServices()[p.key].GetPorts() {
		if port.GetServicePort() == uint32(p.port) {
			return uint16(port.GetTargetPort())
		}
	}
	return 0
}

// rank is -1 for an endpoint that does not qualify, 0 for one that is terminating, else one more than the number of leading
// scopes that it shares with the source.
func (p *picker) rank(w *client.Workload) int {
	switch {
	case !p.offers(w):
		return -1
	case !p.ready(w):
		return 0
	case p.svc.GetLoadBalancing().GetMode() == workloadapi.LoadBalancing_UNSPECIFIED_MODE:
		return 1
	}
	return 1 + p.sharedScopes(w)
}

func (p *picker) ready(w *client.Workload) bool {
	return w.GetStatus() == workloadapi.WorkloadStatus_HEALTHY || p.svc.GetLoadBalancing().GetHealthPolicy() == workloadapi.LoadBalancing_ALLOW_ALL
}

// offers reports whether the service lets the source have the endpoint, be it ready or terminating.
func (p *picker) offers(w *client.Workload) bool {
	lb := p.svc.GetLoadBalancing()
	switch {
	case len(w.Addrs) == 0 && w.GetHostname() == "" || p.weight(w) == 0 || p.target(w) == 0:
		return false
	case !p.ready(w) && !w.Terminating:
		return false
	case p.source != nil && p.source.GetNetwork() != w.GetNetwork():
		return false
	}
	switch lb.GetMode() {
	case workloadapi.LoadBalancing_UNSPECIFIED_MODE, workloadapi.LoadBalancing_FAILOVER:
		return true
	}
	return p.sharedScopes(w) == len(lb.GetRoutingPreference()) // STRICT, and what this build does not know is no less
}

// sharedScopes counts the leading scopes of the service that the source and w have in common.
func (p *picker) sharedScopes(w *client.Workload) int {
	n := 0
	for _, scope := range p.svc.GetLoadBalancing().GetRoutingPreference() {
		if p.source == nil || !sameScope(scope, p.source, w) {
			break
		}
		n++
	}
	return n
}

// sameScope compares the place of two workloads; a place that is not known equals none.
func sameScope(scope workloadapi.LoadBalancing_Scope, a, b *client.Workload) bool {
	la, lb := a.GetLocality(), b.GetLocality()
	region := la.GetRegion() != "" && la.GetRegion() == lb.GetRegion()
	zone := region && la.GetZone() != "" && la.GetZone() == lb.GetZone()
	switch scope {
	case workloadapi.LoadBalancing_REGION:
		return region
	case workloadapi.LoadBalancing_ZONE:
		return zone
	case workloadapi.LoadBalancing_SUBZONE:
		return zone && la.GetSubzone() != "" && la.GetSubzone() == lb.GetSubzone()
	case workloadapi.LoadBalancing_NODE:
		return a.GetNode() != "" && a.GetNode() == b.GetNode() && a.GetClusterId() == b.GetClusterId()
	case workloadapi.LoadBalancing_CLUSTER:
		return a.GetClusterId() == b.GetClusterId()
	case workloadapi.LoadBalancing_NETWORK:
		return a.GetNetwork() == b.GetNetwork()
	}
	return false
}

// weight is what the service gives the endpoint, else its capacity; absent means 1. It is bounded so that the sum of any list stays an int.
func (p *picker) weight(w *client.Workload) int {
	n, own := w.Weights[p.key]
	switch {
	case own:
	case w.GetCapacity() == nil:
		return 1
	default:
		n = w.GetCapacity().GetValue()
	}
	return int(min(n, math.MaxUint16))
}

// stay returns the endpoint last, when it is there and one of the best.
func (p *picker) stay(list []*client.Workload, best int, last Endpoint) (Choice, bool) {
	if last == (Endpoint{}) {
		return Choice{}, false
	}
	i := slices.IndexFunc(list, func(w *client.Workload) bool { return w.GetUid() == last.UID })
	if i < 0 || p.rank(list[i]) != best {
		return Choice{}, false
	}
	c := Choice{Workload: list[i], Port: p.target(list[i])}
	return c, c.Endpoint() == last
}

// byHash is rendezvous hashing: when an endpoint goes only its own clients move.
func (p *picker) byHash(list []*client.Workload, best int, ip netip.Addr) Choice {
	raw := ip.Unmap().As16()
	var c Choice
	var top uint64
	for _, w := range list {
		if p.rank(w) != best {
			continue
		}
		if h := hash(raw, w.GetUid()); c.Workload == nil || h > top {
			c, top = Choice{Workload: w, Port: p.target(w)}, h
		}
	}
	return c
}

// hash is FNV-1a with a final mix. It must be the same on every node and in every build: affinity depends on it.
func hash(ip [16]byte, uid string) uint64 {
	h := uint64(14695981039346656037)
	for _, b := range ip {
		h = (h ^ uint64(b)) * 1099511628211
	}
	for i := range len(uid) {
		h = (h ^ uint64(uid[i])) * 1099511628211
	}
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}
