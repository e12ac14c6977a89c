package http

import (
	"context"
	"errors"
	"strings"
	"syscall"

	"github.com/undermesh/undermesh/ztunnel/cluster"
	"github.com/undermesh/undermesh/ztunnel/http/frame"
	"github.com/undermesh/undermesh/ztunnel/http/h1"
	"github.com/undermesh/undermesh/ztunnel/http/head"
	"github.com/undermesh/undermesh/ztunnel/http/route"
)

// isMalformed reports that bytes of the peer were against the protocol.
func isMalformed(err error) bool {
	var e *h1.Error
	return errors.As(err, &e)
}

// underscored is a text as details have it.
func underscored(s string) string { return strings.ReplaceAll(s, " ", "_") }

// lost is what became of a request whose answer could not be read.
func (x *exchange) lost(err error) *failure {
	var own *frame.ConnError
	if isMalformed(err) || errors.Is(err, errEarly) && !x.tunnel || errors.As(err, &own) && !own.Remote {
		x.cluster.Inc(cluster.CxProtocolError)
		x.entry.Host.Report(cluster.Answered, 502)
		return &failure{kind: route.FailedReset, flag: UpstreamProtocolError, status: 502, reason: "protocol error"}
	}
	x.cluster.Inc(cluster.RqRxReset)
	if f := lost2(err); f != nil {
		x.entry.Host.Report(cluster.RequestFailed, 0)
		return f
	}
	x.entry.Host.Report(cluster.ConnectFailed, 0)
	return &failure{kind: route.FailedReset, flag: UpstreamConnectionTermination, status: 503, reason: "connection termination", silent: !x.up.answered()}
}

// What the engine at the destination tells that of the caller in x-undermesh-unanswered, beside the 503 that it answers for the
// workload.
const (
	notConnected = "connect" // no connection to the workload came about: it has seen nothing of the request
	notAnswered  = "reset"   // the connection ended without a byte of an answer
)

// cutOff reports whether a request may go to another host whose connection ended without a byte of an answer: processes that end
// cut off what they are asked. It is among the tries that the policy allows, whatever it names, but only where doing it
// twice is the same as doing it once.
func (x *exchange) cutOff() bool { return x.retry.Enabled() && x.repeatable() }

// unreached reports whether an answer is that of the engine at the destination, whose workload has gone, and the request may go to
// another host. The field that says so goes no further.
func (x *exchange) unreached(resp *head.Response) bool {
	if !resp.Has(head.XUndermeshUnanswered) || !x.up.conn().Engine && x.f.Direction == Outbound {
		return false
	}
	why := string(resp.Get(head.XUndermeshUnanswered))
	resp.Del(head.XUndermeshUnanswered, head.Names[head.XUndermeshUnanswered])
	switch {
	case x.f.Direction == Inbound: // the workload's own words
		return false
	case why == notConnected:
		return x.retry.Failed(route.FailedConnect, false)
	case why == notAnswered:
		return x.retry.Failed(route.FailedReset, true) || x.cutOff()
	}
	return false
}

// overflow is a circuit breaker that is open.
func overflow() *failure {
	return &failure{kind: route.FailedOverflow, flag: UpstreamOverflow, status: 503, reason: "overflow"}
}

// errConnectTimeout is why a connection was given up.
var errConnectTimeout = errors.New("the connection was not made in time")

const connectTimedOut = "connection timeout"

const abandoned = cluster.RetryOrShadowAbandoned

// Kinds of package route, for the codecs.
const (
	failedRefused = route.FailedRefused
	failedReset   = route.FailedReset
)

// err is what a pool is told; nil: the request was given up.
func (f *failure) err() error {
	if f.cause != noCause {
		return nil
	}
	return errors.New(f.reason)
}

// unconnected is a connection that could not be made.
func (x *exchange) unconnected(err error) *failure {
	if c := x.g.why(); c != noCause {
		return x.timedOut(c)
	}
	var refused *Refused
	f := &failure{kind: route.FailedConnect, flag: UpstreamConnectionFailure, status: 503, reason: "remote connection failure"}
	switch {
	case errors.As(err, &refused):
		f.body, f.detail = refused.Body, refused.Detail
		if refused.Status != 0 {
			f.status = refused.Status
		} else { // no policy: the host cannot be reached
			x.entry.Host.Report(cluster.ConnectFailed, 0)
		}
		f.transport = underscored(refused.Err.Error())
	case errors.Is(err, errConnectTimeout):
		f.reason = connectTimedOut
		x.entry.Host.Report(cluster.TimedOut, 0)
	case errors.Is(err, context.Canceled):
		f.cause = stopped
	default:
		f.transport = underscored(transportText(err))
		x.entry.Host.Report(cluster.ConnectFailed, 0)
	}
	return f
}

// transportText is what Envoy says of an error of connecting.
func transportText(err error) string {
	var no syscall.Errno
	if !errors.As(err, &no) {
		return err.Error()
	}
	text := no.Error()
	return "delayed connect error: " + strings.ToUpper(text[:1]) + text[1:]
}
