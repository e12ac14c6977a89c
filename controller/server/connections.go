package server

import (
	"net"
	"net/netip"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// Connections at once at the door for nodes. A node's proxy and its agent have three or four, twice as many during an update.
// What is accepted costs about 60 KB before anybody proved who he is.
const (
	maxPerAddress  = 256
	maxConnections = 8192
)

// bounded is a listener that closes what is too much at once, before any byte of it is read.
type bounded struct {
	net.Listener
	refused *prometheus.CounterVec

	mu    sync.Mutex // protects below
	all   int
	count map[netip.Addr]int
}

func newBounded(l net.Listener, refused *prometheus.CounterVec) *bounded {
	return &bounded{Listener: l, refused: refused, count: map[netip.Addr]int{}}
}

// Accept implements net.Listener.
func (b *bounded) Accept() (net.Conn, error) {
	for {
		c, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		var from netip.Addr // what has no address, as in a test, is counted together
		if ap, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
			from = ap.Addr().Unmap()
		}
		if why := b.enter(from); why != "" {
			b.refused.WithLabelValues(why).Inc()
			c.Close()
			continue
		}
		return &boundedConn{Conn: c, leave: sync.OnceFunc(func() { b.leave(from) })}, nil
	}
}

// enter returns why there is no place, or "".
func (b *bounded) enter(from netip.Addr) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.all >= maxConnections:
		return "all"
	case from.IsValid() && b.count[from] >= maxPerAddress:
		return "address"
	}
	b.all++
	b.count[from]++
	return ""
}

func (b *bounded) leave(from netip.Addr) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all--
	if b.count[from]--; b.count[from] == 0 {
		delete(b.count, from)
	}
}

type boundedConn struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (c *boundedConn) Close() error {
	c.leave()
	return c.Conn.Close()
}
