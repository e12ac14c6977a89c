package proxy

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/policy"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// Names resolves the hostnames of workloads that have no address, in the cluster's view; dns.Resolver is the real one.
// Methods are safe for concurrent use.
type Names interface {
	// Lookup returns at least one address, or an error.
	Lookup(ctx context.Context, name string) ([]netip.Addr, error)
	// Names returns the names that resolve to the address, as known now.
	Names(addr netip.Addr) []string
}

// endpoint resolves the original destination: a service's address to one of its workloads, a workload's to itself, an address
// that a declared host resolves to to that host, everything else to nil.
func (s *session) endpoint(r *way) (*client.Workload, error) {
	network := r.source.GetNetwork()
	r.addr = s.dst
	w := r.snap.WorkloadFor(r.source.GetNamespace(), network, s.dst.Addr())
	svc := r.view.ServiceAt(r.snap, network, s.dst)
	switch {
	case svc == nil && w == nil:
		return s.byName(r), nil
	case svc == nil:
		return w, s.reachable(r, w)
	case svc.Settings.GetDeclared() && w.IsPod():
		// Nobody takes a pod's connections by declaring its address; a host of the client's own namespace that goes there anyway
		// gives them its name.
		if original(svc) && svc.GetNamespace() == r.source.GetNamespace() {
			r.label = svc
		}
		return w, s.reachable(r, w)
	case original(svc):
		port, ok := servicePort(svc, s.dst.Port())
		if ok {
			r.svc, r.port, r.addr = svc, s.dst.Port(), netip.AddrPortFrom(s.dst.Addr(), port)
		}
		return nil, nil
	}
	r.svc = svc
	return s.pick(r, s.dst)
}

func original(svc *client.Service) bool {
	return svc.Settings.GetResolution() == settings.ServiceSettings_RESOLUTION_ORIGINAL
}

// servicePort is the port behind a port of the service; false when it has no such port.
func servicePort(svc *client.Service, port uint16) (target uint16, ok bool) {
	for _, p := range svc.GetPorts() {
		if p.GetServicePort() == uint32(port) {
			if p.GetTargetPort() == 0 {
				return port, true
			}
			return uint16(p.GetTargetPort()), true
		}
	}
	return 0, false
}

// sees reports whether the source sees the service on the port: it is exported to its namespace, and in its Sidecar's scope.
func (r *way) sees(svc *client.Service, port uint16) bool {
	return r.view.Sees(policy.CalleeOf(svc), uint32(port))
}

// reachable refuses a workload whose address was dialled and that the source does not see, where the outbound policy allows
// nothing else. Where it allows any, the workload is reached as ever, with the source's identity.
func (s *session) reachable(r *way, w *client.Workload) error {
	if r.view.OutboundPolicy(r.snap.Mesh()) != settings.OutboundPolicy_REGISTRY_ONLY || w.GetUid() == r.source.GetUid() ||
		r.view.SeesWorkload(r.snap, w, s.dst.Port()) {
		return nil
	}
	return refusedf(reason.OutboundBlocked, "%s is out of the scope of the pod's Sidecar and the outbound policy is REGISTRY_ONLY", s.dst)
}

// pick chooses a workload of r.svc for the port of dst, and says in r.addr where it is.
func (s *session) pick(r *way, dst netip.AddrPort) (*client.Workload, error) {
	r.port = dst.Port()
	choice, why := s.pickEndpoint(r, dst)
	if why != reason.None {
		return nil, refusedf(why, "service %s has no endpoint for port %d", r.svc.GetHostname(), dst.Port())
	}
	w := choice.Workload
	if len(w.Addrs) == 0 {
		return s.resolve(r, w, choice.Port)
	}
	r.addr = netip.AddrPortFrom(addrOf(w, dst.Addr()), choice.Port)
	return w, s.foreignPort(r)
}

// resolve finds the address of a workload that has a name only (SR-05: the address that the client dialled counts for nothing).
// A name of something that the mesh knows leads to that, so that no name is a way round its identity and policies.
func (s *session) resolve(r *way, w *client.Workload, port uint16) (*client.Workload, error) {
	switch {
	case s.p.cfg.Names == nil:
		return w, refusedf(reason.NoEndpoint, "host %s cannot be resolved here", w.GetHostname())
	case r.resolved:
		return w, refusedf(reason.NoEndpoint, "host %s leads to a name again", w.GetHostname())
	}
	r.resolved = true
	ctx, cancel := clock.WithTimeout(s.ctx, s.p.cfg.Clock, s.connectTimeout(), nil)
	defer cancel()
	addrs, err := s.p.cfg.Names.Lookup(ctx, w.GetHostname())
	if err != nil {
		return w, ended(s.ctx, reason.NoEndpoint, err)
	}
	addrs = s.order(r.svc, addrs)
	r.addr = netip.AddrPortFrom(addrs[0], port)
	at, err := s.known(r, w)
	if at == w && err == nil {
		r.others = s.strangers(r, addrs[1:], port)
	}
	return at, err
}

// order says which of the addresses is dialled first, and which after it: those of the family that was dialled, if there are
// any, beginning with the next in turn, or as DNS has them.
func (s *session) order(svc *client.Service, addrs []netip.Addr) []netip.Addr {
	var same []netip.Addr
	for _, a := range addrs {
		if a.Is4() == s.dst.Addr().Is4() {
			same = append(same, a)
		}
	}
	if len(same) == 0 {
		same = addrs
	}
	if svc.Settings.GetResolution() == settings.ServiceSettings_RESOLUTION_DNS_ROUND_ROBIN {
		return same
	}
	first := s.pod.turns.of(turnKey{service: serviceName{svc.GetNamespace(), svc.GetHostname()}}, s.p.cfg.Rand).IntN(len(same))
	return slices.Concat(same[first:], same[:first])
}

// maxDials bounds how many addresses of a name one connection tries.
const maxDials = 8

// strangers are those of the addresses that nothing of the mesh has, as many as one connection tries after the first.
func (s *session) strangers(r *way, addrs []netip.Addr, port uint16) []netip.AddrPort {
	var out []netip.AddrPort
	for _, a := range addrs {
		if len(out) == maxDials-1 {
			break
		}
		at := &way{snap: r.snap, source: r.source, addr: netip.AddrPortFrom(a, port)}
		network := r.source.GetNetwork()
		kubernetes := slices.ContainsFunc(r.snap.ServicesByIP(network, a), func(svc *client.Service) bool { return !svc.Settings.GetDeclared() })
		if !kubernetes && r.snap.WorkloadFor(r.source.GetNamespace(), network, a) == nil && s.p.podAt(a) == nil && s.foreignPort(at) == nil {
			out = append(out, at.addr)
		}
	}
	return out
}

// known returns what the mesh knows at r.addr instead of w, which only named it.
func (s *session) known(r *way, w *client.Workload) (*client.Workload, error) {
	network := r.source.GetNetwork()
	for _, svc := range r.snap.ServicesByIP(network, r.addr.Addr()) {
		if !svc.Settings.GetDeclared() { // of Kubernetes: it has addresses and no names
			r.svc = svc
			return s.pick(r, r.addr)
		}
	}
	if at := r.snap.WorkloadFor(r.source.GetNamespace(), network, r.addr.Addr()); at != nil {
		return at, nil
	}
	return w, s.foreignPort(r)
}

// foreignPort refuses an endpoint that is a listener of the mesh in the client's own pod.
func (s *session) foreignPort(r *way) error {
	if s.pod.meshPort(r.source, r.addr.Port()) && (r.addr.Addr().IsLoopback() || s.pod.owns(r.source, r.addr.Addr())) {
		return refusedf(reason.MeshPort, "port %d is the mesh's own", r.addr.Port())
	}
	return nil
}

// byName finds the declared host that resolves to the dialled address. The connection goes where it was dialled, since that is
// one of the host's addresses; only an entry of the client's own namespace may change its port.
func (s *session) byName(r *way) *client.Workload {
	if s.p.cfg.Names == nil {
		return nil
	}
	var found *client.Workload
	for _, host := range s.p.cfg.Names.Names(s.dst.Addr()) {
		for _, w := range r.snap.WorkloadsByHostname(host) {
			svc, port := s.hostPort(r, w)
			if svc == nil || svc.GetNamespace() != r.source.GetNamespace() && port != s.dst.Port() || !r.view.Prefers(svc, r.svc) {
				continue
			}
			found = w
			r.svc, r.port, r.addr = svc, s.dst.Port(), netip.AddrPortFrom(s.dst.Addr(), port)
		}
	}
	return found
}

// hostPort returns the service that w is behind and that the source sees, with w's port for the dialled one.
func (s *session) hostPort(r *way, w *client.Workload) (*client.Service, uint16) {
	var best *client.Service
	var port uint16
	for key, list := range w.GetServices() {
		ns, host, _ := strings.Cut(key, "/")
		svc := r.snap.ServiceByHost(ns, host)
		if svc == nil || !r.sees(svc, s.dst.Port()) || !r.view.Prefers(svc, best) {
			continue
		}
		for _, p := range list.GetPorts() {
			if p.GetServicePort() == uint32(s.dst.Port()) && p.GetTargetPort() != 0 {
				best, port = svc, uint16(p.GetTargetPort())
			}
		}
	}
	return best, port
}

// describeService is the service that records name.
func (r *way) describeService() *client.Service {
	if r.svc != nil {
		return r.svc
	}
	return r.label
}
