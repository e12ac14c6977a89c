package http

import (
	"net/netip"

	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// stream is what both sides of an exchange have in common. One goroutine may use next while another one writes.
type stream interface {
	// next returns the next piece of the peer's body, valid until the next call, and whether it is the last. It may be empty.
	next() (piece []byte, end bool, err error)
	// ready reports whether next returns without waiting.
	ready() bool
	// trailers are what came after the last piece; nil: none.
	trailers() *head.Fields
	// write sends a piece of our body with what was buffered before.
	write(piece []byte, end bool) error
	// finish ends our body with trailers.
	finish(trailers *head.Fields) error
	// flush sends what is buffered.
	flush() error
	interrupter // makes everything return, for good
}

// downstream is the client's side of one exchange.
type downstream interface {
	stream
	protocol() Protocol
	// proceed tells a client that waits for it that it may send the body.
	proceed() error
	// respond sends the head of the answer; without end it may be buffered. With tunnel all that follows, in both directions, is
	// passed as it is.
	respond(r *head.Response, end, tunnel bool) error
	// abandon says that the connection is not to be used for another request.
	abandon()
	// pause makes next return an error until resume.
	pause()
	resume()
	// abort ends an answer that was begun and cannot be finished, or a request that gets none.
	abort()
}

// upstream is the host's side of one exchange.
type upstream interface {
	stream
	protocol() Protocol
	// request sends the head; without end it may be buffered. body is its length: -1 when it is not known.
	request(r *head.Request, end bool) error
	// response waits for the final head of the answer. It may use into.
	response(into *head.Response) (*head.Response, error)
	// ended reports that nothing follows the head of the answer.
	ended() bool
	// tunnel says that the answer turned the stream into a tunnel.
	tunnel()
	// answered reports whether a byte of the answer came.
	answered() bool
	// reused reports that the connection had carried other requests, so that its end may have nothing to do with this one.
	reused() bool
	// complete says that the whole answer is there, before it is passed on.
	complete()
	// release ends the use. keep: both messages are complete, and the connection may be used again.
	release(keep bool)
	conn() *Conn
	local() netip.AddrPort
}
