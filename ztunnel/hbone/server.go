package hbone

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/http/frame"
)

// Handler decides about one CONNECT, in a goroutine of its own. ctx ends when the peer resets the stream, when the
// connection ends, and when the handler returns. A handler that returns without Accept or Reject answers 503; the
// accepted stream is closed on return, so that Relay belongs inside.
type Handler func(ctx context.Context, r *ServerRequest)

// ServerRequest is a CONNECT that waits for an answer.
type ServerRequest struct {
	// Authority is the target, checked to be host:port.
	Authority string
	// Header is what came with it, without pseudo headers.
	Header Header
	// Peer is the state of the TLS connection; zero when the connection is not TLS (tests).
	Peer tls.ConnectionState

	s        *Stream
	answered bool
}

// Server is one tunnel connection of the side that answers.
type Server struct {
	c    *conn
	h    Handler
	peer tls.ConnectionState

	handlers sync.WaitGroup
	parent   context.Context // of Run
	left     chan struct{}   // see Left

	mu      sync.Mutex // protects below; before conn.mu
	running int        // handlers
	refused int        // requests, since a handler last ended
	final   bool       // the last GOAWAY was sent: newer streams are ignored
	drained bool
	idleAt  time.Time   // when the last handler ended
	idle    clock.Timer // nil: none
	asked   bool        // it was drained for being idle
}

// NewServer takes over conn, whose TLS handshake is done. Nothing happens before Run. It panics when cfg is not valid.
func NewServer(conn net.Conn, cfg Config, h Handler) *Server {
	s := &Server{c: newConn(conn, cfg.mustDefaults(), false), h: h, left: make(chan struct{})}
	if tc, ok := conn.(interface{ ConnectionState() tls.ConnectionState }); ok {
		s.peer = tc.ConnectionState()
	}
	s.c.onHeaders = s.request
	s.c.onPingAck = func(d [8]byte) {
		if d == pingDrain {
			s.lastGoAway()
		}
	}
	return s
}

// Serve is NewServer and Run.
func Serve(ctx context.Context, conn net.Conn, cfg Config, h Handler) error {
	return NewServer(conn, cfg, h).Run(ctx)
}

// Run serves until the connection has ended and all handlers have returned. When ctx ends the peer is told (GOAWAY),
// open streams get Config.DrainTimeout, then they are reset. It returns nil when the peer closed the connection or a
// drain ended, else a *ConnError, ErrPeerDead or the connection's error.
func (s *Server) Run(ctx context.Context) error {
	hctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	s.parent = hctx
	s.c.start()
	defer s.watchIdle()()
	stop := context.AfterFunc(ctx, func() {
		if s.c.cfg.DrainTimeout == 0 {
			s.c.end(ErrClosed)
			return
		}
		s.Drain()
		t := s.c.cfg.Clock.AfterFunc(s.c.cfg.DrainTimeout, func() { s.c.end(ErrClosed) })
		<-s.c.done
		t.Stop()
	})
	<-s.c.done
	stop()
	s.mu.Lock()
	s.leftLocked()
	s.mu.Unlock()
	s.handlers.Wait()
	switch err := s.c.err(); {
	case errors.Is(err, ErrClosed), errors.Is(err, errPeerClosed):
		return nil
	default:
		return fmt.Errorf("serve tunnel of %s: %w", addrString(s.c.nc), err)
	}
}

// Close ends the connection and its streams at once; Run returns when the handlers have.
func (s *Server) Close() { s.c.end(ErrClosed) }

// Drain tells the peer to open no more streams here. Those that are open, or on their way, are served to their end;
// then the connection is closed and Run returns. It does not wait.
func (s *Server) Drain() {
	s.mu.Lock()
	if s.drained {
		s.mu.Unlock()
		return
	}
	s.drained = true
	s.mu.Unlock()
	// the highest id first, so that streams that are under way are not lost
	s.announce(frame.MaxStreamID, "draining")
}

// announce sends a GOAWAY; the answer to the PING behind it shows that the peer has read it (RFC 9113 §6.8).
func (s *Server) announce(last uint32, why string) {
	s.c.postOrEnd(frame.AppendPing(frame.AppendGoAway(nil, last, frame.CodeNo, why), 0, pingDrain))
}

// Depart is Drain, and tells the peer that nobody will answer at this address any more: the pod behind it is being deleted.
func (s *Server) Depart() {
	s.mu.Lock()
	s.drained = true
	c := s.c
	c.mu.Lock()
	last := c.promised
	c.mu.Unlock()
	s.mu.Unlock()
	s.announce(last, departed)
}

// departed is the debug data of the GOAWAY of Depart. To others it is a text.
const departed = "undermesh: pod deleted"

// Left is closed when the peer has heard of a drain and opens nothing here any more, or the connection has ended.
func (s *Server) Left() <-chan struct{} { return s.left }

// leftLocked closes left; false when it was closed before.
func (s *Server) leftLocked() bool {
	if s.final {
		return false
	}
	s.final = true
	close(s.left)
	return true
}

func (s *Server) lastGoAway() {
	s.mu.Lock()
	if !s.drained || !s.leftLocked() {
		s.mu.Unlock()
		return
	}
	c := s.c
	c.mu.Lock()
	last := c.lastID
	c.promised = last
	c.mu.Unlock()
	s.mu.Unlock()
	c.postOrEnd(frame.AppendGoAway(nil, last, frame.CodeNo, "draining"))
	s.endWhenIdle()
}

// watchIdle drains the connection when it had no stream for Config.IdleTimeout. The function returned ends the watch.
func (s *Server) watchIdle() (stop func()) {
	limit := s.c.cfg.IdleTimeout
	if limit == 0 {
		return func() {}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idleAt = s.c.cfg.Clock.Now()
	s.idle = s.c.cfg.Clock.AfterFunc(limit, s.checkIdle)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.idle.Stop()
	}
}

func (s *Server) checkIdle() {
	s.mu.Lock()
	rest := s.c.cfg.IdleTimeout
	if s.running == 0 {
		rest -= s.c.cfg.Clock.Now().Sub(s.idleAt)
	}
	late := s.asked
	switch {
	case late: // the peer did not answer: no streams from now on
	case s.drained: // by somebody else, whose bound counts
		rest = 1
	case rest > 0:
		s.idle.Reset(rest)
	default:
		s.asked = true
		s.idle.Reset(s.c.cfg.PingTimeout)
	}
	s.mu.Unlock()
	switch {
	case late:
		s.lastGoAway()
	case rest <= 0:
		s.Drain()
	}
}

// endWhenIdle ends a drained connection that has neither streams nor handlers.
func (s *Server) endWhenIdle() {
	s.mu.Lock()
	s.c.mu.Lock()
	over := s.final && s.running == 0 && len(s.c.streams) == 0
	s.c.mu.Unlock()
	s.mu.Unlock()
	if over {
		s.c.end(ErrClosed)
	}
}

// request handles HEADERS on the server side. Called by the read loop.
func (s *Server) request(h frame.Header, m *message) error {
	c := s.c
	c.mu.Lock()
	old, last := c.streams[h.ID], c.lastID
	c.mu.Unlock()
	switch {
	case old != nil: // no trailers exist in a CONNECT
		old.Reset(frame.CodeProtocol)
		return nil
	case h.ID%2 == 0:
		return frame.Errorf(frame.CodeProtocol, "client opened stream %d", h.ID)
	case h.ID <= last: // a block that crossed our reset
		return nil
	}
	c.mu.Lock()
	c.lastID = h.ID
	open, late := len(c.streams), h.ID > c.promised
	c.mu.Unlock()
	if late { // crossed our GOAWAY: the peer retries elsewhere
		return nil
	}
	if open >= c.cfg.MaxStreams {
		return s.refuse(h.ID)
	}
	status := m.badRequest()
	if m.malformed == "" && status == 0 {
		return s.spawn(h, m)
	}
	if err := s.countRefused(); err != nil {
		return err
	}
	if m.malformed != "" {
		c.cfg.Log.Debug("tunnel request malformed", "peer", addrString(c.nc), "reason", m.malformed)
		return c.w.post(frame.AppendRST(nil, h.ID, frame.CodeProtocol))
	}
	return s.answerBad(h, status)
}

// badRequest returns the status for a request that no handler needs to see, 0 for a good one.
func (m *message) badRequest() int {
	switch {
	case m.tooLarge:
		return 431
	case m.method != "CONNECT", m.status != "", m.scheme, m.path, m.protocol, checkAuthority(m.authority) != nil:
		return 400
	}
	return 0
}

// answerBad answers and, when the peer may still send, tells it to stop.
func (s *Server) answerBad(h frame.Header, status int) error {
	c := s.c
	c.w.mu.Lock()
	block := c.hdr.encode([]HeaderField{{":status", strconv.Itoa(status)}}, nil)
	b := frame.AppendBlock(nil, block, frame.MinMaxFrame, frame.EndStream, h.ID)
	if !h.Has(frame.EndStream) {
		b = frame.AppendRST(b, h.ID, frame.CodeNo)
	}
	// the block must go out in the order of encoding: queue it before another can be encoded
	err := c.w.postLocked(b)
	c.w.mu.Unlock()
	return err
}

// refuse sends REFUSED_STREAM.
func (s *Server) refuse(id uint32) error {
	if err := s.countRefused(); err != nil {
		return err
	}
	return s.c.w.post(frame.AppendRST(nil, id, frame.CodeRefused))
}

// countRefused cuts off a peer that goes on with requests that no handler sees, those beyond the limit and the illegal
// ones, while no handler ends.
func (s *Server) countRefused() error {
	s.mu.Lock()
	s.refused++
	n := s.refused
	s.mu.Unlock()
	if n > 4*s.c.cfg.MaxStreams {
		return frame.Errorf(frame.CodeCalm, "%d requests refused in a row, at most %d streams may be open", n, s.c.cfg.MaxStreams)
	}
	return nil
}

// spawn starts the handler. Streams that were reset count until their handler has ended, so that opening and resetting
// (rapid reset) gains nothing.
func (s *Server) spawn(h frame.Header, m *message) error {
	c := s.c
	s.mu.Lock()
	if s.running >= c.cfg.MaxStreams {
		s.mu.Unlock()
		return s.refuse(h.ID)
	}
	s.running++
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(s.parent)
	c.mu.Lock()
	if c.dead != nil {
		c.mu.Unlock()
		cancel()
		s.handlerDone()
		return nil
	}
	st := c.newStream(h.ID, m.authority)
	st.cancel = cancel
	c.streams[h.ID] = st
	c.mu.Unlock()
	if h.Has(frame.EndStream) {
		st.deliverEOF()
	}
	s.handlers.Go(func() {
		defer s.handlerDone()
		defer cancel()
		r := &ServerRequest{Authority: m.authority, Header: m.header, Peer: s.peer, s: st}
		s.h(ctx, r)
		if !r.answered {
			r.Reject(503, nil)
		}
		_ = st.Close()
	})
	return nil
}

func (s *Server) handlerDone() {
	s.mu.Lock()
	s.running--
	s.refused = 0
	if s.running == 0 && s.c.cfg.IdleTimeout > 0 {
		s.idleAt = s.c.cfg.Clock.Now()
	}
	s.mu.Unlock()
	s.endWhenIdle()
	s.c.notify()
}

// Accept answers 200 with h and returns the stream. It may be called once, and not after Reject. The error says that
// the stream or the connection has ended.
func (r *ServerRequest) Accept(h Header) (*Stream, error) {
	if err := r.respond(200, h, 0); err != nil {
		return nil, fmt.Errorf("accept CONNECT to %s: %w", r.Authority, err)
	}
	return r.s, nil
}

// Reject answers with status (400, 401, 503, …) and h, and ends the stream. Errors do not matter to the caller: the
// peer has gone.
func (r *ServerRequest) Reject(status int, h Header) {
	if status < 300 || status > 599 {
		panic(fmt.Sprintf("reject CONNECT with status %d", status))
	}
	if err := r.respond(status, h, frame.EndStream); err != nil {
		return
	}
	r.s.finishRejected()
}

// RemoteAddr returns the address of the tunnel's peer.
func (r *ServerRequest) RemoteAddr() net.Addr { return r.s.RemoteAddr() }

// LocalAddr returns the address at which the tunnel arrived.
func (r *ServerRequest) LocalAddr() net.Addr { return r.s.LocalAddr() }

func (r *ServerRequest) respond(status int, h Header, flags byte) error {
	if err := h.validate(); err != nil {
		return err
	}
	if r.answered {
		return errors.New("answer CONNECT: it was answered before")
	}
	r.answered = true
	c, st := r.s.c, r.s
	c.w.mu.Lock()
	defer c.w.mu.Unlock()
	if err := c.w.awaitRoomLocked(st); err != nil {
		return err
	}
	c.mu.Lock()
	err, size := st.err, c.peer.maxFrame
	c.mu.Unlock()
	if err == nil && st.gone.Load() {
		err = ErrClosed
	}
	if err != nil {
		return err
	}
	c.w.q = frame.AppendBlock(c.w.q, c.hdr.encode([]HeaderField{{":status", strconv.Itoa(status)}}, h), size, flags, st.id)
	return c.w.flushOwnLocked()
}

// finishRejected ends a stream whose answer had END_STREAM; a peer that may still send is told to stop.
func (s *Stream) finishRejected() {
	c := s.c
	c.mu.Lock()
	s.localDone, s.endSent = true, true
	half := s.remoteDone
	after := func() {}
	if half {
		after = c.removeLocked(s)
	}
	c.mu.Unlock()
	after()
	if !half {
		s.Reset(frame.CodeNo)
	}
}
