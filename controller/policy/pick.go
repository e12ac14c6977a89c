package policy

import (
	"math"
	"net/netip"

	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
)

// Rand is the source of chance; *math/rand/v2.Rand is one. IntN returns a number in [0, n), n > 0.
type Rand interface{ IntN(n int) int }

// Choice is the outcome of Pick.
type Choice struct {
	Workload *client.Workload
	Port     uint16 // on the workload: named target ports are resolved
}

// Pick chooses an endpoint of a service as kube-proxy would. Endpoints count that serve the port and are ready, or any
// with publishNotReadyAddresses (HealthPolicy ALLOW_ALL); terminating ones are not ready. internalTrafficPolicy Local is
// mode STRICT: only endpoints that match every scope. FAILOVER takes those that match the longest run of scopes. Among
// the equally good ones chance decides, in proportion to their capacity; with ClientIP affinity a rendezvous hash of the
// client's address does, so that a client stays where it is while that endpoint lives. source may be nil: it then
// matches no scope. The address of a workload without one is what its hostname resolves to. It returns reason.NoEndpoint
// when nothing qualifies, else reason.None.
func Pick(s *client.Snapshot, svc *client.Service, servicePort uint16, source *client.Workload, clientIP netip.Addr, r Rand) (Choice, reason.Reason) {
	if s == nil || svc == nil {
		return Choice{}, reason.NoEndpoint
	}
	p := picker{svc: svc, key: svc.GetNamespace() + "/" + svc.GetHostname(), port: servicePort, source: source}
	list := s.Endpoints(svc)
	best, total := -1, 0
	for _, w := range list {
		switch rank := p.rank(w); {
		case rank < 0 || rank < best:
		case rank > best:
			best, total = rank, weight(w)
		default:
			total += weight(w)
		}
	}
	if best < 0 {
		return Choice{}, reason.NoEndpoint
	}
	if svc.Settings.GetClientIpAffinity() != nil {
		return p.byHash(list, best, clientIP), reason.None
	}
	n := r.IntN(total)
	for _, w := range list {
		if p.rank(w) != best {
			continue
		}
		if n -= weight(w); n < 0 {
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

// rank is -1 for an endpoint that does not qualify, else how many leading scopes it shares with the source.
func (p *picker) rank(w *client.Workload) int {
	lb := p.svc.GetLoadBalancing()
	switch {
	case len(w.Addrs) == 0 && w.GetHostname() == "" || weight(w) == 0 || p.target(w) == 0:
		return -1
	case w.GetStatus() != workloadapi.WorkloadStatus_HEALTHY &&
		lb.GetHealthPolicy() != workloadapi.LoadBalancing_ALLOW_ALL:
		return -1
	case p.source != nil && p.source.GetNetwork() != w.GetNetwork():
		return -1
	case lb.GetMode() == workloadapi.LoadBalancing_UNSPECIFIED_MODE:
		return 0
	}
	n := 0
	for _, scope := range lb.GetRoutingPreference() {
		if p.source == nil || !sameScope(scope, p.source, w) {
			break
		}
		n++
	}
	if lb.GetMode() != workloadapi.LoadBalancing_FAILOVER && n < len(lb.GetRoutingPreference()) {
		return -1 // STRICT, and what this build does not know is not taken for less than STRICT
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

// weight is an endpoint's capacity; absent means 1. It is bounded so that the sum of any list stays an int.
func weight(w *client.Workload) int {
	if w.GetCapacity() == nil {
		return 1
	}
	return int(min(w.GetCapacity().GetValue(), math.MaxUint16))
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
