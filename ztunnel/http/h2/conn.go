package h2

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/http/frame"
)

// Conn is one connection of either role. Its methods are safe for concurrent use, but Serve is called once, by the owner of a
// server's connection.
type Conn struct {
	cfg    Config
	nc     net.Conn
	raw    syscall.RawConn // of a TCP connection, whose writes need not block; nil: others
	client bool
	accept func(*Stream) // server
	rd     reader        // for the goroutine that reads
	over   atomic.Bool   // dead is set
	reads  atomic.Uint64 // reads that brought bytes: the peer lives
	wg     sync.WaitGroup
	done   chan struct{} // closed when all goroutines have ended

	mu sync.Mutex // protects below; no two of them at once, and none across a callback
	out
	sentData  int // DATA frames sent since the last WINDOW_UPDATE
	useful    int // DATA frames sent and streams that came to their end, since the reader looked
	completed int // streams that came to their end, since the reader looked
	streams   map[uint32]*Stream
	active    int // server: streams that are not released, those in the map included
	peer      peerSettings
	acked     bool      // the peer acknowledged our SETTINGS
	sendWin   int64     // the peer's window for the connection
	recvWin   int64     // what the peer may send
	owed      int64     // consumed, and not given back yet
	starved   []*Stream // wait for the window of the connection or for room, in order
	gone      []uint32  // ids of the streams that we reset last while the peer was sending: what comes for them left before it knew
	goneAt    int       // where the next goes, once there are maxGone
	nextID    uint32    // client: of the next stream
	lastID    uint32    // server: the highest that the peer opened
	promised  uint32    // server: what our last GOAWAY named; MaxStreamID: nothing that excludes a stream
	opened    uint64    // streams so far
	requests  uint64    // server: that the peer sent, refused ones included
	goneAway  bool      // client: the peer sent GOAWAY
	draining  bool      // we began to drain
	dead      error     // why the connection ended; set once
	linger    bool      // the last frames must arrive: read on until the peer closes
	timer     clock.Timer
	forced    clock.Timer
	watch     watch
}

// peerSettings is what the peer advertised.
type peerSettings struct {
	initialWindow   int64
	maxFrame        int
	maxStreams      int
	maxHeaderList   int64 // -1: not said
	connectProtocol bool
}

// assumedStreams is how many streams a client opens before it knows the server's limit.
const assumedStreams = 100

func newConn(nc net.Conn, cfg Config, client bool) *Conn {
	c := &Conn{
		cfg: cfg.mustDefaults(), nc: nc, client: client, done: make(chan struct{}), streams: map[uint32]*Stream{},
		sendWin: frame.DefaultWindow, nextID: 1, promised: frame.MaxStreamID,
		peer: peerSettings{initialWindow: frame.DefaultWindow, maxFrame: frame.MinMaxFrame, maxStreams: assumedStreams, maxHeaderList: -1},
	}
	c.recvWin = int64(c.cfg.ConnWindow)
	if tc, ok := nc.(*net.TCPConn); ok {
		c.raw, _ = tc.SyscallConn() // the error is that of a closed connection: the first read tells
	}
	c.out.init(c)
	c.rd.init(c)
	return c
}

// NewServer makes the server's side of nc; Serve runs it. accept is called on the goroutine that reads, for each request, and
// must not block: it calls Stream.Go, Stream.Listen or Stream.Reset. NewServer panics when cfg is not valid.
func NewServer(nc net.Conn, cfg Config, accept func(*Stream)) *Conn {
	c := newConn(nc, cfg, false)
	c.accept = accept
	return c
}

// Serve reads on the calling goroutine and returns why the connection ended, when all its goroutines have. early is what was
// read from it already. The end of ctx resets what is open and ends the connection; see Drain for the gentle way.
func (c *Conn) Serve(ctx context.Context, early []byte) error {
	c.begin()
	stop := context.AfterFunc(ctx, func() { c.end(ErrClosed) })
	defer stop()
	c.run(early)
	return c.Err()
}

// NewClient takes over nc and starts the goroutine that reads, which ends with Close, with Drain once the last stream is gone,
// or when the peer ends the connection; Done tells. It panics when cfg is not valid.
func NewClient(nc net.Conn, cfg Config) *Conn {
	c := newConn(nc, cfg, true)
	c.begin()
	go c.run(nil)
	return c
}

// begin queues the preface.
func (c *Conn) begin() {
	s := []frame.Setting{
		{ID: frame.MaxFrame, Value: uint32(c.cfg.MaxFrame)},
		{ID: frame.InitialWindow, Value: uint32(c.cfg.StreamWindow)},
		{ID: frame.MaxHeaderList, Value: uint32(c.cfg.MaxHeaderList)},
	}
	if c.client {
		s = append(s, frame.Setting{ID: frame.EnablePush, Value: 0})
	} else {
		s = append(s, frame.Setting{ID: frame.MaxStreams, Value: uint32(c.cfg.MaxStreams)})
		if c.cfg.ExtendedConnect {
			s = append(s, frame.Setting{ID: frame.ConnectProtocol, Value: 1})
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client {
		c.q = append(c.q, frame.Preface...)
	}
	c.q = frame.AppendSettings(c.q, s...)
	if inc := c.cfg.ConnWindow - frame.DefaultWindow; inc > 0 {
		c.q = frame.AppendWindow(c.q, 0, uint32(inc))
	}
	c.startWatchLocked()
	c.flushLocked()
}

// run reads until the connection is over, and waits for everything else.
func (c *Conn) run(early []byte) {
	err := c.read(early)
	var own *frame.ConnError
	switch {
	case errors.As(err, &own):
	case c.rd.farewell != nil:
		err = c.rd.farewell
	case errors.Is(err, io.EOF):
		err = ErrPeerClosed
	}
	c.end(err)
	c.mu.Lock()
	linger := c.linger
	c.mu.Unlock()
	if linger {
		c.rd.drop()
	}
	c.rd.free()
	c.wg.Wait()
	_ = c.nc.Close() // it is over, whatever is said about that
	c.mu.Lock()
	c.timer.Stop()
	if c.forced != nil {
		c.forced.Stop()
	}
	c.mu.Unlock()
	if c.cfg.Ended != nil {
		c.cfg.Ended()
	}
	close(c.done)
}

// errPanic ends a connection whose reading panicked: a fault of ours that a peer found.
var errPanic = frame.Errorf(frame.CodeInternal, "reading panicked")

// read runs the loop of the reader. A panic ends this connection, and no other.
func (c *Conn) read(early []byte) (err error) {
	defer func() {
		if p := recover(); p != nil {
			c.cfg.Log.Error("reading an HTTP/2 connection panicked", "peer", peerName(c.nc), "panic", p, "stack", string(debug.Stack()))
			err = errPanic
		}
	}()
	return c.rd.loop(early)
}

// end makes the connection dead; the first error wins and reaches every stream. It does not wait.
func (c *Conn) end(err error) {
	c.mu.Lock()
	if c.dead != nil {
		c.mu.Unlock()
		return
	}
	c.dead = err
	c.over.Store(true)
	var ce *frame.ConnError
	local := errors.As(err, &ce) && !ce.Remote
	polite := errors.Is(err, ErrClosed) || errors.Is(err, ErrSlow) || errors.Is(err, ErrPeerDead)
	// a socket closed with unread bytes is reset, and what it had still to send is lost: the end of a stream, the GOAWAY
	c.linger = local || polite
	if local || polite {
		last, code, reason := min(c.lastID, c.promised), frame.CodeNo, ""
		if local {
			code, reason = ce.Code, ce.Reason
			c.cfg.Log.Debug("HTTP/2 protocol error", "peer", peerName(c.nc), "err", err)
		}
		c.q = frame.AppendGoAway(c.q, last, code, reason)
	}
	done := make([]func(), 0, len(c.streams))
	for _, s := range c.streams {
		if f := s.endLocked(err); f != nil {
			done = append(done, f)
		}
	}
	c.timer.Stop()
	c.forced = c.cfg.Clock.AfterFunc(c.cfg.CloseTimeout, c.hardClose)
	if c.linger {
		c.last = true
		c.flushLocked()
		c.closeWriteLocked()
	}
	linger := c.linger
	c.mu.Unlock()
	if !linger {
		c.hardClose()
	}
	for _, f := range done {
		f()
	}
	c.changed()
}

// closeWriteLocked starts the goroutine that tells the peer that nothing more comes, once everything is written.
func (c *Conn) closeWriteLocked() {
	if c.writing || !c.last {
		return
	}
	c.last = false
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		if cw, ok := c.nc.(interface{ CloseWrite() error }); ok {
			_ = cw.CloseWrite() // the peer is gone, or hears it
			return
		}
		_ = c.nc.Close()
	}()
}

// hardClose closes the socket without a word: a TLS close_notify could block.
func (c *Conn) hardClose() {
	if tc, ok := c.nc.(interface{ NetConn() net.Conn }); ok {
		_ = tc.NetConn().Close()
		return
	}
	_ = c.nc.Close()
}

func peerName(nc net.Conn) string {
	if a := nc.RemoteAddr(); a != nil {
		return a.String()
	}
	return ""
}

// changed tells the pool.
func (c *Conn) changed() {
	if f := c.cfg.Changed; f != nil {
		f()
	}
}

// Close ends the connection and its streams at once and waits for its goroutines. It must not be called by one of them: a
// handler, or a callback.
func (c *Conn) Close() error {
	c.end(ErrClosed)
	<-c.done
	return nil
}

// Kill ends the connection and its streams as Close does, with the error that the streams are to see, and does not wait.
func (c *Conn) Kill(err error) { c.end(err) }

// Done is closed when the connection has ended and its goroutines are gone.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err returns why the connection ended, nil while it lives.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dead
}

// Streams returns the number of open streams.
func (c *Conn) Streams() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.streams)
}

// Limit returns how many streams the peer lets us have open, at most 1<<30.
func (c *Conn) Limit() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.peer.maxStreams
}

// Usable reports whether new streams may be opened, now or when others have ended.
func (c *Conn) Usable() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.usableLocked() == nil
}

func (c *Conn) usableLocked() error {
	switch {
	case c.dead != nil:
		return errors.Join(ErrUnusable, c.dead)
	case c.goneAway:
		return ErrGoAway
	case c.draining || c.nextID > frame.MaxStreamID:
		return ErrUnusable
	}
	return nil
}

var (
	pingKeepalive = [8]byte{'a', 'l', 'i', 'v', 'e'}
	pingDrain     = [8]byte{'d', 'r', 'a', 'i', 'n'}
)

// Drain ends the connection when its streams have ended, and takes no new ones. A server says so in two steps: a GOAWAY that
// excludes nothing, and when the peer has seen that, one that names the last stream (RFC 9113 §6.8). It does not wait.
func (c *Conn) Drain() {
	c.mu.Lock()
	if c.draining || c.dead != nil {
		c.mu.Unlock()
		return
	}
	c.draining = true
	if c.client {
		idle := len(c.streams) == 0
		c.mu.Unlock()
		if idle {
			c.end(ErrClosed)
		}
		c.changed()
		return
	}
	c.q = frame.AppendGoAway(c.q, frame.MaxStreamID, frame.CodeNo, "")
	c.q = frame.AppendPing(c.q, 0, pingDrain)
	c.watch.drain = c.cfg.Clock.Now()
	c.flushLocked()
	c.rearmLocked()
	c.mu.Unlock()
}

// exclude is the second step of a server's Drain.
func (c *Conn) exclude() {
	c.mu.Lock()
	if !c.draining || c.dead != nil || c.promised != frame.MaxStreamID {
		c.mu.Unlock()
		return
	}
	c.promised, c.watch.drain = c.lastID, time.Time{}
	c.q = frame.AppendGoAway(c.q, c.lastID, frame.CodeNo, "")
	c.flushLocked()
	idle := len(c.streams) == 0
	c.mu.Unlock()
	if idle {
		c.end(ErrClosed)
	}
}
