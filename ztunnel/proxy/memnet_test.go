package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// memHalf is one direction of a connection in memory.
type memHalf struct {
	mu       sync.Mutex
	cut      bool // what is said does not arrive, its end neither
	cond     *sync.Cond
	buf      []byte
	eof      bool
	err      error // reset
	deadline bool
	timer    *time.Timer
}

func newMemHalf() *memHalf {
	h := &memHalf{}
	h.cond = sync.NewCond(&h.mu)
	return h
}

func (h *memHalf) read(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for {
		switch {
		case h.err != nil:
			return 0, h.err
		case len(h.buf) > 0:
			n := copy(p, h.buf)
			h.buf = h.buf[n:]
			h.cond.Broadcast()
			return n, nil
		case h.eof:
			return 0, io.EOF
		case h.deadline:
			return 0, os.ErrDeadlineExceeded
		}
		h.cond.Wait()
	}
}

func (h *memHalf) write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(h.buf) > 256<<10 && h.err == nil && !h.eof {
		h.cond.Wait()
	}
	switch {
	case h.err != nil:
		return 0, h.err
	case h.eof:
		return 0, syscall.EPIPE
	case h.cut:
		return len(p), nil
	}
	h.buf = append(h.buf, p...)
	h.cond.Broadcast()
	return len(p), nil
}

func (h *memHalf) end(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.cut && !errors.Is(err, net.ErrClosed) { // the reader's own
		return
	}
	if h.err == nil && err != nil {
		h.err = err
	}
	h.eof = true
	h.cond.Broadcast()
}

func (h *memHalf) setDeadline(t time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.timer != nil {
		h.timer.Stop()
	}
	h.deadline, h.timer = false, nil
	if t.IsZero() {
		return
	}
	var mine *time.Timer
	mine = time.AfterFunc(time.Until(t), func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.timer != mine { // it was under way when another deadline was set
			return
		}
		h.deadline = true
		h.cond.Broadcast()
	})
	h.timer = mine
}

// memConn behaves as a TCP socket as far as the proxy can tell.
type memConn struct {
	in, out       *memHalf
	local, remote netip.AddrPort

	mu     sync.Mutex
	linger bool
	closed bool
}

func memPair(a, b netip.AddrPort) (at, to *memConn) {
	x, y := newMemHalf(), newMemHalf()
	return &memConn{in: x, out: y, local: a, remote: b}, &memConn{in: y, out: x, local: b, remote: a}
}

func (c *memConn) Read(p []byte) (int, error)  { return c.in.read(p) }
func (c *memConn) Write(p []byte) (int, error) { return c.out.write(p) }
func (c *memConn) Quiet() bool {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	return len(c.in.buf) == 0 && !c.in.eof && c.in.err == nil
}
func (c *memConn) LocalAddr() net.Addr                { return net.TCPAddrFromAddrPort(c.local) }
func (c *memConn) RemoteAddr() net.Addr               { return net.TCPAddrFromAddrPort(c.remote) }
func (c *memConn) SetReadDeadline(t time.Time) error  { c.in.setDeadline(t); return nil }
func (c *memConn) SetWriteDeadline(t time.Time) error { return nil }
func (c *memConn) SetDeadline(t time.Time) error      { return c.SetReadDeadline(t) }
func (c *memConn) CloseWrite() error                  { c.out.end(nil); return nil }

func (c *memConn) SetLinger(sec int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.linger = sec == 0
	return nil
}

func (c *memConn) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return net.ErrClosed
	}
	c.closed = true
	linger := c.linger
	c.mu.Unlock()
	c.in.mu.Lock()
	unread := len(c.in.buf) > 0
	c.in.mu.Unlock()
	if linger || unread {
		c.out.end(syscall.ECONNRESET)
	} else {
		c.out.end(nil)
	}
	c.in.end(net.ErrClosed)
	return nil
}

// memListener hands out connections that a test pushes.
type memListener struct {
	addr netip.AddrPort
	ch   chan net.Conn
	done chan struct{}
	once sync.Once
}

func newMemListener(addr netip.AddrPort) *memListener {
	return &memListener{addr: addr, ch: make(chan net.Conn, 128), done: make(chan struct{})}
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.ch:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *memListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *memListener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.addr) }

// memNet is a network of listeners by address.
type memNet struct {
	mu    sync.Mutex
	at    map[netip.AddrPort]*memListener
	port  uint16
	dials []netip.AddrPort
	legs  []netip.AddrPort // of dials, those said to be judged
	pairs []*memConn       // that were dialled
	lost  map[netip.Addr]bool
}

// cut takes the network of an address away without a word.
func (n *memNet) cut(addr netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.lost == nil {
		n.lost = map[netip.Addr]bool{}
	}
	n.lost[addr] = true
	for _, c := range n.pairs {
		if c.remote.Addr() != addr && c.local.Addr() != addr || c.remote.Addr() == c.local.Addr() {
			continue
		}
		for _, h := range []*memHalf{c.in, c.out} {
			h.mu.Lock()
			h.cut = true
			h.mu.Unlock()
		}
	}
}

// end ends the connections that were cut, of which nobody will hear otherwise.
func (n *memNet) end() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.pairs {
		for _, h := range []*memHalf{c.in, c.out} {
			h.mu.Lock()
			cut := h.cut
			h.cut = false
			h.mu.Unlock()
			if cut {
				h.end(syscall.ETIMEDOUT)
			}
		}
	}
}

func (n *memNet) isLost(addr netip.Addr) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.lost[addr]
}

func newMemNet() *memNet { return &memNet{at: map[netip.AddrPort]*memListener{}, port: 40000} }

func (n *memNet) listen(addr netip.AddrPort) *memListener {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := newMemListener(addr)
	n.at[addr] = l
	return l
}

func (n *memNet) dial(from netip.Addr, to netip.AddrPort) (net.Conn, error) {
	n.mu.Lock()
	n.port++
	src := netip.AddrPortFrom(from, n.port)
	l := n.at[to]
	n.dials = append(n.dials, to)
	n.mu.Unlock()
	if l == nil {
		return nil, syscall.ECONNREFUSED
	}
	select { // a closed listener has no backlog
	case <-l.done:
		return nil, syscall.ECONNREFUSED
	default:
	}
	near, far := memPair(src, to)
	n.mu.Lock()
	n.pairs = append(n.pairs, near)
	n.mu.Unlock()
	select {
	case l.ch <- far:
		return near, nil
	case <-l.done:
		return nil, syscall.ECONNREFUSED
	}
}

// forget drops what the network remembers of an address, and of all dials.
func (n *memNet) forget(addr netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pairs = slices.DeleteFunc(n.pairs, func(c *memConn) bool { return c.local.Addr() == addr || c.remote.Addr() == addr })
	for at := range n.at {
		if at.Addr() == addr {
			delete(n.at, at)
		}
	}
	n.dials, n.legs = nil, nil
}

func (n *memNet) dialled(port uint16) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	count := 0
	for _, d := range n.dials {
		if d.Port() == port {
			count++
		}
	}
	return count
}

// memSockets are the sockets of the pod at addr.
type memSockets struct {
	net  *memNet
	addr netip.Addr
	bad  func()        // called before each Deliver
	slow chan struct{} // when set, a Leg connects only after its end
}

func (s *memSockets) Dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	if s.net.isLost(to.Addr()) && to.Addr() != s.addr {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
	return s.net.dial(s.addr, to)
}

func (s *memSockets) Leg(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	s.net.mu.Lock()
	s.net.legs = append(s.net.legs, to)
	s.net.mu.Unlock()
	if s.slow != nil { // the SYN is lost, and the next is sent later
		select {
		case <-s.slow:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return s.Dial(ctx, to)
}

func (s *memSockets) Deliver(_ context.Context, client netip.Addr, to netip.AddrPort) (net.Conn, error) {
	if s.bad != nil {
		s.bad()
	}
	return s.net.dial(client, to)
}
