package inpod

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/undermesh/undermesh/nodeagent/netns"
)

const (
	// captureMark makes a packet follow the pod's capture rule; the application's answers inherit it (tcp_fwmark_accept).
	captureMark = 0x111
	// judgedMark is ztunnel's word to the connect hook that the connection was judged (enum mesh_mark of bpf/include/mesh.h).
	// The hook takes it away before a packet carries it; without it the receiver judges the connection itself.
	judgedMark = 0x1000
	loopback   = 1 // ifindex of lo in every network namespace

	// A delivery takes its source port here, below the usual ephemeral range: the kernel's choice depends on addresses
	// only, so it would meet the client's own connections in the same namespace.
	firstPort, lastPort = 10000, 32767
	maxPortTries        = 128
)

// Sockets makes connections in the network namespace of one pod; TCP_NODELAY is Go's default. Safe for concurrent use.
type Sockets struct {
	ns   *netns.NetNS
	next atomic.Uint32
}

// NewSockets makes Sockets for ns, which stays the caller's.
func NewSockets(ns *netns.NetNS) *Sockets {
	s := &Sockets{ns: ns}
	s.next.Store(rand.Uint32()) // not where a predecessor began: its TIME_WAITs are still there
	return s
}

// Dial connects to addr as the pod itself. The errors of the kernel are in the chain.
func (s *Sockets) Dial(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	c, err := netns.Dial(ctx, s.ns, addr, netns.Options{})
	if err != nil {
		return nil, err // not c, which would be a net.Conn that is not nil
	}
	return c, nil
}

// Leg connects to addr as Dial does, as the second leg of a connection that was judged: the receiver on this node takes it
// without judging it again.
func (s *Sockets) Leg(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
	c, err := netns.Dial(ctx, s.ns, addr, netns.Options{Mark: judgedMark})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Deliver connects to the pod's own addr from the client's address, over lo.
func (s *Sockets) Deliver(ctx context.Context, client netip.Addr, addr netip.AddrPort) (net.Conn, error) {
	o := netns.Options{Transparent: true, Mark: captureMark, BindIfindex: loopback, ReuseAddr: true}
	var last error
	for range maxPortTries {
		o.Bind = netip.AddrPortFrom(client, s.port())
		c, err := netns.Dial(ctx, s.ns, addr, o)
		if err == nil {
			return c, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return nil, fmt.Errorf("deliver to the application: %w", err)
		}
		last = err
	}
	return nil, fmt.Errorf("deliver to the application: no free port of %s in %d tries: %w", client, maxPortTries, last)
}

func (s *Sockets) port() uint16 {
	return uint16(firstPort + s.next.Add(1)%(lastPort-firstPort+1))
}
