package proxy

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/policy"
	"github.com/undermesh/undermesh/ztunnel/cluster"
	"github.com/undermesh/undermesh/ztunnel/hbone"
	"github.com/undermesh/undermesh/ztunnel/telemetry"
)

// session is one connection: an accepted socket or a stream of a tunnel. It belongs to one goroutine.
type session struct {
	p    *Proxy
	pod  *Pod
	ctx  context.Context // ends with a *Refusal as cause when the mesh ends the connection
	kill context.CancelCauseFunc

	client   net.Conn       // nil for a stream
	src, dst netip.AddrPort // of the accepted socket
	begin    time.Time
	relayed  bool   // the client is in the hands of a relay, which closes it
	spoke    bool   // the client's first bytes were read, or waited for long enough
	early    []byte // of the client, read before it is known where they go
	hushed   bool   // the client had its time to speak first, and did not
	leg      *way   // of the connection to a pod of this node that was opened last; nil: none

	line           telemetry.Line
	labels         []telemetry.Labels
	flow           *telemetry.Flow
	received, sent atomic.Int64  // from and to the client
	stream         *hbone.Stream // when set it counts instead: its peer is the client (accepted) or the upstream (dialed)
	accepted       bool
	meter          func() (received, sent uint64) // when set it counts instead: of a connection that others copy
	patience       time.Duration                  // for the upstream connection; 0: Config.ConnectTimeout
	keepalive      *cluster.Keepalive             // of the upstream connection; nil: the mesh's
	idle           time.Duration                  // that a connection which is not HTTP may carry nothing for; 0: for ever
	intro          introduction                   // of the upstream connection
	called         *cluster.Cluster               // that it goes to; nil: none
	silent         bool                           // a tunnel that served streams, or a connection of requests: they were recorded
	turnedAway     bool                           // the client has its answer
	recorded       atomic.Bool                    // requests of it were
}

func (pod *Pod) session(ctx context.Context, src, dst netip.AddrPort) *session {
	s := &session{p: pod.p, pod: pod, src: src, dst: dst, begin: pod.p.cfg.Clock.Now()}
	s.ctx, s.kill = context.WithCancelCause(ctx)
	s.line = telemetry.Line{Src: src, Dst: dst, Rule: -1}
	return s
}

// serve owns an accepted connection from beginning to end.
func (pod *Pod) serve(r *run, kind Kind, c net.Conn) {
	s := pod.session(r.conns, addrPort(c.RemoteAddr()), addrPort(c.LocalAddr()))
	s.client = c
	defer s.kill(nil)
	if kind != Tunnel { // which counts from its proof on
		if !pod.p.take(pod) {
			s.finish(refusedf(reason.Overload, "too many connections"))
			reset(c)
			return
		}
		defer pod.p.give(pod)
	}
	if kind == Outbound {
		calm(c)
	} else {
		tune(c, nil)
	}
	err := s.guard(func() error {
		switch kind {
		case Outbound:
			return s.outbound(r.conns)
		case Inbound:
			return s.inbound()
		case Probes:
			return s.probe()
		case Tunnel:
			return s.tunnel(r)
		}
		return refusedf(reason.Internal, "listener of kind %d", kind)
	})
	s.finish(err)
	switch {
	case s.turnedAway:
	case s.relayed && refusalOf(err) != nil:
		reset(c)
	case s.relayed:
	case err != nil && kind == Tunnel:
		_ = c.Close() // a peer that speaks TLS got its alert
	case err != nil && s.spoke:
		reset(c)
	case err != nil:
		pod.p.refuse(r.conns, c)
	default:
		_ = c.Close()
	}
}

// guard turns a panic into a Refusal.
func (s *session) guard(f func() error) error { return s.p.guard(s.src.String(), s.dst.String(), f) }

func (p *Proxy) guard(src, dst string, f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			p.cfg.Log.Error("connection handler panicked", "src", src, "dst", dst, "err", v, "stack", string(debug.Stack()))
			err = refused(reason.Internal, fmt.Errorf("panic: %v", v))
		}
	}()
	return f()
}

// finish records the connection's end.
func (s *session) finish(err error) {
	r := refusalOf(err)
	if s.flow != nil {
		s.flow.Close()
	} else if r != nil {
		s.p.cfg.Telemetry.Failed(r.Reason, s.labels...)
	}
	if r != nil {
		s.line.Reason = r.Reason
		if r.Policy != "" {
			s.line.Policy, s.line.Rule = r.Policy, r.Rule
		}
		if r.Reason != reason.UpstreamReset && r.Reason != reason.DownstreamReset {
			s.p.cfg.Telemetry.Refused(r.Reason)
		}
	}
	if s.silent && r == nil {
		return
	}
	s.line.Err = err
	s.line.Duration = s.p.cfg.Clock.Now().Sub(s.begin)
	received, sent := s.bytes()
	s.line.Sent, s.line.Received = int64(sent), int64(received)
	if s.line.Direction == Outbound.String() { // as the client sees them
		s.line.Sent, s.line.Received = s.line.Received, s.line.Sent
	}
	s.p.cfg.Telemetry.Log(s.line)
}

// count counts the connection as opened; before it a refusal counts as failed.
func (s *session) count() { s.flow = s.p.cfg.Telemetry.Open(s.bytes, s.labels...) }

// bytes returns what came from the client and what went to it. Safe for concurrent use once the session is open.
func (s *session) bytes() (received, sent uint64) {
	received, sent = uint64(s.received.Load()), uint64(s.sent.Load())
	if s.stream == nil && s.meter != nil {
		return s.meter()
	}
	if s.stream == nil {
		return received, sent
	}
	st := s.stream.Stats()
	if s.accepted {
		return received + st.Received, sent + st.Sent
	}
	return received + st.Sent, sent + st.Received
}

// connectTimeout bounds the upstream connection.
func (s *session) connectTimeout() time.Duration {
	if s.patience > 0 {
		return s.patience
	}
	return s.p.cfg.ConnectTimeout
}

// admit decides whether the policies of dest let c through; it waits for them. The connection must be watched before
// (liveSet.add), so that no change falls between decision and watch.
func (s *session) admit(dest *Pod, c policy.Connection) error {
	if dest.drained.Load() {
		return refusedf(reason.Draining, "pod %s/%s was told to take no connections", dest.cfg.Namespace, dest.cfg.Name)
	}
	var w *client.Workload
	var now *client.Snapshot
	if !s.p.await(s.ctx, func(snap *client.Snapshot) bool {
		now, w = snap, dest.workload(snap)
		return w != nil && snap.PoliciesComplete(w)
	}) {
		return ended(s.ctx, reason.NotReady, fmt.Errorf("policies of pod %s/%s are not known", dest.cfg.Namespace, dest.cfg.Name))
	}
	s.line.Generation = now.Generation()
	v := policy.Authorize(now.Policies(w), now.Mesh(), c)
	s.line.Policy, s.line.Rule, s.line.DryRun = v.Policy, v.Rule, v.DryRun
	if !v.Allow {
		return &Refusal{Reason: v.Reason, Policy: v.Policy, Rule: v.Rule}
	}
	return nil
}

// addrPort reads an address of a TCP socket, or of a connection in memory whose address prints as one. IPv4 in IPv6 is
// unmapped. The zero value when it is neither.
func addrPort(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	switch t := a.(type) {
	case *net.TCPAddr:
		ap = t.AddrPort()
	case interface{ AddrPort() netip.AddrPort }:
		ap = t.AddrPort()
	case nil:
		return ap
	default:
		parsed, err := netip.ParseAddrPort(a.String())
		if err != nil {
			return netip.AddrPort{}
		}
		ap = parsed
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// tune sets what every TCP connection of the mesh has, as far as own, which may be nil, says nothing else; TCP_NODELAY is Go's default.
func tune(c net.Conn, own *cluster.Keepalive) {
	if k, ok := c.(interface {
		SetKeepAliveConfig(net.KeepAliveConfig) error
	}); ok {
		_ = k.SetKeepAliveConfig(keepAlive(own)) // fails only when the peer is gone already, which the next read tells
	}
}

// calm leaves a connection to a process of a pod of this node without probes, which Go's default has: one kernel has both ends, and says
// when the other one is no more.
func calm(c net.Conn) {
	if k, ok := c.(interface {
		SetKeepAliveConfig(net.KeepAliveConfig) error
	}); ok {
		_ = k.SetKeepAliveConfig(net.KeepAliveConfig{Idle: -1, Interval: -1, Count: -1}) // as tune
	}
}

func keepAlive(own *cluster.Keepalive) net.KeepAliveConfig {
	out := net.KeepAliveConfig{Enable: true, Idle: 180 * time.Second, Interval: 180 * time.Second, Count: 9}
	if own == nil {
		return out
	}
	if own.Idle > 0 {
		out.Idle = min(own.Idle, maxKeepalive)
	}
	if own.Interval > 0 {
		out.Interval = min(own.Interval, maxKeepalive)
	}
	if own.Probes > 0 {
		out.Count = int(min(own.Probes, maxProbes))
	}
	return out
}

// What Linux takes at most; more is refused as a whole.
const (
	maxKeepalive = 32767 * time.Second
	maxProbes    = 127
)

// as takes what a cluster says of the connections to its hosts.
func (s *session) as(spec *cluster.Spec) {
	s.patience, s.keepalive = spec.ConnectTimeout, spec.TCPKeepalive
}
