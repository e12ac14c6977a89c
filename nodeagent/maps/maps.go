// Package maps brings BPF hash maps to a desired content: Update, Delete, Prune, idempotent and safe to repeat.
package maps

import (
	"errors"
	"fmt"
	"maps"

	"github.com/cilium/ebpf"
)

// Table is a BPF hash or LPM map with keys K and values V, both of fixed size without pointers. Safe for concurrent use
// as far as the kernel's map is: single operations are atomic, Sync is not.
type Table[K, V comparable] struct {
	name string
	m    *ebpf.Map
}

// NewTable wraps m; name appears in errors. m stays the caller's to close.
func NewTable[K, V comparable](name string, m *ebpf.Map) Table[K, V] {
	return Table[K, V]{name: name, m: m}
}

// Lookup gives the value of k and whether there is one.
func (t Table[K, V]) Lookup(k K) (V, bool, error) {
	var v V
	err := t.m.Lookup(k, &v)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return v, false, nil
	}
	if err != nil {
		return v, false, fmt.Errorf("look up %v in map %s: %w", k, t.name, err)
	}
	return v, true, nil
}

// Update writes one entry, new or not.
func (t Table[K, V]) Update(k K, v V) error {
	if err := t.m.Put(k, v); err != nil {
		return fmt.Errorf("write %v to map %s: %w", k, t.name, err)
	}
	return nil
}

// Delete removes one entry; an absent one is no error.
func (t Table[K, V]) Delete(k K) error {
	if err := t.m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete %v from map %s: %w", k, t.name, err)
	}
	return nil
}

// All reads every entry. Entries that come or go meanwhile may be missed.
func (t Table[K, V]) All() (map[K]V, error) {
	return t.Select(func(K) bool { return true })
}

// Select reads the entries whose key is wanted, as All.
func (t Table[K, V]) Select(want func(K) bool) (map[K]V, error) {
	all := map[K]V{}
	var k K
	var v V
	it := t.m.Iterate()
	for it.Next(&k, &v) {
		if want(k) {
			all[k] = v
		}
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("list map %s: %w", t.name, err)
	}
	return all, nil
}

// Prune deletes the entries for which keep is false and returns how many.
func (t Table[K, V]) Prune(keep func(K, V) bool) (int, error) {
	all, err := t.All()
	if err != nil {
		return 0, err
	}
	n := 0
	for k, v := range all {
		if keep(k, v) {
			continue
		}
		if err := t.Delete(k); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// Pending is what a map may hold from the start of Apply(current, desired) until it succeeded: the keys of both. A value
// that Apply writes is the zero value here, which must be no entry's, so that a later Apply writes it again.
func Pending[K, V comparable](current, desired map[K]V) map[K]V {
	all := maps.Clone(current)
	if all == nil {
		all = map[K]V{}
	}
	for k, v := range desired {
		if old, ok := current[k]; !ok || old != v {
			var unknown V
			all[k] = unknown
		}
	}
	return all
}

// Apply makes current into desired: first it writes what is new or different, then it deletes what is no longer wanted,
// so that no wanted entry is ever missing. The map is not listed; entries of neither are left alone. Returns the number
// of entries written and deleted.
func (t Table[K, V]) Apply(current, desired map[K]V) (written, deleted int, err error) {
	for k, v := range desired {
		if old, ok := current[k]; ok && old == v {
			continue
		}
		if err := t.Update(k, v); err != nil {
			return written, deleted, err
		}
		written++
	}
	for k := range current {
		if _, ok := desired[k]; ok {
			continue
		}
		if err := t.Delete(k); err != nil {
			return written, deleted, err
		}
		deleted++
	}
	return written, deleted, nil
}
