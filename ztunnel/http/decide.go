package http

import (
	"context"
	"time"

	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/http/head"
	"github.com/undermesh/undermesh/ztunnel/http/route"
)

// decide finds the route, and does what stands before a host: faults, CORS, answers of the route's own. True: the request is to be
// forwarded.
func (x *exchange) decide() bool {
	vh := x.f.Upstreams.Routes(x.req)
	if vh == nil {
		return x.noRoute()
	}
	x.entry.VirtualHost = vh
	r := vh.Match(x.req, &x.in)
	if x.in.Excess != "" {
		return x.excess(431)
	}
	if r == nil {
		return x.noRoute()
	}
	x.entry.Route = r
	if !x.mayUpgrade(r) {
		x.down.abandon()
		x.reply(403, "", "upgrade_failed")
		return false
	}
	if r.Forward != nil {
		x.target = r.Pick(x.req, &x.in)
		if x.target.Cluster != "" {
			x.cluster = x.f.Upstreams.Cluster(x.target.Cluster)
		}
		if x.cluster != nil {
			x.in.Cluster = x.cluster.Name()
		}
	}
	if !x.fault(r.Fault) {
		return false
	}
	x.answer.Reset(nil)
	origin, answered := r.CORS.Request(x.req, x.e.cfg.Random(), &x.in, &x.answer)
	x.origin = origin
	switch {
	case answered:
		x.entry.Details = "cors_response"
		x.send(&x.answer, nil)
	case r.Direct != nil:
		x.valueBuf = r.Direct.Location(x.valueBuf[:0], x.req, &x.in)
		x.direct(r.Direct.Status, r.Direct.Body)
	case r.Redirect != nil:
		x.valueBuf = r.Redirect.Location(x.valueBuf[:0], x.req, &x.in)
		x.direct(r.Redirect.Status, nil)
	default:
		return true
	}
	return false
}

// excess answers a request that costs more by its route's rules than one may: it, or its answer, is too long for them.
func (x *exchange) excess(status int) bool {
	if x.in.Excess == route.Interrupted {
		x.interrupted(x.g.why())
		return false
	}
	x.reply(status, "", x.in.Excess)
	return false
}

func (x *exchange) noRoute() bool {
	x.entry.Flags.Add(NoRoute)
	x.reply(404, "", "route_not_found")
	return false
}

// mayUpgrade: WebSocket unless the route forbids it, as Istio sets it for all listeners; others, and CONNECT, only if it allows it.
func (x *exchange) mayUpgrade(r *route.Route) bool {
	if !x.tunnel {
		return true
	}
	protocol := x.req.Protocol
	if len(protocol) == 0 {
		protocol = x.req.Method
	}
	if r.Forward != nil {
		if allowed, said := r.Forward.Upgrade(protocol); said {
			return allowed
		}
	}
	return head.EqualFold(protocol, "websocket")
}

// fault injects what the route asks for. False: the request was answered.
func (x *exchange) fault(f *route.Fault) bool {
	if f == nil || !f.Applies(x.req, x.target, &x.in) {
		return true
	}
	if d := f.Delay(x.e.cfg.Random()); d > 0 {
		x.entry.Flags.Add(DelayInjected)
		if !x.wait(d) {
			return false
		}
	}
	a := f.Abort(x.e.cfg.Random())
	if a == nil {
		return true
	}
	x.entry.Flags.Add(FaultInjected)
	x.entry.GRPCStatus = a.GRPC
	x.reply(a.Status, "fault filter abort", "fault_filter_abort")
	return false
}

// wait passes time. False: the request came to its end meanwhile, and was answered.
func (x *exchange) wait(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	x.rest()
	ctx, cancel := context.WithCancel(x.ctx)
	defer cancel()
	if x.g.aim(canceler(cancel)) != noCause {
		cancel()
	}
	ok := clock.Pause(ctx, x.e.cfg.Clock, d)
	if c := x.g.aim(nil); c != noCause || !ok {
		x.interrupted(c)
		return false
	}
	return true
}

// direct is an answer of the route's own. Where it leads is in x.valueBuf; empty: nowhere.
func (x *exchange) direct(status int, body []byte) {
	x.entry.Details = "direct_response"
	x.answer.Reset(nil)
	x.answer.Status = status
	if len(x.valueBuf) > 0 {
		x.answer.Add(head.Location, head.Names[head.Location], x.valueBuf)
	}
	x.operate(&x.answer)
	x.send(&x.answer, body)
}

var textPlain = []byte("text/plain")
