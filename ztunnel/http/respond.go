package http

import (
	"strconv"
	"time"

	"github.com/undermesh/undermesh/ztunnel/cluster"
	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// viaUpstream is the detail of what a host has answered.
const viaUpstream = "via_upstream"

// answered takes the head of a host's answer. True: it calls for another try.
func (x *exchange) answered() (again bool) {
	resp := x.entry.Response
	now := x.e.now()
	x.g.set(slowTry, 0)
	x.entry.Host.Report(cluster.Answered, outlierStatus(resp))
	if unreached := x.unreached(resp); (unreached || !x.hinted && x.retry.Head(resp, &x.in)) && x.mayRetry() {
		x.body.stop(x)
		x.dropUpstream() // the rest of its answer is not waited for
		return x.again()
	}
	x.cluster.CountStatus(resp.Status)
	if x.entry.Attempts > 1 && resp.Status < 500 {
		x.cluster.Inc(cluster.RqRetrySuccess)
	}
	x.doneRetry()
	x.entry.Details = viaUpstream
	if x.dress(resp, now); x.in.Excess != "" {
		x.body.stop(x)
		x.dropUpstream() // the rest of its answer is not waited for
		return x.excess(502)
	}
	x.deliver(resp)
	return false
}

// outlierStatus is the status that counts for the host: that of gRPC where the answer has one.
func outlierStatus(r *head.Response) int {
	if v := r.Get(head.GRPCStatus); v != nil {
		if code, err := strconv.Atoi(string(v)); err == nil {
			return statusOfGRPC(code)
		}
	}
	return r.Status
}

// statusOfGRPC is the status of HTTP that a code of gRPC stands for.
func statusOfGRPC(code int) int {
	switch code {
	case 0:
		return 200
	case 1:
		return 499
	case 3, 9, 11:
		return 400
	case 4:
		return 504
	case 5:
		return 404
	case 6, 10:
		return 409
	case 7:
		return 403
	case 8:
		return 429
	case 12:
		return 501
	case 14:
		return 503
	case 16:
		return 401
	}
	return 500
}

// dress changes the head of a host's answer to what the client is to see.
func (x *exchange) dress(resp *head.Response, now int64) {
	since := x.sentAt.Load()
	if since == 0 {
		since = now
	}
	x.entry.ServiceTime = time.Duration(now - since)
	if !x.how.NoDebug {
		x.valueBuf = strconv.AppendInt(x.valueBuf[:0], x.entry.ServiceTime.Milliseconds(), 10)
		resp.Set(head.XEnvoyUpstreamServiceTime, head.Names[head.XEnvoyUpstreamServiceTime], x.valueBuf)
	}
	if x.f.Direction == Outbound { // the operation is the called proxy's word to this one
		resp.Del(head.XEnvoyDecoratorOperation, head.Names[head.XEnvoyDecoratorOperation])
	}
	vh := x.entry.VirtualHost
	if vh.AttemptCountOnResponse {
		x.attemptCount(&resp.Fields)
	}
	r := x.entry.Route
	x.told()
	r.Response(resp, x.target, &x.in)
	for _, c := range x.hash.Cookie {
		x.valueBuf = append(x.valueBuf[:0], c...)
		resp.Add(head.SetCookie, head.Names[head.SetCookie], x.valueBuf)
	}
	r.CORS.Response(resp, x.origin)
	x.ours(&resp.Fields)
	if v := resp.Get(head.GRPCStatus); v != nil {
		x.grpcStatus(v)
	}
}

func (x *exchange) grpcStatus(v []byte) {
	if n, err := strconv.Atoi(string(v)); err == nil {
		x.entry.GRPCStatus = n
	}
}

// deliver sends the answer to the client.
func (x *exchange) deliver(resp *head.Response) {
	x.rest()
	up := x.up
	x.resp = resp
	tunnel := x.tunnel && x.turned(resp)
	if x.tunnel && !tunnel { // refused: what the client sends behind its request may be meant for the host
		x.down.abandon()
	}
	end := !tunnel && up.ended()
	if tunnel {
		x.g.set(slowResponse, 0)
		resp.Del(head.ContentLength, head.Names[head.ContentLength])
		up.tunnel()
	}
	if end {
		x.complete()
	}
	if x.down.respond(resp, end, tunnel) != nil {
		x.left()
		return
	}
	if tunnel {
		x.f.Listener.inc(cxUpgrades)
		x.f.Listener.inc(cxUpgradesActive)
		defer x.f.Listener.dec(cxUpgradesActive)
		x.body.done.Store(false)
		x.body.broken = false
		x.body.keep = false
		x.body.begin(x, up)
		x.lookOut()
	}
	ok := end || x.copy(up)
	if tunnel && ok {
		x.join()
	}
	x.body.settle(x)
	x.keep = ok && x.body.done.Load() && !x.body.broken && !x.tunnel
}

// turned reports whether the answer makes the connection a tunnel.
func (x *exchange) turned(resp *head.Response) bool {
	if len(x.req.Protocol) == 0 {
		return resp.Status >= 200 && resp.Status < 300
	}
	return resp.Status == 101 || resp.Status == 200 && x.up.protocol() == HTTP2
}

// copy passes the body of the answer. False: it was not passed to its end, and the request is over.
func (x *exchange) copy(up upstream) bool {
	for {
		if !up.ready() {
			if x.down.flush() != nil {
				return x.clientLost()
			}
		}
		n, host, err := x.splice(up)
		x.entry.BytesSent += n
		switch {
		case err != nil && host:
			x.broken(err)
			return false
		case err != nil:
			return x.clientLost()
		case n > 0:
			x.moved()
			continue
		}
		p, end, err := up.next()
		if err != nil {
			x.broken(err)
			return false
		}
		x.entry.BytesSent += int64(len(p))
		if end {
			return x.last(up, p)
		}
		x.moved()
		if len(p) == 0 {
			continue
		}
		if x.down.write(p, false) != nil {
			return x.clientLost()
		}
	}
}

// moved notes that bytes of the answer came.
func (x *exchange) moved() {
	x.touch()
	if x.times.PerTryIdle > 0 {
		x.g.after(idleTry, x.e.now(), x.times.PerTryIdle)
	}
}

// complete makes place for another connection, where this one carries so many requests and no more.
func (x *exchange) complete() {
	if x.cluster.Spec().HTTP.MaxRequestsPerConnection > 0 && x.body.done.Load() && !x.tunnel {
		x.up.complete()
	}
}

// last passes the last piece, and trailers.
func (x *exchange) last(up upstream, p []byte) bool {
	x.complete()
	t := up.trailers()
	if t == nil {
		return x.down.write(p, true) == nil || x.clientLost()
	}
	if v := t.Get(head.GRPCStatus); v != nil {
		x.grpcStatus(v)
	}
	if len(p) > 0 && x.down.write(p, false) != nil {
		return x.clientLost()
	}
	return x.down.finish(t) == nil || x.clientLost()
}

// clientLost judges an error of writing to the client: it left, or a deadline passed meanwhile.
func (x *exchange) clientLost() bool {
	if c := x.g.why(); c != noCause {
		x.interrupted(c)
	} else {
		x.left()
	}
	return false
}

// broken judges an error of reading a host's answer after its head was passed on.
func (x *exchange) broken(err error) {
	if c := x.g.why(); c != noCause {
		x.ended(c)
		x.interrupted(c)
		return
	}
	f := x.lost(err)
	x.entry.Flags.Add(f.flag)
	x.entry.Details = "upstream_reset_after_response_started{" + underscored(f.reason) + "}"
	x.abort()
}

// abort breaks the answer off.
func (x *exchange) abort() {
	x.aborted = true
	x.down.abort()
}

// join waits for the other direction of a tunnel, for as long as an idle connection may wait.
func (x *exchange) join() {
	if !x.body.pumping {
		return
	}
	x.g.after(slowClose, x.e.now(), x.e.cfg.Limits.Idle)
	if x.g.aim(both{x.down, x.up}) != noCause {
		return
	}
	<-x.body.ended
	x.body.ended <- struct{}{} // for stop
}
