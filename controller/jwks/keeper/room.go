package keeper

import (
	"cmp"
	"slices"
	"strings"

	"github.com/undermesh/undermesh/controller/jwks"
)

// taken is what the record of one source takes of the room.
type taken struct {
	source, owner string
	size          int
	fresh         bool // not stored yet
}

// fits reports whether there is room for a record, which it has from then on. Where the room is not enough for all, other
// records lose theirs for it: they are looked at anew, those under way when they are done. A record that finds no room takes
// none from anybody.
func (k *Keeper) fits(r jwks.Record) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	room := k.cfg.MaxStored
	var all []taken
	for s, st := range k.sources {
		switch {
		case s == r.Source:
			all = append(all, taken{s, st.owner, jwks.Size(r), true})
		case st.wanted:
			all = append(all, taken{s, st.owner, st.size, false})
		default:
			room -= st.size // until it is removed
		}
	}
	without := tooMuch(all, room)
	if slices.Contains(without, r.Source) {
		return false
	}
	k.sources[r.Source].size = jwks.Size(r)
	for _, s := range without {
		k.sources[s].displaced = true
	}
	k.signal()
	return true
}

// shrink takes the room of a record that has lost its keys: an error's, which everybody has.
func (k *Keeper) shrink(r jwks.Record) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.sources[r.Source].size = jwks.Size(r)
}

// tooMuch returns the sources for which there is no room. Room is shared fairly between the owners: none has less than another
// one that has more than it needs. Within an owner the largest go, of equal ones the newest.
func tooMuch(all []taken, room int) (sources []string) {
	need := map[string]int{}
	for _, t := range all {
		need[t.owner] += t.size
	}
	level := fairShare(need, room)
	slices.SortFunc(all, func(a, b taken) int {
		if a.size == b.size && a.fresh != b.fresh {
			return map[bool]int{true: 1, false: -1}[a.fresh]
		}
		return cmp.Or(a.size-b.size, strings.Compare(a.source, b.source))
	})
	given := map[string]int{}
	for _, t := range all {
		if given[t.owner] += t.size; given[t.owner] > level && t.size > 0 {
			sources = append(sources, t.source)
		}
	}
	return sources
}

// fairShare is the most that an owner may have so that all together have no more than the room.
func fairShare(need map[string]int, room int) int {
	var sizes []int
	for _, n := range need {
		sizes = append(sizes, n)
	}
	slices.Sort(sizes)
	for i, n := range sizes {
		share := room / (len(sizes) - i)
		if n > share {
			return max(0, share)
		}
		room -= n
	}
	if len(sizes) == 0 {
		return 0
	}
	return sizes[len(sizes)-1]
}
