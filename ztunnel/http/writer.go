package http

import (
	"net"

	"github.com/undermesh/undermesh/ztunnel/http/h1"
)

// joined is up to how many bytes a piece is copied behind what is buffered, so that both leave in one write.
const joined = 16 << 10

// writer is the writing half of an HTTP/1.1 connection during one exchange.
type writer struct {
	sock    *socket
	out     []byte // a head that was not sent yet
	chunked bool
	sent    bool // a byte was handed to the socket
}

// write sends a piece of a body, framed as the head has announced.
func (w *writer) write(p []byte, end bool) error {
	tail := ""
	if w.chunked {
		if len(p) > 0 {
			w.out, tail = h1.AppendChunk(w.out, len(p)), h1.ChunkEnd
			if end {
				tail = h1.ChunkEnd + h1.BodyEnd
			}
		} else if end {
			tail = h1.BodyEnd
		}
	}
	if len(w.out)+len(p) == 0 && tail == "" {
		return nil
	}
	w.sent = true
	if len(w.out)+len(p)+len(tail) <= joined {
		w.out = append(append(w.out, p...), tail...)
		return w.flush()
	}
	var err error
	if tail == "" {
		err = w.sock.writeAll(w.out, p)
	} else {
		b := net.Buffers{w.out, p, []byte(tail)}
		_, err = b.WriteTo(w.sock.Conn)
	}
	w.out = w.out[:0]
	return err
}

func (w *writer) flush() error {
	if len(w.out) == 0 {
		return nil
	}
	w.sent = true
	err := w.sock.write(w.out)
	w.out = w.out[:0]
	return err
}
