package cluster

import (
	"slices"
	"sync"
	"time"
)

// stickiness remembers where hashes led, as kube-proxy does for sessionAffinity: endpoints that come move nobody. The zero value
// remembers nothing.
type stickiness struct {
	mu      sync.Mutex // protects below
	timeout time.Duration
	led     map[uint64]stuck
}

type stuck struct {
	host *Host
	used time.Duration
}

// maxStuck bounds the hashes of one source workload; those of its addresses are a few.
const maxStuck = 64

// Stick has picks with one hash stay at the host that they came to, for so long after the last one, as long as that is one of those
// that they may come to. 0, the default, has them go where the table of the policy leads.
func (c *Cluster) Stick(timeout time.Duration) {
	s := &c.sticky
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timeout = timeout
	if c.sticks.Store(timeout > 0); timeout <= 0 {
		s.led = nil
	}
}

// stay returns the endpoint that the hash is to stay at.
func (c *Cluster) stay(st *state, l *level, hash uint64) (uint32, bool) {
	s := &c.sticky
	s.mu.Lock()
	defer s.mu.Unlock()
	was, ok := s.led[hash]
	if !ok {
		return 0, false
	}
	now := c.now()
	if now-was.used >= s.timeout || was.host.removed.Load() {
		delete(s.led, hash)
		return 0, false
	}
	i, ok := st.hosts.byKey[was.host.Endpoint().Key]
	if !ok || st.hosts.list[i].Addr != was.host.Endpoint().Addr || st.down.has(uint32(i)) {
		return 0, false
	}
	if _, fit := slices.BinarySearch(l.all.list, uint32(i)); !fit {
		return 0, false
	}
	return uint32(i), true
}

// stuckAt notes where the hash came to.
func (c *Cluster) stuckAt(hash uint64, h *Host) {
	s := &c.sticky
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.timeout <= 0 {
		return
	}
	if s.led == nil || len(s.led) >= maxStuck && s.led[hash].host == nil {
		s.led = map[uint64]stuck{}
	}
	s.led[hash] = stuck{h, c.now()}
}
