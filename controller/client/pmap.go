package client

import (
	"hash/maphash"
	"iter"
	"math/bits"
	"slices"
)

// pmap is a persistent hash map (a hash array mapped trie): set and delete return a new map in O(log n) and share all
// but one path with the old one. A value is safe for concurrent readers; the zero value is not usable, see newPmap.
type pmap[K comparable, V any] struct {
	seed maphash.Seed
	root *trie[K, V]
	size int
}

// owner marks the nodes that one edit made: that edit alone may change them in place.
type owner struct{ _ byte }

const (
	trieBits = 5
	trieMax  = 60 // from this shift on a node is a plain list of colliding keys
)

type trie[K comparable, V any] struct {
	edit   *owner
	bitmap uint32
	slots  []slot[K, V]
}

// slot is a child, or one entry when child is nil.
type slot[K comparable, V any] struct {
	child *trie[K, V]
	hash  uint64
	key   K
	val   V
}

func newPmap[K comparable, V any](seed maphash.Seed) pmap[K, V] { return pmap[K, V]{seed: seed} }

func (m pmap[K, V]) get(k K) (V, bool) {
	var zero V
	if m.root == nil {
		return zero, false
	}
	h := maphash.Comparable(m.seed, k)
	n := m.root
	for shift := uint(0); ; shift += trieBits {
		if shift >= trieMax {
			if i := n.collision(k); i >= 0 {
				return n.slots[i].val, true
			}
			return zero, false
		}
		bit := uint32(1) << (h >> shift & 31)
		if n.bitmap&bit == 0 {
			return zero, false
		}
		s := &n.slots[bits.OnesCount32(n.bitmap&(bit-1))]
		if s.child == nil {
			if s.hash == h && s.key == k {
				return s.val, true
			}
			return zero, false
		}
		n = s.child
	}
}

// at is get without the flag: the zero value when k is not there.
func (m pmap[K, V]) at(k K) V {
	v, _ := m.get(k)
	return v
}

func (m pmap[K, V]) set(e *owner, k K, v V) pmap[K, V] {
	h := maphash.Comparable(m.seed, k)
	if m.root == nil {
		m.root = &trie[K, V]{edit: e}
	}
	var added bool
	m.root, added = m.root.set(e, 0, slot[K, V]{hash: h, key: k, val: v})
	if added {
		m.size++
	}
	return m
}

func (m pmap[K, V]) delete(e *owner, k K) pmap[K, V] {
	if _, ok := m.get(k); !ok {
		return m
	}
	m.root = m.root.delete(e, 0, maphash.Comparable(m.seed, k), k)
	m.size--
	return m
}

// all visits every entry, in no order.
func (m pmap[K, V]) all() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		if m.root != nil {
			m.root.visit(yield)
		}
	}
}

func (n *trie[K, V]) visit(yield func(K, V) bool) bool {
	for i := range n.slots {
		s := &n.slots[i]
		if s.child != nil {
			if !s.child.visit(yield) {
				return false
			}
		} else if !yield(s.key, s.val) {
			return false
		}
	}
	return true
}

func (n *trie[K, V]) collision(k K) int {
	return slices.IndexFunc(n.slots, func(s slot[K, V]) bool { return s.key == k })
}

func (n *trie[K, V]) editable(e *owner) *trie[K, V] {
	if n.edit == e {
		return n
	}
	return &trie[K, V]{edit: e, bitmap: n.bitmap, slots: slices.Clone(n.slots)}
}

func (n *trie[K, V]) set(e *owner, shift uint, s slot[K, V]) (*trie[K, V], bool) {
	n = n.editable(e)
	if shift >= trieMax {
		if i := n.collision(s.key); i >= 0 {
			n.slots[i] = s
			return n, false
		}
		n.slots = append(n.slots, s)
		return n, true
	}
	bit := uint32(1) << (s.hash >> shift & 31)
	i := bits.OnesCount32(n.bitmap & (bit - 1))
	if n.bitmap&bit == 0 {
		n.bitmap |= bit
		n.slots = slices.Insert(n.slots, i, s)
		return n, true
	}
	old := n.slots[i]
	switch {
	case old.child != nil:
		child, added := old.child.set(e, shift+trieBits, s)
		n.slots[i] = slot[K, V]{child: child}
		return n, added
	case old.key == s.key:
		n.slots[i] = s
		return n, false
	}
	child, _ := (&trie[K, V]{edit: e}).set(e, shift+trieBits, old)
	child, _ = child.set(e, shift+trieBits, s)
	n.slots[i] = slot[K, V]{child: child}
	return n, true
}

// delete removes k, which is there; it returns nil when the node became empty.
func (n *trie[K, V]) delete(e *owner, shift uint, h uint64, k K) *trie[K, V] {
	n = n.editable(e)
	bit, i := uint32(0), 0
	if shift >= trieMax {
		i = n.collision(k)
	} else {
		bit = uint32(1) << (h >> shift & 31)
		i = bits.OnesCount32(n.bitmap & (bit - 1))
		if child := n.slots[i].child; child != nil {
			child = child.delete(e, shift+trieBits, h, k)
			switch {
			case child == nil: // falls through to the removal of the slot
			case len(child.slots) == 1 && child.slots[0].child == nil:
				n.slots[i] = child.slots[0]
				return n
			default:
				n.slots[i] = slot[K, V]{child: child}
				return n
			}
		}
	}
	n.bitmap &^= bit
	n.slots = slices.Delete(n.slots, i, i+1)
	if len(n.slots) == 0 {
		return nil
	}
	return n
}
