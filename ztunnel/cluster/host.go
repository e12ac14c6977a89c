package cluster

import (
	"sync"
	"sync/atomic"
	"time"
)

// Host is an endpoint as one source workload knows it. All methods are safe for concurrent use.
type Host struct {
	cluster  *Cluster
	endpoint atomic.Pointer[Endpoint]
	removed  atomic.Bool
	*load    // of a part: that of the whole's host at the address

	attach   sync.Mutex // protects attached; order: attach before mu
	attached any
	mu       sync.Mutex // protects pools
	pools    []pooled

	// Below: protected by Cluster.mu, but for the atomic parts of monitor.
	index    uint32
	lastPick time.Duration // OriginalDestination
	monitor  monitor
}

// load is what an endpoint carries, and has carried since the host is there.
type load struct {
	active             atomic.Int64 // requests, or connections of TCP
	conns              atomic.Int64 // connections
	requests, failures atomic.Uint64
	successes, late    atomic.Uint64 // good answers, and those that did not come in time
	made, notMade      atomic.Uint64 // connections
}

// Cluster is the cluster that the host belongs to.
func (h *Host) Cluster() *Cluster { return h.cluster }

// Endpoint is what the host stands for, as it was told last.
func (h *Host) Endpoint() *Endpoint { return h.endpoint.Load() }

// Leaving reports that the host was removed or is draining: what is under way may end, idle connections are of no more use.
func (h *Host) Leaving() bool { return h.removed.Load() || h.Endpoint().Draining }

// Active is how many requests (of TCP: connections) are under way at the host.
func (h *Host) Active() int64 { return h.active.Load() }

// Begin counts a request, or a connection of TCP, that goes to the host, and End its end. Pool does both itself.
func (h *Host) Begin() {
	h.active.Add(1)
	h.requests.Add(1)
}

// End is the counterpart of Begin.
func (h *Host) End() { h.active.Add(-1) }

// Attach returns what hangs on the host, which is made by the first call: who proxies keeps the pools of its connections there.
func (h *Host) Attach(make func() any) any {
	h.attach.Lock()
	defer h.attach.Unlock()
	if h.attached == nil {
		h.attached = make()
	}
	return h.attached
}

// pooled is a Pool of whatever connections.
type pooled interface {
	Drain()
	renew()
}

// keep adds a pool to those that learn of the host's changes.
func (h *Host) keep(p pooled) {
	h.mu.Lock()
	h.pools = append(h.pools, p)
	h.mu.Unlock()
	if h.Leaving() {
		p.Drain()
	}
}

func (h *Host) each(f func(pooled)) {
	h.mu.Lock()
	pools := h.pools
	h.mu.Unlock()
	for _, p := range pools {
		f(p)
	}
}

// HostStatus is what there is to say about an endpoint of a cluster.
type HostStatus struct {
	Endpoint           *Endpoint
	Used               bool // by the source workload; without, all below is zero
	Ejected            bool
	Ejections          uint32 // so far
	Active             int64
	Connections        int64
	Requests, Failures uint64
	Successes, Late    uint64 // answers below 500; those that did not come in time
	Made, NotMade      uint64 // connections so far, and those of requests that failed
}

// Status tells about all endpoints, in order of priority, locality and key.
func (c *Cluster) Status(yield func(HostStatus) bool) {
	st := c.settled()
	var list []HostStatus
	c.mu.Lock()
	for i := range st.hosts.list {
		s := HostStatus{Endpoint: &st.hosts.list[i]}
		if h := st.slots[i].Load(); h != nil {
			s = h.statusLocked()
		}
		list = append(list, s)
	}
	if c.original != nil {
		for _, h := range c.original.hosts {
			list = append(list, h.statusLocked())
		}
	}
	c.mu.Unlock()
	for _, s := range list {
		if !yield(s) {
			return
		}
	}
}

func (h *Host) statusLocked() HostStatus {
	return HostStatus{
		Endpoint: h.Endpoint(), Used: true, Ejected: h.monitor.ejected, Ejections: h.monitor.ejections, Active: h.active.Load(),
		Connections: h.conns.Load(), Requests: h.requests.Load(), Failures: h.failures.Load(),
		Successes: h.successes.Load(), Late: h.late.Load(), Made: h.made.Load(), NotMade: h.notMade.Load(),
	}
}
