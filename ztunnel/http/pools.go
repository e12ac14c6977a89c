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
	timer clock.Timer // reaps; nil: never set
	armed bool
}

func newPools() any { return new(pools) }

// http1 returns the pool for HTTP/1.1.
func (e *Engine) http1(h *cluster.Host) *cluster.Pool[*link] {
	p, ok := h.Attach(newPools).(*pools)
	if !ok {
		panic("something else hangs on the host")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.one == nil {
		p.one = cluster.NewPool(h, cluster.Default, 1, (*link).close)
	}
	return p.one
}

// reapings is how often connections are looked through in the time that they may be idle.
const reapings = 4

// reap sees to it that idle connections are closed, from the first one on.
func (e *Engine) reap(h *cluster.Host) {
	p, ok := h.Attach(newPools).(*pools)
	if !ok {
		return
	}
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
	one := p.one
	p.mu.Unlock()
	left := one.Reap(reapings)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.armed = left > 0; p.armed {
		p.timer.Reset(every)
	}
}

// Drain is called when the host leaves.
func (p *pools) Drain() {
	p.mu.Lock()
	one := p.one
	p.mu.Unlock()
	if one != nil {
		one.Drain()
	}
}
