package cluster

import (
	"encoding/binary"
	"hash/maphash"
	"runtime"
	"slices"
	"sync"
	"weak"
)

// Lists makes equal lists of endpoints one: the source workloads of a node mostly see the same. A list is forgotten when no
// cluster has it any more. The zero value is ready; safe for concurrent use.
type Lists struct {
	mu   sync.Mutex // protects below
	seed maphash.Seed
	all  map[uint64]weak.Pointer[Hosts]
}

// Hosts returns the hosts of the endpoints, of which it takes possession, for callers of the origin. Their Values must be
// comparable.
func (l *Lists) Hosts(o Origin, list []Endpoint) *Hosts {
	h := NewHostsFrom(o, list)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all == nil {
		l.seed, l.all = maphash.MakeSeed(), map[uint64]weak.Pointer[Hosts]{}
	}
	key := h.sum(l.seed)
	if old := l.all[key].Value(); old != nil {
		if slices.Equal(old.list, h.list) && old.origin.equal(h.origin) {
			return old
		}
		return h // another list of the same sum is kept already
	}
	l.all[key] = weak.Make(h)
	runtime.AddCleanup(h, l.drop, key)
	return h
}

func (l *Lists) drop(key uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all[key].Value() == nil {
		delete(l.all, key)
	}
}

// sum is a hash of what tells lists apart mostly; equal lists have the same.
func (h *Hosts) sum(seed maphash.Seed) uint64 {
	var m maphash.Hash
	m.SetSeed(seed)
	var n [16]byte
	_, _ = m.WriteString(h.origin.Local.Zone) // never an error
	_, _ = m.WriteString(h.origin.Local.SubZone)
	for _, p := range h.origin.places {
		binary.LittleEndian.PutUint64(n[:], p.count)
		_, _ = m.Write(n[:8])
	}
	for i := range h.list {
		e := &h.list[i]
		_, _ = m.WriteString(e.Key)
		flags := e.Weight << 2
		if e.Healthy {
			flags |= 1
		}
		if e.Draining {
			flags |= 2
		}
		binary.LittleEndian.PutUint32(n[:], flags)
		binary.LittleEndian.PutUint32(n[4:], e.Priority)
		binary.LittleEndian.PutUint64(n[8:], uint64(e.Since.UnixNano()))
		_, _ = m.Write(n[:])
	}
	return m.Sum64()
}
