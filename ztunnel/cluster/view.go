package cluster

import (
	"math/bits"
	"sort"
)

// view is what Pick chooses by: the endpoints by priority and locality as they are available now. Immutable.
type view struct {
	levels []level  // by priority; one without endpoints has no load
	loads  []uint32 // percent of the requests for each level; their sum is 100, unless there are no endpoints
	only   int      // the level that has all the load, else -1
	// What statistics say.
	total, healthy int
	small          bool // there are too few endpoints for zone aware balancing
}

// level is one priority.
type level struct {
	any       uint32 // one of its endpoints
	panicking bool
	health    uint32    // 0 to 100, see Envoy's overprovisioning factor
	all       members   // what is available, or everybody in a panic
	places    []members // by locality; nil: localities do not count
	place     members   // the indexes of places, by the weights of the localities
	zone      *zoned    // places are weighted by it; nil: they are not
	table     *table    // of the hash policies
	turns     int       // index of the first of its turns: one for the level, one for each place
}

// members are endpoints, by their index in Hosts, with the running sums of their weights. sums is nil when all weigh the same.
type members struct {
	list []uint32
	sums []uint64
	step uint64 // stride of the total
}

func (m *members) total() uint64 {
	if m.sums == nil {
		return uint64(len(m.list))
	}
	return m.sums[len(m.sums)-1]
}

// at is the member whose share of the total n falls into; n < total.
func (m *members) at(n uint64) uint32 {
	if m.sums == nil {
		return m.list[n]
	}
	return m.list[indexOf(m.sums, n)]
}

func indexOf(sums []uint64, n uint64) int {
	return sort.Search(len(sums), func(i int) bool { return n < sums[i] })
}

// inTurn maps the numbers 0, 1, 2 … to the members: each total of them, wherever it begins, gives each member as often as its
// weight says, and members of great weight are spread. Members of equal weight simply follow each other.
func (m *members) inTurn(n uint64) uint32 {
	total := m.total()
	if m.sums == nil {
		return m.list[n%total]
	}
	return m.at(scatter(n, total, m.step))
}

// scatter maps each run of total numbers to the numbers below total, those that follow each other far apart. step is the stride of
// total.
func scatter(n, total, step uint64) uint64 {
	hi, lo := bits.Mul64(n%total, step)
	_, at := bits.Div64(hi%total, lo, total)
	return at
}

// stride is next to the golden section of n and has no divisor in common with it. n > 0.
func stride(n uint64) uint64 {
	hi, lo := bits.Mul64(n, 618)
	q, _ := bits.Div64(hi, lo, 1000)
	s := max(1, q)
	for gcd(s, n) != 1 {
		s++
	}
	return s
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// newMembers adds up the weights, divided by what they have in common.
func newMembers(list []uint32, weight func(uint32) uint64) members {
	m := members{list: list}
	var common, first uint64
	equal := true
	for i, e := range list {
		w := weight(e)
		if i == 0 {
			first = w
		}
		equal = equal && w == first
		common = gcd(common, w)
	}
	if equal {
		return m
	}
	m.sums = make([]uint64, len(list))
	var sum uint64
	for i, e := range list {
		sum += weight(e) / common
		m.sums[i] = sum
	}
	m.step = stride(sum)
	return m
}

// viewer builds a view.
type viewer struct {
	spec   *Spec
	hosts  *Hosts
	down   bitset              // ejected endpoints
	weight func(uint32) uint64 // of an endpoint
	last   bool                // nothing but draining endpoints is left: they serve until they are gone
}

// view returns the shared view of the hosts with none ejected.
func (h *Hosts) view(s *Spec) *view {
	h.mu.Lock()
	v := h.views[s]
	h.mu.Unlock()
	if v != nil {
		return v
	}
	v = viewer{spec: s, hosts: h, weight: h.weight}.build()
	h.mu.Lock()
	defer h.mu.Unlock()
	if old := h.views[s]; old != nil {
		return old
	}
	if h.views == nil || len(h.views) >= maxShared {
		h.views = map[*Spec]*view{}
	}
	h.views[s] = v
	return v
}

// maxShared bounds the views and tables that one list of hosts keeps.
const maxShared = 64

func (h *Hosts) weight(i uint32) uint64 { return h.list[i].weight() }

func (b viewer) build() *view {
	v := &view{only: -1}
	b.last = b.hosts.allDraining()
	for start := 0; start < len(b.hosts.list); {
		p := b.hosts.list[start].Priority
		end := start
		var in []uint32
		for ; end < len(b.hosts.list) && b.hosts.list[end].Priority == p; end++ {
			if b.last || !b.hosts.list[end].Draining {
				in = append(in, uint32(end))
			}
		}
		if start = end; len(in) > 0 { // numbers that are left out, and levels that are drained, are none
			v.levels = append(v.levels, b.level(in, v))
		}
	}
	b.distribute(v)
	turns := 0
	for i := range v.levels {
		l := &v.levels[i]
		b.fill(v, i)
		l.turns = turns
		turns += 1 + len(l.places)
	}
	return v
}

// level computes the health of a level; its members are all endpoints as yet.
func (b viewer) level(in []uint32, v *view) level {
	var up, total uint64
	for _, i := range in {
		w := uint64(1)
		if b.spec.balance.weightedHealth {
			w = b.hosts.weight(i)
		}
		total += w
		v.total++
		if b.available(i) {
			up += w
			v.healthy++
		}
	}
	return level{any: in[0], all: members{list: in}, health: uint32(min(100, uint64(b.spec.balance.overprovisioning)*up/total))}
}

func (b viewer) available(i uint32) bool { return b.fit(i) && !b.down.has(i) }

// fit reports what all source workloads see alike.
func (b viewer) fit(i uint32) bool { return b.hosts.list[i].Healthy || b.last }

// distribute says how much of the load each level gets and which are in a panic.
func (b viewer) distribute(v *view) {
	if len(v.levels) == 0 {
		return
	}
	total := uint32(0)
	for i := range v.levels {
		total += v.levels[i].health
	}
	total = min(100, total)
	allPanic := total < 100 && b.spec.balance.panicPercent > 0
	if total < 100 {
		for i := range v.levels {
			l := &v.levels[i]
			up := 0
			for _, e := range l.all.list {
				if b.available(e) {
					up++
				}
			}
			l.panicking = 100*float64(up)/float64(len(l.all.list)) < b.spec.balance.panicPercent
			allPanic = allPanic && l.panicking
		}
	}
	health := make([]uint32, len(v.levels))
	for i := range v.levels {
		if health[i] = v.levels[i].health; allPanic { // by the number of endpoints
			health[i] = uint32(100 * len(v.levels[i].all.list) / v.total)
		}
	}
	v.loads = spread(health)
	v.only = onlyOne(v.loads)
}

// spread distributes 100 percent over levels: each takes what its health allows, the rest goes on to the next. Without any
// health the first gets it all.
func spread(health []uint32) []uint32 {
	total := uint32(0)
	for _, h := range health {
		total += h
	}
	total = min(100, total)
	loads := make([]uint32, len(health))
	if total == 0 {
		loads[0] = 100
		return loads
	}
	left, first := uint32(100), -1
	for i, h := range health {
		if h > 0 && first < 0 {
			first = i
		}
		loads[i] = min(left, h*100/total)
		left -= loads[i]
	}
	loads[first] += left // what rounding left over
	return loads
}

func onlyOne(loads []uint32) int {
	for i, l := range loads {
		if l == 100 {
			return i
		}
	}
	return -1
}

// fill replaces the endpoints of the i-th level by those that are available, and adds what the policy chooses by.
func (b viewer) fill(v *view, i int) {
	l := &v.levels[i]
	everybody := l.all.list
	in := everybody
	if !l.panicking {
		in = make([]uint32, 0, len(everybody))
		for _, i := range everybody {
			if b.available(i) {
				in = append(in, i)
			}
		}
	}
	switch b.spec.Policy {
	case RingHash, Maglev:
		b.fillTable(l, everybody)
	default:
		l.all = newMembers(in, b.weight)
		switch {
		case l.panicking || len(in) == 0:
		case b.spec.balance.byLocality:
			b.fillPlaces(l, everybody, in)
		case b.spec.balance.zone != nil && i == 0: // of the first alone, as in Envoy
			b.fillZones(l, in, v)
		}
	}
	if b.spec.Policy == RingHash || b.spec.Policy == Maglev {
		l.all = members{list: in}
	}
}

// fillPlaces splits a level into its localities; the list is in their order.
func (b viewer) fillPlaces(l *level, everybody, in []uint32) {
	var weights []uint64
	var list []uint32
	for start := 0; start < len(everybody); {
		first := &b.hosts.list[everybody[start]]
		total := 0
		for start < len(everybody) && b.hosts.list[everybody[start]].Locality == first.Locality {
			total++
			start++
		}
		n := 0
		for n < len(in) && b.hosts.list[in[n]].Locality == first.Locality {
			n++
		}
		up := in[:n:n]
		in = in[n:]
		w := b.placeWeight(uint64(min(first.LocalityWeight, maxWeight)), uint64(n), uint64(total))
		if w == 0 {
			continue
		}
		list = append(list, uint32(len(l.places)))
		weights = append(weights, w)
		l.places = append(l.places, newMembers(up, b.weight))
	}
	l.place = newMembers(list, func(i uint32) uint64 { return weights[i] })
}

// placeWeight is the weight of a locality, in thousandths, less when too few of its endpoints are available.
func (b viewer) placeWeight(w, up, total uint64) uint64 {
	have := min(100*total, uint64(b.spec.balance.overprovisioning)*up)
	return w * 1000 * have / (100 * total)
}

// bitset is a set of small numbers; nil is empty.
type bitset []uint64

func (b bitset) has(i uint32) bool { return int(i>>6) < len(b) && b[i>>6]&(1<<(i&63)) != 0 }

// with returns a copy that has i, or has it not.
func (b bitset) with(i uint32, in bool, size int) bitset {
	out := make(bitset, (size+63)/64)
	copy(out, b)
	if in {
		out[i>>6] |= 1 << (i & 63)
	} else {
		out[i>>6] &^= 1 << (i & 63)
	}
	return out
}
