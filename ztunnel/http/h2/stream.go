package h2

import (
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/undermesh/undermesh/ztunnel/http/frame"
	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// Stream is one request and its response. One goroutine may read (ReadHead, Read, Trailers) while another writes; Reset,
// Interrupt and OnDone may be called by any. Nothing may be called after Close, or after the return of the handler that Go
// started: streams are used again.
type Stream struct {
	c  *Conn
	id uint32

	req     head.Request // server
	text    []byte       // of req
	run     func()       // s.serve, bound once
	handler func(*Stream)
	heads   []*message // client: not read yet; protected by c.mu
	streamState
}

// streamState is what a stream that is used again begins without. c.mu protects it.
type streamState struct {
	refs         int8 // the connection's and the user's
	rcond, wcond sync.Cond
	in           queue
	cur          *message // client: what ReadHead returned last
	trailers     *message
	noBody       bool // client: the response has none, whatever it announces
	gotHead      bool // client: the final head came
	wroteHead    bool
	remoteEnd    bool  // END_STREAM came
	localEnd     bool  // END_STREAM was sent
	starving     bool  // it is in c.starved
	expect       int64 // bytes of DATA that are still announced; -1: not said
	sendWin      int64
	recvWin      int64 // what the peer may send
	window       int64
	owed         int64 // consumed and not given back
	kept         int64 // consumed since the reader last fell behind
	err          error // why it ended before its end
	interrupt    error
	onDone       func()
}

// message is the head of a response, or trailers.
type message struct {
	head.Response
	text []byte
}

var (
	streamPool  = sync.Pool{New: func() any { return &Stream{} }}
	messagePool = sync.Pool{New: func() any { return &message{} }}
)

const keepText = 8 << 10 // a larger text of a head goes to the collector

func putMessage(m *message) {
	if m == nil || cap(m.text) > keepText {
		return
	}
	messagePool.Put(m)
}

// newStream takes a stream from the pool; it is not in the map yet.
func (c *Conn) newStream(id uint32) *Stream {
	s := streamPool.Get().(*Stream)
	s.c, s.id, s.expect = c, id, -1
	if s.run == nil {
		s.run = s.serve
	}
	s.rcond.L, s.wcond.L = &c.mu, &c.mu
	s.recvWin, s.window = int64(c.cfg.StreamWindow), int64(c.cfg.StreamWindow)
	return s
}

// openLocked puts s in the map, with a reference for it and one for the user.
func (c *Conn) openLocked(s *Stream) {
	s.refs = 2
	s.sendWin = c.peer.initialWindow
	c.streams[s.id] = s
	c.opened++
	c.active++
	if len(c.streams) == 1 {
		c.q = getOut(c.q)
		c.rearmLocked()
	}
}

// dropLocked gives up one reference; the last returns the stream to the pool.
func (s *Stream) dropLocked() {
	if s.refs--; s.refs > 0 {
		return
	}
	c := s.c
	if s.starving {
		c.starved = slices.DeleteFunc(c.starved, func(o *Stream) bool { return o == s })
	}
	c.active--
	c.consumedLocked(int64(s.in.size))
	s.in.free()
	for i, m := range s.heads {
		putMessage(m)
		s.heads[i] = nil
	}
	putMessage(s.cur)
	putMessage(s.trailers)
	if cap(s.text) > keepText {
		s.text = nil
	}
	s.c, s.handler, s.heads, s.streamState = nil, nil, s.heads[:0], streamState{}
	streamPool.Put(s)
}

// ID returns the id of the stream on its connection.
func (s *Stream) ID() uint32 { return s.id }

// Request returns the head of a server's stream. It is the caller's to change, until the end of the stream.
func (s *Stream) Request() *head.Request { return &s.req }

// Go runs the handler in a goroutine of the connection. When it returns, what is not finished is reset: the response with
// INTERNAL_ERROR, the rest of a request that nobody read with NO_ERROR. For accept.
func (s *Stream) Go(handler func(*Stream)) {
	s.handler = handler
	s.c.wg.Add(1) // by the goroutine that reads, which Serve waits for
	go s.run()
}

func (s *Stream) serve() {
	c := s.c
	defer c.wg.Done()
	s.handler(s)
	c.mu.Lock()
	code := frame.CodeNo
	if !s.localEnd {
		code = frame.CodeInternal
	}
	s.finishLocked(code)
}

// Close ends a client's stream, once. What is not finished is reset with CANCEL.
func (s *Stream) Close() {
	s.c.mu.Lock()
	s.finishLocked(frame.CodeCancel)
}

// finishLocked resets what is not finished and gives up the user's reference. It releases the lock.
func (s *Stream) finishLocked(code frame.Code) {
	c := s.c
	s.onDone = nil
	ended := s.err == nil && !(s.localEnd && s.remoteEnd)
	if ended {
		c.resetLocked(s, code, ErrClosed) // without a callback: onDone is nil
	}
	s.dropLocked()
	c.settle(ended)
}

// settle releases the lock, flushes when something was sent, and ends a connection that was drained.
func (c *Conn) settle(flush bool) {
	if flush {
		c.commitLocked()
	}
	over := c.drainedLocked()
	c.mu.Unlock()
	if over {
		c.end(ErrClosed)
	}
}

func (c *Conn) drainedLocked() bool {
	return c.dead == nil && len(c.streams) == 0 && (c.draining && (c.client || c.promised != frame.MaxStreamID) || c.goneAway)
}

// removeLocked takes a stream that has ended out of the map.
func (c *Conn) removeLocked(s *Stream) {
	if c.streams[s.id] == s {
		delete(c.streams, s.id)
		if s.err == nil {
			c.useful++
			c.completed++
		}
		s.dropLocked()
	}
}

// resetLocked ends a stream of the map by RST_STREAM. // The func, nil for none, is to be called without locks.
func (c *Conn) resetLocked(s *Stream, code frame.Code, err error) func() {
	if s.err != nil || c.streams[s.id] != s {
		return nil
	}
	c.q = frame.AppendRST(c.q, s.id, code)
	if !s.remoteEnd {
		c.goneLocked(s.id)
	}
	return s.endLocked(err)
}

// endLocked ends a stream before its end: its calls return err. The func, nil for none, is to be called without locks.
func (s *Stream) endLocked(err error) func() {
	s.err = err
	s.rcond.Broadcast()
	s.wcond.Broadcast()
	f := s.onDone
	s.onDone = nil
	s.c.removeLocked(s)
	return f
}

// Reset ends the stream by RST_STREAM, unless it has ended. Calls that wait return. Any goroutine may call it.
func (s *Stream) Reset(code frame.Code) {
	c := s.c
	c.mu.Lock()
	s.onDone = nil
	c.resetLocked(s, code, &StreamError{Code: code}) // without a callback: onDone is nil
	c.settle(true)
}

// Interrupt makes the calls that wait, and later ones, return err, until it is called with nil. Nothing is sent. Any goroutine
// may call it.
func (s *Stream) Interrupt(err error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	s.interrupt = err
	s.rcond.Broadcast()
	s.wcond.Broadcast()
}

// OnDone has f called once when the peer resets the stream or the connection ends before the stream's end; at once, when that
// has happened. f is called by a goroutine of the connection and must not block, nor call the stream.
func (s *Stream) OnDone(f func()) {
	s.c.mu.Lock()
	ended := s.err != nil
	if !ended {
		s.onDone = f
	}
	s.c.mu.Unlock()
	if ended && f != nil {
		f()
	}
}

// ReadHead waits for the next head of the response: informational ones, then the final one. It is valid until the next
// ReadHead, or Close.
func (s *Stream) ReadHead() (*head.Response, error) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		switch {
		case s.interrupt != nil:
			return nil, s.interrupt
		case len(s.heads) > 0:
			putMessage(s.cur)
			s.cur = s.heads[0]
			s.heads = s.heads[:copy(s.heads, s.heads[1:])]
			return &s.cur.Response, nil
		case s.err != nil:
			return nil, s.err
		case s.gotHead:
			return nil, fmt.Errorf("read head of stream %d: %w", s.id, ErrSequence)
		case c.commitOwnLocked():
		default:
			s.rcond.Wait()
		}
	}
}

// commitOwnLocked flushes before its caller waits. It reports whether the lock was released.
func (c *Conn) commitOwnLocked() bool {
	if len(c.q) == 0 || c.writing || c.yielding {
		return false
	}
	c.commitLocked()
	return true
}

// Read reads the body. It returns io.EOF at its end, after which Trailers tells what followed.
func (s *Stream) Read(p []byte) (int, error) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		switch {
		case s.interrupt != nil:
			return 0, s.interrupt
		case s.in.size > 0:
			n := s.in.read(p)
			s.consumedLocked(int64(n))
			return n, nil
		case s.remoteEnd:
			return 0, io.EOF
		case s.err != nil:
			return 0, s.err
		case len(p) == 0:
			return 0, nil
		case c.commitOwnLocked():
		default:
			s.rcond.Wait()
		}
	}
}

// Buffered returns how many bytes Read gives without waiting.
func (s *Stream) Buffered() int {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.in.size
}

// Ended reports whether the peer has ended its side and all of its body was read.
func (s *Stream) Ended() bool {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	return s.remoteEnd && s.in.size == 0
}

// Trailers returns what followed the body, once Read has returned io.EOF or Ended is true; nil: nothing. They are valid until
// the end of the stream.
func (s *Stream) Trailers() *head.Fields {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.trailers == nil || s.in.size > 0 {
		return nil
	}
	return &s.trailers.Fields
}

// WriteHead sends the head of a response, or an informational one; with end there is no body. Without end, it leaves with what
// follows, or with Flush.
func (s *Stream) WriteHead(r *head.Response, end bool) error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	info := r.Status < 200
	if s.wroteHead || c.client || r.Status < 100 || r.Status > 999 || r.Status == 101 || info && end {
		return fmt.Errorf("write head of status %d on stream %d: %w", r.Status, s.id, ErrSequence)
	}
	if err := s.sendableLocked(); err != nil {
		return err
	}
	s.wroteHead = !info
	at := len(c.q)
	c.q = appendResponse(frame.Append(c.q, 0, frame.Headers, 0, s.id), r)
	return s.blockLocked(at, end)
}

// WriteTrailers sends trailers and with them the end of this side. Fields may be empty.
func (s *Stream) WriteTrailers(f *head.Fields) error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if !s.wroteHead {
		return fmt.Errorf("write trailers on stream %d: %w", s.id, ErrSequence)
	}
	if err := s.sendableLocked(); err != nil {
		return err
	}
	at := len(c.q)
	c.q = appendFields(frame.Append(c.q, 0, frame.Headers, 0, s.id), f)
	if len(c.q) == at+frame.HeaderLen { // nothing is left of them
		c.q = frame.Append(c.q[:at], 0, frame.Data, frame.EndStream, s.id)
		s.endSentLocked()
		c.commitLocked()
		return nil
	}
	return s.blockLocked(at, true)
}

// blockLocked completes the HEADERS frame that begins at c.q[at]. When the peer's limit is exceeded, nothing is sent.
func (s *Stream) blockLocked(at int, end bool) error {
	c := s.c
	flags := byte(frame.EndHeaders)
	if end {
		flags |= frame.EndStream
	}
	n := len(c.q) - at - frame.HeaderLen
	if n <= c.peer.maxFrame {
		frame.Append(c.q[at:at], n, frame.Headers, flags, s.id)
	} else {
		block := append([]byte(nil), c.q[at+frame.HeaderLen:]...)
		c.q = frame.AppendBlock(c.q[:at], block, c.peer.maxFrame, flags&frame.EndStream, s.id)
	}
	if end {
		s.endSentLocked()
		c.commitLocked()
	} else if len(c.q) >= flushAt {
		c.flushLocked()
	}
	return nil
}

// sendableLocked is nil while this side may send.
func (s *Stream) sendableLocked() error {
	switch {
	case s.interrupt != nil:
		return s.interrupt
	case s.err != nil:
		return s.err
	case s.localEnd:
		return fmt.Errorf("write on stream %d: %w", s.id, ErrSequence)
	}
	return nil
}

// endSentLocked notes that END_STREAM is queued.
func (s *Stream) endSentLocked() {
	s.localEnd = true
	if s.remoteEnd {
		s.c.removeLocked(s)
	}
}

// Write sends p as DATA, as the windows of the peer allow. It leaves with what follows, with Flush, or when much has gathered.
func (s *Stream) Write(p []byte) (int, error) { return s.send(p, false) }

// WriteEnd sends p, which may be empty, and the end of this side.
func (s *Stream) WriteEnd(p []byte) error {
	_, err := s.send(p, true)
	return err
}

func (s *Stream) send(p []byte, end bool) (sent int, err error) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for sent < len(p) || end {
		if err := s.sendableLocked(); err != nil {
			return sent, err
		}
		if !s.wroteHead {
			return sent, fmt.Errorf("write on stream %d: %w", s.id, ErrSequence)
		}
		n, done := s.dataLocked(p[sent:], end)
		if sent += n; done {
			c.commitLocked()
			return sent, nil
		}
		if sent < len(p) && !c.commitOwnLocked() {
			s.wcond.Wait()
		}
	}
	if len(c.q) >= flushAt {
		c.flushLocked()
	}
	return sent, nil
}

// Flush lets what was written leave.
func (s *Stream) Flush() error {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	c.commitLocked()
	if s.localEnd {
		return nil
	}
	return s.sendableLocked()
}
