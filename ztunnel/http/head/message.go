package head

// Request is the head of a request. What is said by pseudo-header fields in HTTP/2 is in fields of its own, and not in Fields:
// with HTTP/1.1 the codec takes Authority from the Host field, or from a target in absolute form, and drops the field.
type Request struct {
	Fields
	Method, Scheme, Authority, Path []byte // Path with the query; "*" for OPTIONS of the server; nil for CONNECT
	Protocol                        []byte // of an extended CONNECT (RFC 8441), and of an upgrade of HTTP/1.1; nil for neither
	Body                            int64  // bytes that are announced; -1: not said (chunked, or HTTP/2 without Content-Length); 0: none
	Major, Minor                    uint8  // 1.0, 1.1, 2.0
	Close                           bool   // the connection ends after it (HTTP/1)
	Expect                          bool   // Expect: 100-continue
}

// Response is the head of a response.
type Response struct {
	Fields
	Status       int
	Body         int64 // as Request.Body; -1 may also mean until the connection ends. What a HEAD or a 304 announces is here too
	Major, Minor uint8
	Close        bool   // the connection ends after it (HTTP/1)
	Protocol     []byte // that a 101 turns to
}

// Reset empties the head; see Fields.Reset.
func (r *Request) Reset(buf []byte) {
	fields := r.Fields
	fields.Reset(buf)
	*r = Request{Fields: fields}
}

// Reset empties the head; see Fields.Reset.
func (r *Response) Reset(buf []byte) {
	fields := r.Fields
	fields.Reset(buf)
	*r = Response{Fields: fields}
}
