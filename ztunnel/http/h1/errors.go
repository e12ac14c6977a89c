package h1

import "errors"

// ErrMore says that the text ends before the head does.
var ErrMore = errors.New("head is not complete")

// Error is a refusal. Status is what a client is answered (0 in responses: 502 is the caller's business), Detail Envoy's code detail.
type Error struct {
	Status int
	Detail string
	why    string
}

func (e *Error) Error() string { return "parse HTTP/1.1: " + e.why }

// The refusals. They are values, so that none is allocated.
var (
	errLine       = &Error{400, "http1.codec_error", "the request line is malformed"}
	errStatusLine = &Error{0, "http1.codec_error", "the status line is malformed"}
	errVersion    = &Error{426, "low_version", "the version is not 1.1"}
	errMethod     = &Error{400, "http1.codec_error", "the method is not known"}
	errTarget     = &Error{400, "http1.codec_error", "the request target is malformed"}
	errURL        = &Error{400, "http1.invalid_url", "the request target does not go with the method"}
	errScheme     = &Error{400, "http1.invalid_scheme", "the scheme is neither http nor https"}
	errAuthority  = &Error{400, "http.invalid_authority", "the authority has a byte that it may not have"}
	errField      = &Error{400, "http1.codec_error", "a field line is malformed"}
	errCharacter  = &Error{400, "http1.invalid_characters", "a control byte"}
	errRepeated   = &Error{400, "http1.codec_error", "a field that may be there once is repeated"}
	errLength     = &Error{400, "http1.codec_error", "Content-Length is not a number"}
	errBoth       = &Error{400, "http1.content_length_and_chunked_not_allowed", "Content-Length beside Transfer-Encoding"}
	errCoding     = &Error{501, "http1.invalid_transfer_encoding", "a transfer coding other than chunked"}
	errNominated  = &Error{400, "http1.connection_header_rejected", "Connection names a field that may not be taken away"}
	errBodyless   = &Error{0, "http1.codec_error", "a body where none may be"}
	errChunk      = &Error{400, "http1.codec_error", "a chunk is malformed"}

	// ErrLarge is a head beyond Limits.Bytes.
	ErrLarge = &Error{431, "http1.headers_too_large", "the head is too large"}
	// ErrMany is a head of more than Limits.Fields fields.
	ErrMany = &Error{431, "http1.too_many_headers", "the head has too many fields"}
)
