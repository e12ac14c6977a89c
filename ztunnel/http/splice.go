package http

import (
	"io"
	"net"

	"github.com/undermesh/undermesh/ztunnel/http/h1"
)

const (
	spliceFrom = 2 * largeBuffer // a shorter rest of a body is copied
	splicePart = 4 * largeBuffer // bytes that move before the deadlines hear of it
)

// socketOf is the socket of a connection, where its bytes are those of the stream; nil where they are not.
func socketOf(c net.Conn) *net.TCPConn {
	switch c := c.(type) {
	case *net.TCPConn:
		return c
	case interface{ Plain() *net.TCPConn }:
		return c.Plain()
	}
	return nil
}

// splice has the kernel move a part of a long body from the host's socket to the client's, and returns how much it moved. It does
// nothing unless both are plain sockets, the length is known and nothing of the body is buffered; the end is left to others. A
// part that is cut short comes with an error, and host says whose connection is at fault.
func (x *exchange) splice(up upstream) (n int64, host bool, err error) {
	c, ok := up.(*client)
	if !ok || c.l.in.framing != h1.Length || c.l.in.left < spliceFrom || c.l.in.ready() || len(c.l.sock.early) > 0 {
		return 0, false, nil
	}
	s, ok := x.down.(*server)
	if !ok || s.w.chunked || len(s.w.out) > 0 {
		return 0, false, nil
	}
	from, to := socketOf(c.l.sock.Conn), socketOf(s.sock.Conn)
	if from == nil || to == nil {
		return 0, false, nil
	}
	part := min(c.l.in.left-largeBuffer, splicePart)
	n, err = to.ReadFrom(&io.LimitedReader{R: from, N: part})
	c.l.in.left -= n
	s.w.sent = s.w.sent || n > 0
	switch {
	case err != nil:
		return n, c.l.sock.raw == nil || c.l.sock.raw.over(), err
	case n < part:
		return n, true, errEarly
	}
	return n, false, nil
}
