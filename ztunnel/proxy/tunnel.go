package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/policy"
	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/hbone"
	"github.com/undermesh/undermesh/ztunnel/http/frame"
	"github.com/undermesh/undermesh/ztunnel/identity"
	"github.com/undermesh/undermesh/ztunnel/telemetry"
)

// tunnel serves one accepted connection of the tunnel port: TLS, then streams.
func (s *session) tunnel(r *run) error {
	s.line.Direction, s.line.Path = Inbound.String(), policy.Tunnel.String()
	stop := context.AfterFunc(s.ctx, func() { reset(s.client) })
	defer stop()
	own, tc, err := s.handshake()
	if err != nil {
		return err
	}
	if !s.p.take(s.pod) {
		return refusedf(reason.Overload, "too many connections")
	}
	defer s.p.give(s.pod)
	peer, err := s.p.cfg.Identity.Peer(tc.ConnectionState())
	if err != nil {
		return refused(identity.ReasonOf(err), err)
	}
	s.silent, s.relayed = true, true
	srv := hbone.NewServer(tc, s.p.serving, func(ctx context.Context, req *hbone.ServerRequest) {
		s.pod.stream(s.ctx, ctx, own, peer, req)
	})
	defer s.drainOnExpiry(peer, srv)()
	defer s.pod.serves(srv)()
	err = srv.Run(r.accepting)
	if err != nil && s.ctx.Err() == nil {
		s.p.cfg.Log.Debug("tunnel ended", "src", s.src.String(), "dst", s.dst.String(), "peer", peer.ID.String(), "err", err)
	}
	return nil
}

// tunnelIdle is how long a tunnel without streams is kept for its client: longer than a client of ours keeps it.
const tunnelIdle = 6 * time.Minute

// drainOnExpiry makes the client go on by a tunnel with its next certificate. Streams that are open outlive this one: a
// connection that was let in lasts as long as policy allows it. The function returned ends the watch.
func (s *session) drainOnExpiry(peer *identity.Peer, srv *hbone.Server) (stop func() bool) {
	return s.p.cfg.Clock.AfterFunc(peer.Expires().Sub(s.p.cfg.Clock.Now()), srv.Drain).Stop
}

// handshake does TLS. A client has one of the pod's places only while nothing but its own answers are missing: its
// ClientHello, the pod's identity and certificate come before.
func (s *session) handshake() (api.Identity, *tls.Conn, error) {
	ctx, cancel := clock.WithTimeout(s.ctx, s.p.cfg.Clock, s.p.cfg.HandshakeTimeout, nil)
	defer cancel()
	ctx, cut := context.WithCancelCause(ctx)
	defer cut(nil)
	fail := func(why reason.Reason, err error) (api.Identity, *tls.Conn, error) {
		if errors.Is(context.Cause(ctx), errCrowded) {
			why, err = reason.Overload, errCrowded
		}
		return api.Identity{}, nil, ended(s.ctx, why, err)
	}
	v := s.pod.gate.enter(s.src.Addr(), cut)
	if v == nil {
		return fail(reason.Overload, errCrowded)
	}
	defer s.pod.gate.leave(v)
	s.describeInbound(s.dst, api.Identity{}, "", telemetry.NoTLS)
	brief, done := clock.WithTimeout(ctx, s.p.cfg.Clock, helloTimeout, nil)
	hello, err := readHello(brief, s.client)
	done()
	if err != nil {
		return fail(reason.TLSHandshake, err)
	}
	var own *client.Workload
	if !s.p.await(ctx, func(snap *client.Snapshot) bool {
		own = s.pod.workload(snap)
		return own != nil
	}) {
		return fail(reason.NotReady, errors.New("the mesh does not know this pod yet"))
	}
	s.describeInbound(s.dst, api.Identity{}, "", telemetry.NoTLS)
	if _, err := s.p.cfg.Identity.Fingerprint(ctx, own.Identity); err != nil {
		return fail(identity.ReasonOf(err), err)
	}
	if !s.pod.gate.wait(ctx, v) {
		return fail(reason.Overload, errCrowded)
	}
	brief, done = clock.WithTimeout(ctx, s.p.cfg.Clock, s.p.cfg.HandshakeTimeout*2/3, nil) // a place is not for those that only hold it
	defer done()
	tr := hbone.NewTransport(s.client)
	tr.Prepend(hello)
	tc := tls.Server(tr, s.p.cfg.Identity.ServerTLS(own.Identity))
	if err := tc.HandshakeContext(brief); err != nil {
		if errors.Is(err, io.EOF) {
			return fail(reason.TLSHandshake, errors.New("peer closed before its certificate"))
		}
		return fail(identity.ReasonOf(err), err)
	}
	return own.Identity, tc, nil
}

// stream carries one CONNECT to the application. conns is the pod's life, request the stream's.
func (pod *Pod) stream(conns, request context.Context, own api.Identity, peer *identity.Peer, req *hbone.ServerRequest) {
	s := pod.session(conns, addrPort(req.RemoteAddr()), addrPort(req.LocalAddr()))
	defer s.kill(nil)
	stop := context.AfterFunc(request, func() { s.kill(refusedf(reason.DownstreamReset, "tunnel stream was reset")) })
	defer stop()
	if !pod.p.take(pod) {
		reject(req, reason.Overload)
		s.finish(refusedf(reason.Overload, "too many connections"))
		return
	}
	defer pod.p.give(pod)
	answered := false
	err := s.guard(func() error { return s.connect(own, peer, req, &answered) })
	if r := refusalOf(err); r != nil && !answered {
		reject(req, r.Reason)
	}
	s.finish(err)
}

func reject(req *hbone.ServerRequest, why reason.Reason) {
	req.Reject(statusOf(why), hbone.Header{{Name: reasonHeader, Value: why.String()}})
}

// reasonHeader tells the client's proxy, if it is one of ours, why a CONNECT was refused: for its log.
const reasonHeader = "x-undermesh-reason"

// clientHeader tells the destination's node that the client had its time to speak first and did not, so that it need not wait
// again. Who lies gains what it has by waiting for as long: a stream that is carried as TCP.
const (
	clientHeader = "x-undermesh-client"
	clientSilent = "silent"
)

func statusOf(why reason.Reason) int {
	switch why {
	case reason.AuthorityMismatch, reason.BadRequest, reason.MeshPort:
		return 400
	case reason.PolicyDenied, reason.PolicyNotAllowed, reason.PolicyUnenforceable, reason.StrictMTLS, reason.PolicyChanged, reason.PeerIdentity, reason.TLSHandshake:
		return 401
	}
	return 503
}

// connect decides about a CONNECT, and relays it when it is allowed and the application has accepted.
func (s *session) connect(own api.Identity, client *identity.Peer, req *hbone.ServerRequest, answered *bool) error {
	s.line.Direction, s.line.Path = Inbound.String(), policy.Tunnel.String()
	peer := client.ID
	target, err := netip.ParseAddrPort(req.Authority)
	w := s.describeInbound(s.dst, peer, forwardedHost(req.Header), telemetry.MutualTLS)
	if err != nil {
		return refusedf(reason.AuthorityMismatch, "authority %.200q is not an address of this pod", req.Authority)
	}
	target = netip.AddrPortFrom(target.Addr().Unmap(), target.Port())
	s.line.HBONE = target
	if err := client.Check(); err != nil {
		return refused(identity.ReasonOf(err), err)
	}
	switch {
	case w == nil || w.Identity != own && !policy.SameAccount(s.p.cfg.Snapshot().Mesh(), w.Identity, own):
		return refusedf(reason.NotReady, "the pod is no longer known as %s", own)
	case !s.pod.owns(w, target.Addr()):
		return refusedf(reason.AuthorityMismatch, "authority %s is not an address of this pod", target)
	case s.pod.meshPort(w, target.Port()):
		return refusedf(reason.MeshPort, "port %d is the mesh's own", target.Port())
	}
	c := policy.Connection{Source: s.src, Destination: target, Peer: peer}
	defer s.pod.live.add(c, s.kill)()
	if err := s.admit(s.pod, c); err != nil {
		return err
	}
	up, err := s.deliver(s.ctx, target)
	if err != nil {
		s.pod.missed(target, err)
		return err
	}
	calm(up)
	*answered = true
	stream, err := req.Accept(nil)
	if err != nil {
		_ = up.Close()
		return ended(s.ctx, reason.DownstreamReset, err)
	}
	s.stream, s.accepted, s.hushed = stream, true, req.Header.Get(clientHeader) == clientSilent
	s.count()
	isHTTP, err := s.detectInbound(stream, target.Port())
	if err == nil && !isHTTP && s.hushed {
		isHTTP, err = s.firstWord(stream, up)
	}
	switch {
	case err != nil:
		reset(up)
		return err
	case isHTTP:
		return s.serveArrivals(stream, target, client, w.Identity, up)
	}
	defer s.pod.arrive(target)()
	if err := s.writeEarly(up); err != nil {
		stream.Reset(frame.CodeConnect)
		return err
	}
	_, err = hbone.Relay(s.ctx, stream, up)
	return s.relayEnd(err, reason.DownstreamReset, reason.UpstreamReset)
}

// writeEarly passes on what was read of the client to see what it speaks.
func (s *session) writeEarly(up net.Conn) error {
	if len(s.early) == 0 {
		return nil
	}
	defer context.AfterFunc(s.ctx, func() { reset(up) })()
	if _, err := up.Write(s.early); err != nil {
		reset(up)
		return ended(s.ctx, reason.UpstreamReset, err)
	}
	s.early = nil
	return nil
}

// forwardedHost is the service that the client's proxy says it was asked for.
func forwardedHost(h hbone.Header) string {
	for part := range strings.SplitSeq(h.Get("forwarded"), ";") {
		if host, ok := strings.CutPrefix(strings.TrimSpace(part), "host="); ok {
			return strings.Trim(host, `"`)
		}
	}
	return ""
}
