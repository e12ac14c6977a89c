package cluster

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Locality is where an endpoint is.
type Locality struct{ Region, Zone, SubZone string }

// Endpoint is one member of a cluster.
type Endpoint struct {
	Key      string         // tells endpoints apart: a pod made anew has another; unique in a list
	Addr     netip.AddrPort // where it is; also what hash rings are made of, as Envoy writes it
	Hostname string         // hashed in place of Addr where the cluster says so; resolved by who dials when Addr is invalid
	Weight   uint32         // of load among those of its locality; 0 means 1
	Locality Locality
	// LocalityWeight is the share of the locality in its priority, the same for all of its endpoints. It counts only in
	// clusters with locality weighted load balancing, where 0 means no load at all.
	LocalityWeight uint32
	Priority       uint32    // 0 is the first; see Spec on when the next is used
	Healthy        bool      // false: only in a panic
	Draining       bool      // terminating: nothing new, unless all are; then they count as healthy
	Since          time.Time // when it joined, for slow start; zero: before everybody else
	Value          any       // the caller's; not looked at
}

// maxWeight bounds a weight so that the sum of any list fits 64 bits with room for scaling.
const maxWeight = 1 << 24

func (e *Endpoint) weight() uint64 { return uint64(min(max(e.Weight, 1), maxWeight)) }

// Hosts is an immutable list of endpoints with what choosing among them needs. One is to be shared by all clusters of a node
// that have the same endpoints. Safe for concurrent use.
type Hosts struct {
	list   []Endpoint // by priority, locality, key
	byKey  map[string]int
	origin Origin

	mu     sync.Mutex // protects below
	views  map[*Spec]*view
	tables map[tableKey]*table
}

// NewHosts makes a list of the endpoints, of which it takes possession, for callers that know of no place. Of endpoints with one
// key the last counts.
func NewHosts(list []Endpoint) *Hosts { return NewHostsFrom(Origin{}, list) }

// NewHostsFrom is NewHosts for callers of the origin.
func NewHostsFrom(o Origin, list []Endpoint) *Hosts {
	slices.SortStableFunc(list, func(a, b Endpoint) int {
		return cmp.Or(cmp.Compare(a.Priority, b.Priority), a.Locality.compare(b.Locality), cmp.Compare(a.Key, b.Key))
	})
	last := make(map[string]int, len(list))
	for i := range list {
		last[list[i].Key] = i
	}
	if len(last) < len(list) {
		kept := list[:0]
		for i := range list {
			if last[list[i].Key] == i {
				kept = append(kept, list[i])
			}
		}
		clear(list[len(kept):])
		list = kept
		for i := range list {
			last[list[i].Key] = i
		}
	}
	return &Hosts{list: list, byKey: last, origin: o}
}

func (l Locality) compare(m Locality) int {
	return cmp.Or(cmp.Compare(l.Region, m.Region), cmp.Compare(l.Zone, m.Zone), cmp.Compare(l.SubZone, m.SubZone))
}

// Len is how many endpoints there are.
func (h *Hosts) Len() int { return len(h.list) }

// Endpoint returns the i-th endpoint, in order of priority, locality and key. It must not be changed.
func (h *Hosts) Endpoint(i int) *Endpoint { return &h.list[i] }

// allDraining reports whether nothing but draining endpoints is left, which then serve until they are gone.
func (h *Hosts) allDraining() bool {
	return !slices.ContainsFunc(h.list, func(e Endpoint) bool { return !e.Draining })
}
