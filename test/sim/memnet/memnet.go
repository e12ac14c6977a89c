// Package memnet is a network of hosts in memory, for simulations under testing/synctest: connections have latency, links
// between zones can be cut and healed, processes can be killed, and a host may steer what arrives and what leaves, as the
// kernel's hooks do.
//
// What holds, as for TCP: bytes arrive in order or the connection breaks; the two directions end apart (half-close); a close
// with unread bytes, or with SetLinger(0), is a reset; what reaches a closed socket is answered by a reset; a writer waits when
// its peer does not read; a dial to nobody is refused after a round trip; across a cut link nothing travels and nothing is
// lost until it heals.
//
// Time is the clock of package time, hence the bubble's. One connection's latency is drawn once, from the seed and its
// addresses, so that when bytes arrive does not depend on how they were cut into writes. All types are safe for concurrent use.
package memnet

import (
	"context"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// ErrNoHost is returned for a dial to an address that no host has.
var ErrNoHost = fmt.Errorf("no host has the address: %w", syscall.EHOSTUNREACH)

// Config of a Network.
type Config struct {
	Seed uint64 // of the latencies
	// Local bounds the one-way latency between zones that are equal, Remote between others; each is at least half of its
	// bound. Default 100 us and 2 ms.
	Local, Remote time.Duration
	// Loss is the probability that a segment between two zones is lost at first and arrives Retransmit later, with all that
	// follows it; nil: none. Which ones is drawn from the seed.
	Loss func(zone, other string) float64
	// Retransmit is the delay of a lost segment. Default 200 ms.
	Retransmit time.Duration
	// Segment is the largest segment in bytes, where they can be lost. Default 1448.
	Segment int
	// Window is how many bytes of one direction may be under way or unread. Default 256 KiB.
	Window int
	// DialTimeout ends a dial that got no answer. Default 30 s.
	DialTimeout time.Duration
	// Tap sees every write to a connection between two hosts. It must not keep data. May be nil.
	Tap func(SYN, []byte)
}

func (c Config) withDefaults() Config {
	if c.Local == 0 {
		c.Local = 100 * time.Microsecond
	}
	if c.Remote == 0 {
		c.Remote = 2 * time.Millisecond
	}
	if c.Retransmit == 0 {
		c.Retransmit = 200 * time.Millisecond
	}
	if c.Segment == 0 {
		c.Segment = 1448
	}
	if c.Window == 0 {
		c.Window = 256 << 10
	}
	if c.DialTimeout == 0 {
		c.DialTimeout = 30 * time.Second
	}
	return c
}

// Network is what hosts are on.
type Network struct {
	cfg Config

	mu    sync.Mutex // protects below; before conn locks
	hosts map[netip.Addr]*Host
	port  uint16
	count map[route]uint64
	cuts  map[link]chan struct{} // closed when the link heals
	conns map[*Conn]struct{}     // one end of each connection that is not over
}

type route struct{ src, dst netip.Addr }

// link is a pair of zones, in order.
type link struct{ a, b string }

func linkOf(a, b string) link {
	if a > b {
		a, b = b, a
	}
	return link{a, b}
}

// New makes an empty network.
func New(cfg Config) *Network {
	return &Network{
		cfg: cfg.withDefaults(), hosts: map[netip.Addr]*Host{}, port: 20000, count: map[route]uint64{},
		cuts: map[link]chan struct{}{}, conns: map[*Conn]struct{}{},
	}
}

// SYN describes a connection that is being made.
type SYN struct {
	Src, Dst netip.AddrPort
	From, To *Host    // To is nil until the destination is known, or when there is none
	Process  *Process // that dials
	Mark     uint32   // Dialer.Mark
	Captured bool     // Host.Capture took it: it does not leave its host
}

// Host is a network namespace with its addresses. Set Steer and Capture before the host is used.
type Host struct {
	net  *Network
	zone string
	addr netip.Addr

	// Steer names the socket that takes an arriving connection, nil to refuse it. Default: by port.
	Steer func(SYN) *Socket
	// Capture names the socket of this host that takes a connection which leaves, whatever its destination; nil lets it go.
	Capture func(SYN) *Socket

	mu      sync.Mutex // protects below
	removed bool
	sockets map[uint16]*Socket
}

// AddHost brings a host to the network. It fails when the address is taken.
func (n *Network) AddHost(zone string, addr netip.Addr) (*Host, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.hosts[addr] != nil {
		return nil, fmt.Errorf("add host %s: the address is taken", addr)
	}
	h := &Host{net: n, zone: zone, addr: addr, sockets: map[uint16]*Socket{}}
	n.hosts[addr] = h
	return h, nil
}

// Addr is the host's address.
func (h *Host) Addr() netip.Addr { return h.addr }

// Remove takes the host away: its sockets close, its connections are reset at both ends.
func (h *Host) Remove() {
	h.net.mu.Lock()
	if h.net.hosts[h.addr] == h {
		delete(h.net.hosts, h.addr)
	}
	var mine []*Conn
	for c := range h.net.conns {
		if c.syn.From == h || c.syn.To == h {
			mine = append(mine, c)
		}
	}
	h.net.mu.Unlock()
	h.mu.Lock()
	h.removed = true
	sockets := make([]*Socket, 0, len(h.sockets))
	for _, s := range h.sockets {
		sockets = append(sockets, s)
	}
	h.mu.Unlock()
	for _, s := range sockets {
		s.Close()
	}
	for _, c := range mine {
		for _, end := range []*Conn{c, c.peer} {
			if end.host == h {
				end.abort(syscall.ECONNABORTED)
			}
		}
	}
}

// Listen binds a socket to a port of the host; port 0 binds one that only Steer and Capture lead to.
func (h *Host) Listen(port uint16) (*Socket, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.removed || port != 0 && h.sockets[port] != nil && !h.sockets[port].isClosed() {
		return nil, fmt.Errorf("listen on %s: %w", netip.AddrPortFrom(h.addr, port), syscall.EADDRINUSE)
	}
	s := newSocket(netip.AddrPortFrom(h.addr, port))
	if port != 0 {
		h.sockets[port] = s
	}
	return s, nil
}

func (h *Host) gone() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.removed
}

func (h *Host) steer(syn SYN) *Socket {
	if h.Steer != nil {
		return h.Steer(syn)
	}
	return h.Socket(syn.Dst.Port())
}

// Socket is the one that listens on a port, nil when there is none.
func (h *Host) Socket(port uint16) *Socket {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sockets[port]
}

// Dialer makes connections from a host.
type Dialer struct {
	Host    *Host
	Process *Process
	Source  netip.Addr // default: the host's own
	Mark    uint32     // of the socket, for the hooks
	// Loop connects to a socket of the host itself, whatever the address: what a transparent bind on lo does.
	Loop bool
	// UserTimeout breaks the connection when its link was cut for so long. 0: never.
	UserTimeout time.Duration
}

// Dial connects to addr. Returns ErrNoHost, syscall.ECONNREFUSED, syscall.ETIMEDOUT, or the cause of ctx.
func (d Dialer) Dial(ctx context.Context, to netip.AddrPort) (*Conn, error) {
	n := d.Host.net
	src := d.Source
	if !src.IsValid() {
		src = d.Host.addr
	}
	n.mu.Lock()
	if n.port++; n.port < 20000 {
		n.port = 20000
	}
	syn := SYN{Src: netip.AddrPortFrom(src, n.port), Dst: to, From: d.Host, Process: d.Process, Mark: d.Mark}
	n.mu.Unlock()
	if d.Host.Capture != nil && !d.Loop {
		if s := d.Host.Capture(syn); s != nil {
			syn.To, syn.Captured = d.Host, true
			return n.establish(ctx, d, syn, s)
		}
	}
	if d.Loop {
		syn.To = d.Host
	}
	return n.establish(ctx, d, syn, nil)
}

// establish waits for the round trip of the handshake and makes the connection.
func (n *Network) establish(ctx context.Context, d Dialer, syn SYN, s *Socket) (*Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, n.cfg.DialTimeout, syscall.ETIMEDOUT)
	defer cancel()
	zone := d.Host.zone
	if syn.To == nil {
		zone = n.zoneOf(syn.Dst.Addr(), zone)
	}
	latency, nth := n.latency(syn, linkOf(d.Host.zone, zone))
	if err := wait(ctx, latency); err != nil {
		return nil, fmt.Errorf("dial %s: %w", syn.Dst, err)
	}
	if err := n.crossed(ctx, linkOf(d.Host.zone, zone)); err != nil {
		return nil, fmt.Errorf("dial %s: %w", syn.Dst, err)
	}
	if syn.To == nil {
		n.mu.Lock()
		syn.To = n.hosts[syn.Dst.Addr()]
		n.mu.Unlock()
	}
	if syn.To == nil {
		return nil, fmt.Errorf("dial %s: %w", syn.Dst, ErrNoHost)
	}
	if d.Host.gone() {
		return nil, fmt.Errorf("dial %s: %w", syn.Dst, syscall.ENETDOWN)
	}
	if s == nil {
		s = syn.To.steer(syn)
	}
	near, far := n.pair(syn, nth, latency, d.UserTimeout)
	if s == nil || !s.push(far) {
		n.drop(near)
		if err := wait(ctx, latency); err != nil {
			return nil, fmt.Errorf("dial %s: %w", syn.Dst, err)
		}
		return nil, fmt.Errorf("dial %s: %w", syn.Dst, syscall.ECONNREFUSED)
	}
	if err := wait(ctx, latency); err != nil {
		near.abort(net.ErrClosed)
		return nil, fmt.Errorf("dial %s: %w", syn.Dst, err)
	}
	if !d.Process.own(near) {
		near.abort(net.ErrClosed)
		return nil, fmt.Errorf("dial %s: %w", syn.Dst, net.ErrClosed)
	}
	return near, nil
}

func (n *Network) zoneOf(a netip.Addr, otherwise string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	if h := n.hosts[a]; h != nil {
		return h.zone
	}
	return otherwise
}

// latency draws the one-way latency of a connection: the same for the n-th one between two addresses in every run.
func (n *Network) latency(syn SYN, l link) (latency time.Duration, nth uint64) {
	n.mu.Lock()
	r := route{syn.Src.Addr(), syn.Dst.Addr()}
	n.count[r]++
	nth = n.count[r]
	n.mu.Unlock()
	draw := n.draw(r, nth, syn.Captured)
	most := n.cfg.Remote
	if l.a == l.b {
		most = n.cfg.Local
	}
	return most/2 + time.Duration(draw%uint64(most/2)), nth
}

// draw is a number that depends on the seed and on what.
func (n *Network) draw(what ...any) uint64 {
	h := fnv.New64a()
	fmt.Fprint(h, n.cfg.Seed, what)
	return h.Sum64()
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// crossed waits until the link is whole.
func (n *Network) crossed(ctx context.Context, l link) error {
	for {
		n.mu.Lock()
		healed := n.cuts[l]
		n.mu.Unlock()
		if healed == nil {
			return nil
		}
		select {
		case <-healed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Cut stops everything between two zones.
func (n *Network) Cut(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := linkOf(a, b)
	if n.cuts[l] != nil {
		return
	}
	healed := make(chan struct{})
	n.cuts[l] = healed
	for c := range n.conns {
		if c.link == l && c.userTimeout > 0 {
			c.expire(c.userTimeout, healed)
		}
	}
}

// Heal lets everything between two zones go on, first what waited.
func (n *Network) Heal(a, b string) {
	n.mu.Lock()
	l := linkOf(a, b)
	healed := n.cuts[l]
	if healed == nil {
		n.mu.Unlock()
		return
	}
	delete(n.cuts, l)
	close(healed)
	var waiting []*Conn
	for c := range n.conns {
		if c.link == l {
			waiting = append(waiting, c, c.peer)
		}
	}
	n.mu.Unlock()
	for _, c := range waiting {
		c.in.retry()
	}
}

func (n *Network) isCut(l link) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cuts[l] != nil
}

// Process owns connections, so that it can die. The nil Process never does.
type Process struct {
	mu    sync.Mutex // protects below
	dead  bool
	conns map[*Conn]struct{}
}

// NewProcess makes a process that lives.
func NewProcess() *Process { return &Process{conns: map[*Conn]struct{}{}} }

// Kill resets every connection of the process; it gets no new ones.
func (p *Process) Kill() {
	p.mu.Lock()
	p.dead = true
	mine := p.conns
	p.conns = nil
	p.mu.Unlock()
	for c := range mine {
		c.abort(net.ErrClosed)
	}
}

func (p *Process) own(c *Conn) bool {
	if p == nil {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		return false
	}
	p.conns[c] = struct{}{}
	c.owner.Store(p)
	return true
}

func (p *Process) disown(c *Conn) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// Captured is the number of connections that Host.Capture took and that are not over at both ends.
func (n *Network) Captured() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	count := 0
	for c := range n.conns {
		if c.syn.Captured {
			count++
		}
	}
	return count
}
