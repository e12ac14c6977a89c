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
	"github.com/undermesh/undermesh/ztunnel/http/h2"
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
	t := spec.Tunnel
	if t == nil {
		return s.open(r)
	}
	if p := t.GetProtocol(); p != "" && p != "CONNECT" && p != "POST" {
		return nil, nil, refusedf(reason.PolicyUnenforceable, "a DestinationRule leads the connections of cluster %s through a tunnel by %.20q", e.Name(), p)
	}
	http2 := e.Cluster.Spec().HTTP.Version == cluster.HTTP2
	if http2 {
		r.protocols = []string{"h2"}
	}
	up, release, err := s.open(r)
	if err != nil {
		return nil, nil, err
	}
	through, err := s.through(up, r, t, http2)
	if err != nil {
		reset(up)
		release()
		return nil, nil, err
	}
	if w, ok := through.(*preamble.Stream); ok {
		release = both(func() { _ = w.Close(); w.Wait() }, release)
	}
	return through, release, nil
}

// through asks the proxy at the other end of up for the target of the tunnel.
func (s *session) through(up net.Conn, r *way, t *settings.Tunnel, http2 bool) (out net.Conn, err error) {
	if s.leg == r {
		// Its own side is done here, and what it is asked is HTTP.
		if declared := declaredBehind(r.snap, r.path.Destination, r.addr.Port()); declared != speaksOther && declared != speaksTLS {
			return nil, refusedf(reason.PolicyUnenforceable, "the proxy at %s is a workload of the mesh whose port does not declare TCP", r.addr)
		}
	}
	to := preamble.Target{Host: t.GetTargetHost(), Port: uint16(t.GetTargetPort()), POST: t.GetProtocol() == "POST"}
	err = s.within(up, func() error {
		if !http2 {
			out, err = preamble.Connect(up, to)
			return err
		}
		cfg := h2.Config{Clock: s.p.cfg.Clock, IdleTimeout: -1} // the relay's limits are those of connections
		stream, err := preamble.Open(up, to, r.path.Originate != nil, cfg)
		out = stream
		return err
	})
	return out, err
}
