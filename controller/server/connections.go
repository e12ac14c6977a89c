package server

import (
	"net"
	"net/netip"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/undermesh/undermesh/controller/quota"
)

// doorBounds are how many connections a door has at once. Places that strangers may not have are for nodes: connections from a
// node's address or its proxy's, as the cluster knows them, and of addresses from which somebody proved now to be a node.
type doorBounds struct {
	name      string // label of the metric
	all       int
	strangers int // of all
	each      int // of one address
}

// A node's proxy and its agent have three or four connections to the discovery door, twice as many during an update. What is
// accepted there costs about 60 KB before anybody proved who he is. The others are asked by one scraper, by kubelet, and by the
// API server, which keeps idle connections.
var (
	discoveryDoor = doorBounds{"discovery", 8192, 4096, 256}
	monitorDoor   = doorBounds{"monitor", 512, 384, 32}
	readyDoor     = doorBounds{"ready", 512, 256, 32}
	debugDoor     = doorBounds{"debug", 64, 64, 64}
	webhookDoor   = doorBounds{"webhook", 512, 384, 64}
)

// bounded is a listener that closes what is too much at once, before any byte of it is read.
type bounded struct {
	net.Listener
	bounds  doorBounds
	refused *prometheus.CounterVec
	isNode  func(netip.Addr) bool

	mu        sync.Mutex // protects below
	all       int
	strangers int
	count     map[netip.Addr]int
	proved    map[netip.Addr]int // connections of a node
}

func newBounded(l net.Listener, bounds doorBounds, refused *prometheus.CounterVec, isNode func(netip.Addr) bool) *bounded {
	return &bounded{Listener: l, bounds: bounds, refused: refused, isNode: isNode, count: map[netip.Addr]int{}, proved: map[netip.Addr]int{}}
}

// Accept implements net.Listener.
func (b *bounded) Accept() (net.Conn, error) {
	for {
		c, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := quota.Addr(c.RemoteAddr().String())
		stranger, why := b.enter(from, b.isNode(from))
		if why != "" {
			b.refused.WithLabelValues(b.bounds.name, why).Inc()
			c.Close()
			continue
		}
		return &boundedConn{Conn: c, door: b, from: from, stranger: stranger}, nil
	}
}

// enter returns why there is no place, or "", and whether the place is one of strangers.
func (b *bounded) enter(from netip.Addr, node bool) (stranger bool, why string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	stranger = !node && b.proved[from] == 0
	switch {
	case b.all >= b.bounds.all, stranger && b.strangers >= b.bounds.strangers:
		return stranger, "all"
	case from.IsValid() && b.count[from] >= b.bounds.each:
		return stranger, "address"
	}
	b.all++
	if stranger {
		b.strangers++
	}
	b.count[from]++
	return stranger, ""
}

// boundedConn is a connection that has a place. What is below the door is protected by its lock.
type boundedConn struct {
	net.Conn
	door *bounded
	from netip.Addr

	stranger, proved, gone bool
}

// prove makes the place one of a node's.
func (c *boundedConn) prove() {
	b := c.door
	b.mu.Lock()
	defer b.mu.Unlock()
	if c.gone || c.proved {
		return
	}
	if c.proved = true; c.stranger {
		c.stranger = false
		b.strangers--
	}
	b.proved[c.from]++
}

// Close implements net.Conn.
func (c *boundedConn) Close() error {
	c.leave()
	return c.Conn.Close()
}

func (c *boundedConn) leave() {
	b := c.door
	b.mu.Lock()
	defer b.mu.Unlock()
	if c.gone {
		return
	}
	c.gone = true
	b.all--
	if c.stranger {
		b.strangers--
	}
	if c.proved {
		if b.proved[c.from]--; b.proved[c.from] == 0 {
			delete(b.proved, c.from)
		}
	}
	if b.count[c.from]--; b.count[c.from] == 0 {
		delete(b.count, c.from)
	}
}
