package http

import (
	"sync"
	"sync/atomic"

	"github.com/undermesh/undermesh/ztunnel/http/frame"
	"github.com/undermesh/undermesh/ztunnel/http/h2"
)

// TenantLimits bound what the connections of one workload may hold together. Zero means the default.
type TenantLimits struct {
	Connections int   // downstream; default 20,000; beyond: closed at once
	Requests    int   // in flight; default 10,000; beyond: 503, OM
	Unhindered  int   // in flight, which begin when they come; default 1,024; beyond: new ones wait for a turn (Config.Turns)
	Bytes       int64 // of heads beyond the first 8 KiB, and of bodies kept for another try; default 64 MiB; beyond: 431, no other try
	Windows     int64 // of HTTP/2 connections beyond 64 KiB each, in bytes: bodies that wait for who reads slowly; default 64 MiB; the fuller, the smaller are new ones
	Pieces      int64 // of buffers of 64 KiB, into which bodies are read that come fast; default 64 MiB; beyond: 8 KiB for each
	Mirrors     int   // copies in flight; default 256; beyond: none is sent
}

// Tenant is one workload of this node, to the engine: its limits, what is in flight, and the way to drain it. All methods are
// safe for concurrent use.
type Tenant struct {
	limits   TenantLimits
	requests atomic.Int64
	bytes    atomic.Int64
	windows  atomic.Int64
	pieces   atomic.Int64
	mirrors  atomic.Int64
	counts   tenantCounts
	draining atomic.Bool

	mu        sync.Mutex // protects below
	conns     map[*server]struct{}
	listeners map[listenerKey]*Listener
}

type tenantCounts struct {
	connectionsRefused, requestsRefused, mirrorsRefused, turnsAwaited, panics atomic.Uint64
}

// TenantStats are counters since the tenant was made, and gauges.
type TenantStats struct {
	ConnectionsRefused, RequestsRefused, MirrorsRefused, Panics uint64
	TurnsAwaited                                                uint64 // times that a request waited for a turn to work
	ActiveConnections, ActiveRequests, HeldBytes, ActiveMirrors int64
}

// NewTenant returns a tenant.
func NewTenant(limits TenantLimits) *Tenant {
	if limits.Connections <= 0 {
		limits.Connections = 20_000
	}
	if limits.Requests <= 0 {
		limits.Requests = 10_000
	}
	if limits.Unhindered <= 0 {
		limits.Unhindered = 1024
	}
	if limits.Bytes <= 0 {
		limits.Bytes = 64 << 20
	}
	if limits.Windows <= 0 {
		limits.Windows = 64 << 20
	}
	if limits.Pieces <= 0 {
		limits.Pieces = 64 << 20
	}
	if limits.Mirrors <= 0 {
		limits.Mirrors = 256
	}
	return &Tenant{limits: limits, conns: map[*server]struct{}{}, listeners: map[listenerKey]*Listener{}}
}

// Stats reads the counters.
func (t *Tenant) Stats() TenantStats {
	t.mu.Lock()
	active := int64(len(t.conns))
	t.mu.Unlock()
	c := &t.counts
	return TenantStats{
		ConnectionsRefused: c.connectionsRefused.Load(), RequestsRefused: c.requestsRefused.Load(), MirrorsRefused: c.mirrorsRefused.Load(), Panics: c.panics.Load(),
		TurnsAwaited:      c.turnsAwaited.Load(),
		ActiveConnections: active, ActiveRequests: t.requests.Load(), HeldBytes: t.bytes.Load(), ActiveMirrors: t.mirrors.Load(),
	}
}

// reserve adds n to what is held, unless that is then more than may be.
func reserve(held *atomic.Int64, n, most int64) bool {
	if held.Add(n) <= most {
		return true
	}
	held.Add(-n)
	return false
}

// windowed sets the receive windows of a connection of HTTP/2 and reserves them for as long as it lasts: what a peer sends that nobody
// reads is held in them. A single stream has a quarter at most, so that one which is not read does not stop the others. What waits for
// a peer that does not read is smaller with them.
func (t *Tenant) windowed(cfg h2.Config) h2.Config {
	cfg.ConnWindow, cfg.MaxQueued = frame.DefaultWindow, 16<<10
	for _, tier := range [...]struct {
		size int64
		most int64 // that may be reserved with it
	}{{4 << 20, t.limits.Windows / 2}, {1 << 20, t.limits.Windows / 4 * 3}, {256 << 10, t.limits.Windows}} {
		if reserve(&t.windows, tier.size, tier.most) {
			cfg.ConnWindow, cfg.MaxQueued = int(tier.size), int(min(tier.size/8, 256<<10))
			cfg.Ended = func() { t.windows.Add(-tier.size) }
			break
		}
	}
	cfg.StreamWindow = min(64<<10, cfg.ConnWindow/4)
	cfg.StreamWindowMax = min(1<<20, cfg.ConnWindow/4)
	return cfg
}

// Drain is Engine.Drain for the connections of the tenant.
func (t *Tenant) Drain() {
	t.draining.Store(true)
	t.wake()
}

// wake makes the connections see that they are to end.
func (t *Tenant) wake() {
	t.mu.Lock()
	list := make([]*server, 0, len(t.conns))
	for s := range t.conns {
		list = append(list, s)
	}
	t.mu.Unlock()
	for _, s := range list {
		s.drain()
	}
}
