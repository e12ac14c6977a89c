package http

import (
	"context"
	"errors"
	"io"

	"github.com/undermesh/undermesh/ztunnel/http/frame"
	"github.com/undermesh/undermesh/ztunnel/http/h2"
	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// serveHTTP2 serves the rest of a connection that began with the preface of HTTP/2.
func (s *server) serveHTTP2(ctx context.Context) error {
	s.g.reset()
	l := &s.e.cfg.Limits
	cfg := h2.Config{
		Clock: s.e.cfg.Clock, Log: s.e.cfg.Log, MaxHeaderList: l.HeadBytes, MaxFields: l.HeadFields, IdleTimeout: l.Idle,
		MaxStreams: l.Streams, ExtendedConnect: true,
	}
	var c *h2.Conn
	c = h2.NewServer(s.sock.Conn, s.f.Workload.windowed(cfg), func(st *h2.Stream) {
		if s.leaving() {
			c.Drain()
		}
		st.Go(func(st *h2.Stream) { s.stream(ctx, c, st) })
	})
	s.mu.Lock()
	s.h2 = c.Drain
	s.mu.Unlock()
	early := append([]byte(nil), s.in.buf.bytes()...)
	early = append(early, s.sock.early...)
	s.in.drop()
	err := c.Serve(ctx, early)
	if errors.Is(err, h2.ErrPeerClosed) || errors.Is(err, h2.ErrClosed) || errors.Is(err, io.EOF) {
		return nil
	}
	var own *frame.ConnError
	if errors.As(err, &own) && !own.Remote {
		s.f.Listener.inc(cxProtocolError)
	}
	return err
}

// stream serves one request of HTTP/2, on a goroutine of its own.
func (s *server) stream(ctx context.Context, c *h2.Conn, st *h2.Stream) {
	e := s.e
	x := e.exchange(s.f, nil, nil)
	defer func() {
		if p := recover(); p != nil {
			e.panicked(s.f, p)
			c.Kill(errPanic)
		}
		x.stream.drop(e)
		e.put(x)
	}()
	if x.guard == nil {
		x.guard = &guard{e: e}
	}
	x.g = x.guard
	life := x.g.begin()
	x.stream = server2{x: x, s: st}
	x.down, x.req = &x.stream, st.Request()
	x.start(e.now())
	if st.Ended() && st.Trailers() == nil {
		x.req.Body = 0
	}
	joinCookies(x.req)
	g := x.g
	st.OnDone(func() { g.stopOf(life, clientGone) })
	x.run(ctx)
}

var errPanic = errors.New("serving a stream panicked")

// joinCookies makes one field of cookies that came in several, as HTTP/2 lets them, for those that know only one.
func joinCookies(r *head.Request) {
	i := r.Next(0, head.Cookie, "cookie")
	if i < 0 || r.Next(i+1, head.Cookie, "cookie") < 0 {
		return
	}
	var all []byte
	for ; i >= 0; i = r.Next(i+1, head.Cookie, "cookie") {
		if len(all) > 0 {
			all = append(all, "; "...)
		}
		all = append(all, r.Value(i)...)
	}
	r.Set(head.Cookie, "cookie", all)
}

// pieces reads the body of a stream of HTTP/2 in pieces.
type pieces struct {
	s    *h2.Stream
	free *buffers
	of   *Tenant
	buf  *buffer
}

func (p *pieces) next() ([]byte, bool, error) {
	if p.s.Ended() {
		return nil, true, nil
	}
	p.buf = p.free.piece(p.of, p.buf, p.s.Buffered() > smallBuffer)
	n, err := p.s.Read(p.buf.b)
	if errors.Is(err, io.EOF) {
		return nil, true, nil
	}
	if err != nil {
		return nil, false, err
	}
	return p.buf.b[:n], p.s.Ended(), nil
}

func (p *pieces) ready() bool { return p.s.Buffered() > 0 || p.s.Ended() }

func (p *pieces) drop() {
	p.free.put(p.buf)
	p.buf = nil
}

// send writes a piece, which leaves at once.
func send(s *h2.Stream, p []byte, end bool) error {
	if end {
		return s.WriteEnd(p)
	}
	if _, err := s.Write(p); err != nil {
		return err
	}
	return s.Flush()
}

func sendTrailers(s *h2.Stream, t *head.Fields) error {
	if t == nil {
		return s.WriteEnd(nil)
	}
	return s.WriteTrailers(t)
}

// server2 is the client's side of an exchange over HTTP/2.
type server2 struct {
	x    *exchange
	s    *h2.Stream
	body pieces
}

func (s *server2) drop(e *Engine) {
	if s.s != nil {
		s.body.drop()
		*s = server2{}
	}
}

func (s *server2) protocol() Protocol { return HTTP2 }

func (s *server2) pieces() *pieces {
	if s.body.s == nil {
		s.body.s, s.body.free, s.body.of = s.s, &s.x.e.free, s.x.f.Workload
	}
	return &s.body
}

func (s *server2) next() ([]byte, bool, error)  { return s.pieces().next() }
func (s *server2) ready() bool                  { return s.pieces().ready() }
func (s *server2) write(p []byte, e bool) error { return send(s.s, p, e) }
func (s *server2) finish(t *head.Fields) error  { return sendTrailers(s.s, t) }
func (s *server2) flush() error                 { return s.s.Flush() }
func (s *server2) abandon()                     {}
func (s *server2) pause()                       { s.s.Interrupt(errPaused) }
func (s *server2) resume()                      { s.s.Interrupt(nil) }
func (s *server2) interrupt()                   { s.s.Interrupt(errPaused) }

// trailers are without what a client may not say of itself: some programs take them for fields of the head.
func (s *server2) trailers() *head.Fields {
	t := s.s.Trailers()
	if t != nil {
		t.Del(head.XForwardedClientCert, head.Names[head.XForwardedClientCert])
	}
	return t
}

func (s *server2) abort() {
	s.s.Interrupt(nil)
	s.s.Reset(frame.CodeInternal)
}

func (s *server2) proceed() error {
	if err := s.s.WriteHead(&head.Response{Status: 100}, false); err != nil {
		return err
	}
	return s.s.Flush()
}

func (s *server2) respond(r *head.Response, end, tunnel bool) error {
	if tunnel && r.Status == 101 {
		r.Status = 200
	}
	return s.s.WriteHead(r, end)
}
