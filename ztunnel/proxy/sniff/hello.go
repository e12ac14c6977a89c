package sniff

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

const (
	recordHeader  = 5        // bytes
	maxRecord     = 16 << 10 // bytes (RFC 8446 §5.1)
	typeHandshake = 22
	typeHello     = 1
	extServerName = 0
)

// MaxHello is how many bytes the records of a ClientHello may have, less one.
const MaxHello = 16 << 10

// ErrNotHello is for bytes that do not begin a ClientHello, or one of MaxHello bytes and more.
var ErrNotHello = errors.New("peer did not begin with a TLS ClientHello")

// WholeHello reports whether b has all records of a ClientHello. Returns ErrNotHello for what cannot become one.
func WholeHello(b []byte) (bool, error) {
	_, whole, err := helloOf(b, nil)
	return whole, err
}

// helloOf walks over the records of b and appends the handshake message that they carry to message, if that is not nil.
func helloOf(b, message []byte) (_ []byte, whole bool, err error) {
	if len(b) >= MaxHello {
		return nil, false, fmt.Errorf("%w of less than %d bytes", ErrNotHello, MaxHello)
	}
	var head [4]byte // of the message: type and length
	have, want := 0, len(head)
	for len(b) > 0 {
		if b[0] != typeHandshake || len(b) > 1 && b[1] != 3 {
			return nil, false, ErrNotHello
		}
		if len(b) < recordHeader {
			return nil, false, nil
		}
		n := int(b[3])<<8 | int(b[4])
		if n == 0 || n > maxRecord {
			return nil, false, ErrNotHello
		}
		b = b[recordHeader:]
		body := b[:min(n, len(b))]
		if have < len(head) {
			copy(head[have:], body)
		}
		have += len(body)
		if message != nil {
			message = append(message, body...)
		}
		if have > 0 && head[0] != typeHello {
			return nil, false, ErrNotHello
		}
		if have >= len(head) {
			want = len(head) + int(head[1])<<16 + int(head[2])<<8 + int(head[3])
			if want > MaxHello {
				return nil, false, fmt.Errorf("%w of less than %d bytes", ErrNotHello, MaxHello)
			}
			if have >= want {
				return message[:min(want, len(message))], true, nil
			}
		}
		b = b[len(body):]
	}
	return nil, false, nil
}

// ServerName returns the host that the ClientHello at the beginning of b asks for (SNI), in lower case; "" when it asks for none,
// is not whole, or is malformed: the server will say so.
func ServerName(b []byte) string {
	message, whole, err := helloOf(b, make([]byte, 0, len(b)))
	if err != nil || !whole {
		return ""
	}
	r := reader{message[4:], true}
	r.skip(2 + 32) // version, random
	r.vector8()    // session id
	r.vector16()   // cipher suites
	r.vector8()    // compression methods
	for ext := (reader{r.vector16(), r.ok}); ext.ok && len(ext.b) > 0; {
		kind, body := ext.uint16(), ext.vector16()
		if kind != extServerName || !ext.ok {
			continue
		}
		names := reader{body, true}
		names = reader{names.vector16(), names.ok}
		for names.ok && len(names.b) > 0 {
			kind, name := names.uint8(), names.vector16()
			if kind == 0 && names.ok {
				return hostname(name)
			}
		}
		return ""
	}
	return ""
}

// hostname is name in lower case, "" when it is no name of DNS.
func hostname(name []byte) string {
	if len(name) == 0 || len(name) > 255 {
		return ""
	}
	for _, c := range name {
		if c <= ' ' || c >= 0x7f {
			return ""
		}
	}
	return strings.TrimSuffix(strings.ToLower(string(name)), ".")
}

// reader takes values from the front of b; ok is false once b was too short.
type reader struct {
	b  []byte
	ok bool
}

func (r *reader) skip(n int) []byte {
	if len(r.b) < n {
		r.b, r.ok = nil, false
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) uint8() (v byte) {
	if b := r.skip(1); b != nil {
		v = b[0]
	}
	return v
}

func (r *reader) uint16() (v uint16) {
	if b := r.skip(2); b != nil {
		v = binary.BigEndian.Uint16(b)
	}
	return v
}

func (r *reader) vector8() []byte  { return r.skip(int(r.uint8())) }
func (r *reader) vector16() []byte { return r.skip(int(r.uint16())) }
