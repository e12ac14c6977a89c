package memnet

import (
	"net"
	"net/netip"
	"sync"
	"syscall"
)

// backlog is how many connections wait for an accept; more are refused.
const backlog = 1024

// Socket is a listening socket, as the kernel has it: it lives on while one process hands it to the next.
type Socket struct {
	addr netip.AddrPort

	mu     sync.Mutex // protects below
	cond   sync.Cond  // of mu
	queue  []*Conn
	closed bool
}

func newSocket(addr netip.AddrPort) *Socket {
	s := &Socket{addr: addr}
	s.cond.L = &s.mu
	return s
}

func (s *Socket) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

func (s *Socket) push(c *Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.queue) >= backlog {
		return false
	}
	s.queue = append(s.queue, c)
	s.cond.Broadcast()
	return true
}

// Waiting is the number of connections that nobody accepted yet.
func (s *Socket) Waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.queue)
}

// Close resets what waits and refuses what comes.
func (s *Socket) Close() {
	s.mu.Lock()
	s.closed = true
	queue := s.queue
	s.queue = nil
	s.cond.Broadcast()
	s.mu.Unlock()
	for _, c := range queue {
		c.abort(syscall.ECONNABORTED)
	}
}

// Listener is one process's descriptor of a Socket.
type Listener struct {
	socket  *Socket
	process *Process
	closed  bool // protected by socket.mu
}

// Open makes a listener for a process. Closing it leaves the socket, and what waits in it, to others.
func (s *Socket) Open(p *Process) *Listener { return &Listener{socket: s, process: p} }

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	s := l.socket
	for {
		s.mu.Lock()
		for len(s.queue) == 0 && !s.closed && !l.closed {
			s.cond.Wait()
		}
		if s.closed || l.closed {
			s.mu.Unlock()
			return nil, net.ErrClosed
		}
		c := s.queue[0]
		s.queue = s.queue[1:]
		s.mu.Unlock()
		if l.process.own(c) {
			return c, nil
		}
		c.abort(net.ErrClosed) // a dead process
	}
}

// Close implements net.Listener.
func (l *Listener) Close() error {
	l.socket.mu.Lock()
	defer l.socket.mu.Unlock()
	if l.closed {
		return net.ErrClosed
	}
	l.closed = true
	l.socket.cond.Broadcast()
	return nil
}

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.socket.addr) }
