package cluster

import (
	"math"
	"sync/atomic"
)

// Breakers are the limits of a cluster for one priority, with what counts against them. All methods are safe for concurrent use.
type Breakers struct {
	cluster  *Cluster
	priority Priority
	used     [numResources]atomic.Int64
}

// Breakers returns those of a priority.
func (c *Cluster) Breakers(p Priority) *Breakers { return &c.breakers[min(p, numPriorities-1)] }

func (b *Breakers) spec(st *state) *breakerSpec { return &st.spec.breakers[b.priority] }

// limit is how many of r there may be at a time.
func (b *Breakers) limit(st *state, r resource) int64 {
	s := b.spec(st)
	if r != retries || !s.hasBudget {
		return int64(s.limits[r])
	}
	busy := float64(b.used[requests].Load() + b.used[pending].Load())
	return max(int64(busy*s.budgetPercent/100), int64(s.budgetMin))
}

// Workers is how many pools of connections a host may have for each source workload, so many as an Istio sidecar's Envoy has threads.
// Each may have one connection whatever the limits say: "the istio-proxy does allow for some leeway", as the documents put it.
const Workers = 2

// Worker returns the pool of a host that a worker of a number from 0 to Workers-1 uses: its own where connections are limited, for
// that is where it makes a difference, else the only one.
func (c *Cluster) Worker(n int) int {
	if s := c.Spec(); s.breakers[Default].limits[connections] == noLimit && s.breakers[Default].perHost == noLimit {
		return 0
	}
	return n
}

// Limits are those in force: of connections, pending requests, requests and retries at a time. A retry budget is not in them.
func (b *Breakers) Limits() (cx, pendingRequests, rq, retry uint32) {
	l := &b.spec(b.cluster.state.Load()).limits
	return l[connections], l[pending], l[requests], l[retries]
}

// take counts one more, if the limit allows it.
func (b *Breakers) take(r resource) bool {
	limit := b.limit(b.cluster.state.Load(), r)
	for {
		n := b.used[r].Load()
		if n >= limit {
			return false
		}
		if b.used[r].CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (b *Breakers) force(r resource)   { b.used[r].Add(1) }
func (b *Breakers) release(r resource) { b.used[r].Add(-1) }

// TryRetry asks for one more retry, which DoneRetry ends. False: there are too many, which is counted.
func (b *Breakers) TryRetry() bool {
	if b.take(retries) {
		return true
	}
	b.cluster.stats.inc(RqRetryOverflow)
	return false
}

// DoneRetry ends what TryRetry began.
func (b *Breakers) DoneRetry() { b.release(retries) }

// TryConnection asks for one more connection to the host, for what has no requests (TCP); DoneConnection ends it. False: there are
// too many, which is counted.
func (b *Breakers) TryConnection(h *Host) bool {
	if h.conns.Load() < int64(b.spec(b.cluster.state.Load()).perHost) && b.take(connections) {
		b.connected(h)
		return true
	}
	b.cluster.stats.inc(CxOverflow)
	return false
}

// connected counts a connection that begins; connections are taken already.
func (b *Breakers) connected(h *Host) {
	h.conns.Add(1)
	h.made.Add(1)
	b.cluster.stats.inc(CxTotal)
	b.cluster.stats.inc(CxActive)
}

// DoneConnection ends what TryConnection began. With remote the server ended it.
func (b *Breakers) DoneConnection(h *Host, remote bool) {
	s := &b.cluster.stats
	s.dec(CxActive)
	h.conns.Add(-1)
	b.release(connections)
	s.inc(CxDestroy)
	if remote {
		s.inc(CxDestroyRemote)
	} else {
		s.inc(CxDestroyLocal)
	}
}

// gauges yields what is open and what remains, under Envoy's names.
func (b *Breakers) gauges(st *state, yield func(string, uint64) bool) bool {
	names := &gaugeNames[b.priority]
	for r := range numResources {
		limit, used := b.limit(st, r), b.used[r].Load()
		open := uint64(0)
		if used >= limit {
			open = 1
		}
		if !yield(names.open[r], open) {
			return false
		}
		if !b.spec(st).trackRemaining {
			continue
		}
		if !yield(names.remaining[r], uint64(max(0, min(limit-used, math.MaxUint32)))) {
			return false
		}
	}
	return true
}

type breakerNames struct{ open, remaining [numResources]string }

var gaugeNames = [numPriorities]breakerNames{
	Default: {
		open: [numResources]string{
			connections: "circuit_breakers.default.cx_open", pending: "circuit_breakers.default.rq_pending_open",
			requests: "circuit_breakers.default.rq_open", retries: "circuit_breakers.default.rq_retry_open",
		},
		remaining: [numResources]string{
			connections: "circuit_breakers.default.remaining_cx", pending: "circuit_breakers.default.remaining_pending",
			requests: "circuit_breakers.default.remaining_rq", retries: "circuit_breakers.default.remaining_retries",
		},
	},
	High: {
		open: [numResources]string{
			connections: "circuit_breakers.high.cx_open", pending: "circuit_breakers.high.rq_pending_open",
			requests: "circuit_breakers.high.rq_open", retries: "circuit_breakers.high.rq_retry_open",
		},
		remaining: [numResources]string{
			connections: "circuit_breakers.high.remaining_cx", pending: "circuit_breakers.high.remaining_pending",
			requests: "circuit_breakers.high.remaining_rq", retries: "circuit_breakers.high.remaining_retries",
		},
	},
}
