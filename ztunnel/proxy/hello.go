package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

const (
	recordHeader  = 5
	maxRecord     = 16 << 10 // RFC 8446 §5.1
	maxHello      = 16 << 10 // bytes that a client may send before it must have said hello
	firstHello    = 2 << 10  // room for the hello of every client of a mesh
	typeHandshake = 22
	typeHello     = 1
)

var errNotHello = errors.New("peer did not begin with a TLS ClientHello")

// readHello reads until the ClientHello is whole and returns all that was read. The end of ctx ends it.
func readHello(ctx context.Context, c net.Conn) ([]byte, error) {
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) }) // a closed one needs none
	b := make([]byte, 0, firstHello)
	for {
		n, err := c.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		whole, bad := wholeHello(b)
		switch {
		case bad != nil:
			stop()
			return nil, bad
		case whole && stop():
			return b, nil
		case err != nil || whole:
			stop()
			if len(b) == 0 {
				return nil, errors.New("peer sent nothing")
			}
			return nil, fmt.Errorf("read ClientHello: it ends after %d bytes", len(b))
		case len(b) == cap(b):
			b = append(make([]byte, 0, maxHello), b...) // wholeHello refuses what fills it
		}
	}
}

// wholeHello reports whether b has all records of a ClientHello. The error is for what cannot become one of less than
// maxHello bytes.
func wholeHello(b []byte) (bool, error) {
	if len(b) >= maxHello {
		return false, fmt.Errorf("%w of less than %d bytes", errNotHello, maxHello)
	}
	var head [4]byte // of the message: type and length
	have, want := 0, len(head)
	for len(b) > 0 {
		if b[0] != typeHandshake || len(b) > 1 && b[1] != 3 {
			return false, errNotHello
		}
		if len(b) < recordHeader {
			return false, nil
		}
		n := int(b[3])<<8 | int(b[4])
		if n == 0 || n > maxRecord {
			return false, errNotHello
		}
		b = b[recordHeader:]
		body := b[:min(n, len(b))]
		if have < len(head) {
			copy(head[have:], body)
		}
		have += len(body)
		if have > 0 && head[0] != typeHello {
			return false, errNotHello
		}
		if have >= len(head) {
			want = len(head) + int(head[1])<<16 + int(head[2])<<8 + int(head[3])
			if want > maxHello {
				return false, fmt.Errorf("%w of less than %d bytes", errNotHello, maxHello)
			}
			if have >= want {
				return true, nil
			}
		}
		b = b[len(body):]
	}
	return false, nil
}
