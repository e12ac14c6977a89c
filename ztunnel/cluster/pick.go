package cluster

import (
	"math"
	"net/netip"
	"slices"
	"time"
)

// PickInput is what a choice depends on beside the cluster.
type PickInput struct {
	Hash    uint64 // of what keeps requests together; counts with RingHash and Maglev
	HasHash bool   // without, chance decides in its place
	// Tried are hosts that the request went to already. Another is looked for Attempts times (Envoy's
	// host_selection_retry_max_attempts) after the first choice; then the last choice stands.
	Tried    []*Host
	Attempts int
	// AvoidPriorities leaves priorities of Tried out while there are others (Envoy's previous_priorities).
	AvoidPriorities bool
	Original        netip.AddrPort // that was dialled: what OriginalDestination goes to
}

// Why says why there is no host.
type Why uint8

// The outcomes of Pick.
const (
	Picked     Why = iota
	NoHealthy      // no endpoint, or none that is healthy: 503, flag UH
	NoOriginal     // OriginalDestination without an address
)

func (w Why) String() string {
	return [...]string{"picked", "no_healthy_upstream", "no_original_destination"}[min(w, NoOriginal)]
}

// Pick chooses the host of a request or connection. The host is nil unless why is Picked.
func (c *Cluster) Pick(in PickInput) (host *Host, why Why) {
	st := c.settled()
	if st.spec.Kind == OriginalDestination {
		if !in.Original.IsValid() || in.Original.Port() == 0 {
			c.stats.inc(OriginalDstInvalid)
			return nil, NoOriginal
		}
		return c.Original(in.Original), Picked
	}
	for attempt := 0; ; attempt++ {
		i, ok := c.choose(st, &in, attempt)
		if !ok {
			c.stats.inc(CxNoneHealthy)
			return nil, NoHealthy
		}
		if len(in.Tried) == 0 {
			return c.host(st, i), Picked
		}
		h := c.host(st, i)
		if attempt >= in.Attempts || !slices.Contains(in.Tried, h) {
			return h, Picked
		}
	}
}

// settled returns the state after what time has brought was done: the sweep of outlier detection, weights of slow start.
func (c *Cluster) settled() *state {
	st := c.state.Load()
	slow := c.nextWeigh.Load()
	if st.spec.outlier == nil && slow == math.MaxInt64 {
		return st
	}
	now := c.now()
	if st.spec.outlier != nil && int64(now) >= c.nextSweep.Load() {
		c.sweep(now)
	}
	if int64(now) >= slow {
		c.reweigh(now)
	}
	return c.state.Load()
}

// choose returns the index of an endpoint.
func (c *Cluster) choose(st *state, in *PickInput, attempt int) (uint32, bool) {
	v := st.view
	if len(v.levels) == 0 {
		return 0, false
	}
	hashed := st.spec.Hashes()
	hash := in.Hash
	if hashed && !in.HasHash {
		hash = c.cfg.Rand()
	}
	l := &v.levels[c.chooseLevel(st, in, hashed, hash)]
	if l.panicking {
		c.stats.inc(LbHealthyPanic)
	}
	if hashed {
		down := st.down
		if l.panicking {
			down = nil
		}
		return l.table.pick(hash, attempt, down)
	}
	m, turn := &l.all, l.turns
	if l.places != nil { // their turn is that of the level
		var p uint32
		if st.spec.Policy == RoundRobin {
			p = l.place.inTurn(st.turns[l.turns].Add(1) - 1)
		} else {
			p = l.place.at(c.cfg.Rand() % l.place.total())
		}
		m, turn = &l.places[p], l.turns+1+int(p)
		if l.zone != nil {
			c.took(l.zone, p)
		}
	}
	if len(m.list) == 0 {
		return 0, false
	}
	switch st.spec.Policy {
	case Random:
		return m.list[c.cfg.Rand()%uint64(len(m.list))], true
	case LeastRequest:
		return c.leastRequest(st, m), true
	}
	return m.inTurn(st.turns[turn].Add(1) - 1), true
}

// chooseLevel returns the index of a level.
func (c *Cluster) chooseLevel(st *state, in *PickInput, hashed bool, hash uint64) int {
	v := st.view
	loads, only := v.loads, v.only
	if in.AvoidPriorities && len(in.Tried) > 0 && len(v.levels) > 1 {
		loads = v.loadsWithout(st, in.Tried)
		only = onlyOne(loads)
	}
	if only >= 0 {
		return only
	}
	if !hashed {
		hash = c.cfg.Rand()
	}
	n := uint32(hash % 100)
	for i, l := range loads {
		if n < l {
			return i
		}
		n -= l
	}
	return 0 // not reached: loads are 100 together
}

// loadsWithout distributes the load over the priorities that were not tried.
func (v *view) loadsWithout(st *state, tried []*Host) []uint32 {
	health := make([]uint32, len(v.levels))
	left := uint32(0)
	for i := range v.levels {
		p := st.hosts.list[v.levels[i].any].Priority
		if !slices.ContainsFunc(tried, func(h *Host) bool { return h.Endpoint().Priority == p }) {
			health[i] = v.levels[i].health
			left += health[i]
		}
	}
	if left == 0 {
		return v.loads
	}
	return spread(health)
}

// leastRequest compares some that chance gives. Weights are the chances; of two that were drawn the one with fewer requests for
// its weight is taken.
func (c *Cluster) leastRequest(st *state, m *members) uint32 {
	total := m.total()
	best := m.at(c.cfg.Rand() % total)
	for range st.spec.balance.choices - 1 {
		if i := m.at(c.cfg.Rand() % total); i != best && c.burden(st, m, i) < c.burden(st, m, best) {
			best = i
		}
	}
	return best
}

func (c *Cluster) burden(st *state, m *members, i uint32) float64 {
	h := st.slots[i].Load()
	if h == nil {
		return 0
	}
	n := float64(h.active.Load())
	if m.sums == nil || n == 0 {
		return n
	}
	if bias := st.spec.balance.activeBias; bias != 1 {
		n = math.Pow(n, bias)
	}
	return n / float64(st.hosts.weight(i))
}

// weigher is the weights of endpoints now: those that are young have less.
func (c *Cluster) weigher(st *state) func(uint32) uint64 {
	s := st.spec.slowStart()
	if s == nil {
		return st.hosts.weight
	}
	now := c.cfg.Clock.Now()
	return func(i uint32) uint64 {
		e := &st.hosts.list[i]
		w := e.weight() * slowScale
		age := now.Sub(e.Since)
		if e.Since.IsZero() || age >= s.window {
			return w
		}
		part := math.Pow(float64(max(age, time.Millisecond))/float64(s.window), 1/s.aggression)
		return max(1, uint64(float64(w)*max(part, s.min)))
	}
}

// slowScale is by how much weights are finer than a whole while hosts are young.
const slowScale = 1024

// slowSteps is how often in the window the weights are computed anew.
const slowSteps = 64

// reweigh computes the weights of young hosts anew, and says when that is to be done again.
func (c *Cluster) reweigh(now time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if int64(now) < c.nextWeigh.Load() {
		return
	}
	st := c.state.Load()
	s := st.spec.slowStart()
	c.nextWeigh.Store(math.MaxInt64)
	if s == nil {
		return
	}
	at := c.epoch.Add(now)
	if slices.ContainsFunc(st.hosts.list, func(e Endpoint) bool { return !e.Since.IsZero() && at.Sub(e.Since) < s.window }) {
		c.nextWeigh.Store(int64(now + max(s.window/slowSteps, time.Millisecond)))
	}
	c.rebuildLocked(st)
}
