package h2

import (
	"errors"

	"github.com/undermesh/undermesh/ztunnel/http/frame"
)

var (
	// ErrClosed: the connection or stream was closed on this side.
	ErrClosed = errors.New("HTTP/2 connection closed")
	// ErrPeerClosed: the peer closed the connection without GOAWAY.
	ErrPeerClosed = errors.New("HTTP/2 connection closed by peer")
	// ErrGoAway: the peer takes no new streams on this connection and did not process this one.
	ErrGoAway = errors.New("HTTP/2 peer is going away")
	// ErrTooManyStreams: the peer's limit of streams on this connection is reached. Nothing was sent.
	ErrTooManyStreams = errors.New("HTTP/2 connection has no free stream")
	// ErrUnusable: the connection was closed or dead before the request was sent.
	ErrUnusable = errors.New("HTTP/2 connection is not usable")
	// ErrPeerDead: the peer did not answer a PING in time.
	ErrPeerDead = errors.New("HTTP/2 peer does not answer")
	// ErrSlow: the peer took nothing of what waits for it, or did not end what it had begun, in time.
	ErrSlow = errors.New("HTTP/2 peer is too slow")
	// ErrConnectProtocol: the peer does not take :protocol (RFC 8441).
	ErrConnectProtocol = errors.New("HTTP/2 peer takes no extended CONNECT")
	// ErrHeadTooLarge: the head exceeds what the peer takes.
	ErrHeadTooLarge = errors.New("head exceeds the limit of the HTTP/2 peer")
	// ErrSequence: a head, body or trailers were written in the wrong order.
	ErrSequence = errors.New("written out of order")
)

// StreamError is a stream that ended by RST_STREAM.
type StreamError struct {
	// Code is the code in the frame.
	Code frame.Code
	// Remote is true when the peer sent it.
	Remote bool
	// Reason says what was wrong, when it was found on this side.
	Reason string
}

// Error names the side and the code.
func (e *StreamError) Error() string {
	switch {
	case e.Remote:
		return "HTTP/2 stream reset by peer: " + e.Code.String()
	case e.Reason != "":
		return "HTTP/2 stream reset: " + e.Code.String() + ": " + e.Reason
	}
	return "HTTP/2 stream reset: " + e.Code.String()
}

// Retryable reports whether err says that the peer has not processed the request, so that it may be sent again on another
// connection, whatever its method (RFC 9113 §8.7).
func Retryable(err error) bool {
	var se *StreamError
	return errors.Is(err, ErrGoAway) || errors.Is(err, ErrTooManyStreams) || errors.Is(err, ErrUnusable) ||
		errors.As(err, &se) && se.Remote && se.Code == frame.CodeRefused
}
