package http

import (
	"strconv"

	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// Headers says which fields of its own the engine sets (ProxyConfig.proxyHeaders). The zero value: those that Istio sets by default.
type Headers struct {
	NoRequestID   bool   // x-request-id of a request that has none
	NoDebug       bool   // x-envoy-upstream-service-time, -overloaded, -expected-rq-timeout-ms, -original-path, -original-host
	NoServer      bool   // server: what the host says goes on
	Server        string // its value; "": that of the side
	ForwardedPort bool   // x-forwarded-port of a request that has none: the port that the client dialled
	ClientCert    ClientCert
	Without       CertDetails
}

// ClientCert is what becomes of x-forwarded-client-cert of a client at the workload that it calls. Whatever it is, a workload of the mesh
// says nothing in that field: the caller's side takes it out.
type ClientCert uint8

// The ways. A client is proved by mutual TLS of the mesh, or by the kernel on its own node.
const (
	CertSet     ClientCert = iota // the client's is taken out, and that of a proved one made (SANITIZE_SET)
	CertNone                      // it is taken out (SANITIZE)
	CertForward                   // that of a proved client goes on, others are taken out (FORWARD_ONLY)
	CertAppend                    // the same, and an element for a proved client is added (APPEND_FORWARD)
	CertAlways                    // it goes on, whoever says it (ALWAYS_FORWARD_ONLY)
)

// CertDetails are parts of an element of x-forwarded-client-cert.
type CertDetails uint8

// The parts that can be left out.
const (
	CertSubject CertDetails = 1 << iota
	CertURI
)

// how returns what counts for a request of the flow by now.
func (f *Flow) how(e *Engine) *Headers {
	if f.Headers != nil {
		if h := f.Headers(); h != nil {
			return h
		}
	}
	return &e.plain
}

// cleanCert takes out what a client says of itself, unless it may; proved tells whether it is who the mesh says.
func (x *exchange) cleanCert(proved bool) {
	how := x.how.ClientCert
	if x.f.Direction == Inbound && (how == CertAlways || proved && (how == CertForward || how == CertAppend)) {
		return
	}
	x.req.Del(head.XForwardedClientCert, head.Names[head.XForwardedClientCert])
}

// tellCert tells the workload that is called who calls.
func (x *exchange) tellCert(peer *Peer) {
	id, name := head.XForwardedClientCert, head.Names[head.XForwardedClientCert]
	x.valueBuf = x.valueBuf[:0]
	switch x.how.ClientCert {
	case CertSet:
	case CertAppend:
		for i := x.req.Next(0, id, name); i >= 0; i = x.req.Next(i+1, id, name) {
			x.valueBuf = append(append(x.valueBuf, x.req.Value(i)...), ',')
		}
	default:
		return
	}
	x.valueBuf = appendXFCC(x.valueBuf, peer, x.how)
	x.req.Set(id, name, x.valueBuf)
}

// appendXFCC appends the element that Envoy writes of a certificate without a subject and DNS names.
func appendXFCC(dst []byte, p *Peer, how *Headers) []byte {
	dst = append(dst, "By="...)
	dst = append(dst, p.By...)
	dst = append(dst, ";Hash="...)
	dst = append(dst, p.Hash...)
	if how.Without&CertSubject == 0 {
		dst = append(dst, `;Subject=""`...)
	}
	if how.Without&CertURI == 0 {
		dst = append(append(dst, ";URI="...), p.URI...)
	}
	return dst
}

// forwardedPort tells the port that the client dialled.
func (x *exchange) forwardedPort() {
	const name = "x-forwarded-port"
	if x.req.Next(0, head.Other, name) < 0 {
		x.valueBuf = strconv.AppendUint(x.valueBuf[:0], uint64(x.f.Destination.Port()), 10)
		x.req.Add(head.Other, name, x.valueBuf)
	}
}
