package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/policy"
	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/credential"
	"github.com/undermesh/undermesh/ztunnel/hbone"
	"github.com/undermesh/undermesh/ztunnel/telemetry"
)

// way is what an outbound connection was decided to do, by one snapshot.
type way struct {
	snap   *client.Snapshot
	source *client.Workload
	view   policy.View     // what the source sees
	svc    *client.Service // nil: not addressed by a service's address
	label  *client.Service // gives the connection its name and nothing else, when svc is nil
	port   uint16          // of svc, that was dialled
	subset string          // of svc, or of behind, that a rule leads to
	behind *client.Service // without addresses, whose rules count for the pod that was dialled; nil: any that it is behind
	addr   netip.AddrPort  // of the endpoint
	path   policy.Path
	local  *Pod // the endpoint, when it is served here

	resolved bool             // a hostname led here
	others   []netip.AddrPort // to be tried after addr: what else the hostname resolves to

	protocols []string // that TLS to the server offers, where the mesh originates it
	protocol  string   // and that was chosen
	// credential is what TLS was spoken with; nil: none was needed.
	credential *credential.Credential
}

// outbound carries a connection of one of the pod's own processes. life is that of the pod's connections.
func (s *session) outbound(life context.Context) error {
	s.line.Direction = Outbound.String()
	if !s.dst.IsValid() || !s.src.IsValid() {
		return refusedf(reason.Internal, "accepted socket has no address")
	}
	release, ok := s.pod.loops.accepted(flow{s.src, s.dst}, s.kill)
	if !ok {
		return errLoop()
	}
	defer release()
	r, err := s.prepare()
	if err != nil {
		return err
	}
	what, err := s.detect(s.client, r.snap, s.declared(r))
	switch {
	case err != nil:
		return err
	case what.HTTP():
		return s.serveRequests(life)
	}
	s.idle = client.DefaultIdle
	up, release, err := s.openStream(what)
	if err != nil {
		return err
	}
	defer release()
	stream, ok := up.(*hbone.Stream)
	if !ok {
		return s.relayPlain(up)
	}
	s.relayed, s.stream = true, stream
	s.count()
	defer s.endIdle(up, func() uint64 { st := stream.Stats(); return st.Sent + st.Received })()
	_, err = hbone.Relay(s.ctx, stream, s.client)
	return s.relayEnd(err, reason.UpstreamReset, reason.DownstreamReset)
}

// relayPlain relays to up. A pod of this node has no proxy of its own: where its port speaks HTTP its side's part is done here.
func (s *session) relayPlain(up net.Conn) error {
	stop := s.endIdle(up, func() uint64 { return uint64(s.received.Load() + s.sent.Load()) })
	defer stop()
	r := s.leg
	if r == nil {
		return s.relay(up)
	}
	if r.path.Originate != nil {
		defer r.local.arrive(r.addr)()
		return s.relay(up)
	}
	isHTTP, err := s.detectLeg(up, r)
	switch {
	case err != nil:
		reset(up)
		return err
	case isHTTP && s.intro.version != 0:
		reset(up)
		return refusedf(reason.PolicyUnenforceable, "a DestinationRule asks for the PROXY protocol to %s, which takes HTTP alone", r.addr)
	case isHTTP:
		stop()
		s.count()
		return s.serveLeg(up, r)
	}
	defer r.local.arrive(r.addr)()
	return s.relay(up)
}

// prepare waits until the mesh knows the pod, and a destination that is served here.
func (s *session) prepare() (*way, error) {
	if s.pod.meshPort(nil, s.dst.Port()) && s.pod.hasAddr(s.dst.Addr()) {
		return nil, refusedf(reason.MeshPort, "port %d is the mesh's own", s.dst.Port())
	}
	r := &way{}
	if !s.p.await(s.ctx, func(snap *client.Snapshot) bool {
		r.snap, r.source = snap, s.pod.workload(snap)
		if local := s.p.podAt(s.dst.Addr()); local != nil && local.workload(snap) == nil {
			return false
		}
		var known bool
		r.view.Scope, known = snap.ScopeOf(r.source)
		return r.source != nil && known
	}) {
		return nil, ended(s.ctx, reason.NotReady, errors.New("the mesh does not know this pod, what it sees, or its destination yet"))
	}
	r.view.Namespace = r.source.GetNamespace()
	s.line.Generation = r.snap.Generation()
	s.source(r.source, r.source.Identity)
	if s.pod.meshPort(r.source, s.dst.Port()) && s.pod.owns(r.source, s.dst.Addr()) {
		return nil, refusedf(reason.MeshPort, "port %d is the mesh's own", s.dst.Port())
	}
	return r, nil
}

// declared is what the port that was dialled declares.
func (s *session) declared(r *way) speaks {
	network := r.source.GetNetwork()
	if svc := r.view.ServiceAt(r.snap, network, s.dst); svc != nil {
		return declaredBy(svc, s.dst.Port())
	}
	if w := r.snap.WorkloadFor(r.source.GetNamespace(), network, s.dst.Addr()); w != nil {
		return declaredBehind(r.snap, w, s.dst.Port())
	}
	return undeclared
}

// route decides by the newest snapshot where the connection goes that was dialled.
func (s *session) route() (*way, error) {
	r, err := s.prepare()
	if err != nil {
		return nil, err
	}
	w, err := s.endpoint(r)
	return s.decide(r, w, err)
}

// decide says how the connection gets to w, which is nil for what the mesh does not know, at r.addr. err is why it goes nowhere.
func (s *session) decide(r *way, w *client.Workload, err error) (*way, error) {
	s.label(r, w, telemetry.NoTLS)
	if err != nil {
		return nil, err
	}
	r.local = s.p.pod(w)
	if r.local == nil {
		if err := s.p.wasDeleted(w, r.addr.Addr()); err != nil {
			return nil, err
		}
	}
	if pod := s.p.podAt(r.addr.Addr()); pod != nil && pod != r.local {
		return nil, refusedf(reason.NotReady, "%s is pod %s/%s of this node, which the mesh knows by other names", r.addr, pod.cfg.Namespace, pod.cfg.Name)
	}
	r.path = r.pathTo(w)
	s.line.Path = r.path.Kind.String()
	return r, nil
}

// pathTo asks policy how the connection travels to w, which is r.local where it is served here.
func (r *way) pathTo(w *client.Workload) policy.Path {
	return policy.PathFor(policy.PathQuery{
		Snapshot: r.snap, Source: r.source, Destination: w, Service: r.svc, ServicePort: r.port, Subset: r.subset, Behind: r.behind, Address: r.addr,
		Local: r.local != nil, Captured: true,
	})
}

// label fills in the record and the labels of the source reporter.
func (s *session) label(r *way, w *client.Workload, security telemetry.Security) {
	var id api.Identity
	if security != telemetry.NoTLS && w != nil {
		id = w.Identity
	}
	s.line.Dst = r.addr
	s.destination(w, id, r.describeService())
	var src api.Identity
	if security != telemetry.NoTLS {
		src = r.source.Identity
	}
	s.labels = []telemetry.Labels{{
		Reporter: telemetry.Source, Security: security, Service: serviceOf(r.describeService()),
		Source: s.p.peerOf(r.source, src), Destination: s.p.peerOf(w, id),
	}}
}

// open connects to where r leads, with the TLS that the caller's DestinationRule asks for: what it returns is judged. The caller
// resets it when s.ctx ends, and calls release at its end.
func (s *session) open(r *way) (up net.Conn, release func(), err error) {
	if r.path.Originate == nil {
		return s.openFor(r)
	}
	cfg, err := s.originTLS(r)
	if err != nil {
		return nil, nil, refused(reason.ClientTLS, err)
	}
	if up, release, err = s.openFor(r); err != nil {
		return nil, nil, err
	}
	secured, err := s.originate(up, r, cfg)
	if err != nil {
		reset(up)
		release()
		return nil, nil, err
	}
	return secured, release, nil
}

// openFor connects, and says for whom where the server wants to know.
func (s *session) openFor(r *way) (up net.Conn, release func(), err error) {
	if up, release, err = s.openPlain(r); err != nil {
		return nil, nil, err
	}
	if err := s.introduce(up, r); err != nil {
		reset(up)
		release()
		return nil, nil, err
	}
	return up, release, nil
}

func (s *session) openPlain(r *way) (up net.Conn, release func(), err error) {
	switch r.path.Kind {
	case policy.Reject:
		return nil, nil, refusedf(r.path.Refused, "%s", r.path.Reason)
	case policy.Tunnel:
		if r.local == s.pod {
			return s.proxied(r) // a pod that reaches itself has no wire to protect
		}
		stream, release, err := s.tunnelOut(r)
		if err == nil && r.moved(s.p.cfg.Snapshot()) {
			reset(stream)
			return nil, nil, refusedf(reason.PodRemoved, "%s was left by %s while it was dialled", r.addr, r.path.Destination.GetUid())
		}
		return stream, release, err
	case policy.Proxied, policy.Direct:
		return s.proxied(r)
	case policy.Passthrough:
		if r.local != nil {
			// It is served here, so it is enrolled, whatever the control plane says of its protocol at the moment.
			s.line.Path = policy.Proxied.String()
			return s.proxied(r)
		}
		return s.dial(append([]netip.AddrPort{r.addr}, r.others...), s.pod.cfg.Sockets.Dial)
	}
	return nil, nil, refusedf(reason.Internal, "path of kind %v", r.path.Kind)
}

// proxied opens a connection to a pod of this node: both sides' work in one pass.
func (s *session) proxied(r *way) (net.Conn, func(), error) {
	w := r.path.Destination
	security := telemetry.SameNode
	if r.path.Anonymous {
		security = telemetry.NoTLS
	}
	s.label(r, w, security)
	both := s.labels[0]
	both.Reporter = telemetry.Destination
	s.labels = append(s.labels, both)
	if r.local == nil || w == nil {
		return nil, nil, refusedf(reason.UnknownPod, "%s is not a pod that is served here", r.addr)
	}
	if r.local.meshPort(w, r.addr.Port()) {
		return nil, nil, refusedf(reason.MeshPort, "port %d is the mesh's own", r.addr.Port())
	}
	s.leg = r
	c := policy.Connection{Source: s.judgedSource(r.addr.Addr()), Destination: r.addr, Peer: r.source.Identity}
	if r.path.Anonymous {
		c.Peer = api.Identity{}
	}
	unwatch := r.local.live.add(c, s.kill)
	if err := s.admit(r.local, c); err != nil {
		unwatch()
		return nil, nil, err
	}
	up, release, err := s.dial([]netip.AddrPort{r.addr}, func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) { return s.legTo(ctx, r.local, addr) })
	if err != nil {
		unwatch()
		r.local.missed(r.addr, err)
		return nil, nil, err
	}
	return up, func() { release(); unwatch() }, nil
}

// legTo dials addr of dest, and gives up as soon as dest has lost its place: it was judged by the policies of no other pod.
func (s *session) legTo(ctx context.Context, dest *Pod, addr netip.AddrPort) (net.Conn, error) {
	s.p.mu.Lock()
	// nobody: the control plane gave dest an address that the agent knows nothing of
	if at := s.p.addrs[addr.Addr()]; dest.gone || at != nil && at != dest {
		s.p.mu.Unlock()
		return nil, dest.errGone()
	}
	if dest.legs == nil {
		dest.legs = map[*session]context.CancelCauseFunc{}
	}
	dest.legs[s] = s.kill
	s.p.mu.Unlock()
	defer func() {
		s.p.mu.Lock()
		defer s.p.mu.Unlock()
		delete(dest.legs, s)
	}()
	up, err := s.pod.cfg.Sockets.Leg(ctx, addr)
	if err == nil && s.ctx.Err() != nil { // meanwhile
		reset(up)
		return nil, context.Cause(s.ctx)
	}
	return up, err
}

// judgedSource is the address that the destination will see: the pod's own, whatever address its process bound.
func (s *session) judgedSource(dst netip.Addr) netip.AddrPort {
	if len(s.pod.cfg.Addrs) == 0 || s.pod.hasAddr(s.src.Addr()) {
		return s.src
	}
	for _, a := range s.pod.cfg.Addrs {
		if a.Is4() == dst.Is4() {
			return netip.AddrPortFrom(a, s.src.Port())
		}
	}
	return netip.AddrPortFrom(s.pod.cfg.Addrs[0], s.src.Port())
}

// dial connects as the pod to the first of the addresses that answers.
func (s *session) dial(addrs []netip.AddrPort, dial func(context.Context, netip.AddrPort) (net.Conn, error)) (net.Conn, func(), error) {
	up, err := s.dialOne(addrs, dial)
	if r := refusalOf(err); r != nil {
		return nil, nil, r
	}
	if err != nil {
		return nil, nil, ended(s.ctx, reason.UpstreamConnect, err)
	}
	tune(up, s.keepalive)
	return up, s.pod.loops.dialled(flow{addrPort(up.LocalAddr()), s.line.Dst}), nil
}

// dialOne tries the addresses in order and says in the record which one it was. Each has an equal share of the time that is left.
func (s *session) dialOne(addrs []netip.AddrPort, dial func(context.Context, netip.AddrPort) (net.Conn, error)) (net.Conn, error) {
	end := s.p.cfg.Clock.Now().Add(s.connectTimeout())
	var failed []error
	for i, addr := range addrs {
		left := end.Sub(s.p.cfg.Clock.Now())
		ctx, cancel := clock.WithTimeout(s.ctx, s.p.cfg.Clock, left/time.Duration(len(addrs)-i), nil)
		s.line.Dst = addr
		up, err := dial(ctx, addr)
		cancel()
		if err == nil || refusalOf(err) != nil || s.ctx.Err() != nil {
			return up, err
		}
		failed = append(failed, err)
	}
	return nil, errors.Join(failed...)
}

// podAt returns the pod of this node that has the address a.
func (p *Proxy) podAt(a netip.Addr) *Pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.addrs[a]
}

// relay copies between the client and up until both are closed.
func (s *session) relay(up net.Conn) error {
	s.relayed = true
	s.count()
	return s.copyBoth(s.client, up)
}
