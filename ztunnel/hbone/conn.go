package hbone

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/http/frame"
)

// conn is one tunnel connection, either side. Two goroutines live as long as it does: the read loop and the background
// flusher. Lock order: Stream.rmu, writer.mu, conn.mu, recvWindow.mu.
type conn struct {
	cfg    Config
	nc     net.Conn
	tr     *Transport // nil: nc is not TLS over a Transport
	client bool
	w      writer
	hdr    *block
	recv   recvWindow
	rd     reader
	// onHeaders handles a decoded header block; the error ends the connection. Called by the read loop.
	onHeaders func(h frame.Header, m *message) error
	// onPingAck is the server's, called by the read loop; nil on the client side.
	onPingAck func(data [8]byte)

	reads atomic.Uint64 // reads that brought bytes: the peer lives
	done  chan struct{} // closed when both goroutines ended

	mu        sync.Mutex // protects below
	streams   map[uint32]*Stream
	peer      peerSettings
	sendWin   int64     // the peer's connection window
	starved   []*Stream // wait for sendWin, in order
	nextID    uint32    // client: the next stream
	lastID    uint32    // server: the highest stream that the peer opened
	promised  uint32    // what our last GOAWAY named as the last stream; maxStreamID: none yet
	goneAway  bool      // client: the peer sent GOAWAY
	draining  bool      // no new streams
	dead      error     // set once
	linger    bool      // the last frames must arrive: read on until the peer closes
	keepalive clock.Timer
	due       time.Time // of keepalive
	seen      uint64    // reads, when it was set
	asked     bool      // the peer has been, since
	suspect   bool      // the peer may be gone: it is asked sooner
	forced    clock.Timer
}

// peerSettings is what the peer advertised.
type peerSettings struct {
	initialWindow int64
	maxFrame      int
	maxStreams    int
	maxHeaderList int64
}

func newConn(nc net.Conn, cfg Config, client bool) *conn {
	c := &conn{
		cfg: cfg, nc: nc, client: client, hdr: newBlock(), nextID: 1, promised: frame.MaxStreamID,
		done: make(chan struct{}), streams: map[uint32]*Stream{}, sendWin: frame.DefaultWindow,
		peer: peerSettings{initialWindow: frame.DefaultWindow, maxFrame: frame.MinMaxFrame, maxStreams: 100, maxHeaderList: -1},
	}
	if tc, ok := nc.(*tls.Conn); ok {
		c.tr, _ = tc.NetConn().(*Transport)
	}
	if !client {
		c.peer.maxStreams = 0
	}
	c.w.init(nc, c.tr, c.hdr)
	c.rd.init(c)
	c.recv.init(cfg)
	return c
}

// start queues the preface and starts the two goroutines.
func (c *conn) start() {
	var b []byte
	if c.client {
		b = append(b, frame.Preface...)
	}
	s := []frame.Setting{
		{ID: frame.MaxFrame, Value: uint32(c.cfg.MaxFrame)},
		{ID: frame.InitialWindow, Value: uint32(c.cfg.StreamWindow)},
		{ID: frame.MaxHeaderList, Value: uint32(c.cfg.MaxHeaderList)},
	}
	if c.client {
		s = append(s, frame.Setting{ID: frame.EnablePush, Value: 0})
	} else {
		s = append(s, frame.Setting{ID: frame.MaxStreams, Value: uint32(c.cfg.MaxStreams)})
	}
	b = frame.AppendSettings(b, s...)
	if inc := c.cfg.ConnWindow - frame.DefaultWindow; inc > 0 {
		b = frame.AppendWindow(b, 0, uint32(inc))
	}
	_ = c.w.post(b) // a new writer has neither an error nor a full queue
	c.armKeepalive()
	var wg sync.WaitGroup
	wg.Go(func() {
		err := c.w.run()
		if err != nil {
			c.end(err)
		}
		c.closeNet(err == nil)
	})
	wg.Go(func() {
		err := c.rd.loop()
		if err == io.EOF {
			err = errPeerClosed
		}
		c.end(err)
		if c.lingers() {
			_, _ = io.Copy(io.Discard, nc{c.nc})
			c.hardClose()
		}
	})
	go func() {
		wg.Wait()
		_ = c.nc.Close()
		c.stopTimers()
		if f := c.cfg.onEnd; f != nil {
			f()
		}
		close(c.done)
	}()
}

// nc hides every method of a conn but Read, so that io.Copy takes no short cut.
type nc struct{ r io.Reader }

func (n nc) Read(p []byte) (int, error) { return n.r.Read(p) }

var errPeerClosed = errors.New("tunnel closed by peer")

// end makes the connection dead; the first error wins and reaches every stream. It does not wait.
func (c *conn) end(err error) {
	c.mu.Lock()
	if c.dead != nil {
		c.mu.Unlock()
		return
	}
	c.dead = err
	var ce *frame.ConnError
	local := errors.As(err, &ce) && !ce.Remote
	// a socket closed with unread bytes is reset, and what it had still to send is lost: the END_STREAM of a drained
	// connection, the GOAWAY of a broken one
	c.linger = local || errors.Is(err, ErrClosed) && len(c.streams) == 0
	victims := make([]*Stream, 0, len(c.streams))
	for _, s := range c.streams {
		victims = append(victims, s)
	}
	last := min(c.lastID, c.promised)
	if c.keepalive != nil {
		c.keepalive.Stop()
	}
	c.forced = c.cfg.Clock.AfterFunc(c.cfg.CloseTimeout, c.hardClose)
	c.mu.Unlock()

	switch {
	case local:
		c.cfg.Log.Debug("tunnel protocol error", "peer", addrString(c.nc), "err", err)
		c.w.finish(frame.AppendGoAway(nil, last, ce.Code, ce.Reason))
	case errors.Is(err, ErrClosed):
		c.w.finish(frame.AppendGoAway(nil, last, frame.CodeNo, ""))
	default:
		c.w.fail(err)
	}
	for _, s := range victims {
		s.terminate(err)
	}
	c.notify()
}

func addrString(c net.Conn) string {
	if a := c.RemoteAddr(); a != nil {
		return a.String()
	}
	return ""
}

func (c *conn) lingers() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.linger
}

// closeNet closes the connection after the last write; when that must arrive, only its write side: the read loop goes on
// to the peer's close or CloseTimeout.
func (c *conn) closeNet(clean bool) {
	if !clean {
		c.hardClose()
		return
	}
	if cw, ok := c.nc.(interface{ CloseWrite() error }); ok && c.lingers() {
		_ = cw.CloseWrite()
		return
	}
	_ = c.nc.Close()
}

// hardClose closes the socket without a word: a TLS close_notify could block.
func (c *conn) hardClose() {
	if tc, ok := c.nc.(*tls.Conn); ok {
		_ = tc.NetConn().Close()
		return
	}
	_ = c.nc.Close()
}

func (c *conn) stopTimers() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.keepalive != nil {
		c.keepalive.Stop()
	}
	if c.forced != nil {
		c.forced.Stop()
	}
}

func (c *conn) notify() {
	if f := c.cfg.onStreamDone; f != nil {
		f()
	}
}

// close ends the connection at once: open streams fail with ErrClosed, the peer gets GOAWAY and close_notify. It
// returns when both goroutines have ended.
func (c *conn) close() {
	c.end(ErrClosed)
	<-c.done
}

func (c *conn) err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dead
}

// drain refuses new streams and closes the connection when the last one has ended.
func (c *conn) drain() {
	c.mu.Lock()
	c.draining = true
	idle := len(c.streams) == 0
	c.mu.Unlock()
	if idle {
		c.end(ErrClosed)
	}
}

// removeLocked forgets a stream that has ended. The returned func must be called without locks.
func (c *conn) removeLocked(s *Stream) (after func()) {
	if c.streams[s.id] != s {
		return func() {}
	}
	delete(c.streams, s.id)
	last := c.draining && len(c.streams) == 0
	return func() {
		if last && c.client {
			c.end(ErrClosed)
		}
		c.notify()
	}
}

// armKeepalive begins to look whether the peer lives.
func (c *conn) armKeepalive() {
	if c.cfg.PingInterval < 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen, c.due = c.reads.Load(), c.cfg.Clock.Now().Add(c.cfg.PingInterval)
	c.keepalive = c.cfg.Clock.AfterFunc(c.cfg.PingInterval, c.checkAlive)
}

// checkAlive asks a peer that was silent whether it lives, and ends the connection of one that has not answered.
func (c *conn) checkAlive() {
	now := c.reads.Load()
	c.mu.Lock()
	if c.dead != nil || c.cfg.Clock.Now().Before(c.due) { // it was set anew as it went off
		c.mu.Unlock()
		return
	}
	late := false
	switch {
	case now != c.seen:
		c.seen, c.asked = now, false
	case c.asked:
		late = true
	default:
		c.askLocked(now)
	}
	ask := c.asked && !late
	if !c.asked {
		c.checkInLocked(c.patienceLocked().interval)
	}
	c.mu.Unlock()
	switch {
	case late:
		c.end(ErrPeerDead)
	case ask:
		c.postOrEnd(frame.AppendPing(nil, 0, pingKeepalive))
	}
}

// askLocked notes that the peer is asked now, which the caller does without the lock.
func (c *conn) askLocked(reads uint64) {
	c.seen, c.asked = reads, true
	c.checkInLocked(c.patienceLocked().timeout)
}

func (c *conn) checkInLocked(d time.Duration) {
	c.due = c.cfg.Clock.Now().Add(d)
	c.keepalive.Reset(d)
}

// patience is how long a peer may be silent before it is asked, and after that.
type patience struct{ interval, timeout time.Duration }

func (c *conn) patienceLocked() patience {
	p := patience{c.cfg.PingInterval, c.cfg.PingTimeout}
	if c.suspect {
		p.interval, p.timeout = min(p.interval, c.cfg.SuspectInterval), min(p.timeout, c.cfg.SuspectTimeout)
	}
	return p
}

// suspected makes the connection ask its peer at once, and often from then on, or with false as others do.
func (c *conn) suspected(on bool) {
	c.mu.Lock()
	if c.suspect == on || c.dead != nil || c.keepalive == nil {
		c.mu.Unlock()
		return
	}
	c.suspect = on
	if on {
		c.askLocked(c.reads.Load())
	}
	c.mu.Unlock()
	if on {
		c.postOrEnd(frame.AppendPing(nil, 0, pingKeepalive))
	}
}

var (
	pingKeepalive = [8]byte{'a', 'l', 'i', 'v', 'e'}
	pingDrain     = [8]byte{'d', 'r', 'a', 'i', 'n'}
)
