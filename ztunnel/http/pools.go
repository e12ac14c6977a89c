package http

import (
	"sync"
	"time"

	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/cluster"
)

// pools are the connections to one host of one source workload. It hangs on the host.
type pools struct {
	mu    sync.Mutex // protects below
	one   *cluster.Pool[*link]
	two   *cluster.Pool[*link2]
	alpn  Protocol    // that was negotiated last
	timer clock.Timer // reaps; nil: never set
	armed bool
}

func newPools() any { return new(pools) }

// http1 returns the pool for HTTP/1.1.
func (e *Engine) http1(h *cluster.Host) *cluster.Pool[*link] {
	p := poolsOf(h)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.one == nil {
		p.one = cluster.NewPool(h, cluster.Default, 1, (*link).close)
	}
	return p.one
}

// http2 returns the pool for HTTP/2.
func (e *Engine) http2(h *cluster.Host) *cluster.Pool[*link2] {
	p := poolsOf(h)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.two == nil {
		p.two = cluster.NewPool(h, cluster.Default, assumed, (*link2).close)
	}
	return p.two
}

func poolsOf(h *cluster.Host) *pools {
	p, ok := h.Attach(newPools).(*pools)
	if !ok {
		panic("something else hangs on the host")
	}
	return p
}

// version is what a request to the host is spoken in.
func (x *exchange) version(h *cluster.Host) Protocol {
	switch x.cluster.Spec().HTTP.Version {
	case cluster.HTTP2:
		return HTTP2
	case cluster.SameAsReceived:
		return x.entry.Protocol
	case cluster.Negotiated:
		p := poolsOf(h)
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.alpn != 0 {
			return p.alpn
		}
	}
	return HTTP1
}

// otherVersion reports that a new connection negotiated another version than was expected, and keeps it for that one.
func (x *exchange) otherVersion(h *cluster.Host, c *Conn, want Protocol) bool {
	if x.cluster.Spec().HTTP.Version != cluster.Negotiated {
		return false
	}
	got := HTTP1
	if c.Protocol == "h2" {
		got = HTTP2
	}
	p := poolsOf(h)
	p.mu.Lock()
	p.alpn = got
	p.mu.Unlock()
	if got == want {
		return false
	}
	x.spare = c
	return true
}

// reapings is how often connections are looked through in the time that they may be idle.
const reapings = 4

// reap sees to it that idle connections are closed, from the first one on.
func (e *Engine) reap(h *cluster.Host) {
	p := poolsOf(h)
	idle := h.Cluster().Spec().HTTP.IdleTimeout
	if idle <= 0 {
		idle = e.cfg.Limits.PoolIdle
	}
	if idle <= 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.armed {
		return
	}
	p.armed = true
	if p.timer == nil {
		p.timer = e.cfg.Clock.AfterFunc(idle/reapings, func() { p.tick(idle / reapings) })
	} else {
		p.timer.Reset(idle / reapings)
	}
}

func (p *pools) tick(every time.Duration) {
	p.mu.Lock()
	one, two := p.one, p.two
	p.mu.Unlock()
	left := 0
	if one != nil {
		left += one.Reap(reapings)
	}
	if two != nil {
		left += two.Reap(reapings)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.armed = left > 0; p.armed {
		p.timer.Reset(every)
	}
}

// Drain is called when the host leaves.
func (p *pools) Drain() {
	p.mu.Lock()
	one, two := p.one, p.two
	p.mu.Unlock()
	if one != nil {
		one.Drain()
	}
	if two != nil {
		two.Drain()
	}
}
