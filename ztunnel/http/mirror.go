package http

import (
	"context"
	"time"

	"github.com/undermesh/undermesh/ztunnel/http/head"
	"github.com/undermesh/undermesh/ztunnel/http/route"
)

// mirror sends the copies of the request that its route asks for. It is called when the request is wholly there, with all changes
// made; a body that is too long to be kept is not copied.
func (x *exchange) mirror() {
	r := x.entry.Route
	if r == nil || r.Forward == nil || x.tunnel {
		return
	}
	for i := range r.Forward.Mirrors {
		m := &r.Forward.Mirrors[i]
		name := m.Pick(x.req, x.e.cfg.Random())
		if name == "" {
			continue
		}
		if x.body.lost {
			if x.cluster != nil {
				x.cluster.Inc(abandoned)
			}
			continue
		}
		x.copyTo(m, name)
	}
}

// copyTo sends one copy, on a goroutine of its own that outlives the request.
func (x *exchange) copyTo(m *route.Mirror, name string) {
	t := x.f.Workload
	to := x.f.Upstreams.Cluster(name)
	if to == nil {
		return
	}
	if t.mirrors.Add(1) > int64(t.limits.Mirrors) || !x.e.hold() {
		t.mirrors.Add(-1)
		t.counts.mirrorsRefused.Add(1)
		return
	}
	y := x.e.exchange(x.f, nil, nil)
	if y.guard == nil {
		y.guard = &guard{e: x.e}
	}
	y.g = y.guard
	y.g.begin()
	y.stream = server2{}
	y.down = discard{after: copyFields(x.down.trailers())}
	copyHead(&y.own, x.req)
	if !m.Keep {
		y.own.Authority = route.AppendShadow(nil, y.own.Authority)
	}
	y.forwardedFor()
	y.start(x.e.now())
	y.entry.Protocol, y.entry.Mirror = x.entry.Protocol, true
	y.entry.VirtualHost, y.entry.Route, y.entry.Cluster = x.entry.VirtualHost, x.entry.Route, to
	y.target, y.cluster = route.Target{Cluster: name}, to
	y.span, y.contexts, y.legged = x.span, x.contexts, x.legged
	y.times.Global, y.times.Quiet = x.times.Global, x.times.Quiet
	y.times.Expect(y.req, 0)
	if y.times.Global <= 0 {
		y.times.Global = mirrorTimeout
	}
	y.body.keep = true
	y.body.take(y, x.body.replay, true)
	if y.body.lost { // the workload holds as many bytes as it may: a head without the body it tells of would be another request's
		to.Inc(abandoned)
		t.mirrors.Add(-1)
		x.e.put(y)
		x.e.release()
		return
	}
	ctx := context.WithoutCancel(x.ctx)
	go y.runCopy(ctx)
}

// forwardedFor adds to a copy whose workload sends it, as Envoy does: x-forwarded-for is the one thing that says so.
func (x *exchange) forwardedFor() {
	var all []byte
	for i := x.req.Next(0, head.XForwardedFor, "x-forwarded-for"); i >= 0; i = x.req.Next(i+1, head.XForwardedFor, "x-forwarded-for") {
		all = append(append(all, x.req.Value(i)...), ',')
	}
	all = x.f.Source.Addr().Unmap().AppendTo(all)
	x.req.Set(head.XForwardedFor, "x-forwarded-for", all)
}

// mirrorTimeout bounds a copy whose request has no timeout: nobody waits for it.
const mirrorTimeout = time.Minute

// copyHead copies what differs from request to request; the text becomes the copy's own.
func copyHead(to, from *head.Request) {
	to.Reset(nil)
	text := func(b []byte) []byte {
		if b == nil {
			return nil
		}
		return append([]byte{}, b...)
	}
	to.Method, to.Scheme, to.Authority, to.Path = text(from.Method), text(from.Scheme), text(from.Authority), text(from.Path)
	to.Body, to.Major, to.Minor = from.Body, from.Major, from.Minor
	addFields(&to.Fields, &from.Fields)
}

func addFields(to, from *head.Fields) {
	for i := range from.Len() {
		if id, name, value, ok := from.At(i); ok {
			to.Add(id, string(name), value)
		}
	}
}

// copyFields returns nil for none.
func copyFields(from *head.Fields) *head.Fields {
	if from == nil {
		return nil
	}
	to := &head.Fields{}
	to.Reset(nil)
	addFields(to, from)
	return to
}

// runCopy sends a copy once and throws its answer away.
func (x *exchange) runCopy(ctx context.Context) {
	defer x.e.release()
	defer func() {
		if p := recover(); p != nil {
			x.e.panicked(x.f, p)
			x.give()
		}
		x.f.Workload.mirrors.Add(-1)
		x.e.put(x)
	}()
	x.ctx = ctx
	x.requested()
	if fail := x.try(); fail != nil {
		x.dropUpstream()
		if fail.cause == noCause {
			x.entry.Flags.Add(fail.flag)
		} else {
			x.entry.Flags.Add(UpstreamTimeout)
		}
	} else {
		x.answered()
	}
	x.finish()
}

// discard is the downstream of a copy.
type discard struct {
	after *head.Fields // the trailers of the request; nil: none
}

func (discard) protocol() Protocol                       { return HTTP1 }
func (discard) next() ([]byte, bool, error)              { return nil, true, nil }
func (discard) ready() bool                              { return true }
func (d discard) trailers() *head.Fields                 { return d.after }
func (discard) write([]byte, bool) error                 { return nil }
func (discard) finish(*head.Fields) error                { return nil }
func (discard) flush() error                             { return nil }
func (discard) interrupt()                               {}
func (discard) proceed() error                           { return nil }
func (discard) respond(*head.Response, bool, bool) error { return nil }
func (discard) abandon()                                 {}
func (discard) pause()                                   {}
func (discard) resume()                                  {}
func (discard) abort()                                   {}
