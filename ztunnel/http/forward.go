package http

import (
	"time"

	"github.com/undermesh/undermesh/ztunnel/cluster"
	"github.com/undermesh/undermesh/ztunnel/http/head"
	"github.com/undermesh/undermesh/ztunnel/http/route"
)

// forward sends the request to a host of the route's cluster, perhaps several times, and the answer to the client.
func (x *exchange) forward() {
	r := x.entry.Route
	f := r.Forward
	if x.cluster == nil {
		x.entry.Flags.Add(NoClusterFound)
		x.reply(f.NotFound, "", "cluster_not_found")
		return
	}
	x.entry.Cluster = x.cluster
	x.times = r.Timeouts(x.req, x.how.NoDebug)
	if r.Propagate && r.Operation != "" && x.f.Direction == Outbound {
		x.setText(head.XEnvoyDecoratorOperation, r.Operation)
	}
	if r.Request(x.req, x.target, &x.in); x.in.Excess != "" {
		x.excess(431)
		return
	}
	x.retry = r.Retry(x.req, &x.in) // by what rules have made of the head, as in Envoy
	if x.cluster.Spec().Hashes() {
		x.hash = r.Hash(x.req, &x.in)
	}
	x.body.keep = x.retry.Enabled() || len(f.Mirrors) > 0
	x.limits(f)
	if x.body.done.Load() {
		x.requested()
		x.mirror()
	}
	for x.attempt() {
	}
}

// limits sets the deadlines of the stream.
func (x *exchange) limits(f *route.Forward) {
	now := x.e.now()
	if x.times.Stream > 0 {
		x.g.after(longStream, x.began, x.times.Stream)
	}
	x.idle = x.e.cfg.Limits.StreamIdle
	if f.IdleTimeout >= 0 {
		x.idle = f.IdleTimeout
	}
	if x.idle > 0 {
		x.g.after(idleStream, now, x.idle)
	}
}

// touch notes that bytes moved.
func (x *exchange) touch() {
	if x.idle > 0 {
		x.g.after(idleStream, x.e.now(), x.idle)
	}
}

// failure is why a try came to nothing.
type failure struct {
	kind      route.Failure
	flag      Flag
	status    int
	body      string // for the client; "": Envoy's text with the reason
	reason    string // "connection termination"
	detail    string // response code detail; "": made of the reason
	transport string // why the connection could not be made
	unseen    bool   // the host has seen nothing of the request
	silent    bool   // the connection ended without a byte of an answer
	cause     cause  // the request is at its end for another reason than the host
}

// attempt sends the request to one host. True: another is to follow.
func (x *exchange) attempt() (again bool) {
	fail := x.try()
	if fail == nil {
		return x.answered()
	}
	x.body.stop(x)
	sent := x.up != nil
	x.dropUpstream()
	if fail.cause != noCause && !fail.cause.ofTry() {
		x.ended(fail.cause)
		x.interrupted(fail.cause)
		return false
	}
	if !x.hinted && (x.retry.Failed(fail.kind, sent) || fail.silent && x.cutOff()) && x.mayRetry() {
		return x.again()
	}
	x.fail(fail)
	return false
}

// ended counts what ended a request before its answer.
func (x *exchange) ended(c cause) {
	switch c {
	case slowResponse:
		x.cluster.Inc(cluster.RqTimeout)
		if h := x.entry.Host; h != nil {
			h.Report(cluster.TimedOut, 504)
		}
	case longStream, clientGone, stopped:
		x.cluster.Inc(cluster.RqTxReset)
	}
}

// mayRetry asks what is left of retries; if nothing is, the flags say so.
func (x *exchange) mayRetry() bool {
	if x.body.lost || !x.g.retry() {
		return false
	}
	if x.retry.Left <= 0 {
		x.cluster.Inc(cluster.RqRetryLimitExceeded)
		x.entry.Flags.Add(RetryLimitExceeded)
		return false
	}
	x.doneRetry()
	if !x.cluster.Breakers(0).TryRetry() {
		x.entry.Flags.Add(UpstreamOverflow)
		return false
	}
	x.retrying = true
	x.cluster.Inc(cluster.RqRetry)
	x.cluster.Inc(cluster.RqRetryBackoffExponential)
	return true
}

func (x *exchange) doneRetry() {
	if x.retrying {
		x.cluster.Breakers(0).DoneRetry()
		x.retrying = false
	}
}

// again waits before the next try. False: the request came to its end meanwhile.
func (x *exchange) again() bool {
	if !x.wait(x.retry.BackOff(x.e.cfg.Random())) {
		return false
	}
	if at := x.sentAt.Load(); at != 0 {
		x.times.Expect(x.req, time.Duration(x.e.now()-at))
	}
	return true
}

// fail answers that no host did.
func (x *exchange) fail(fail *failure) {
	x.entry.Flags.Add(fail.flag)
	x.entry.TransportFailure = fail.transport
	if fail.cause != noCause {
		x.interrupted(fail.cause)
		return
	}
	detail, body := fail.detail, fail.body
	if detail == "" {
		when := "before"
		if x.hinted {
			when = "after"
		}
		detail = "upstream_reset_" + when + "_response_started{" + underscored(fail.reason)
		if fail.transport != "" {
			detail += "|" + fail.transport
		}
		detail += "}"
	}
	if body == "" {
		body = "upstream connect error or disconnect/reset before headers. "
		if x.entry.Attempts > 1 {
			body += "retried and the latest "
		}
		body += "reset reason: " + fail.reason
	}
	x.cluster.CountStatus(fail.status)
	if x.f.Peer != nil {
		switch {
		case fail.kind == route.FailedConnect:
			x.unanswered = notConnected
		case fail.silent:
			x.unanswered = notAnswered
		}
	}
	x.reply(fail.status, body, detail)
}

func (x *exchange) dropUpstream() {
	x.g.aim(nil)
	x.letGo(false)
}

// try chooses a host, sends it the request, and waits for the head of its answer, which is in x.resp then.
func (x *exchange) try() *failure {
	if c := x.g.why(); c != noCause {
		return &failure{cause: c}
	}
	x.entry.Attempts++
	x.in.Attempts = x.entry.Attempts
	h, _ := x.cluster.Pick(x.pick()) // whatever the reason, clients hear of it alike
	if h == nil {
		return &failure{kind: route.FailedOverflow, flag: NoHealthyUpstream, status: 503, body: "no healthy upstream", detail: "no_healthy_upstream"}
	}
	if x.retry.Enabled() {
		x.tried = append(x.tried, h)
	}
	x.entry.Host = h
	x.dropSpare()
	x.head(h)
	for replays := 0; ; replays++ {
		if fail := x.connect(h); fail != nil {
			return fail
		}
		fail := x.exchange()
		if fail == nil {
			return nil
		}
		if fail.cause != noCause || replays == maxReplays || !x.replayable(fail) || fail.silent && x.cutOff() && (h.Leaving() || !h.Endpoint().Healthy) {
			return fail
		}
		x.body.stop(x) // the connection had ended before the request came: once more, on another
		x.dropUpstream()
		x.body.broken = false
		x.wary = true
	}
}

// maxReplays is how often a request is sent again without a policy that asks for it: so often at most a connection may end just
// when it is used.
const maxReplays = 3

// replayable reports whether the request may be sent again although no policy asks for it: it went over a connection that was
// used before, which ended without a byte of an answer, and doing it twice is the same as doing it once.
func (x *exchange) replayable(fail *failure) bool {
	if fail.unseen && !x.body.lost {
		return true
	}
	return x.up.reused() && !x.up.answered() && !x.body.lost && x.repeatable()
}

// repeatable reports whether doing the request twice is the same as doing it once.
func (x *exchange) repeatable() bool {
	if x.tunnel {
		return false
	}
	switch string(x.req.Method) {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		return true
	}
	return false
}

// bodiless reports that the request was read to its end and had no body.
func (x *exchange) bodiless() bool { return x.body.done.Load() && x.body.received == 0 }

func (x *exchange) pick() cluster.PickInput {
	in := cluster.PickInput{Hash: x.hash.Value, HasHash: x.hash.Set, Original: x.f.Destination}
	p := x.retry.Policy()
	if p != nil && p.AnotherHost {
		in.Tried, in.Attempts = x.tried, p.HostAttempts
	}
	if p != nil && p.Priorities > 0 && len(x.tried) >= p.Priorities {
		in.Tried, in.AvoidPriorities = x.tried, true
	}
	return in
}

// head makes the head what the host is to get.
func (x *exchange) head(h *cluster.Host) {
	e := h.Endpoint()
	x.in.Upstream, x.in.Hostname = e.Addr, e.Hostname
	r := x.entry.Route
	r.HostPicked(x.req, &x.in)
	if vh := x.entry.VirtualHost; vh.AttemptCount {
		x.attemptCount(&x.req.Fields)
	}
}

// exchange sends the request over x.up and waits for the answer's head.
func (x *exchange) exchange() *failure {
	up := x.up
	x.entry.Conn, x.entry.Upstream, x.entry.UpstreamLocal = up.conn(), up.protocol(), up.local()
	x.heard = 0
	up.conn().Callee.begin(up.protocol())
	x.in.UpstreamLocal = x.entry.UpstreamLocal
	if x.f.Direction == Outbound {
		x.req.Del(head.XForwardedClientCert, head.Names[head.XForwardedClientCert])
		leg := up.conn().Leg
		if leg != nil {
			x.destination(leg)
		}
		x.leg(leg != nil)
	}
	if c := x.g.aim(up); c != noCause {
		return &failure{cause: c}
	}
	if x.body.done.Load() {
		now := x.e.now()
		if x.times.PerTry > 0 {
			x.g.after(slowTry, now, x.times.PerTry)
		}
	}
	if x.times.PerTryIdle > 0 {
		x.g.after(idleTry, x.e.now(), x.times.PerTryIdle)
	}
	if most := x.tryStream(); most > 0 {
		x.g.after(longTry, x.e.now(), most)
	}
	x.upload(up)
	resp, err := up.response(&x.answer)
	if err != nil {
		if c := x.g.why(); c != noCause {
			return x.timedOut(c)
		}
		fail := x.lost(err)
		fail.unseen = unprocessed(err) && !x.hinted
		x.heard = fail.status
		return fail
	}
	x.entry.Response, x.heard = resp, resp.Status
	return nil
}

// tryStream is how long the stream to one host may take; 0: as long as it likes.
func (x *exchange) tryStream() time.Duration {
	if d := x.times.TryStream; d >= 0 {
		return d
	}
	return x.cluster.Spec().HTTP.MaxStreamDuration
}

// upload sends the head and what is there of the body; the rest follows beside the answer. An error shows when the answer is read.
func (x *exchange) upload(up upstream) {
	b := &x.body
	whole := b.done.Load()
	end := whole && len(b.replay) == 0 && x.down.trailers() == nil
	if up.request(x.req, end && !x.tunnel) != nil || end {
		return
	}
	if whole {
		_ = b.pass(x, up, b.replay, true)
		return
	}
	if len(b.replay) > 0 && up.write(b.replay, false) != nil {
		return
	}
	for passed := 0; !b.done.Load() && passed < largeBuffer && x.down.ready(); {
		p, last, err := x.down.next()
		if err != nil {
			x.g.stop(x.bodyCause(err))
			return
		}
		passed += len(p) + 1
		b.take(x, p, last)
		if last {
			x.requested()
			x.mirror()
		}
		if b.pass(x, up, p, last) != nil {
			b.broken = true
			return
		}
	}
	if !b.done.Load() && up.flush() == nil {
		b.begin(x, up)
	}
}

func (x *exchange) timedOut(c cause) *failure {
	switch c {
	case longTry:
		x.cluster.Inc(cluster.RqMaxDuration)
		return &failure{kind: route.FailedReset, flag: UpstreamMaxStreamDuration, status: 504, cause: c}
	case slowTry, idleTry:
		x.cluster.Inc(cluster.RqPerTryTimeout)
		x.entry.Host.Report(cluster.TimedOut, 504)
		return &failure{kind: route.FailedReset, flag: UpstreamTimeout, status: 504, cause: c}
	}
	return &failure{cause: c}
}
