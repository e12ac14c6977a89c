package http

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"net/netip"
	"time"

	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/cluster"
	"github.com/undermesh/undermesh/ztunnel/http/h1"
	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// link is a connection of HTTP/1.1 to a host. One exchange at a time has it.
type link struct {
	made  *Conn
	sock  *socket
	in    reader
	at    netip.AddrPort // its own address
	uses  int
	since int64 // when it was put back
}

func (l *link) close() {
	l.in.drop()
	_ = l.sock.Close()
}

// fresh is how long a connection is taken for alive without looking, by a request that may be sent again.
const fresh = 50 * time.Millisecond

// alive reports whether a connection of the pool can be used, as far as can be seen. A look is a system call: it is left out where being
// wrong costs no more than that, and a process that has just ended has ended all its connections, so that it is left out once.
func (x *exchange) alive(l *link) bool {
	return l.uses == 0 || !x.wary && x.e.now()-l.since < int64(fresh) && x.repeatable() && x.bodiless() || l.quiet()
}

// quiet reports that neither bytes nor the end of the connection wait, as far as can be seen: of TLS nothing can.
func (l *link) quiet() bool {
	if l.sock.raw != nil {
		return l.sock.raw.alive()
	}
	q, ok := l.sock.Conn.(interface{ Quiet() bool })
	return !ok || q.Quiet()
}

// client is the host's side of one exchange over HTTP/1.1.
type client struct {
	x      *exchange
	l      *link
	lease  cluster.Lease[*link]
	w      writer
	toHead bool
	closes bool // the connection ends after the answer
	came   bool // a byte of the answer did
	tube   bool // it is a tunnel
}

// connect gets a connection to the host and puts it into x.up.
func (x *exchange) connect(h *cluster.Host) *failure {
	x.rest()
	if x.version(h) == HTTP2 {
		return x.connect2(h)
	}
	pool := poolsOf(h).http1(h, x.f.worker)
	x.waiter.Context, x.waiter.g = x.ctx, x.g
	for {
		lease, err := pool.Acquire(&x.waiter)
		switch {
		case errors.Is(err, cluster.ErrOverflow):
			return overflow()
		case err != nil:
			return x.unconnected(err)
		case lease.MustDial():
			c, fail := x.open(h)
			if fail == nil && x.otherVersion(h, c, HTTP1) {
				lease.Failed(nil, false)
				return x.connect2(h)
			}
			if fail != nil {
				lease.Failed(fail.err(), fail.reason == connectTimedOut)
				return fail
			}
			lease, err = lease.Connected(x.link(c), 1)
			x.reap(h)
			if err != nil {
				return overflow()
			}
		}
		l := lease.Conn().Conn
		if l.made.stale() || !x.alive(l) {
			lease.Stale()
			continue
		}
		l.uses++
		x.client = client{x: x, l: l, lease: lease, w: writer{sock: l.sock, out: x.upOut[:0]}}
		x.up = &x.client
		return nil
	}
}

// open makes a connection to the host, or takes that which was made for another version.
func (x *exchange) open(h *cluster.Host) (*Conn, *failure) {
	if c := x.spare; c != nil {
		x.spare = nil
		return c, nil
	}
	ctx, cancel := clock.WithTimeout(x.ctx, x.e.cfg.Clock, x.cluster.Spec().ConnectTimeout, errConnectTimeout)
	defer cancel()
	if x.g.aim(canceler(cancel)) != noCause {
		cancel()
	}
	c, err := x.f.Upstreams.Dial(ctx, x.cluster, h)
	why := x.g.aim(nil)
	if err == nil && why != noCause {
		_ = c.Net.Close()
		err = context.Canceled
	}
	if err != nil {
		if errors.Is(context.Cause(ctx), errConnectTimeout) {
			err = errConnectTimeout
		}
		return nil, x.unconnected(err)
	}
	h.Report(cluster.Connected, 0)
	return c, nil
}

func (x *exchange) link(c *Conn) *link {
	x.cluster.Inc(cluster.CxHTTP1)
	c.Callee.speaks(HTTP1, cluster.CxHTTP1)
	l := &link{made: c, sock: newSocket(c.Net, nil), at: addrOf(c)}
	l.in = reader{sock: l.sock, free: &x.e.free, tenant: x.f.Workload}
	return l
}

func addrOf(c *Conn) netip.AddrPort {
	if a, ok := c.Net.LocalAddr().(interface{ AddrPort() netip.AddrPort }); ok {
		p := a.AddrPort()
		return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
	}
	return netip.AddrPort{}
}

// waiter is the context of waiting for a connection: nothing is made until something is waited for.
type waiter struct {
	context.Context
	g *guard
}

// Done is called once, when the wait begins.
func (w *waiter) Done() <-chan struct{} {
	over := make(chan struct{})
	if w.g.aim(canceler(func() { close(over) })) != noCause {
		close(over)
	}
	return over
}

// Err is asked for when the wait has ended.
func (w *waiter) Err() error { return context.Canceled }

// Value hides the cause of the context within, which has not ended.
func (w *waiter) Value(any) any { return nil }

func (c *client) protocol() Protocol    { return HTTP1 }
func (c *client) conn() *Conn           { return c.l.made }
func (c *client) local() netip.AddrPort { return c.l.at }
func (c *client) answered() bool        { return c.came }
func (c *client) reused() bool          { return c.l.uses > 1 }
func (c *client) interrupt()            { c.l.sock.interrupt() }

func (c *client) request(r *head.Request, end bool) error {
	c.toHead = string(r.Method) == "HEAD"
	closes, method := r.Close, r.Method
	r.Close = false
	if len(r.Protocol) > 0 && string(method) == "CONNECT" { // of HTTP/2: here the method is GET (RFC 8441 §5)
		r.Method = methodGet
		c.x.webSocketKey(r)
	}
	c.w.chunked = r.Body < 0
	c.w.out = h1.AppendRequest(c.w.out, r)
	r.Close, r.Method = closes, method
	if end || c.x.tunnel {
		return c.w.flush()
	}
	return nil
}

var methodGet = []byte("GET")

// webSocketKey adds the field that HTTP/1.1 wants of a handshake (RFC 6455 §4.1) and HTTP/2 does not have.
func (x *exchange) webSocketKey(r *head.Request) {
	const name = "sec-websocket-key"
	if _, has := r.Find(name); has || !head.EqualFold(r.Protocol, "websocket") {
		return
	}
	var key [16]byte
	binary.NativeEndian.PutUint64(key[:], x.e.cfg.Random())
	binary.NativeEndian.PutUint64(key[8:], x.e.cfg.Random())
	r.Add(head.Other, name, base64.StdEncoding.AppendEncode(nil, key[:]))
}

// response passes over 1xx: we have told the client to go on ourselves, and other hints are not passed on, as Envoy does not.
func (c *client) response(into *head.Response) (*head.Response, error) {
	x := c.x
	l := &x.e.cfg.Limits
	limits := h1.Limits{Bytes: l.ResponseHeadBytes, Fields: l.HeadFields}
	for range maxInformational {
		var framing h1.Framing
		err := c.l.in.head(limits.Bytes, func(b []byte) (int, error) {
			c.came = true
			n, f, err := h1.ParseResponse(b, into, c.toHead, limits)
			framing = f
			return n, err
		}, nil)
		if err != nil {
			return nil, err
		}
		if into.Status == 101 && c.x.tunnel && len(c.x.req.Protocol) > 0 && len(into.Protocol) > 0 || into.Status >= 200 {
			c.closes = into.Close
			c.l.in.begin(framing, into.Body)
			return into, nil
		}
		if into.Status == 101 {
			return nil, errUnasked
		}
		x.hinted = true
	}
	return nil, errUnasked
}

// maxInformational is how many informational answers to one request are passed over: a host may not go on for ever with them.
const maxInformational = 100

// errUnasked is a refusal of what a host says.
var errUnasked = &h1.Error{Detail: "http1.codec_error"}

func (c *client) next() ([]byte, bool, error) { return c.l.in.next() }
func (c *client) ready() bool                 { return c.l.in.ready() }
func (c *client) trailers() *head.Fields      { return nil }
func (c *client) ended() bool                 { return c.l.in.done }
func (c *client) flush() error                { return c.w.flush() }

func (c *client) write(p []byte, end bool) error {
	if err := c.w.write(p, end); err != nil || !end || !c.tube {
		return err
	}
	return c.l.sock.endWrite()
}

func (c *client) finish(*head.Fields) error { return c.write(nil, true) }

func (c *client) tunnel() {
	c.tube = true
	c.w.chunked = false
	c.l.in.begin(h1.UntilClose, 0)
}

func (c *client) complete() { c.lease.Answered() }

func (c *client) release(keep bool) {
	l, x := c.l, c.x
	x.upOut = c.w.out[:0]
	keep = keep && l.in.done && !c.closes && !l.in.rest() && l.in.framing != h1.UntilClose
	l.since = x.e.now()
	lease, remote := c.lease, c.closes
	if keep {
		l.in.end()
	}
	*c = client{}
	lease.Release(keep, remote)
}
