// Package h1 reads and writes the text of HTTP/1.1 (RFC 9112): heads, parsed in place into package head, and chunked bodies. It
// does no I/O and keeps no state of connections; ztunnel/http does.
//
// Invariants: nothing is allocated for a message; what two parsers could understand in two ways is refused, not repaired: bare
// LF and CR, folded lines, blanks before the colon, NUL and other control bytes, a second Content-Length, Host or
// Transfer-Encoding, Content-Length beside Transfer-Encoding, any coding but chunked, sizes that are not plain digits. Fields
// that concern one connection only (Connection and what it names, Keep-Alive, Proxy-Connection, Transfer-Encoding, Upgrade, TE
// other than trailers) are taken out of the head by the parser, so that nobody can pass them on by mistake.
//
// Statuses and details of refusals are Envoy's. Stricter than Envoy 1.40, which lets them pass: bare LF, folded lines, a bare CR
// in a value, two blanks in the request line, two Host fields, chunk data without its CRLF, status codes below 100.
package h1
