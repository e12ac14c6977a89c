package http

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"github.com/undermesh/undermesh/ztunnel/http/h1"
	"github.com/undermesh/undermesh/ztunnel/http/head"
)

var (
	errCrowded = errors.New("the workload has as many connections as it may")
	errPaused  = errors.New("reading was interrupted")
)

// server is one downstream connection. Until its first bytes have told, it is taken for HTTP/1.1, and its methods are that side of
// the exchange.
type server struct {
	e    *Engine
	f    *Flow
	sock *socket
	in   reader
	w    writer
	x    *exchange // of the request that is under way; nil: idle
	g    guard

	spoken Protocol // 0: nothing was said
	served int
	keep   bool // the connection lives on after the answer

	reads atomic.Uint64 // of the body, begun and ended: odd while one waits
	seen  uint64        // what the last look found of it; protected by the guard's lock
	tube  atomic.Bool   // it is a tunnel: its directions end one by one

	mu      sync.Mutex    // protects below
	h2      func()        // drains the connection of HTTP/2 that it became
	watched chan struct{} // closed when the goroutine of watch has ended; nil: there is none
}

// serve takes requests one after the other.
func (s *server) serve(ctx context.Context) error {
	s.in = reader{sock: s.sock, free: &s.e.free, tenant: s.f.Workload}
	s.g.watch, s.g.look = s.watch, s.look
	defer s.g.closed()
	defer s.in.drop()
	s.keep = true
	for s.keep {
		if over, err := s.one(ctx); over {
			return err
		}
	}
	return s.linger()
}

// preface begins every connection of HTTP/2.
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// one serves one request; over: the connection ended.
func (s *server) one(ctx context.Context) (over bool, err error) {
	if !s.await() {
		return true, nil
	}
	x := s.e.exchange(s.f, s, &s.g)
	s.x = x
	defer func() { // also when it panics
		s.x = nil
		s.e.put(x)
	}()
	s.w = writer{sock: s.sock, out: x.downOut[:0]}
	err = s.in.head(s.e.cfg.Limits.HeadBytes, s.parse, s.started)
	if errors.Is(err, errPreface) {
		s.speaks(HTTP2)
		return true, s.serveHTTP2(ctx)
	}
	s.speaks(HTTP1)
	if err != nil {
		return s.failed(err)
	}
	s.g.set(slowHead, 0)
	framing := h1.None
	if x.req.Body > 0 {
		framing = h1.Length
	} else if x.req.Body < 0 {
		framing = h1.Chunked
	}
	s.in.begin(framing, x.req.Body)
	s.served++
	s.keep = !x.req.Close && (s.e.cfg.Limits.Requests == 0 || s.served < s.e.cfg.Limits.Requests)
	x.run(ctx)
	s.unwatch()
	x.downOut = s.w.out
	s.keep = s.keep && s.in.done
	s.in.end()
	return false, nil
}

// speaks notes what the connection is spoken in.
func (s *server) speaks(p Protocol) {
	if s.spoken == 0 {
		s.spoken = p
		s.f.Listener.speaks(p)
	}
}

// await waits for the first bytes of a request; false: none comes.
func (s *server) await() bool {
	s.g.reset()
	if s.in.buf != nil && !s.in.buf.empty() {
		return true
	}
	s.g.after(idleClient, s.e.now(), s.e.cfg.Limits.Idle)
	s.g.aimIdle(readInterrupter{s.sock}, s.served > 0)
	err := errPaused
	if !s.leaving() || s.served == 0 {
		err = s.in.await()
	}
	s.g.aim(nil)
	if err != nil {
		if s.g.why() == idleClient {
			s.f.Listener.inc(cxIdleTimeout)
		}
		return false
	}
	if s.g.reset() != noCause { // bytes came as it was interrupted
		s.sock.resumeRead()
	}
	return true
}

func (s *server) leaving() bool { return s.e.draining.Load() || s.f.Workload.draining.Load() }

// readInterrupter makes reads return, but not writes.
type readInterrupter struct{ sock *socket }

func (r readInterrupter) interrupt() { r.sock.interruptRead() }

// drain ends the connection when its request is answered, at once when it has none.
func (s *server) drain() {
	s.mu.Lock()
	h2 := s.h2
	s.mu.Unlock()
	if h2 != nil {
		h2()
	} else {
		s.g.stopIdle(draining)
	}
}

var errPreface = errors.New("the connection speaks HTTP/2")

// started is called when the first bytes of a request are there.
func (s *server) started() {
	now := s.e.now()
	s.x.start(now)
	s.g.after(slowHead, now, s.e.cfg.Limits.Head)
	s.g.aim(readInterrupter{s.sock})
}

func (s *server) parse(b []byte) (int, error) {
	if s.served == 0 && b[0] == 'P' {
		n := min(len(b), len(preface))
		if string(b[:n]) == preface[:n] {
			if n < len(preface) {
				return 0, h1.ErrMore
			}
			return 0, errPreface
		}
	}
	l := &s.e.cfg.Limits
	return h1.ParseRequest(b, s.x.req, h1.Limits{Bytes: l.HeadBytes, Fields: l.HeadFields})
}

// failed answers a head that could not be read.
func (s *server) failed(err error) (over bool, _ error) {
	s.g.aim(nil)
	var e *h1.Error
	s.keep = false
	switch {
	case errors.As(err, &e):
		s.x.entry.Flags.Add(DownstreamProtocolError)
		s.x.refuse(e.Status, h1.StatusText(e.Status), e.Detail)
	case s.g.why() == slowHead:
		s.x.refuse(408, "request header timeout", "request_header_timeout")
	case errors.Is(err, errMemory):
		s.x.entry.Flags.Add(OverloadManager)
		s.x.refuse(431, h1.StatusText(431), "overload")
	case errors.Is(err, io.EOF):
		return true, nil
	default:
		return true, err
	}
	return false, nil
}

func (s *server) protocol() Protocol { return HTTP1 }

func (s *server) ready() bool            { return s.in.ready() }
func (s *server) trailers() *head.Fields { return nil }
func (s *server) interrupt()             { s.sock.interrupt() }
func (s *server) abandon()               { s.keep = false }
func (s *server) pause()                 { s.sock.interruptRead() }
func (s *server) resume()                { s.sock.resumeRead() }

func (s *server) next() ([]byte, bool, error) {
	s.reads.Add(1)
	defer s.reads.Add(1)
	return s.in.next()
}

func (s *server) proceed() error {
	s.w.out = append(s.w.out, "HTTP/1.1 100 Continue\r\n\r\n"...)
	return s.w.flush()
}

// respond writes the head. An answer before the end of the request ends the connection: nobody will read the rest.
func (s *server) respond(r *head.Response, end, tunnel bool) error {
	toHead := string(s.x.req.Method) == "HEAD"
	none := toHead || r.Status == 204 || r.Status == 304 || r.Status < 200
	if end && !none && r.Body < 0 {
		r.Body = 0
	}
	s.keep = s.keep && s.x.body.done.Load() && !tunnel && !s.leaving()
	r.Close = !s.keep && !tunnel
	switch {
	case tunnel && len(s.x.req.Protocol) > 0:
		if r.Status, none = 101, true; len(r.Protocol) == 0 { // over HTTP/2 the host does not say it
			r.Protocol = s.x.req.Protocol
		}
	case tunnel:
		none = true // CONNECT: neither length nor coding
	}
	s.w.chunked = !none && r.Body < 0
	s.w.out = h1.AppendResponse(s.w.out, r, none)
	if tunnel {
		s.unwatch()
		s.tube.Store(true)
		s.in.begin(h1.UntilClose, 0)
	}
	if end {
		return s.w.flush()
	}
	return nil
}

func (s *server) write(p []byte, end bool) error {
	if err := s.w.write(p, end); err != nil || !end || s.in.framing != h1.UntilClose {
		return err
	}
	return s.sock.endWrite() // the end of one direction of a tunnel
}

func (s *server) finish(trailers *head.Fields) error { return s.write(nil, true) }
func (s *server) flush() error                       { return s.w.flush() }

// abort: the client learns from the end of the connection that the answer is not complete. What is there of it goes out.
func (s *server) abort() {
	s.keep = false
	_ = s.w.flush() // the client may have gone
	s.w.out = s.w.out[:0]
	_ = s.sock.Close()
}

// watch notices from another goroutine that the client leaves: it reads on, behind the request, once. Where there is more of the
// client already it is looked for. It is called with the guard's lock held.
func (s *server) watch() {
	b := s.in.buf
	if b == nil || len(b.room()) == 0 || s.in.rest() {
		s.g.at[lookTimer] = s.e.now() + int64(lookFirst)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watched != nil {
		return
	}
	over := make(chan struct{})
	s.watched = over
	go func() {
		defer close(over)
		n, err := s.sock.Read(b.room())
		b.w += n
		switch {
		case n > 0:
			s.g.after(lookTimer, s.e.now(), lookFirst)
		case err != nil && s.watches(over):
			s.g.stop(clientGone)
		}
	}()
}

// watches reports whether the goroutine that closes over is to watch still: one that was told to end has not seen the client leave.
func (s *server) watches(over chan struct{}) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.watched == over
}

// look sees whether the client has left while nobody reads what it sent, which goes on to be so. One that has sent everything and ended its
// direction has left, as for Envoy. It is called with the guard's lock held.
func (s *server) look() {
	reads := s.reads.Load()
	idle := reads == s.seen && reads%2 == 0
	s.seen = reads
	if !idle {
		return
	}
	if half, all := s.sock.ended(); all || half && !s.tube.Load() {
		s.g.stopLocked(clientGone)
	}
}

// unwatch waits for the goroutine of watch.
func (s *server) unwatch() {
	s.g.set(watchTimer, 0)
	s.mu.Lock()
	over := s.watched
	s.watched = nil
	s.mu.Unlock()
	if over == nil {
		return
	}
	s.sock.interruptRead()
	<-over
	s.sock.resumeRead()
}

// linger gives the client the time to read an answer that ends the connection before all of its request was read: else the kernel
// resets the connection, and the answer may be lost.
func (s *server) linger() error {
	if s.in.done || s.e.cfg.Limits.DelayedClose < 0 || s.sock.closeWrite() != nil {
		return nil
	}
	s.g.reset()
	s.g.after(slowClose, s.e.now(), s.e.cfg.Limits.DelayedClose)
	s.g.aim(s)
	b := s.e.free.get(smallBuffer)
	defer s.e.free.put(b)
	for {
		if _, err := s.sock.Read(b.b); err != nil {
			s.g.aim(nil)
			return nil
		}
	}
}
