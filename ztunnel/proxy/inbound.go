package proxy

import (
	"context"
	"net"
	"net/netip"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/policy"
	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/telemetry"
)

// inbound carries plain text to the pod, from outside the mesh or from a pod that is not captured. Its sender has proved no
// identity.
func (s *session) inbound() error {
	s.line.Direction, s.line.Path = Inbound.String(), policy.Passthrough.String()
	if !s.dst.IsValid() || !s.src.IsValid() {
		return refusedf(reason.Internal, "accepted socket has no address")
	}
	own := s.describeInbound(s.dst, api.Identity{}, "", telemetry.NoTLS)
	if s.pod.meshPort(own, s.dst.Port()) {
		return refusedf(reason.MeshPort, "port %d is the mesh's own", s.dst.Port())
	}
	c := policy.Connection{Source: s.src, Destination: s.dst}
	defer s.pod.live.add(c, s.kill)()
	if err := s.admit(s.pod, c); err != nil {
		return s.turnAway(err)
	}
	switch isHTTP, err := s.detectInbound(s.client, s.dst.Port()); {
	case err != nil:
		return err
	case isHTTP:
		s.count()
		return s.serveArrivals(s.client, s.dst, nil, api.Identity{}, nil)
	}
	up, err := s.deliver(s.ctx, s.dst)
	if err != nil {
		s.pod.missed(s.dst, err)
		return err
	}
	calm(up)
	if s.hushed {
		switch isHTTP, err := s.firstWord(s.client, up); {
		case err != nil:
			reset(up)
			return err
		case isHTTP:
			s.count()
			return s.serveArrivals(s.client, s.dst, nil, api.Identity{}, up)
		}
	}
	defer s.pod.arrive(s.dst)()
	return s.relay(up)
}

// deliver connects to the pod's application at addr, from the client's address.
func (s *session) deliver(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	ctx, cancel := clock.WithTimeout(ctx, s.p.cfg.Clock, s.p.cfg.ConnectTimeout, nil)
	defer cancel()
	up, err := s.pod.cfg.Sockets.Deliver(ctx, s.src.Addr(), addr)
	if err != nil {
		return nil, ended(s.ctx, reason.UpstreamConnect, err)
	}
	return up, nil
}

// describeInbound fills in record and labels of the destination reporter, as far as the mesh is known, and returns the pod's
// own workload, nil when it is not known. peer is what the sender proved; host the service that it says it asked for.
func (s *session) describeInbound(dst netip.AddrPort, peer api.Identity, host string, security telemetry.Security) *client.Workload {
	var own, from *client.Workload
	var svc *client.Service
	if snap := s.p.cfg.Snapshot(); snap != nil {
		s.line.Generation = snap.Generation()
		own = s.pod.workload(snap)
		from = snap.WorkloadByIP(s.p.network(own), s.src.Addr())
		if peer.IsZero() && own != nil { // nothing but the address speaks for it
			from = snap.WorkloadFor(own.GetNamespace(), s.p.network(own), s.src.Addr())
		}
		svc = serviceByMember(snap, own, host)
	}
	if from != nil && !peer.IsZero() && from.Identity != peer {
		from = nil // who it is was proved; whose address it is was not
	}
	var id api.Identity
	if own != nil && security != telemetry.NoTLS {
		id = own.Identity
	}
	s.source(from, peer)
	s.destination(own, id, svc)
	s.labels = []telemetry.Labels{{
		Reporter: telemetry.Destination, Security: security, Service: serviceOf(svc),
		Source: s.p.peerOf(from, peer), Destination: s.p.peerOf(own, id),
	}}
	return own
}
