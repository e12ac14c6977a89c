package http

import (
	"errors"
	"math"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/undermesh/undermesh/ztunnel/cluster"
	"github.com/undermesh/undermesh/ztunnel/http/frame"
	"github.com/undermesh/undermesh/ztunnel/http/h2"
	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// link2 is a connection of HTTP/2 to a host, which many exchanges use.
type link2 struct {
	made *Conn
	at   netip.AddrPort
	c    *h2.Conn
	uses atomic.Int64

	mu     sync.Mutex // protects below
	place  *cluster.PoolConn[*link2]
	limit  int
	most   int // streams that the cluster lets it have
	closed bool
}

func (l *link2) close() { l.c.Kill(h2.ErrClosed) }

// put tells the link its place in the pool.
func (l *link2) put(p *cluster.PoolConn[*link2]) {
	l.mu.Lock()
	l.place = p
	l.mu.Unlock()
	l.changed()
}

// changed tells the pool what became of the connection. It is called by the connection.
func (l *link2) changed() {
	l.mu.Lock()
	p, limit := l.place, min(l.c.Limit(), l.most)
	if p == nil || l.closed {
		l.mu.Unlock()
		return
	}
	l.closed = !l.c.Usable()
	same := limit == l.limit
	l.limit = limit
	closed := l.closed
	l.mu.Unlock()
	switch {
	case closed && l.c.Err() != nil:
		p.Lost(true)
	case closed:
		p.Retire(true)
	case !same:
		p.Limit(max(limit, 0))
	}
}

// client2 is the host's side of one exchange over HTTP/2.
type client2 struct {
	x     *exchange
	l     *link2
	lease cluster.Lease[*link2]
	s     *h2.Stream
	body  pieces
	first bool // of its connection
	came  bool
	err   error // of opening
}

// assumed is how many streams a connection is expected to carry before the host has said.
const assumed = 100

// connect2 gets a place on a connection of HTTP/2 to the host and puts it into x.up.
func (x *exchange) connect2(h *cluster.Host) *failure {
	pool := poolsOf(h).http2(h, x.f.worker)
	x.waiter.Context, x.waiter.g = x.ctx, x.g
	lease, err := pool.Acquire(&x.waiter)
	switch {
	case errors.Is(err, cluster.ErrOverflow):
		return overflow()
	case err != nil:
		return x.unconnected(err)
	case lease.MustDial():
		c, fail := x.open(h)
		if fail == nil && x.otherVersion(h, c, HTTP2) {
			lease.Failed(nil, false)
			return x.connect(h)
		}
		if fail != nil {
			lease.Failed(fail.err(), fail.reason == connectTimedOut)
			return fail
		}
		l := x.link2(h, c)
		lease, err = lease.Connected(l, l.limit)
		l.put(lease.Conn())
		x.reap(h)
		if err != nil {
			return overflow()
		}
	}
	l := lease.Conn().Conn
	if l.made.stale() {
		lease.Stale()
		return x.connect2(h)
	}
	x.client2 = client2{x: x, l: l, lease: lease, first: l.uses.Add(1) == 1}
	x.up = &x.client2
	return nil
}

func (x *exchange) link2(h *cluster.Host, c *Conn) *link2 {
	x.cluster.Inc(cluster.CxHTTP2)
	c.Callee.speaks(HTTP2, cluster.CxHTTP2)
	spec := x.cluster.Spec().HTTP
	l := &link2{made: c, at: addrOf(c), most: int(min(spec.MaxConcurrentStreams, math.MaxInt32))}
	l.limit = min(assumed, l.most)
	l.mu.Lock() // until the connection is there
	defer l.mu.Unlock()
	limits := &x.e.cfg.Limits
	l.c = h2.NewClient(c.Net, x.f.Workload.windowed(h2.Config{
		Clock: x.e.cfg.Clock, Log: x.e.cfg.Log, MaxHeaderList: min(limits.ResponseHeadBytes, mostHead2), MaxFields: limits.HeadFields, IdleTimeout: spec.IdleTimeout,
		PingInterval: spec.PingInterval, PingTimeout: spec.PingTimeout, Changed: l.changed,
	}))
	return l
}

// mostHead2 is the largest head of an answer over HTTP/2, in bytes, as with Envoy.
const mostHead2 = 60 << 10

func (c *client2) protocol() Protocol    { return HTTP2 }
func (c *client2) conn() *Conn           { return c.l.made }
func (c *client2) local() netip.AddrPort { return c.l.at }
func (c *client2) answered() bool        { return c.came }
func (c *client2) reused() bool          { return !c.first }

// unprocessed reports that the host has seen nothing of the request, or says so by GOAWAY. What it refuses by RST_STREAM is left to
// the policy of tries, as with Envoy.
func unprocessed(err error) bool {
	var se *h2.StreamError
	return h2.Retryable(err) && !errors.As(err, &se)
}

func (c *client2) interrupt() {
	if c.s != nil {
		c.s.Interrupt(errPaused)
	}
}

func (c *client2) request(r *head.Request, end bool) error {
	method := r.Method
	if len(r.Protocol) > 0 {
		r.Method = connect
	}
	s, err := c.l.c.Open(r, end)
	r.Method = method
	if err != nil {
		c.err = err
		return err
	}
	g := c.x.g
	g.mu.Lock() // interrupt looks at s
	c.s = s
	stopped := g.cause != noCause
	g.mu.Unlock()
	if stopped {
		s.Interrupt(errPaused)
	}
	c.body = pieces{s: s, free: &c.x.e.free, of: c.x.f.Workload}
	if c.x.tunnel {
		return s.Flush()
	}
	return nil
}

var connect = []byte("CONNECT")

func (c *client2) response(*head.Response) (*head.Response, error) {
	if c.err != nil {
		return nil, c.err
	}
	for {
		r, err := c.s.ReadHead()
		if err != nil {
			return nil, err
		}
		c.came = true
		if r.Status >= 200 {
			return r, nil
		}
		c.x.hinted = true
	}
}

func (c *client2) next() ([]byte, bool, error)  { return c.body.next() }
func (c *client2) ready() bool                  { return c.body.ready() }
func (c *client2) trailers() *head.Fields       { return c.s.Trailers() }
func (c *client2) write(p []byte, e bool) error { return send(c.s, p, e) }
func (c *client2) finish(t *head.Fields) error  { return sendTrailers(c.s, t) }
func (c *client2) flush() error                 { return c.s.Flush() }
func (c *client2) ended() bool                  { return c.s.Ended() && c.s.Trailers() == nil }
func (c *client2) tunnel()                      {}

func (c *client2) complete() { c.lease.Answered() }

func (c *client2) release(keep bool) {
	if c.s != nil {
		c.body.drop()
		c.s.Close()
	}
	lease := c.lease
	usable := c.l.c.Usable()
	*c = client2{}
	lease.Release(usable, !usable)
}

// lost2 is what became of a request over HTTP/2; nil: the error is not of a stream. A head that is too large is a reset of the host's,
// as with Envoy.
func lost2(err error) *failure {
	refused := &failure{kind: failedRefused, flag: UpstreamRemoteReset, status: 503, reason: "remote refused stream reset"}
	if errors.Is(err, h2.ErrGoAway) {
		return refused
	}
	var se *h2.StreamError
	if !errors.As(err, &se) {
		return nil
	}
	switch {
	case se.Code == frame.CodeProtocol, !se.Remote && se.Code != frame.CodeInternal:
		return &failure{kind: failedReset, flag: UpstreamProtocolError, status: 502, reason: "protocol error"}
	case se.Code == frame.CodeRefused:
		return refused
	case se.Code == frame.CodeConnect:
		return &failure{kind: failedReset, flag: UpstreamRemoteReset, status: 503, reason: "remote error with CONNECT request"}
	}
	return &failure{kind: failedReset, flag: UpstreamRemoteReset, status: 503, reason: "remote reset"}
}
