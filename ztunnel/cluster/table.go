package cluster

import (
	"cmp"
	"math"
	"slices"
	"sort"
	"strconv"

	"github.com/cespare/xxhash/v2"
)

// table leads hashes to endpoints, for RingHash and Maglev. It is made of all endpoints of a level that are fit as far as every
// node sees them, so that it is the same everywhere and is shared; those that one source workload has ejected are stepped over.
// Then only their requests move.
type table struct {
	ring  []point  // RingHash
	slots []uint32 // Maglev
	hosts int
}

type point struct {
	hash uint64
	host uint32
}

// tableKey is all that a table depends on beside the hosts.
type tableKey struct {
	level      uint32 // its priority
	everybody  bool
	policy     Policy
	murmur     bool
	byHostname bool
	byLocality bool
	min, max   uint64
}

// fillTable gives the level its table, made or shared.
func (b viewer) fillTable(l *level, everybody []uint32) {
	s := &b.spec.balance
	k := tableKey{
		level: b.hosts.list[everybody[0]].Priority, everybody: l.panicking, policy: b.spec.Policy, murmur: s.murmur,
		byHostname: s.hashHostname, byLocality: s.byLocality && !l.panicking, min: s.ringMin, max: s.ringMax,
	}
	if k.policy == Maglev {
		k.min, k.max = s.tableSize, s.tableSize
	}
	b.hosts.mu.Lock()
	t := b.hosts.tables[k]
	b.hosts.mu.Unlock()
	if t == nil {
		t = b.newTable(k, everybody)
		b.hosts.mu.Lock()
		if b.hosts.tables == nil || len(b.hosts.tables) >= maxShared {
			b.hosts.tables = map[tableKey]*table{}
		}
		b.hosts.tables[k] = t
		b.hosts.mu.Unlock()
	}
	l.table = t
}

// share is one endpoint of a table with its part of the whole.
type share struct {
	host uint32
	part float64
}

func (b viewer) newTable(k tableKey, everybody []uint32) *table {
	shares := b.shares(k, everybody)
	t := &table{hosts: len(shares)}
	switch {
	case len(shares) == 0:
	case k.policy == Maglev:
		t.fillMaglev(shares, k.min, b.key)
	default:
		t.fillRing(shares, k, b.key)
	}
	return t
}

// key is what an endpoint is known by in a table.
func (b viewer) key(i uint32) string {
	if e := &b.hosts.list[i]; !b.spec.balance.hashHostname && e.Addr.IsValid() {
		return e.Addr.String()
	} else if e.Hostname != "" {
		return e.Hostname
	}
	return b.hosts.list[i].Key
}

// shares normalizes the weights of those that are fit: their sum is 1.
func (b viewer) shares(k tableKey, everybody []uint32) []share {
	var out []share
	var sum float64
	fit := map[Locality]uint64{}
	totals := map[Locality]uint64{}
	sums := map[Locality]float64{}
	for _, i := range everybody {
		e := &b.hosts.list[i]
		totals[e.Locality]++
		if k.everybody || b.fit(i) {
			fit[e.Locality]++
			sums[e.Locality] += float64(e.weight())
		}
	}
	for _, i := range everybody {
		e := &b.hosts.list[i]
		if !k.everybody && !b.fit(i) {
			continue
		}
		w := float64(e.weight())
		if k.byLocality {
			place := b.placeWeight(uint64(min(e.LocalityWeight, maxWeight)), fit[e.Locality], totals[e.Locality])
			w = w / sums[e.Locality] * float64(place)
		}
		if w > 0 {
			sum += w
			out = append(out, share{i, w})
		}
	}
	for i := range out {
		out[i].part /= sum
	}
	return out
}

// fillRing is Envoy's ketama ring: each endpoint has points in proportion to its weight, at the hashes of "key_0", "key_1" …
func (t *table) fillRing(shares []share, k tableKey, key func(uint32) string) {
	least := shares[0].part
	for _, s := range shares {
		least = min(least, s.part)
	}
	scale := min(math.Ceil(least*float64(k.min))/least, float64(k.max))
	t.ring = make([]point, 0, int(math.Ceil(scale)))
	var have, want float64
	var buf []byte
	for _, s := range shares {
		buf = append(append(buf[:0], key(s.host)...), '_')
		prefix := len(buf)
		want += scale * s.part
		for i := int64(0); have < want; i++ {
			buf = strconv.AppendInt(buf[:prefix], i, 10)
			p := point{xxhash.Sum64(buf), s.host}
			if k.murmur {
				p.hash = murmur2(buf)
			}
			t.ring = append(t.ring, p)
			have++
		}
	}
	slices.SortFunc(t.ring, func(a, b point) int { return cmp.Or(cmp.Compare(a.hash, b.hash), cmp.Compare(a.host, b.host)) })
}

// fillMaglev lets the endpoints take places in turn, each in an order of its own, as often as their weights say.
func (t *table) fillMaglev(shares []share, size uint64, key func(uint32) string) {
	type entry struct {
		offset, skip, next uint64
		target             float64
	}
	entries := make([]entry, len(shares))
	var most float64
	for i, s := range shares {
		k := key(s.host)
		seeded := xxhash.NewWithSeed(1)
		_, _ = seeded.WriteString(k) // never an error
		entries[i] = entry{offset: xxhash.Sum64String(k) % size, skip: seeded.Sum64()%(size-1) + 1}
		most = max(most, s.part)
	}
	const free = math.MaxUint32
	t.slots = slices.Repeat([]uint32{free}, int(size))
	for filled, turn := uint64(0), 1.0; filled < size; turn++ {
		for i := range entries {
			e := &entries[i]
			if filled == size {
				break
			}
			if turn*shares[i].part < e.target {
				continue
			}
			e.target += most
			at := (e.offset + e.skip*e.next) % size
			for t.slots[at] != free {
				e.next++
				at = (e.offset + e.skip*e.next) % size
			}
			t.slots[at] = shares[i].host
			e.next++
			filled++
		}
	}
}

// pick is the endpoint of the hash; attempts above 0 give others, and those that are down are stepped over. False: all are down.
func (t *table) pick(hash uint64, attempt int, down bitset) (uint32, bool) {
	if t.hosts == 0 {
		return 0, false
	}
	if t.ring != nil {
		at := sort.Search(len(t.ring), func(i int) bool { return t.ring[i].hash >= hash })
		at += attempt
		for n := range len(t.ring) {
			if p := t.ring[(at+n)%len(t.ring)]; !down.has(p.host) {
				return p.host, true
			}
		}
		return 0, false
	}
	if attempt > 0 {
		hash ^= ^uint64(0) - uint64(attempt) + 1
	}
	size := uint64(len(t.slots))
	at := hash % size
	if h := t.slots[at]; !down.has(h) {
		return h, true
	}
	step := 1 + hash/size%(size-1) // the requests of one that is down are spread over all others
	for range size {
		at = (at + step) % size
		if h := t.slots[at]; !down.has(h) {
			return h, true
		}
	}
	return 0, false
}

// murmur2 is MurmurHash2 for 64 bits with Envoy's seed, that of libstdc++.
func murmur2(key []byte) uint64 {
	const m, seed = 0xc6a4a7935bd1e995, 0xc70f6907
	mix := func(k uint64) uint64 { k *= m; return (k ^ k>>47) * m }
	h := seed ^ uint64(len(key))*m
	for ; len(key) >= 8; key = key[8:] {
		k := uint64(key[0]) | uint64(key[1])<<8 | uint64(key[2])<<16 | uint64(key[3])<<24 | uint64(key[4])<<32 |
			uint64(key[5])<<40 | uint64(key[6])<<48 | uint64(key[7])<<56
		h = (h ^ mix(k)) * m
	}
	if len(key) > 0 {
		var k uint64
		for i := len(key) - 1; i >= 0; i-- {
			k = k<<8 | uint64(key[i])
		}
		h = (h ^ k) * m
	}
	// The end mixes with one multiplication less than each block.
	h = (h ^ h>>47) * m
	return h ^ h>>47
}
