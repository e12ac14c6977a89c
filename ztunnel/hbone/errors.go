package hbone

import (
	"errors"
	"fmt"
)

// ErrCode is an HTTP/2 error code (RFC 9113 §7), as in RST_STREAM and GOAWAY.
type ErrCode uint32

// The error codes of RFC 9113 §7 that this package sends or tells apart.
const (
	CodeNo                 ErrCode = 0x0
	CodeProtocol           ErrCode = 0x1
	CodeInternal           ErrCode = 0x2
	CodeFlowControl        ErrCode = 0x3
	CodeStreamClosed       ErrCode = 0x5
	CodeFrameSize          ErrCode = 0x6
	CodeRefused            ErrCode = 0x7
	CodeCancel             ErrCode = 0x8
	CodeCompression        ErrCode = 0x9
	CodeConnect            ErrCode = 0xa
	CodeCalm               ErrCode = 0xb
	CodeInadequateSecurity ErrCode = 0xc
)

var codeNames = map[ErrCode]string{
	CodeNo: "NO_ERROR", CodeProtocol: "PROTOCOL_ERROR", CodeInternal: "INTERNAL_ERROR",
	CodeFlowControl: "FLOW_CONTROL_ERROR", CodeStreamClosed: "STREAM_CLOSED", CodeFrameSize: "FRAME_SIZE_ERROR",
	CodeRefused: "REFUSED_STREAM", CodeCancel: "CANCEL", CodeCompression: "COMPRESSION_ERROR",
	CodeConnect: "CONNECT_ERROR", CodeCalm: "ENHANCE_YOUR_CALM", CodeInadequateSecurity: "INADEQUATE_SECURITY",
}

// String returns the name of RFC 9113, or the number of a code that it does not define.
func (c ErrCode) String() string {
	if n, ok := codeNames[c]; ok {
		return n
	}
	return fmt.Sprintf("code 0x%x", uint32(c))
}

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
	Code ErrCode
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
	return target == ErrRefused && e.Remote && e.Code == CodeRefused
}

// ConnError is a connection that ended by a protocol error, found here (Remote false, and sent as GOAWAY) or by the peer.
type ConnError struct {
	// Code is the code of the GOAWAY.
	Code ErrCode
	// Reason says what was wrong, in this side's words or those of the peer's debug data (at most 256 bytes).
	Reason string
	// Remote is true when the peer sent it.
	Remote bool
}

// Error names the side, the code and the reason.
func (e *ConnError) Error() string {
	side := "tunnel protocol error"
	if e.Remote {
		side = "tunnel ended by peer"
	}
	return fmt.Sprintf("%s: %s: %s", side, e.Code, e.Reason)
}

func connErr(code ErrCode, format string, args ...any) *ConnError {
	return &ConnError{Code: code, Reason: fmt.Sprintf(format, args...)}
}
