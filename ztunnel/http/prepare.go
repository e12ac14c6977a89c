package http

import (
	"bytes"

	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// theirs are fields with which a client would give orders to the proxy of the workload that it calls.
var theirs = [...]head.ID{
	head.XEnvoyRetryOn, head.XEnvoyRetryGRPCOn, head.XEnvoyMaxRetries, head.XEnvoyRetriableStatusCodes,
	head.XEnvoyUpstreamRqTimeoutMS, head.XEnvoyUpstreamRqPerTryTimeoutMS, head.XEnvoyExpectedRqTimeoutMS, head.XEnvoyDecoratorOperation,
	head.XEnvoyUpstreamRqTimeoutAltResponse, head.XEnvoyUpstreamStreamDurationMS, head.XEnvoyUpstreamAltStatName, head.XEnvoyForceTrace,
}

var theirOthers = [...]string{
	"x-envoy-retriable-header-names", "x-envoy-hedge-on-per-try-timeout", "x-envoy-ip-tags", "x-envoy-original-url",
}

// prepare makes the head what routes and hosts may rely on. False: the request was answered.
func (x *exchange) prepare() bool {
	req := x.req
	if req.Authority == nil {
		x.down.abandon()
		x.reply(400, "", "missing_host_header")
		return false
	}
	if x.tunnel && req.Body != 0 { // a host may switch before it has read the body, and what comes then would be either's
		x.down.abandon()
		x.reply(400, "", "upgrade_with_body")
		return false
	}
	if string(req.Path) == "*" {
		x.reply(404, "", "absolute_path_rejected")
		return false
	}
	if len(req.Path) > 0 {
		path, ok := canonical(x.pathBuf, req.Path, x.f.Paths)
		if !ok {
			x.down.abandon()
			x.reply(400, "", "path_normalization_failed")
			return false
		}
		if len(path) > 0 && &path[0] != &req.Path[0] {
			x.pathBuf, req.Path = path, path
		}
	}
	if req.Expect {
		req.Expect = false
		x.rest()
		if x.down.proceed() != nil {
			x.g.stop(clientGone)
		}
	}
	x.sanitise()
	return true
}

// sanitise takes out of the head what a client may not say, and puts in what the mesh tells.
func (x *exchange) sanitise() {
	req := x.req
	inbound := x.f.Direction == Inbound
	req.Del(head.XEnvoyInternal, head.Names[head.XEnvoyInternal])
	x.cleanCert(x.f.Peer != nil && x.f.Peer.URI != "")
	if inbound {
		x.destination(x.f.Peer)
	}
	switch proto := req.Get(head.XForwardedProto); {
	case len(proto) == 0, !bytes.EqualFold(proto, []byte("http")) && !bytes.EqualFold(proto, []byte("https")):
		x.setText(head.XForwardedProto, x.scheme())
	}
	if len(req.Scheme) == 0 {
		req.Scheme = req.Get(head.XForwardedProto)
	}
	if x.how.ForwardedPort {
		x.forwardedPort()
	}
	if !req.Has(head.XRequestID) && !x.how.NoRequestID {
		x.idBuf = x.e.appendID(x.idBuf[:0])
		req.Add(head.XRequestID, head.Names[head.XRequestID], x.idBuf)
	}
	x.forced = req.Has(head.XEnvoyForceTrace)
	x.trace()
}

// destination does the part of the proxy of the workload that is called: it tells who calls, if that was proved, and nobody else.
func (x *exchange) destination(peer *Peer) {
	req := x.req
	for _, id := range theirs {
		if req.Has(id) {
			req.Del(id, head.Names[id])
		}
	}
	for _, name := range theirOthers {
		req.Del(head.Other, name)
	}
	if peer != nil && peer.URI != "" {
		x.tellCert(peer)
	}
}

func (x *exchange) scheme() string {
	if x.f.Secure {
		return "https"
	}
	return "http"
}

func (x *exchange) setText(id head.ID, value string) {
	x.valueBuf = append(x.valueBuf[:0], value...)
	x.req.Set(id, head.Names[id], x.valueBuf)
}

// appendID appends a random UUID (version 4).
func (e *Engine) appendID(dst []byte) []byte {
	hi, lo := e.cfg.Random(), e.cfg.Random()
	hi = hi&^0xf000 | 0x4000
	lo = lo&^(3<<62) | 2<<62
	dst = append(appendHex(dst, hi>>32, 8), '-')
	dst = append(appendHex(dst, hi>>16&0xffff, 4), '-')
	dst = append(appendHex(dst, hi&0xffff, 4), '-')
	dst = append(appendHex(dst, lo>>48, 4), '-')
	return appendHex(dst, lo&(1<<48-1), 12)
}

func appendHex(dst []byte, v uint64, n int) []byte {
	const digits = "0123456789abcdef"
	for i := n - 1; i >= 0; i-- {
		dst = append(dst, digits[v>>(4*uint(i))&15])
	}
	return dst
}
