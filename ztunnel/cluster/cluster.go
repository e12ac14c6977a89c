package cluster

import (
	"maps"
	"math"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/undermesh/undermesh/ztunnel/clock"
)

// Config is what a Cluster needs. All fields are required.
type Config struct {
	Clock clock.Clock
	Rand  func() uint64 // safe for concurrent use, as math/rand/v2.Uint64
}

// Cluster is one cluster as one source workload knows it. All methods are safe for concurrent use.
type Cluster struct {
	cfg    Config
	epoch  time.Time
	whole  *Cluster // that it is a part of; nil: it is a whole
	state  atomic.Pointer[state]
	*tally // of the whole

	nextSweep atomic.Int64 // of outlier detection, after epoch
	nextWeigh atomic.Int64 // of slow start, after epoch; math.MaxInt64: no host is young

	mu       sync.Mutex // protects below, and changes of state and of the hosts' monitors
	original *originals // hosts of OriginalDestination
	ejected  int
}

// tally is what a cluster counts, and what it counts against its limits.
type tally struct {
	stats    counters
	breakers [numPriorities]Breakers
}

// state is what Pick reads: immutable but for what its pointers lead to.
type state struct {
	spec  *Spec
	hosts *Hosts
	slots []atomic.Pointer[Host] // by index in hosts; nil: not used yet
	view  *view
	down  bitset
	turns []atomic.Uint64 // see level.turns
}

// New makes a cluster. It starts nothing: what is to happen later happens when the cluster is used next.
func New(cfg Config, spec *Spec, hosts *Hosts) *Cluster {
	c := &Cluster{cfg: cfg, epoch: cfg.Clock.Now(), tally: &tally{}}
	for i := range c.breakers {
		c.breakers[i].cluster, c.breakers[i].priority = c, Priority(i)
	}
	c.stats.inc(MembershipChange)
	c.init(spec, hosts)
	return c
}

// Part makes a cluster with a configuration, hosts and connections of its own that counts as the whole w does: statistics, limits, and
// what its hosts carry, by their addresses. w is of kind OriginalDestination, so that it has any address.
func (w *Cluster) Part(spec *Spec, hosts *Hosts) *Cluster {
	c := &Cluster{cfg: w.cfg, epoch: w.epoch, whole: w, tally: w.tally}
	c.init(spec, hosts)
	return c
}

func (c *Cluster) init(spec *Spec, hosts *Hosts) {
	if spec.Kind == OriginalDestination {
		hosts = NewHosts(nil)
	}
	v := hosts.view(spec)
	c.sized(v)
	c.state.Store(&state{spec: spec, hosts: hosts, slots: make([]atomic.Pointer[Host], len(hosts.list)), view: v, turns: c.newTurns(nil, v)})
	c.nextWeigh.Store(math.MaxInt64)
	if spec.slowStart() != nil {
		c.nextWeigh.Store(0)
	}
	if spec.outlier != nil {
		c.nextSweep.Store(int64(c.now() + spec.outlier.interval))
	}
}

// Hashes reports whether hosts are picked by the hash of what keeps requests together.
func (s *Spec) Hashes() bool { return s.Policy == RingHash || s.Policy == Maglev }

func (s *Spec) slowStart() *slowStartSpec { return s.balance.slowStart }

// Spec returns the configuration in force.
func (c *Cluster) Spec() *Spec { return c.state.Load().spec }

// Hosts returns the endpoints in force.
func (c *Cluster) Hosts() *Hosts { return c.state.Load().hosts }

// Name is the cluster's name.
func (c *Cluster) Name() string { return c.Spec().Name }

// now is the time since the cluster was made.
func (c *Cluster) now() time.Duration { return c.cfg.Clock.Now().Sub(c.epoch) }

// newTurns makes the counters of a view, which go on where they were; new ones begin anywhere, or all clients would begin with
// the same host.
func (c *Cluster) newTurns(old []atomic.Uint64, v *view) []atomic.Uint64 {
	n := 0
	for i := range v.levels {
		n += 1 + len(v.levels[i].places)
	}
	if n <= len(old) {
		return old
	}
	turns := make([]atomic.Uint64, n)
	for i := range turns {
		if i < len(old) {
			turns[i].Store(old[i].Load())
		} else {
			turns[i].Store(c.cfg.Rand() >> 1)
		}
	}
	return turns
}

// Update puts another configuration and other endpoints in force. Hosts whose key and address stay keep what they are: counts and
// ejection, and under the same configuration their connections; under another one those end as soon as they carry no request, as
// in Envoy: they were made by rules that count no more. Hosts that are gone or draining take no new requests, and their
// connections end likewise.
func (c *Cluster) Update(spec *Spec, hosts *Hosts) {
	leave, renew := c.update(spec, hosts)
	for _, h := range leave {
		h.each(pooled.Drain)
	}
	for _, h := range renew {
		h.each(pooled.renew)
	}
}

// update returns the hosts that are gone or draining since, and those that are under another configuration.
func (c *Cluster) update(spec *Spec, hosts *Hosts) (leave, renew []*Host) {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.state.Load()
	if spec.Kind == OriginalDestination {
		hosts = NewHosts(nil)
	}
	if old.spec == spec && old.hosts == hosts {
		return nil, nil
	}
	st := &state{spec: spec, hosts: hosts, slots: old.slots, down: old.down}
	if old.hosts != hosts {
		leave = c.moveLocked(old, st)
		if c.whole == nil {
			c.stats.inc(MembershipChange)
		}
	}
	if c.original != nil && spec.Kind == OriginalDestination && old.spec != spec {
		renew = slices.Collect(maps.Values(c.original.hosts))
	}
	if spec.Kind != OriginalDestination && c.original != nil {
		for _, o := range c.original.hosts {
			o.removed.Store(true)
			leave = append(leave, o)
		}
		c.original = nil
	}
	if old.spec != spec {
		c.outlierChangedLocked(old.spec, st)
		c.nextWeigh.Store(math.MaxInt64)
		renew = append(renew, c.usedLocked(st)...)
	}
	if spec.slowStart() != nil {
		c.nextWeigh.Store(0)
	}
	st.turns = old.turns
	c.rebuildLocked(st)
	return leave, renew
}

// moveLocked takes the hosts over into the new list.
func (c *Cluster) moveLocked(old, st *state) (leave []*Host) {
	st.slots = make([]atomic.Pointer[Host], len(st.hosts.list))
	st.down = nil
	for i := range old.slots {
		h := old.slots[i].Load()
		if h == nil {
			continue
		}
		was := h.Endpoint()
		at, ok := st.hosts.byKey[was.Key]
		if ok && st.hosts.list[at].Addr == was.Addr {
			now := &st.hosts.list[at]
			h.endpoint.Store(now)
			h.index = uint32(at)
			st.slots[at].Store(h)
			if h.monitor.ejected {
				st.down = st.down.with(uint32(at), true, len(st.hosts.list))
			}
			if now.Draining && !was.Draining {
				leave = append(leave, h)
			}
			continue
		}
		h.removed.Store(true)
		if h.monitor.ejected {
			c.ejected--
		}
		leave = append(leave, h)
	}
	return leave
}

// rebuildLocked makes the view anew after a change of what is down, of hosts, or of weights, and puts st in force.
func (c *Cluster) rebuildLocked(st *state) {
	next := *st
	switch {
	case next.down == nil && c.nextWeigh.Load() == math.MaxInt64:
		next.view = next.hosts.view(next.spec)
	default:
		next.view = viewer{spec: next.spec, hosts: next.hosts, down: next.down, weight: c.weigher(&next)}.build()
	}
	next.turns = c.newTurns(st.turns, next.view)
	c.state.Store(&next)
	c.sized(next.view)
}

// sized counts a view that is too small for zone aware balancing.
func (c *Cluster) sized(v *view) {
	if v.small {
		c.stats.inc(LbZoneTooSmall)
	}
}

// host returns the host of an endpoint, which is made when it is used first.
func (c *Cluster) host(st *state, i uint32) *Host {
	if h := st.slots[i].Load(); h != nil {
		return h
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	want := &st.hosts.list[i]
	now := c.state.Load()
	at, ok := now.hosts.byKey[want.Key]
	if !ok || now.hosts.list[at].Addr != want.Addr { // it went while it was chosen
		h := c.newHost(want, 0)
		h.removed.Store(true)
		return h
	}
	if h := now.slots[at].Load(); h != nil {
		return h
	}
	h := c.newHost(&now.hosts.list[at], uint32(at))
	now.slots[at].Store(h)
	return h
}

func (c *Cluster) newHost(e *Endpoint, at uint32) *Host {
	h := &Host{cluster: c, index: at}
	if c.whole != nil {
		h.load = c.whole.Original(e.Addr).load
	} else {
		h.load = &load{}
	}
	h.endpoint.Store(e)
	return h
}

// originals are the hosts of a cluster of kind OriginalDestination, one for each address that was dialled.
type originals struct {
	hosts map[netip.AddrPort]*Host
	swept time.Duration
}

// maxOriginals bounds them; beyond, one that is not used is forgotten, and when all are, the new one is not kept.
const (
	maxOriginals = 4096
	fewOriginals = 16 // are looked at to make place for one
)

// Original returns the host of an address, in a cluster of kind OriginalDestination.
func (c *Cluster) Original(addr netip.AddrPort) *Host {
	spec := c.Spec()
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.original == nil {
		c.original = &originals{hosts: map[netip.AddrPort]*Host{}, swept: now}
	}
	o := c.original
	if now-o.swept >= spec.cleanup {
		o.forget(len(o.hosts), func(h *Host) bool { return now-h.lastPick >= spec.cleanup })
		o.swept = now
	}
	h := o.hosts[addr]
	if h == nil {
		h = c.newHost(&Endpoint{Key: addr.String(), Addr: addr, Healthy: true}, 0)
		if len(o.hosts) >= maxOriginals {
			o.forget(fewOriginals, func(*Host) bool { return true })
		}
		if len(o.hosts) < maxOriginals {
			o.hosts[addr] = h
		}
	}
	h.lastPick = now
	return h
}

// forget drops hosts, of n by chance, that nothing is under way at, and of which may says so.
func (o *originals) forget(n int, may func(*Host) bool) {
	for a, h := range o.hosts {
		if n--; n < 0 {
			return
		}
		if h.active.Load() == 0 && h.conns.Load() == 0 && may(h) {
			h.removed.Store(true)
			delete(o.hosts, a)
		}
	}
}
