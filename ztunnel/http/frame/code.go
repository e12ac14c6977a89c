package frame

import "fmt"

// Code is an error code of HTTP/2 (RFC 9113 §7), as in RST_STREAM and GOAWAY.
type Code uint32

// The error codes of RFC 9113 §7.
const (
	CodeNo                 Code = 0x0
	CodeProtocol           Code = 0x1
	CodeInternal           Code = 0x2
	CodeFlowControl        Code = 0x3
	CodeSettingsTimeout    Code = 0x4
	CodeStreamClosed       Code = 0x5
	CodeFrameSize          Code = 0x6
	CodeRefused            Code = 0x7
	CodeCancel             Code = 0x8
	CodeCompression        Code = 0x9
	CodeConnect            Code = 0xa
	CodeCalm               Code = 0xb
	CodeInadequateSecurity Code = 0xc
	CodeHTTP11Required     Code = 0xd
)

var codeNames = [...]string{
	CodeNo: "NO_ERROR", CodeProtocol: "PROTOCOL_ERROR", CodeInternal: "INTERNAL_ERROR",
	CodeFlowControl: "FLOW_CONTROL_ERROR", CodeSettingsTimeout: "SETTINGS_TIMEOUT", CodeStreamClosed: "STREAM_CLOSED",
	CodeFrameSize: "FRAME_SIZE_ERROR", CodeRefused: "REFUSED_STREAM", CodeCancel: "CANCEL",
	CodeCompression: "COMPRESSION_ERROR", CodeConnect: "CONNECT_ERROR", CodeCalm: "ENHANCE_YOUR_CALM",
	CodeInadequateSecurity: "INADEQUATE_SECURITY", CodeHTTP11Required: "HTTP_1_1_REQUIRED",
}

// String returns the name of RFC 9113, or the number of a code that it does not define.
func (c Code) String() string {
	if int64(c) < int64(len(codeNames)) {
		return codeNames[c]
	}
	return fmt.Sprintf("code 0x%x", uint32(c))
}

// ConnError is a connection that ended by an error of the protocol, found here (Remote false, and sent as GOAWAY) or by the
// peer.
type ConnError struct {
	// Code is the code of the GOAWAY.
	Code Code
	// Reason says what was wrong, in this side's words or those of the peer's debug data (at most 256 bytes).
	Reason string
	// Remote is true when the peer sent it.
	Remote bool
}

// Error names the side, the code and the reason.
func (e *ConnError) Error() string {
	side := "HTTP/2 protocol error"
	if e.Remote {
		side = "HTTP/2 connection ended by peer"
	}
	return fmt.Sprintf("%s: %s: %s", side, e.Code, e.Reason)
}

// Errorf makes the ConnError of this side.
func Errorf(code Code, format string, args ...any) *ConnError {
	return &ConnError{Code: code, Reason: fmt.Sprintf(format, args...)}
}

// Unpad strips the padding of a whole DATA or HEADERS payload. The error is a *ConnError (RFC 9113 §6.1).
func Unpad(h Header, p []byte) ([]byte, error) {
	if !h.Has(Padded) {
		return p, nil
	}
	if len(p) == 0 {
		return nil, Errorf(CodeFrameSize, "padded frame without pad length")
	}
	pad := int(p[0])
	if pad > len(p)-1 {
		return nil, Errorf(CodeProtocol, "padding of %d exceeds frame of %d", pad, len(p))
	}
	return p[1 : len(p)-pad], nil
}
