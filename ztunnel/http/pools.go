package http

import (
	"math"
	"sync"
	"time"

	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/cluster"
)

// pools are the connections of one source workload to one host. They hang on the host, and are divided among workers where a limit of
// connections may make a request wait, as Envoy's threads have each their own.
type pools struct {
	mu     sync.Mutex // protects below
	one    [cluster.Workers]*cluster.Pool[*link]
	two    [cluster.Workers]*cluster.Pool[*link2]
	alpn   Protocol    // that was negotiated last
	timer  clock.Timer // reaps; nil: never set
	armed  bool
	rounds uint32 // of tick that a connection may be idle
}

func newPools() any { return new(pools) }

func poolsOf(h *cluster.Host) *pools {
	p, ok := h.Attach(newPools).(*pools)
	if !ok {
		panic("something else hangs on the host")
	}
	return p
}

// http1 returns the pool for HTTP/1.1.
func (p *pools) http1(h *cluster.Host, worker int) *cluster.Pool[*link] {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := &p.one[h.Cluster().Worker(worker)]
	if *at == nil {
		*at = cluster.NewPool(h, cluster.Default, 1, (*link).close)
	}
	return *at
}

// http2 returns the pool for HTTP/2.
func (p *pools) http2(h *cluster.Host, worker int) *cluster.Pool[*link2] {
	p.mu.Lock()
	defer p.mu.Unlock()
	at := &p.two[h.Cluster().Worker(worker)]
	if *at == nil {
		*at = cluster.NewPool(h, cluster.Default, assumed, (*link2).close)
	}
	return *at
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

// dropSpare closes a connection that was made and is not used after all: one to another host would be taken for one to that which is
// tried next.
func (x *exchange) dropSpare() {
	if x.spare != nil {
		_ = x.spare.Net.Close()
		x.spare = nil
	}
}

// weeding is how often idle connections are looked through.
const weeding = 5 * time.Second

// reap sees to it that connections are closed that are idle for too long, or that their hosts have closed, from the first one on.
func (x *exchange) reap(h *cluster.Host) {
	p := poolsOf(h)
	idle := h.Cluster().Spec().HTTP.IdleTimeout
	if idle <= 0 {
		idle = x.e.cfg.Limits.PoolIdle
	}
	if idle <= 0 {
		idle = math.MaxInt64 // none
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rounds = uint32(min(max(idle/weeding, 1), math.MaxUint32))
	if p.armed {
		return
	}
	p.armed = true
	if p.timer == nil {
		p.timer = x.e.cfg.Clock.AfterFunc(weeding, p.tick)
	} else {
		p.timer.Reset(weeding)
	}
}

func (p *pools) tick() {
	p.mu.Lock()
	one, two, rounds := p.one, p.two, p.rounds
	p.mu.Unlock()
	left := 0
	for i := range cluster.Workers {
		if p := one[i]; p != nil {
			p.Weed(func(l *link) bool { return l.made.stale() || !l.quiet() })
			left += p.Reap(rounds)
		}
		if p := two[i]; p != nil {
			p.Weed(func(l *link2) bool { return l.made.stale() })
			left += p.Reap(rounds)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.armed = left > 0; p.armed {
		p.timer.Reset(weeding)
	}
}
