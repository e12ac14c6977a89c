package memnet

import (
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Conn is one end of a connection. It behaves as a TCP socket: CloseWrite, SetLinger and deadlines as of *net.TCPConn.
type Conn struct {
	net           *Network
	host          *Host
	syn           SYN
	local, remote netip.AddrPort
	link          link
	userTimeout   time.Duration
	peer          *Conn
	in, out       *half
	tap           bool
	owner         atomic.Pointer[Process]

	mu     sync.Mutex // protects below
	linger bool
	closed bool
}

// half is one direction, owned by its reader.
type half struct {
	net     *Network
	link    link
	latency time.Duration
	window  int
	reader  *Conn
	rng     *rand.Rand // of losses; nil: there are none
	loss    float64

	mu       sync.Mutex // protects below
	cond     sync.Cond  // of mu
	flight   []segment  // under way, by time of arrival
	flying   int        // bytes of flight
	last     time.Time  // arrival of the last segment sent
	arrival  *time.Timer
	buf      []byte
	eof      bool
	err      error // what reading returns, before what was read
	finished bool  // the writer closed its side
	werr     error // what writing returns
	readEnd  deadline
	writeEnd deadline
}

type segment struct {
	at   time.Time
	data []byte
	fin  bool
	rst  error
}

// deadline of a direction.
type deadline struct {
	passed bool
	timer  *time.Timer
}

func (n *Network) pair(syn SYN, nth uint64, latency, userTimeout time.Duration) (near, far *Conn) {
	l := linkOf(syn.From.zone, syn.To.zone)
	loss, draw := 0.0, uint64(0)
	if n.cfg.Loss != nil && l.a != l.b {
		loss, draw = n.cfg.Loss(l.a, l.b), n.draw("loss", syn.Src.Addr(), syn.Dst, nth)
	}
	mk := func(salt uint64) *half {
		h := &half{net: n, link: l, latency: latency, window: n.cfg.Window}
		h.cond.L = &h.mu
		if loss > 0 {
			h.loss, h.rng = loss, rand.New(rand.NewPCG(draw, salt))
		}
		return h
	}
	a, b := mk(0), mk(1)
	tap := n.cfg.Tap != nil && syn.From != syn.To
	near = &Conn{net: n, host: syn.From, syn: syn, local: syn.Src, remote: syn.Dst, link: l, userTimeout: userTimeout, in: a, out: b, tap: tap}
	far = &Conn{net: n, host: syn.To, syn: syn, local: syn.Dst, remote: syn.Src, link: l, userTimeout: userTimeout, in: b, out: a, tap: tap}
	near.peer, far.peer, a.reader, b.reader = far, near, near, far
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conns[near] = struct{}{}
	return near, far
}

// SYN tells how the connection was made.
func (c *Conn) SYN() SYN { return c.syn }

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	h := c.in
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.err != nil:
			return 0, h.err
		case h.readEnd.passed:
			return 0, os.ErrDeadlineExceeded
		case len(p) == 0:
			return 0, nil
		case len(h.buf) > 0:
			n := copy(p, h.buf)
			h.buf = h.buf[n:]
			h.cond.Broadcast()
			return n, nil
		case h.eof:
			return 0, io.EOF
		}
		h.cond.Wait()
	}
}

// Write implements net.Conn. It waits while the window is full.
func (c *Conn) Write(p []byte) (n int, err error) {
	if c.tap && len(p) > 0 {
		c.net.cfg.Tap(c.syn, p)
	}
	h := c.out
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.werr != nil:
			return n, h.werr
		case h.finished:
			return n, syscall.EPIPE
		case h.writeEnd.passed:
			return n, os.ErrDeadlineExceeded
		case len(p) == 0:
			return n, nil
		}
		room := h.window - h.flying - len(h.buf)
		if room <= 0 {
			h.cond.Wait()
			continue
		}
		part := p[:min(room, len(p))]
		if h.rng != nil {
			part = part[:min(h.net.cfg.Segment, len(part))]
		}
		h.sendLocked(segment{data: slices.Clone(part)})
		p, n = p[len(part):], n+len(part)
	}
}

// CloseWrite ends this direction; the peer reads EOF after what was written.
func (c *Conn) CloseWrite() error {
	h := c.out
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.werr != nil {
		return h.werr
	}
	if !h.finished {
		h.finished = true
		h.sendLocked(segment{fin: true})
		h.cond.Broadcast()
	}
	return nil
}

// SetLinger makes Close reset the connection when sec is 0.
func (c *Conn) SetLinger(sec int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.linger = sec == 0
	return nil
}

// Close implements net.Conn.
func (c *Conn) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return net.ErrClosed
	}
	c.closed = true
	linger := c.linger
	c.mu.Unlock()
	c.owner.Load().disown(c)
	unread := c.in.shut(net.ErrClosed)
	if linger || unread {
		c.out.reset(net.ErrClosed)
	} else {
		c.out.finish()
	}
	c.forget()
	return nil
}

// abort resets the connection: err here, ECONNRESET at the peer.
func (c *Conn) abort(err error) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	c.closed = true
	c.mu.Unlock()
	c.owner.Load().disown(c)
	c.in.shut(err)
	c.out.reset(err)
	c.forget()
}

// expire breaks both ends unless the link heals within d.
func (c *Conn) expire(d time.Duration, healed chan struct{}) {
	time.AfterFunc(d, func() {
		select {
		case <-healed:
		default:
			for _, end := range []*Conn{c, c.peer} {
				end.in.fail(syscall.ETIMEDOUT)
				end.out.refuse(syscall.ETIMEDOUT)
			}
		}
	})
}

// forget takes the connection off the network's list once both ends are closed.
func (c *Conn) forget() {
	c.peer.mu.Lock()
	over := c.peer.closed
	c.peer.mu.Unlock()
	if over {
		c.net.drop(c)
	}
}

func (n *Network) drop(c *Conn) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.conns, c)
	delete(n.conns, c.peer)
}

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.local) }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

// SetDeadline implements net.Conn.
func (c *Conn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t)
	return c.SetWriteDeadline(t)
}

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.in.setDeadline(&c.in.readEnd, t) }

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.out.setDeadline(&c.out.writeEnd, t) }

func (h *half) setDeadline(d *deadline, t time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.passed = !t.IsZero() && !t.After(time.Now())
	if d.passed {
		h.cond.Broadcast()
	}
	if t.IsZero() || d.passed {
		return nil
	}
	var mine *time.Timer
	mine = time.AfterFunc(time.Until(t), func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if d.timer == mine {
			d.passed = true
			h.cond.Broadcast()
		}
	})
	d.timer = mine
	return nil
}

// sendLocked puts s on its way.
func (h *half) sendLocked(s segment) {
	s.at = time.Now().Add(h.latency)
	if h.rng != nil && h.rng.Float64() < h.loss {
		s.at = s.at.Add(h.net.cfg.Retransmit)
	}
	if s.at.Before(h.last) {
		s.at = h.last
	}
	h.last = s.at
	h.flight = append(h.flight, s)
	h.flying += len(s.data)
	if len(h.flight) == 1 {
		h.armLocked()
	}
}

func (h *half) armLocked() {
	if h.arrival == nil {
		h.arrival = time.AfterFunc(time.Until(h.flight[0].at), h.arrive)
	} else {
		h.arrival.Reset(time.Until(h.flight[0].at))
	}
}

// retry is called when the link healed.
func (h *half) retry() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.flight) > 0 {
		h.armLocked()
	}
}

// arrive takes in what is due.
func (h *half) arrive() {
	if h.net.isCut(h.link) {
		return // Heal calls retry
	}
	late := false // data that reached a closed socket
	var broken error
	h.mu.Lock()
	now := time.Now()
	for len(h.flight) > 0 && !h.flight[0].at.After(now) {
		s := h.flight[0]
		h.flight = h.flight[1:]
		h.flying -= len(s.data)
		switch {
		case h.err != nil:
			late = late || len(s.data) > 0
		case s.rst != nil:
			h.buf, h.err = nil, s.rst
			broken = s.rst
		case s.fin:
			h.eof = true
		default:
			h.buf = append(h.buf, s.data...)
		}
	}
	if len(h.flight) > 0 {
		h.armLocked()
	}
	h.cond.Broadcast()
	h.mu.Unlock()
	if broken != nil {
		h.reader.out.refuse(broken)
	}
	if late {
		h.reader.out.reset(syscall.EPIPE)
	}
}

// shut ends reading; unread says whether bytes were there.
func (h *half) shut(err error) (unread bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	unread = len(h.buf) > 0 && h.err == nil
	h.buf, h.err = nil, err
	if h.readEnd.timer != nil {
		h.readEnd.timer.Stop()
	}
	h.cond.Broadcast()
	return unread
}

// fail ends reading unless it has ended.
func (h *half) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.err == nil {
		h.buf, h.err = nil, err
	}
	h.cond.Broadcast()
}

// refuse ends writing, without a word to the peer.
func (h *half) refuse(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.werr == nil {
		h.werr = err
	}
	h.cond.Broadcast()
}

// finish ends writing in order, when it has not ended.
func (h *half) finish() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.werr == nil && !h.finished {
		h.sendLocked(segment{fin: true})
	}
	h.finished = true
	if h.werr == nil {
		h.werr = net.ErrClosed
	}
	h.cond.Broadcast()
}

// reset ends writing and tells the peer. What a cut link holds back is never sent: nobody is there to send it again.
func (h *half) reset(err error) {
	cut := h.net.isCut(h.link)
	h.mu.Lock()
	defer h.mu.Unlock()
	if cut {
		h.flight, h.flying = nil, 0
	}
	h.finished = true
	if h.werr == nil {
		h.werr = err
	}
	h.sendLocked(segment{rst: syscall.ECONNRESET})
	h.cond.Broadcast()
}
