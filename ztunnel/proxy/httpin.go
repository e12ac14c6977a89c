package proxy

import (
	"context"
	"net"
	"net/netip"
	"sync"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/ztunnel/cluster"
	"github.com/undermesh/undermesh/ztunnel/http"
	"github.com/undermesh/undermesh/ztunnel/http/head"
	"github.com/undermesh/undermesh/ztunnel/http/route"
	"github.com/undermesh/undermesh/ztunnel/identity"
	"github.com/undermesh/undermesh/ztunnel/proxy/calls"
)

// arrivals answers the engine for one connection to the pod, which was let in: by a tunnel, or in plain text.
type arrivals struct {
	s       *session
	target  netip.AddrPort
	in      *calls.Inbound
	cluster *cluster.Cluster
	dial    func(context.Context) (net.Conn, error)

	mu    sync.Mutex // protects below
	spare net.Conn   // to the application, not used yet; nil: none
}

// serveArrivals carries a connection of HTTP to the pod. spare is a connection to the application that is there already, or nil.
// proved is who the client is, nil for nobody, to the pod's identity own.
func (s *session) serveArrivals(c net.Conn, target netip.AddrPort, proved *identity.Peer, own api.Identity, spare net.Conn) error {
	snap := s.p.cfg.Snapshot()
	var peer *http.Peer
	if proved != nil {
		peer = &http.Peer{URI: proved.ID.String(), By: own.String(), Hash: proved.Fingerprint}
	}
	return s.serveInbound(c, s.pod, &arrivals{s: s, target: target, in: s.pod.calls.Inbound(target, versionOf(snap, s.pod.workload(snap), target.Port())), spare: spare,
		dial: func(ctx context.Context) (net.Conn, error) { return s.deliver(ctx, target) }}, peer)
}

// serveLeg does it for a pod of this node that has no proxy of its own, at the end of up.
func (s *session) serveLeg(up net.Conn, r *way) error {
	peer := s.legPeer(r)
	if peer.URI == "" {
		peer = nil
	}
	return s.serveInbound(s.client, r.local, &arrivals{s: s, target: r.addr, in: r.local.calls.Inbound(r.addr, versionOf(r.snap, r.path.Destination, r.addr.Port())), spare: up,
		dial: func(ctx context.Context) (net.Conn, error) { return s.legTo(ctx, r.local, r.addr) }}, peer)
}

// serveInbound carries a connection of HTTP to a, an application of dest; peer is who the client is, nil for nobody.
func (s *session) serveInbound(c net.Conn, dest *Pod, a *arrivals, peer *http.Peer) error {
	a.cluster = a.in.Cluster()
	err := s.serveHTTP(c, &http.Flow{Source: s.src, Destination: a.target, Direction: http.Inbound, Upstreams: a, Workload: s.pod.tenant, Trace: s.p.trace, Headers: s.p.headers, Record: a.record,
		Secure: peer != nil, Peer: peer, Listener: dest.tenant.Listener(http.Inbound, a.target.Port())})
	a.in.Close(a.cluster)
	if unused := a.take(); unused != nil {
		reset(unused)
	}
	return err
}

// record is called at the end of each request. The connection's own record does not change while it is served.
func (a *arrivals) record(e *http.Entry) {
	a.s.recorded.Store(true)
	if a.s.p.cfg.Telemetry.Quiet() {
		return
	}
	line := a.s.line
	line.Sent, line.Received = e.BytesSent, e.BytesReceived
	a.s.p.logRequest(line, e)
}

// versionOf is the HTTP that the application takes on a port of w, which may be nil.
func versionOf(snap *client.Snapshot, w *client.Workload, port uint16) cluster.Version {
	switch protocolBehind(snap, w, port) {
	case "http2", "grpc":
		return cluster.HTTP2
	case "http", "grpc-web":
		return cluster.HTTP1
	}
	return cluster.SameAsReceived
}

// Routes implements http.Upstreams.
func (a *arrivals) Routes(*head.Request) *route.VirtualHost { return a.in.Host }

// Cluster implements http.Upstreams.
func (a *arrivals) Cluster(name string) *cluster.Cluster {
	if name != a.cluster.Name() {
		return nil
	}
	return a.cluster
}

func (a *arrivals) take() net.Conn {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.spare
	a.spare = nil
	return c
}

// Dial implements http.Upstreams: to the application, from the client's address.
func (a *arrivals) Dial(ctx context.Context, _ *cluster.Cluster, _ *cluster.Host) (*http.Conn, error) {
	up := a.take()
	if up == nil {
		var err error
		if up, err = a.dial(ctx); err != nil {
			return nil, err
		}
	}
	stop := context.AfterFunc(a.s.ctx, func() { reset(up) })
	return &http.Conn{Net: metered(up).conn(func() { stop() })}, nil
}

// turnAway answers the requests of a client that a policy does not let in; err is what refused it. Other refusals, and what is no
// HTTP, are left to who accepted the connection.
func (s *session) turnAway(err error) error {
	r := refusalOf(err)
	if r == nil || r.Reason != reason.PolicyDenied && r.Reason != reason.PolicyNotAllowed {
		return err
	}
	if what, derr := s.detectInbound(s.client, s.dst.Port()); derr != nil || !what {
		return err
	}
	_ = s.serveHTTP(s.client, &http.Flow{Source: s.src, Destination: s.dst, Direction: http.Inbound, Upstreams: forbidding{s.p.forbidden}, Workload: s.pod.tenant, Headers: s.p.headers})
	s.turnedAway = true
	return err
}

// forbidding answers every request with one virtual host.
type forbidding struct{ host *route.VirtualHost }

// Routes implements http.Upstreams.
func (f forbidding) Routes(*head.Request) *route.VirtualHost { return f.host }

// Cluster implements http.Upstreams.
func (f forbidding) Cluster(string) *cluster.Cluster { return nil }

// Dial implements http.Upstreams.
func (f forbidding) Dial(context.Context, *cluster.Cluster, *cluster.Host) (*http.Conn, error) {
	return nil, refusedf(reason.PolicyDenied, "nothing is behind this answer")
}
