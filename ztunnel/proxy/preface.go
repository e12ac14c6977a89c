package proxy

import (
	"context"
	"net"
	"net/netip"

	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/policy"
	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/cluster"
	"github.com/undermesh/undermesh/ztunnel/proxy/calls"
	"github.com/undermesh/undermesh/ztunnel/proxy/preamble"
)

// introduction is the header of the PROXY protocol that a connection begins with.
type introduction struct {
	version uint32         // 0: none
	dialled netip.AddrPort // by the client; the zero value for requests, which share connections: where these go
}

// introduce writes the header that the caller's DestinationRule asks for, before anything else and outside TLS.
func (s *session) introduce(up net.Conn, r *way) error {
	if s.intro.version == 0 {
		return nil
	}
	to := s.intro.dialled
	if !to.IsValid() {
		to = r.addr
	}
	header, err := preamble.Header(s.intro.version, s.judgedSource(to.Addr()), to)
	if err != nil {
		return refused(reason.Internal, err)
	}
	return s.within(up, func() error {
		_, err := up.Write(header)
		return err
	})
}

// within runs f, which talks to the server over up alone. It takes no longer than connecting may; up is of no use after an error.
func (s *session) within(up net.Conn, f func() error) error {
	ctx, cancel := clock.WithTimeout(s.ctx, s.p.cfg.Clock, s.connectTimeout(), nil)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { reset(up) })
	err := f()
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		return ended(s.ctx, reason.UpstreamConnect, err)
	}
	return nil
}

// introduces reports why requests to a way cannot begin their connection as their DestinationRule says.
func introduces(e *calls.Cluster, r *way) error {
	switch {
	case e.Spec().Tunnel != nil:
		return refusedf(reason.PolicyUnenforceable, "a DestinationRule leads the connections of cluster %s through a tunnel, which is not for HTTP", e.Name())
	case e.Cluster.Spec().ProxyProtocol != 0 && r.path.Kind != policy.Passthrough && r.path.Kind != policy.Reject:
		return refusedf(reason.PolicyUnenforceable, "a DestinationRule asks for the PROXY protocol to a workload of the mesh, whose side takes HTTP alone")
	}
	return nil
}

// openHost opens the connection to a host of a cluster for a client that speaks no HTTP, through the proxy that the host is where
// a DestinationRule says so.
func (s *session) openHost(e *calls.Cluster, h *cluster.Host) (net.Conn, func(), error) {
	spec := e.Spec()
	s.intro = introduction{e.Cluster.Spec().ProxyProtocol, s.dst}
	r, err := s.wayTo(e, h)
	if err != nil {
		return nil, nil, err
	}
	if t := spec.Tunnel; t != nil && (t.GetProtocol() != "" && t.GetProtocol() != "CONNECT" || e.Cluster.Spec().HTTP.Version == cluster.HTTP2) {
		return nil, nil, refusedf(reason.PolicyUnenforceable, "a DestinationRule leads the connections of cluster %s through a tunnel by other means than CONNECT of HTTP/1.1", e.Name())
	}
	up, release, err := s.open(r)
	if err != nil || spec.Tunnel == nil {
		return up, release, err
	}
	through, err := s.through(up, r, spec.Tunnel)
	if err != nil {
		reset(up)
		release()
		return nil, nil, err
	}
	return through, release, nil
}

// through asks the proxy at the other end of up for the target of the tunnel.
func (s *session) through(up net.Conn, r *way, t *settings.Tunnel) (out net.Conn, err error) {
	if s.leg == r {
		// Its own side is done here, and what it is asked is HTTP.
		if declared := declaredBehind(r.snap, r.path.Destination, r.addr.Port()); declared != speaksOther && declared != speaksTLS {
			return nil, refusedf(reason.PolicyUnenforceable, "the proxy at %s is a workload of the mesh whose port does not declare TCP", r.addr)
		}
	}
	err = s.within(up, func() error {
		out, err = preamble.Connect(up, t.GetTargetHost(), uint16(t.GetTargetPort()))
		return err
	})
	return out, err
}
