package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/policy"
	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/cluster"
	"github.com/undermesh/undermesh/ztunnel/hbone"
	"github.com/undermesh/undermesh/ztunnel/http"
	"github.com/undermesh/undermesh/ztunnel/http/head"
	"github.com/undermesh/undermesh/ztunnel/http/route"
	"github.com/undermesh/undermesh/ztunnel/proxy/calls"
	"github.com/undermesh/undermesh/ztunnel/telemetry"
)

// caller returns what the pod's requests go by now: of the newest snapshot, or of the last one that knew the pod. False when no
// snapshot did.
func (pod *Pod) caller() (policy.Caller, bool) {
	snap := pod.p.cfg.Snapshot()
	last := pod.calling.Load()
	if last != nil && last.Snapshot == snap {
		return *last, true
	}
	if snap != nil {
		if w := pod.workload(snap); w != nil {
			if c, known := policy.NewCaller(snap, w); known {
				pod.calling.Store(&c)
				return c, true
			}
		}
	}
	if last == nil {
		return policy.Caller{}, false
	}
	return *last, true
}

// requests answers the engine for one connection of the pod's processes.
type requests struct {
	s    *session        // of the connection
	life context.Context // of the pod's connections

	mu       sync.Mutex // protects below
	snap     *client.Snapshot
	dialled  *client.Service // that the address which was dialled is of, in snap
	workload bool            // that address is one's, in snap
}

// serveRequests carries a connection of one of the pod's processes that speaks HTTP.
func (s *session) serveRequests(life context.Context) error {
	s.line.Path = "http"
	f := &requests{s: s, life: life}
	return s.serveHTTP(s.client, &http.Flow{
		Source: s.src, Destination: s.dst, Direction: http.Outbound, Upstreams: f, Workload: s.pod.tenant, Trace: s.p.trace, Headers: s.p.headers, Record: f.record,
	})
}

// trace is how requests are traced by now.
func (p *Proxy) trace() http.Trace {
	if snap := p.cfg.Snapshot(); snap != nil {
		if t := snap.Mesh().GetTracing(); t != nil {
			return http.Trace{On: true, Sample: t.GetSampling()}
		}
	}
	return http.Trace{}
}

// serveHTTP gives a client's connection to the engine, which closes it.
func (s *session) serveHTTP(c net.Conn, flow *http.Flow) error {
	s.relayed = true
	m := metered(c)
	if s.stream == nil {
		s.meter = m.bytes
	}
	err := s.p.engine.Serve(s.ctx, m.conn(func() {}), s.early, flow)
	s.silent = s.recorded.Load()
	if r := refusalOf(context.Cause(s.ctx)); r != nil {
		return r
	}
	if err != nil {
		s.p.cfg.Log.Debug("connection of HTTP ended", "src", s.src.String(), "dst", s.dst.String(), "err", err)
	}
	return nil
}

// Routes implements http.Upstreams.
func (f *requests) Routes(req *head.Request) *route.VirtualHost {
	c, ok := f.s.pod.caller()
	if !ok {
		return nil
	}
	var svc *client.Service
	svc, c.AtWorkload = f.place(c)
	return f.s.pod.calls.VirtualHost(c, f.s.dst.Port(), req.Authority, svc)
}

// place is the service of the address that was dialled, nil for none, and whether the address is a workload's.
func (f *requests) place(c policy.Caller) (svc *client.Service, workload bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.snap != c.Snapshot {
		f.snap, f.dialled, f.workload = c.Snapshot, f.s.dialledService(c), f.s.atWorkload(c)
	}
	return f.dialled, f.workload
}

// dialledService is the service of the address that was dialled, or of the declared host that it is one of, nil for none.
func (s *session) dialledService(c policy.Caller) *client.Service {
	if svc := c.View.ServiceAt(c.Snapshot, c.Workload.GetNetwork(), s.dst); svc != nil {
		return svc
	}
	r := &way{snap: c.Snapshot, source: c.Workload, view: c.View}
	s.byName(r)
	return r.svc
}

// Cluster implements http.Upstreams.
func (f *requests) Cluster(name string) *cluster.Cluster {
	c, ok := f.s.pod.caller()
	if !ok {
		return nil
	}
	if e := f.s.pod.calls.Cluster(c, name); e != nil {
		return e.Cluster
	}
	return nil
}

// Dial implements http.Upstreams.
func (f *requests) Dial(ctx context.Context, c *cluster.Cluster, h *cluster.Host) (*http.Conn, error) {
	e := f.s.pod.calls.Of(c)
	if e == nil {
		return nil, &http.Refused{Err: refusedf(reason.NoEndpoint, "cluster %s is no more", c.Name())}
	}
	s := f.s.pod.session(f.life, f.s.src, f.s.dst)
	conn, err := s.reach(ctx, e, h)
	if err != nil {
		s.finish(err)
		s.kill(nil)
		return nil, refusedHTTP(err)
	}
	return conn, nil
}

// refusedHTTP is what a client of HTTP hears of a refusal.
func refusedHTTP(err error) error {
	r := refusalOf(err)
	if r == nil {
		return err
	}
	why := r.Reason.String()
	var status *hbone.StatusError
	if errors.As(err, &status) {
		why = status.Header.Get(reasonHeader) // of the other node
	}
	switch why {
	case reason.PolicyDenied.String(), reason.PolicyNotAllowed.String():
		return &http.Refused{Status: 403, Body: denied, Detail: "rbac_access_denied_matched_policy[none]", Err: err}
	case reason.OutboundBlocked.String():
		return &http.Refused{Status: 502, Err: err}
	case reason.UpstreamConnect.String(), reason.Draining.String():
		return err // tried again where the route says so
	}
	return &http.Refused{Err: err}
}

const denied = "RBAC: access denied"

// record is called at the end of each request.
func (f *requests) record(e *http.Entry) {
	if e.Mirror {
		return
	}
	f.s.recorded.Store(true)
	if f.s.p.cfg.Telemetry.Quiet() {
		return
	}
	line := telemetry.Line{Direction: Outbound.String(), Src: f.s.src, Dst: f.s.dst, Rule: -1, Path: "http"}
	if c, ok := f.s.pod.caller(); ok {
		line.SrcWorkload, line.SrcNamespace, line.SrcID = c.Workload.GetName(), c.Workload.GetNamespace(), c.Workload.Identity.String()
		line.Generation = c.Snapshot.Generation()
	}
	if e.Conn != nil {
		if u, ok := e.Conn.Value.(*upstream); ok {
			line = u.line
			line.Src = f.s.src
		}
	}
	line.Sent, line.Received = e.BytesReceived, e.BytesSent // as the client sees them
	f.s.p.logRequest(line, e)
}

// logRequest writes the record of a request.
func (p *Proxy) logRequest(line telemetry.Line, e *http.Entry) {
	line.Duration = e.Duration
	q := &telemetry.Request{Status: e.Status(), Flags: e.Flags.String(), Details: e.Details, Attempts: e.Attempts}
	if r := e.Request; r != nil {
		q.Method, q.Authority, q.Path = string(r.Method), string(r.Authority), string(r.Path)
	}
	if e.Cluster != nil {
		q.Cluster = e.Cluster.Name()
	}
	if e.Route != nil {
		q.Route = e.Route.Name
	}
	line.Request = q
	p.cfg.Telemetry.Log(line)
}

// reach opens a connection to a host of a cluster.
func (s *session) reach(ctx context.Context, e *calls.Cluster, h *cluster.Host) (*http.Conn, error) {
	s.line.Direction = Outbound.String()
	spec := e.Cluster.Spec()
	s.as(spec)
	stop := context.AfterFunc(ctx, func() { s.kill(refused(reason.DownstreamReset, context.Cause(ctx))) })
	defer stop()
	var conn *http.Conn
	err := s.guard(func() error {
		r, err := s.wayTo(e, h)
		if err != nil {
			return err
		}
		if err := introduces(e, r); err != nil {
			return err
		}
		s.intro.version = spec.ProxyProtocol
		if spec.HTTP.Version == cluster.HTTP2 {
			r.protocols = []string{"h2"}
		}
		up, release, err := s.open(r)
		if err != nil {
			return err
		}
		conn = &http.Conn{Protocol: r.protocol}
		if s.leg == r && r.path.Originate == nil {
			conn.Leg, conn.Callee = s.legPeer(r), s.callee(r)
			conn.Callee.Opened(s.p.cfg.Clock.Now())
			release = both(release, conn.Callee.Closed)
		} else if s.leg == r {
			release = both(release, r.local.arrive(r.addr))
		}
		_, conn.Engine = up.(*hbone.Stream)
		u := s.opened(up, r, release)
		conn.Net, conn.Value, conn.Stale = u.conn, u, u.isStale
		if age := spec.HTTP.MaxConnectionDuration; age > 0 {
			end := s.p.cfg.Clock.Now().Add(age)
			conn.Stale = func() bool { return u.isStale() || !s.p.cfg.Clock.Now().Before(end) }
		}
		return nil
	})
	if err == nil && !stop() {
		_ = conn.Net.Close()
		return nil, ended(s.ctx, reason.DownstreamReset, context.Cause(ctx))
	}
	return conn, err
}

func both(f, g func()) func() { return func() { f(); g() } }

// fingerprintWait bounds how long the first leg of a pod waits for the certificate that X-Forwarded-Client-Cert names.
const fingerprintWait = time.Second

// legPeer is who a workload of this node is told that calls it.
func (s *session) legPeer(r *way) *http.Peer {
	if r.path.Anonymous {
		return &http.Peer{}
	}
	ctx, cancel := clock.WithTimeout(s.ctx, s.p.cfg.Clock, fingerprintWait, nil)
	defer cancel()
	hash, err := s.p.cfg.Identity.Fingerprint(ctx, r.source.Identity)
	if err != nil { // the kernel says who calls; a certificate is not needed for that
		s.p.cfg.Log.Debug("caller has no certificate yet", "src", r.source.Identity.String(), "err", err)
	}
	return &http.Peer{URI: r.source.Identity.String(), By: r.path.Destination.Identity.String(), Hash: hash}
}

// wayTo decides how the pod gets to a host of a cluster, by the newest snapshot.
func (s *session) wayTo(e *calls.Cluster, h *cluster.Host) (*way, error) {
	at := h.Endpoint()
	if at.Addr.IsValid() {
		s.dst = netip.AddrPortFrom(at.Addr.Addr().Unmap(), at.Addr.Port())
		s.line.Dst = s.dst
	}
	ref, ok := at.Value.(calls.Endpoint)
	if ok && s.p.cfg.Snapshot().WorkloadByUID(ref.UID) == nil { // what was known once need not be waited for
		return nil, refusedf(reason.NoEndpoint, "endpoint %s of %s is no more", at.Key, e.Name())
	}
	r, err := s.prepare()
	if err != nil {
		return nil, err
	}
	spec := e.Spec()
	if e.Cluster.Spec().Kind == cluster.OriginalDestination {
		return s.wayToOriginal(r, spec)
	}
	if !ok {
		return nil, refusedf(reason.Internal, "endpoint %s of %s is of an unknown kind", at.Key, e.Name())
	}
	r.svc, r.port, r.subset = spec.Service, spec.Port, spec.Subset
	w := r.snap.WorkloadByUID(ref.UID)
	if w == nil {
		return nil, refusedf(reason.NoEndpoint, "endpoint %s of %s is no more", at.Key, e.Name())
	}
	if len(w.Addrs) == 0 {
		w, err = s.resolve(r, w, ref.Port)
	} else {
		r.addr = netip.AddrPortFrom(s.dst.Addr(), ref.Port)
		err = s.foreignPort(r)
	}
	return s.decide(r, w, err)
}

// wayToOriginal leads to the address that was dialled. What the mesh knows there keeps its identity and its policies, whatever
// host the request names; an address that nobody knows may be the service's, where that says so. What is asked of a subset counts for
// the pods of a headless service too.
func (s *session) wayToOriginal(r *way, spec policy.ClusterSpec) (*way, error) {
	w, err := s.endpoint(r)
	if err == nil && w == nil && r.svc == nil && spec.Service != nil && original(spec.Service) {
		if port, ok := servicePort(spec.Service, spec.Port); ok {
			r.svc, r.port, r.addr = spec.Service, spec.Port, netip.AddrPortFrom(s.dst.Addr(), port)
		}
	}
	if r.svc == nil && spec.Subset != "" && spec.Serves(w) {
		r.behind, r.subset = spec.Service, spec.Subset
	}
	return s.decide(r, w, err)
}
