package http

import (
	"errors"
	"io"
	"net"
	"time"
)

// socket is a connection as the codec of HTTP/1.1 uses it: early bytes first, and reading without a buffer while idle where the
// readiness can be waited for.
type socket struct {
	net.Conn
	early []byte                    // read by others before
	raw   *rawSocket                // nil: it is no socket of the kernel
	waits interface{ Wait() error } // returns when Read does not wait, or with its error; nil: the connection cannot
}

func newSocket(c net.Conn, early []byte) *socket {
	s := &socket{Conn: c, early: early, raw: newRaw(c)}
	s.waits, _ = c.(interface{ Wait() error })
	return s
}

// Read reads early bytes first.
func (s *socket) Read(p []byte) (int, error) {
	if len(s.early) > 0 {
		n := copy(p, s.early)
		s.early = s.early[n:]
		return n, nil
	}
	if s.raw != nil {
		return s.raw.read(p)
	}
	return s.Conn.Read(p)
}

// readIdle waits for bytes and returns them in a buffer: that which is given, else one that is taken when they are there. On an
// error it returns none, and b has been given back.
func (s *socket) readIdle(free *buffers, b *buffer) (*buffer, error) {
	if b == nil && s.raw != nil && len(s.early) == 0 {
		return s.raw.readIdle(free)
	}
	if b == nil {
		if s.waits != nil && len(s.early) == 0 {
			if err := s.waits.Wait(); err != nil {
				return nil, err
			}
		}
		b = free.get(smallBuffer)
	}
	b.r, b.w = 0, 0
	n, err := s.Read(b.b)
	b.w = n
	if n == 0 {
		free.put(b)
		if err == nil {
			err = io.ErrNoProgress
		}
		return nil, err
	}
	return b, nil
}

// writeAll writes both pieces, together where the connection can.
func (s *socket) writeAll(p, q []byte) error {
	if len(q) == 0 {
		return s.write(p)
	}
	b := net.Buffers{p, q}
	_, err := b.WriteTo(s.Conn)
	return err
}

func (s *socket) write(p []byte) error {
	if s.raw != nil {
		return s.raw.write(p)
	}
	_, err := s.Conn.Write(p)
	return err
}

// ended tells, without reading, whether the peer has ended its direction, and whether it has left altogether; as far as can be seen.
func (s *socket) ended() (half, all bool) {
	if s.raw != nil {
		return s.raw.ended()
	}
	if c, ok := s.Conn.(interface{ Ended() (half, all bool) }); ok {
		return c.Ended()
	}
	return false, false
}

// past is a deadline that is over.
var past = time.Unix(1, 0)

// interruptRead makes reads return until resumeRead.
func (s *socket) interruptRead() { _ = s.SetReadDeadline(past) }
func (s *socket) resumeRead()    { _ = s.SetReadDeadline(time.Time{}) }

// interrupt makes everything return, for good.
func (s *socket) interrupt() { _ = s.SetDeadline(past) }

// endWrite is closeWrite, and ends both directions where one alone cannot be.
func (s *socket) endWrite() error {
	err := s.closeWrite()
	if errors.Is(err, io.ErrNoProgress) || errors.Is(err, errors.ErrUnsupported) {
		err = s.Close()
	}
	return err
}

// closeWrite ends the direction to the peer; io.ErrNoProgress where the connection cannot.
func (s *socket) closeWrite() error {
	if c, ok := s.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return io.ErrNoProgress
}
