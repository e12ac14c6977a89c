package hbone

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/http/frame"
)

// Stats counts the payload bytes of a stream so far.
type Stats struct {
	// Sent is what was handed to the tunnel, Received what came out of it and was delivered, in bytes.
	Sent, Received uint64
}

var errDeadline = os.ErrDeadlineExceeded

// Stream is one CONNECT: a duplex byte stream and a net.Conn. Reads and writes may run at the same time; several
// writers or several readers are allowed but share no order. Either use Read and Write, or hand it to Relay.
type Stream struct {
	c         *conn
	id        uint32
	authority string

	sent, received atomic.Uint64
	gone           atomic.Bool // RST sent or received: no frame may follow

	// The send side and the state; protected by c.mu.
	sendCond   *sync.Cond
	sendWin    int64
	starving   bool
	localDone  bool // nothing may be written any more
	endSent    bool // END_STREAM is queued
	remoteDone bool // END_STREAM received
	writeLate  bool // the write deadline has passed
	err        error
	ready      chan struct{} // client: closed with the response or the end
	resp       *message
	cancel     context.CancelFunc // server: ends the handler's context
	writeTimer clock.Timer

	rmu       sync.Mutex // protects the receive side below; before every other lock
	readCond  *sync.Cond
	q         backlog
	eof       bool
	rerr      error
	avail     int64 // the peer's credit on this stream
	window    int64 // what avail is brought back to
	owed      int64 // consumed and not yet given back
	kept      int64 // consumed since the backlog was last high
	sink      *sink
	readLate  bool // the read deadline has passed
	readTimer clock.Timer
}

func (c *conn) newStream(id uint32, authority string) *Stream {
	s := &Stream{
		c: c, id: id, authority: authority, sendWin: c.peer.initialWindow,
		avail: int64(c.cfg.StreamWindow), window: int64(c.cfg.StreamWindow),
	}
	s.q.budget = c.cfg.Budget
	s.sendCond = sync.NewCond(&c.mu)
	s.readCond = sync.NewCond(&s.rmu)
	return s
}

// Authority returns the target that the CONNECT named.
func (s *Stream) Authority() string { return s.authority }

// Stats returns the live counters. Safe at any time.
func (s *Stream) Stats() Stats { return Stats{Sent: s.sent.Load(), Received: s.received.Load()} }

// ResponseHeader returns what came with the 2xx; nil on the server side.
func (s *Stream) ResponseHeader() Header {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.resp == nil {
		return nil
	}
	return s.resp.header
}

// LocalAddr and RemoteAddr return those of the tunnel's connection.
func (s *Stream) LocalAddr() net.Addr { return s.c.nc.LocalAddr() }

// RemoteAddr returns the address of the tunnel's peer, not of the CONNECT's target.
func (s *Stream) RemoteAddr() net.Addr { return s.c.nc.RemoteAddr() }

// Quiet reports that nothing waits to be read: neither bytes nor the end of the stream. A stream that was idle can be used then.
func (s *Stream) Quiet() bool {
	s.rmu.Lock()
	defer s.rmu.Unlock()
	return s.q.size == 0 && s.rerr == nil && !s.eof
}

// Ended tells, without reading, whether the peer has ended its direction, also where bytes wait before that end, and whether the stream
// was reset or its connection has ended.
func (s *Stream) Ended() (half, all bool) {
	s.rmu.Lock()
	defer s.rmu.Unlock()
	return s.eof, s.rerr != nil
}

// Leaving reports that the peer has said that it is about to go: what can be asked over another connection should not be asked here.
func (s *Stream) Leaving() bool {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.c.goneAway
}

// Wait returns when Read does not wait: nil for bytes, else the error that Read returns. Who waits so holds no buffer.
func (s *Stream) Wait() error {
	s.rmu.Lock()
	defer s.rmu.Unlock()
	return s.waitLocked()
}

func (s *Stream) waitLocked() error {
	for s.q.size == 0 {
		switch {
		case s.rerr != nil:
			return s.rerr
		case s.eof:
			return io.EOF
		case s.readLate:
			return errDeadline
		}
		s.readCond.Wait()
	}
	return nil
}

// Read returns received bytes, io.EOF after the peer's END_STREAM, a *StreamError after a reset, or the error that
// ended the connection.
func (s *Stream) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	s.rmu.Lock()
	if err := s.waitLocked(); err != nil {
		s.rmu.Unlock()
		return 0, err
	}
	n := s.q.read(p)
	s.received.Add(uint64(n))
	s.consumedLocked(n)
	s.rmu.Unlock()
	s.c.credit(n)
	return n, nil
}

// Write sends p, waiting for the peer's credit. It returns ErrClosed after CloseWrite, a *StreamError after a reset.
func (s *Stream) Write(p []byte) (int, error) {
	sent := 0
	for sent < len(p) {
		part := p[sent:min(len(p), sent+largeChunk-frame.HeaderLen)]
		c := getChunk(len(part) + frame.HeaderLen)
		n := copy(c.b[frame.HeaderLen:], part)
		err := s.sendBuffer(c.b, n)
		c.free()
		if err != nil {
			return sent, err
		}
		sent += n
	}
	return sent, nil
}

// sendBuffer sends n bytes of b after its header room, as credit allows. b's content is lost.
func (s *Stream) sendBuffer(b []byte, n int) error {
	for off := 0; off < n; {
		k, size, err := s.reserve(n - off)
		if err != nil {
			return err
		}
		if err := s.c.w.sendData(s, b[off:], k, size); err != nil {
			if errors.Is(err, errGone) {
				s.c.mu.Lock()
				s.c.refundLocked(k)
				err = s.err
				s.c.mu.Unlock()
			}
			return err
		}
		s.sent.Add(uint64(k))
		off += k
	}
	return nil
}

// CloseWrite sends END_STREAM: the peer reads io.EOF, and this side may still read. A second call does nothing.
func (s *Stream) CloseWrite() error {
	c := s.c
	c.mu.Lock()
	if s.err != nil || s.localDone {
		err := s.err
		c.mu.Unlock()
		return err
	}
	s.localDone = true
	s.sendCond.Broadcast()
	c.mu.Unlock()
	err := c.w.sendEnd(s)
	c.mu.Lock()
	after := func() {}
	s.endSent = true
	if s.remoteDone {
		after = c.removeLocked(s)
	}
	c.mu.Unlock()
	after()
	return err
}

// Close ends both directions. When both sides had finished it does nothing on the wire, otherwise it is Reset(CodeCancel).
func (s *Stream) Close() error {
	s.c.mu.Lock()
	finished := s.endSent && s.remoteDone || s.err != nil
	s.c.mu.Unlock()
	if !finished {
		s.Reset(frame.CodeCancel)
	}
	s.rmu.Lock()
	n := s.q.drop()
	if s.rerr == nil {
		s.rerr = ErrClosed
	}
	s.readCond.Broadcast()
	stopTimer(s.readTimer)
	s.rmu.Unlock()
	s.c.credit(n)
	s.c.mu.Lock()
	stopTimer(s.writeTimer)
	s.c.mu.Unlock()
	return nil
}

func stopTimer(t clock.Timer) {
	if t != nil {
		t.Stop()
	}
}

// Reset sends RST_STREAM with code; both directions fail with a *StreamError. It never blocks. A stream that has
// ended is left alone.
func (s *Stream) Reset(code frame.Code) {
	s.c.mu.Lock()
	ended := s.err != nil || s.endSent && s.remoteDone
	s.c.mu.Unlock()
	if ended {
		return
	}
	if !s.gone.Swap(true) {
		s.c.postOrEnd(frame.AppendRST(make([]byte, 0, 13), s.id, code))
	}
	s.terminate(&StreamError{Code: code})
}

// terminate ends the stream in both directions with err. What was received before is kept only if it is complete and
// the peer's reset says that nothing went wrong.
func (s *Stream) terminate(err error) {
	c := s.c
	s.gone.Store(true)
	c.mu.Lock()
	if s.err != nil {
		c.mu.Unlock()
		return
	}
	s.err = err
	s.sendCond.Broadcast()
	if s.ready != nil && s.resp == nil {
		close(s.ready)
	}
	cancel := s.cancel
	stopTimer(s.writeTimer)
	after := c.removeLocked(s)
	c.mu.Unlock()
	c.w.wake()

	var se *StreamError
	harmless := errors.As(err, &se) && se.Remote && se.Code == frame.CodeNo
	dropped := 0
	s.rmu.Lock()
	if !(harmless && s.eof) {
		dropped = s.q.drop()
		if s.rerr == nil {
			s.rerr = err
		}
	}
	s.readCond.Broadcast()
	sk := s.sink
	s.rmu.Unlock()
	c.credit(dropped)
	if sk != nil {
		sk.abort(err)
	}
	if cancel != nil {
		cancel()
	}
	after()
}

// deliver takes payload from the read loop: straight to the sink when it can take it, else to the backlog. own is the
// chunk that p lies in, when the stream may keep it; kept tells whether it did. done is the number of bytes that are
// not held any more.
func (s *Stream) deliver(p []byte, own *chunk) (done int, kept bool) {
	s.rmu.Lock()
	if s.rerr != nil || len(p) == 0 {
		s.rmu.Unlock()
		return len(p), false
	}
	all := len(p)
	if s.sink != nil && s.q.size == 0 && !s.sink.draining {
		n, err := s.sink.try(p)
		s.received.Add(uint64(n))
		s.consumedLocked(n)
		if err != nil {
			sk := s.sink
			s.rmu.Unlock()
			sk.failed(err)
			return all, false
		}
		if p = p[n:]; len(p) == 0 {
			s.rmu.Unlock()
			return all, false
		}
		if own != nil {
			own.r += n
		}
	}
	if s.q.size+len(p) > minHeld && s.c.cfg.Budget.spent() {
		s.rmu.Unlock()
		s.Reset(frame.CodeCalm)
		return all, false
	}
	if s.q.size+len(p) > int(s.window/2) {
		s.kept = 0
	}
	if own != nil {
		s.q.adopt(own)
	} else {
		s.q.add(p)
	}
	s.wakeLocked()
	s.rmu.Unlock()
	return all - len(p), own != nil
}

// wakeLocked tells whoever takes the backlog that there is something. s.rmu is held.
func (s *Stream) wakeLocked() {
	if s.sink != nil {
		s.sink.drainLocked()
		return
	}
	s.readCond.Broadcast()
}

// deliverEOF handles END_STREAM. The state comes first: a relay that is told of the end closes the stream at once.
func (s *Stream) deliverEOF() {
	c := s.c
	c.mu.Lock()
	s.remoteDone = true
	after := func() {}
	if s.endSent {
		after = c.removeLocked(s)
	}
	c.mu.Unlock()
	s.rmu.Lock()
	s.eof = true
	s.wakeLocked()
	s.rmu.Unlock()
	after()
}

// take accounts n bytes of a DATA frame. It reports false when the peer had no such credit.
func (s *Stream) take(n int) bool {
	s.rmu.Lock()
	defer s.rmu.Unlock()
	s.avail -= int64(n)
	return s.avail >= 0
}

// consumedLocked gives credit back for n bytes. A stream whose reader keeps up gets a larger window. s.rmu is held.
func (s *Stream) consumedLocked(n int) {
	if s.eof || s.rerr != nil || n == 0 {
		return
	}
	s.owed += int64(n)
	s.kept += int64(n)
	tight := s.c.cfg.Budget.tight()
	if limit := int64(s.c.cfg.StreamWindowMax); s.kept >= s.window && s.window < limit && !tight {
		grown := min(2*s.window, limit)
		s.owed += grown - s.window
		s.window, s.kept = grown, 0
	}
	inc, enough := s.owed, s.window/4
	if least := min(minWindow, s.window); tight {
		inc, enough = min(inc, least-s.avail-int64(s.q.size)), least/4
	}
	if inc >= enough {
		s.owed -= inc
		s.avail += inc
		s.c.postOrEndLater(frame.AppendWindow(make([]byte, 0, 13), s.id, uint32(inc)))
	}
}

// postOrEndLater is postOrEnd for callers that hold a stream's lock, which end would want.
func (c *conn) postOrEndLater(b []byte) {
	if err := c.w.post(b); err != nil {
		c.w.fail(err)
	}
}

// SetDeadline sets both deadlines.
func (s *Stream) SetDeadline(t time.Time) error {
	_ = s.SetReadDeadline(t)
	return s.SetWriteDeadline(t)
}

// SetReadDeadline makes Read return os.ErrDeadlineExceeded from t on, measured by Config.Clock. Zero: never.
func (s *Stream) SetReadDeadline(t time.Time) error {
	s.rmu.Lock()
	defer s.rmu.Unlock()
	stopTimer(s.readTimer)
	s.readTimer, s.readLate = nil, false
	if t.IsZero() {
		return nil
	}
	d := t.Sub(s.c.cfg.Clock.Now())
	if d <= 0 {
		s.readLate = true
		s.readCond.Broadcast()
		return nil
	}
	var tm clock.Timer
	tm = s.c.cfg.Clock.AfterFunc(d, func() {
		s.rmu.Lock()
		defer s.rmu.Unlock()
		if s.readTimer == tm {
			s.readLate = true
			s.readCond.Broadcast()
		}
	})
	s.readTimer = tm
	return nil
}

// SetWriteDeadline makes a Write that waits for the peer's credit return os.ErrDeadlineExceeded from t on, measured by
// Config.Clock. Zero: never. A write that waits for the socket is bounded by the keepalive instead.
func (s *Stream) SetWriteDeadline(t time.Time) error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	stopTimer(s.writeTimer)
	s.writeTimer, s.writeLate = nil, false
	if t.IsZero() {
		return nil
	}
	d := t.Sub(c.cfg.Clock.Now())
	if d <= 0 {
		s.writeLate = true
		s.sendCond.Broadcast()
		return nil
	}
	var tm clock.Timer
	tm = c.cfg.Clock.AfterFunc(d, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if s.writeTimer == tm {
			s.writeLate = true
			s.sendCond.Broadcast()
		}
	})
	s.writeTimer = tm
	return nil
}

var _ net.Conn = (*Stream)(nil)
