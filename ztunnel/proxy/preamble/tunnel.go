package preamble

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"

	"github.com/undermesh/undermesh/ztunnel/http/frame"
	"github.com/undermesh/undermesh/ztunnel/http/h2"
	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// posted is a connection whose bytes are the body of a POST in chunks, and the body of its answer. One goroutine may read while
// another writes, and any may close.
type posted struct {
	net.Conn
	in  io.Reader
	out []byte // kept for the next chunk
}

// Read implements net.Conn.
func (p *posted) Read(b []byte) (int, error) { return p.in.Read(b) }

// Write implements net.Conn. It counts bytes of b that may have left.
func (p *posted) Write(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil // an empty chunk is the end
	}
	p.out = append(fmt.Appendf(p.out[:0], "%x\r\n", len(b)), b...)
	p.out = append(p.out, "\r\n"...)
	n, err := p.Conn.Write(p.out)
	if err != nil {
		return min(n, len(b)), err
	}
	return len(b), nil
}

// CloseWrite ends the body; the connection stays, or the proxy would take its client for gone.
func (p *posted) CloseWrite() error {
	_, err := io.WriteString(p.Conn, "0\r\n\r\n")
	return err
}

// SetLinger makes the next Close a reset, where the connection can be reset.
func (p *posted) SetLinger(seconds int) error { return setLinger(p.Conn, seconds) }

func setLinger(c net.Conn, seconds int) error {
	if l, ok := c.(interface{ SetLinger(int) error }); ok {
		return l.SetLinger(seconds)
	}
	return nil
}

// Stream is a connection through a proxy over HTTP/2, which has it alone: the bytes are those of one stream. One goroutine may
// read while another writes, and any may close.
type Stream struct {
	net.Conn // to the proxy, for addresses and deadlines; who times out ends it
	c        *h2.Conn
	s        *h2.Stream
	abort    atomic.Bool
}

// errAborted is what a stream ends with that is reset.
var errAborted = errors.New("the connection through the proxy is aborted")

// Open asks the HTTP/2 proxy at the other end of c for the target, as Connect does. secure: c is TLS. The connection is the
// stream's from then on, also after an error; Wait ends with it.
func Open(c net.Conn, t Target, secure bool, cfg h2.Config) (*Stream, error) {
	target, err := t.authority()
	if err != nil {
		return nil, err
	}
	conn := h2.NewClient(c, cfg)
	s, err := ask(conn, target, t.POST, secure)
	if err != nil {
		_ = setLinger(c, 0)
		conn.Kill(errAborted)
		<-conn.Done()
		return nil, fmt.Errorf("ask proxy for %s: %w", target, err)
	}
	return &Stream{Conn: c, c: conn, s: s}, nil
}

func ask(c *h2.Conn, target string, post, secure bool) (*h2.Stream, error) {
	req := &head.Request{Method: []byte("CONNECT"), Authority: []byte(target), Body: -1, Major: 2}
	if post {
		req.Method, req.Path, req.Scheme = []byte("POST"), []byte("/"), []byte("http")
		if secure {
			req.Scheme = []byte("https")
		}
	}
	s, err := c.Open(req, false)
	if err != nil {
		return nil, err
	}
	if err := s.Flush(); err != nil {
		return nil, err
	}
	for range maxInterim {
		h, err := s.ReadHead()
		switch {
		case err != nil:
			return nil, fmt.Errorf("read its answer: %w", err)
		case h.Status < 200:
			continue
		case h.Status >= 300:
			return nil, fmt.Errorf("it answers %d", h.Status)
		}
		return s, nil
	}
	return nil, fmt.Errorf("it answers %d times without an end", maxInterim)
}

// Read implements net.Conn.
func (s *Stream) Read(p []byte) (int, error) { return s.s.Read(p) }

// Write implements net.Conn.
func (s *Stream) Write(p []byte) (int, error) {
	n, err := s.s.Write(p)
	if err == nil {
		err = s.s.Flush()
	}
	return n, err
}

// CloseWrite ends the direction to the target.
func (s *Stream) CloseWrite() error { return s.s.WriteEnd(nil) }

// SetLinger makes the next Close a reset, where the connection can be reset.
func (s *Stream) SetLinger(seconds int) error {
	s.abort.Store(seconds == 0)
	return setLinger(s.Conn, seconds)
}

// Close ends the stream and the connection to the proxy, without waiting for it.
func (s *Stream) Close() error {
	if s.abort.Load() {
		s.s.Reset(frame.CodeCancel)
		s.c.Kill(errAborted)
		return nil
	}
	s.c.Kill(h2.ErrClosed)
	return nil
}

// Wait returns when what the stream has started has ended, after Close.
func (s *Stream) Wait() { <-s.c.Done() }
