// Package head represents the head of an HTTP message, or its trailers, for both codecs, the routes and the filters.
//
// A head is text in one buffer, a line a field, as HTTP/1.1 has it on the wire; a field is five offsets into it and an id, so
// that a head that is passed on is copied in runs of lines, and nothing is allocated for one. The codec of HTTP/1.1 points
// Message.Reset at its read buffer; the codec of HTTP/2 writes what HPACK decodes as such lines. Fields that a filter adds are
// in a second buffer. A field that was removed is only marked.
//
// Invariants: names are tokens, values are free of CR, LF and NUL and of blanks around them: the codecs refuse others, and Add
// and Set are for callers that have checked. Nothing here is safe for concurrent use.
package head
