package sniff

import "bytes"

// Protocol is what a connection speaks.
type Protocol int

// The protocols that are told apart.
const (
	TCP   Protocol = iota // anything else, and what is not known
	HTTP1                 // it begins with a request line
	HTTP2                 // it begins with the connection preface: prior knowledge
	TLS                   // it begins with a ClientHello
)

// String is the name for logs.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case HTTP1:
		return "http/1.1"
	case HTTP2:
		return "http/2"
	case TLS:
		return "tls"
	}
	return "unknown"
}

// MaxBytes is how many bytes of a connection are looked at, at most.
const MaxBytes = 16 << 10

// preface is the client's connection preface (RFC 9113 §3.4).
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

const maxMethod = 32 // bytes

// Detect tells what b, the first bytes of a connection, begins. It reports false while more bytes could make it something else
// than what it returns, which is what to take if no more come.
func Detect(b []byte) (p Protocol, sure bool) {
	switch {
	case len(b) == 0:
		return TCP, false
	case b[0] == typeHandshake:
		return detectTLS(b)
	case len(b) < len(preface) && bytes.HasPrefix([]byte(preface), b):
		return TCP, false
	case bytes.HasPrefix(b, []byte(preface)):
		return HTTP2, true
	}
	return detectHTTP1(b)
}

func detectTLS(b []byte) (Protocol, bool) {
	whole, err := WholeHello(b)
	switch {
	case err != nil:
		return TCP, true
	case whole:
		return TLS, true
	}
	return TLS, false
}

// detectHTTP1 looks for METHOD SP target SP HTTP/1.x and the end of the line.
func detectHTTP1(b []byte) (Protocol, bool) {
	method, rest, found := bytes.Cut(b, []byte(" "))
	if len(method) == 0 || len(method) > maxMethod || bytes.ContainsFunc(method, notMethod) {
		return TCP, true
	}
	if !found {
		return TCP, false
	}
	line, _, ended := bytes.Cut(rest, []byte("\n"))
	if !ended {
		if len(b) >= MaxBytes || bytes.ContainsFunc(line, notTarget) {
			return TCP, true
		}
		return TCP, false
	}
	target, version, found := bytes.Cut(bytes.TrimSuffix(line, []byte("\r")), []byte(" "))
	if !found || len(target) == 0 || len(version) != len("HTTP/1.1") || !bytes.HasPrefix(version, []byte("HTTP/1.")) {
		return TCP, true
	}
	return HTTP1, true
}

// notMethod is for the methods of HTTP that anybody registered: capital letters and dashes.
func notMethod(r rune) bool { return (r < 'A' || r > 'Z') && r != '-' }

// notTarget is for what no part of a request line has.
func notTarget(r rune) bool { return r < ' ' && r != '\r' || r == 0x7f }
