package http

import (
	"context"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/undermesh/undermesh/ztunnel/cluster"
	"github.com/undermesh/undermesh/ztunnel/http/head"
	"github.com/undermesh/undermesh/ztunnel/http/route"
)

// exchange is one request on its way, from its head to its log entry. Exchanges are used again.
type exchange struct {
	e    *Engine
	f    *Flow
	g    *guard
	down downstream
	ctx  context.Context

	req      *head.Request  // own, or that of a stream of HTTP/2
	resp     *head.Response // what the client is answered; nil: nothing yet
	own      head.Request
	answer   head.Response // own answers, and those of HTTP/1.1
	in       route.Input
	entry    Entry
	began    int64        // arrival
	sentAt   atomic.Int64 // when the request was at its end; 0: it is not
	random   uint64
	idle     time.Duration // without a byte, at most; 0: any
	origin   []byte        // of CORS
	target   route.Target
	times    route.Timeouts
	retry    route.Retry
	hash     route.Hash
	cluster  *cluster.Cluster
	tried    []*cluster.Host
	retrying bool // counts among the retries of the cluster
	tunnel   bool // an upgrade or CONNECT
	counted  bool // among the tenant's requests
	wary     bool // a connection of the pool was dead
	metered  bool // begun in the statistics
	aborted  bool // the answer was broken off
	heard    int  // status that the host gave, or that its engine would have given for it; 0: none
	hinted   bool // a host has sent an informational answer: as with Envoy no other is asked then
	span     span // its step of a trace
	contexts contexts
	forced   bool // the client asks for its trace (x-envoy-force-trace): it is sampled, and the answer tells the request's id
	legged   bool // it carries the step of a leg

	turn     *turns // to work, which it has; nil: none
	turnFrom int64  // since when
	toils    func() bool

	how *Headers // which fields it gets

	unanswered string // what the caller's engine is told of a workload that has not answered; "": nothing

	body body
	up   upstream // that answers; nil: none
	keep bool     // its connection may be used again

	pathBuf, upOut, downOut, idBuf, valueBuf []byte
	guard                                    *guard // of a stream of HTTP/2
	stream                                   server2
	client                                   client
	client2                                  client2
	spare                                    *Conn // was made, and speaks another version than was expected
	waiter                                   waiter
}

// exchange returns one for a request of a flow.
func (e *Engine) exchange(f *Flow, down downstream, g *guard) *exchange {
	x, ok := e.exchanges.Get().(*exchange)
	if !ok {
		x = &exchange{e: e, upOut: make([]byte, 0, 2<<10), downOut: make([]byte, 0, 2<<10)}
		x.body.ended, x.toils = make(chan struct{}, 1), x.toil
	}
	x.f, x.g, x.down, x.req = f, g, down, &x.own
	return x
}

// put takes an exchange back.
func (e *Engine) put(x *exchange) {
	x.body.reset(x)
	x.rest() // it panicked
	if x.counted {
		x.f.Workload.requests.Add(-1)
	}
	if x.metered { // it panicked
		x.f.Listener.end(0)
	}
	if x.guard != nil && x.g == x.guard {
		x.guard.begin()
	}
	x.g, x.down = nil, nil
	x.own.Reset(nil)
	x.answer.Reset(nil)
	x.in.Reset()
	const most = 64 << 10
	if cap(x.upOut) > most || cap(x.downOut) > most || cap(x.pathBuf) > most {
		return
	}
	*x = exchange{
		e: e, own: x.own, answer: x.answer, in: x.in, body: body{ended: x.body.ended, replay: x.body.replay}, tried: x.tried[:0], toils: x.toils,
		guard: x.guard, pathBuf: x.pathBuf, upOut: x.upOut[:0], downOut: x.downOut[:0], idBuf: x.idBuf, valueBuf: x.valueBuf,
	}
	e.exchanges.Put(x)
}

// start notes the arrival.
func (x *exchange) start(now int64) {
	x.began = now
	x.random = x.e.cfg.Random()
	x.entry = Entry{Flow: x.f, Request: x.req, Protocol: x.down.protocol(), Start: x.e.epoch.Add(time.Duration(now)), ServiceTime: -1, GRPCStatus: -1}
	f := x.f
	x.how = f.how(x.e)
	x.in.Quiet = x.how.NoDebug
	x.in.Random, x.in.Source, x.in.Direct, x.in.Destination, x.in.SNI, x.in.Start = x.random, f.Source, f.Source, f.Destination, f.SNI, x.entry.Start
	x.in.PeerURI, x.in.LocalURI, x.in.Hostname, x.in.Cluster, x.in.Local = "", "", "", "", false
	x.in.Upstream, x.in.UpstreamLocal = netip.AddrPort{}, netip.AddrPort{}
	if f.Peer != nil {
		x.in.PeerURI, x.in.LocalURI = f.Peer.URI, f.Peer.By
	}
	x.in.Request, x.in.Attempts, x.in.Toils = x.req, 0, x.toils
}

// run takes a request whose head was read to its end.
func (x *exchange) run(ctx context.Context) {
	defer func() {
		if p := recover(); p != nil {
			x.give()
			panic(p)
		}
	}()
	x.ctx = ctx
	x.begun()
	x.in.Request, x.entry.Request = x.req, x.req
	x.tunnel = len(x.req.Protocol) > 0 || string(x.req.Method) == "CONNECT"
	if x.tunnel && x.down.protocol() == HTTP2 {
		x.req.Body = 0 // what the stream carries is the tunnel's
	}
	x.body.done.Store(x.req.Body == 0)
	if x.body.done.Load() {
		x.requested()
	} else {
		x.g.after(slowRequest, x.began, x.e.cfg.Limits.Request)
		x.lookOut()
	}
	if x.admit() && x.prepare() && x.decide() {
		x.forward()
	}
	x.finish()
}

// give lets go, after a panic, of what others have of the request: the pump of its body, and the connection to a host.
func (x *exchange) give() {
	x.g.aim(nil)
	x.down.interrupt()
	if x.up != nil {
		x.up.interrupt()
	}
	x.body.stop(x)
	x.letGo(false)
}

// letGo gives the connection to a host back.
func (x *exchange) letGo(keep bool) {
	if x.up == nil {
		return
	}
	x.up.conn().Callee.end(x.heard)
	x.up.release(keep)
	x.up = nil
}

// begun counts the request where its connection is counted.
func (x *exchange) begun() {
	x.f.Listener.begun[x.down.protocol()].Add(1)
	x.metered = true
}

// over counts its end.
func (x *exchange) over() {
	if !x.metered {
		return
	}
	x.metered = false
	e, l := &x.entry, x.f.Listener
	l.end(e.Status())
	if x.aborted || e.Flags.n > 0 || e.Details != viaUpstream {
		l.explain(e, x.aborted)
	}
}

// admit counts the request among those of the tenant.
func (x *exchange) admit() bool {
	t := x.f.Workload
	if !reserve(&t.requests, 1, int64(t.limits.Requests)) {
		t.counts.requestsRefused.Add(1)
		x.entry.Flags.Add(OverloadManager)
		x.reply(503, "the workload has as many requests under way as it may", "overload")
		return false
	}
	x.counted = true
	if t.requests.Load() > int64(t.limits.Unhindered) && !x.takeTurn(x.e.crowds) {
		x.interrupted(x.g.why())
		return false
	}
	return true
}

// requested is called when the request was read to its end: timeouts begin, and the client may be looked for.
func (x *exchange) requested() {
	now := x.e.now()
	x.sentAt.Store(now)
	g := x.g
	g.mu.Lock()
	defer g.mu.Unlock()
	g.at[slowRequest], g.at[lookTimer] = 0, 0
	if g.watch != nil {
		g.at[watchTimer] = now + int64(lookFirst)
	}
	if x.times.Global > 0 {
		g.at[slowResponse] = deadline(now, x.times.Global)
	}
	if x.times.PerTry > 0 {
		g.at[slowTry] = deadline(now, x.times.PerTry)
	}
	g.rearmLocked()
}

// lookOut has the client looked for from time to time, because what it sends may wait for the host.
func (x *exchange) lookOut() {
	if x.g.look != nil {
		x.g.after(lookTimer, x.e.now(), lookFirst)
	}
}

// finish ends the request: what is open is closed, and what is known of it is told.
func (x *exchange) finish() {
	x.rest()
	x.body.stop(x)
	if x.g.aim(nil) != noCause {
		x.keep = false // its connection may have been interrupted
	}
	x.dropSpare()
	x.doneRetry()
	e := &x.entry
	e.Response = x.resp
	e.Duration = time.Duration(x.e.now() - x.began)
	e.BytesReceived = x.body.received
	x.over()
	if x.f.Record != nil {
		x.f.Record(e)
	}
	x.letGo(x.keep) // now: the head of the answer is its
}
