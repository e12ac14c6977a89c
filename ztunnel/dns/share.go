package dns

import (
	"iter"
	"maps"
	"slices"
)

// share picks at most limit of the names. Their owners take turns, each with its names in order of the alphabet, so that who
// has many takes none from who has few; what another owner has already costs no turn. names counts all, each once, and most
// is the owner with the most.
func share(all iter.Seq2[string, string], limit int) (want map[string]bool, names int, most string) {
	lists, distinct := map[string][]string{}, map[string]bool{}
	for owner, name := range all {
		name = canonical(name)
		distinct[name] = true
		lists[owner] = append(lists[owner], name)
	}
	if len(distinct) <= limit {
		return distinct, len(distinct), ""
	}
	owners := slices.Sorted(maps.Keys(lists))
	for _, o := range owners {
		slices.Sort(lists[o])
		lists[o] = slices.Compact(lists[o])
		if most == "" || len(lists[o]) > len(lists[most]) {
			most = o
		}
	}
	want = make(map[string]bool, limit)
	for len(want) < limit { // ends: there are more names than that
		for _, o := range owners {
			list := lists[o]
			for len(list) > 0 && want[list[0]] {
				list = list[1:]
			}
			if len(list) > 0 && len(want) < limit {
				want[list[0]] = true
				list = list[1:]
			}
			lists[o] = list
		}
	}
	return want, len(distinct), most
}
