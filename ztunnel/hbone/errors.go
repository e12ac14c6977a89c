package hbone

import (
	"errors"
	"fmt"

	"github.com/undermesh/undermesh/ztunnel/http/frame"
)

var (
	// ErrClosed: the connection or stream was closed on this side.
	ErrClosed = errors.New("tunnel closed")
	// ErrGoAway: the peer takes no new streams on this connection and did not process this one. Retry on another.
	ErrGoAway = errors.New("tunnel peer is going away")
	// ErrRefused: the peer refused the stream before processing it (REFUSED_STREAM). Retry on another connection.
	ErrRefused = errors.New("tunnel stream refused by peer")
	// ErrTooManyStreams: the peer's stream limit on this connection is reached. Nothing was sent.
	ErrTooManyStreams = errors.New("tunnel has no free stream")
	// ErrUnusable: the connection was closed or dead before the request was sent. Retry on another connection.
	ErrUnusable = errors.New("tunnel is not usable")
	// ErrPeerDead: the peer did not answer a PING in time.
	ErrPeerDead = errors.New("tunnel peer does not answer")
)

// Retryable reports whether err says that the peer has seen nothing of the request, so that it may be sent again on
// another connection.
func Retryable(err error) bool {
	return errors.Is(err, ErrGoAway) || errors.Is(err, ErrRefused) || errors.Is(err, ErrTooManyStreams) ||
		errors.Is(err, ErrUnusable)
}

// StatusError is a CONNECT that was answered with a status other than 2xx.
type StatusError struct {
	// Code is the HTTP status: 400 bad authority, 401 denied, 503 no route or connect failure.
	Code int
	// Header is what came with it.
	Header Header
}

// Error names the status.
func (e *StatusError) Error() string {
	return fmt.Sprintf("tunnel CONNECT answered with status %d", e.Code)
}

// StreamError is a stream that ended by RST_STREAM.
type StreamError struct {
	// Code is the code in the frame.
	Code frame.Code
	// Remote is true when the peer sent it.
	Remote bool
}

// Error names the side and the code.
func (e *StreamError) Error() string {
	if e.Remote {
		return "tunnel stream reset by peer: " + e.Code.String()
	}
	return "tunnel stream reset: " + e.Code.String()
}

// Is makes a REFUSED_STREAM of the peer match ErrRefused.
func (e *StreamError) Is(target error) bool {
	return target == ErrRefused && e.Remote && e.Code == frame.CodeRefused
}
