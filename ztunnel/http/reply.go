package http

import (
	"strconv"

	"github.com/undermesh/undermesh/ztunnel/http/head"
	"github.com/undermesh/undermesh/ztunnel/http/route"
)

// refuse answers a request of which not even the head was understood, and ends it.
func (x *exchange) refuse(status int, body, detail string) {
	x.begun()
	x.entry.Request = x.req
	x.reply(status, body, detail)
	x.finish()
}

// reply answers in place of a host, with what Envoy would say.
func (x *exchange) reply(status int, body, detail string) {
	x.entry.Details = detail
	r := &x.answer
	r.Reset(nil)
	r.Status = status
	if route := x.entry.Route; route != nil && route.Forward != nil {
		x.operate(r)
	}
	if x.entry.Flags.last() == UpstreamOverflow && !x.how.NoDebug { // and not another try alone that a breaker refused
		r.Add(head.XEnvoyOverloaded, head.Names[head.XEnvoyOverloaded], []byte("true"))
	}
	if x.unanswered != "" {
		r.AddString(head.XUndermeshUnanswered, x.unanswered)
	}
	x.send(r, []byte(body))
}

// operate applies the route's header operations to an answer of our own. As in Envoy it is a status and nothing else then.
func (x *exchange) operate(r *head.Response) {
	x.in.Local, x.in.Details = true, x.entry.Details
	x.told()
	x.entry.Route.Response(r, x.target, &x.in)
}

// told makes known to header operations what there is of flags.
func (x *exchange) told() {
	if x.entry.Flags.n > 0 {
		x.in.Flags = x.entry.Flags.String()
	}
}

// send sends an answer of our own. The answer to gRPC is made of it.
func (x *exchange) send(r *head.Response, body []byte) {
	x.rest()
	if x.resp != nil || x.g.why() == clientGone {
		return
	}
	if r.Status < 200 || r.Status == 204 || r.Status == 304 {
		body = nil // behind a head without a body it would be the next answer
	}
	if len(body) > 0 && !r.Has(head.ContentType) {
		r.Add(head.ContentType, head.Names[head.ContentType], textPlain)
	}
	if route.IsGRPC(x.req) && x.entry.Details != "cors_response" {
		x.asGRPC(r, body)
		body = nil
	}
	if vh := x.entry.VirtualHost; vh != nil && vh.AttemptCountOnResponse && x.entry.Attempts > 0 && !x.entry.Flags.Has(StreamIdleTimeout) { // as Envoy
		x.attemptCount(&r.Fields)
	}
	if x.entry.Route != nil {
		x.entry.Route.CORS.Response(r, x.origin)
	}
	x.ours(&r.Fields)
	if x.tunnel {
		x.down.abandon() // what follows the request is not another one
	}
	r.Body = int64(len(body))
	x.resp = r
	end := len(body) == 0 || string(x.req.Method) == "HEAD"
	err := x.down.respond(r, end, false)
	if err == nil && !end {
		x.entry.BytesSent = int64(len(body))
		err = x.down.write(body, true)
	}
	if err != nil {
		x.left()
	}
}

// asGRPC turns an answer into one of gRPC: status 200, the error in fields.
func (x *exchange) asGRPC(r *head.Response, body []byte) {
	code := x.entry.GRPCStatus
	if code < 0 {
		code = grpcOf(r.Status)
	}
	x.entry.GRPCStatus = code
	r.Status = 200
	r.Set(head.ContentType, head.Names[head.ContentType], []byte("application/grpc"))
	r.Set(head.GRPCStatus, head.Names[head.GRPCStatus], strconv.AppendInt(nil, int64(code), 10))
	if len(body) > 0 && string(x.req.Method) != "HEAD" {
		r.Set(head.GRPCMessage, head.Names[head.GRPCMessage], escaped(body))
	}
}

// escaped is a value of grpc-message.
func escaped(text []byte) []byte {
	const digits = "0123456789ABCDEF"
	var out []byte
	for _, c := range text {
		if c < ' ' || c > '~' || c == '%' {
			out = append(out, '%', digits[c>>4], digits[c&15])
			continue
		}
		out = append(out, c)
	}
	return out
}

// grpcOf is the code of gRPC that a status stands for.
func grpcOf(status int) int {
	switch status {
	case 400:
		return 13
	case 401:
		return 16
	case 403:
		return 7
	case 404:
		return 12
	case 429, 502, 503, 504:
		return 14
	}
	return 2
}

// ours sets the fields that every answer gets.
func (x *exchange) ours(f *head.Fields) {
	if !x.how.NoServer {
		x.valueBuf = append(x.valueBuf[:0], x.server()...)
		f.Set(head.Server, head.Names[head.Server], x.valueBuf)
	}
	if !f.Has(head.Date) {
		f.Add(head.Date, head.Names[head.Date], x.e.httpDate(x.e.now()))
	}
	if id := x.req.Get(head.XRequestID); x.forced && id != nil {
		x.valueBuf = append(x.valueBuf[:0], id...)
		f.Set(head.XRequestID, head.Names[head.XRequestID], x.valueBuf)
	}
}

// server is what the field of that name says.
func (x *exchange) server() string {
	switch {
	case x.how.Server != "":
		return x.how.Server
	case x.f.Direction == Inbound:
		return "istio-envoy"
	}
	return x.e.cfg.ServerName
}

func (x *exchange) attemptCount(f *head.Fields) {
	x.valueBuf = strconv.AppendInt(x.valueBuf[:0], int64(x.entry.Attempts), 10)
	f.Set(head.XEnvoyAttemptCount, head.Names[head.XEnvoyAttemptCount], x.valueBuf)
}

// left notes that the client is not there any longer.
func (x *exchange) left() {
	x.entry.Flags.Add(DownstreamConnectionTermination)
	x.entry.Details = "downstream_remote_disconnect"
	x.down.abort()
}

// interrupted ends a request for a reason that has nothing to do with the host: before the answer with one of our own, after it
// by breaking it off.
func (x *exchange) interrupted(c cause) {
	flag, status, body, detail := Flag(0), 504, "upstream request timeout", "response_timeout"
	switch c {
	case slowResponse:
		flag = UpstreamTimeout
	case slowTry, idleTry:
		flag, detail = UpstreamTimeout, "upstream_per_try_timeout"
		if c == idleTry {
			detail = "upstream_per_try_idle_timeout"
		}
	case longTry:
		flag, body, detail = UpstreamMaxStreamDuration, "upstream max stream duration reached", "upstream_max_stream_duration_reached"
		if !x.body.done.Load() {
			status = 408
		}
	case idleStream:
		flag, body, detail = StreamIdleTimeout, "stream timeout", "stream_idle_timeout"
	case longStream:
		body, detail = "downstream duration timeout", "max_duration_timeout"
	case slowRequest:
		status, body, detail = 408, "request timeout", "request_overall_timeout"
	case badRequest:
		flag, status, body, detail = DownstreamProtocolError, 400, "Bad Request", "http1.codec_error"
	default: // clientGone, stopped
		x.left()
		return
	}
	if flag == UpstreamTimeout && x.times.NoContent {
		status, body = 204, ""
	}
	if flag != 0 {
		x.entry.Flags.Add(flag)
	}
	if x.resp != nil {
		x.entry.Details = detail
		x.abort()
		return
	}
	x.reply(status, body, detail)
}

// bodyCause is why the request's body could not be read.
func (x *exchange) bodyCause(err error) cause {
	if isMalformed(err) {
		return badRequest
	}
	return clientGone
}
