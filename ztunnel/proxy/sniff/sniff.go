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

// HTTP reports whether it is a version of HTTP.
func (p Protocol) HTTP() bool { return p == HTTP1 || p == HTTP2 }

// MaxBytes is how many bytes of a connection are looked at, at most.
const MaxBytes = 16 << 10

// preface is the client's connection preface (RFC 9113 §3.4).
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

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

// detectHTTP1 looks for a request line: three words, the last of which begins with HTTP/, as the most lenient servers take it, behind
// empty lines. What only looks so is refused by the parser of HTTP; what passed for TCP would reach the server with whatever its
// client says of itself.
func detectHTTP1(b []byte) (Protocol, bool) {
	line, _, ended := bytes.Cut(bytes.TrimLeft(b, "\r\n"), []byte("\n"))
	if bytes.ContainsFunc(line, notText) || !ended && len(b) >= MaxBytes {
		return TCP, true
	}
	if !ended {
		return TCP, false
	}
	if words := bytes.Fields(line); len(words) < 3 || !bytes.HasPrefix(words[len(words)-1], []byte("HTTP/")) {
		return TCP, true
	}
	return HTTP1, true
}

// notText is for what no request line has.
func notText(r rune) bool { return r < ' ' && r != '\r' && r != '\t' || r == 0x7f }
