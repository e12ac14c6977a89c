package model

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"
)

// Limits of the labels that rules ask about of workloads wherever they are. Each makes all workloads that have it be sent again, and
// a rule of any namespace may ask.
const (
	// MostLabels is how many there are in the mesh, those of its configuration among them.
	MostLabels = 256
	// MostLabelsOf is how many the rules of one namespace are the first to ask about.
	MostLabelsOf = 16
)

// asker is an object that asks about labels.
type asker struct {
	kind Kind
	name Name
}

// asking is what an object asks about of workloads wherever they are.
type asking struct {
	created time.Time
	wide    []labelUse // sorted
}

// ask takes in what the object asks about now.
func (x *labelKeys) ask(who asker, created time.Time, now uses) {
	var wide []labelUse
	for u := range now {
		if u.wide() {
			wide = append(wide, u)
		}
	}
	slices.SortFunc(wide, compareUses)
	was, asked := x.askers[who]
	switch {
	case len(wide) == 0 && !asked, asked && slices.Equal(was.wide, wide) && was.created.Equal(created):
		return
	case len(wide) == 0:
		delete(x.askers, who)
	default:
		x.askers[who] = asking{created, wide}
	}
	x.stale = true
}

func compareUses(a, b labelUse) int {
	return cmp.Or(strings.Compare(a.host, b.host), strings.Compare(a.key, b.key))
}

// admit says which labels travel: all that the mesh asks about, and of the rules the oldest first, as many as the limits allow. What
// one asks about is there for all. It is a function of the askers alone, so that all replicas say the same.
func (x *labelKeys) admit() map[labelUse]bool {
	order := slices.SortedFunc(maps.Keys(x.askers), func(a, b asker) int {
		if mesh := cmp.Compare(rankOf(a), rankOf(b)); mesh != 0 {
			return mesh
		}
		s, t := x.askers[a].created, x.askers[b].created
		return cmp.Or(s.Compare(t), strings.Compare(a.name.String(), b.name.String()), strings.Compare(string(a.kind), string(b.kind)))
	})
	out := map[labelUse]bool{}
	first := map[string]int{}
	for _, who := range order {
		trusted := rankOf(who) == 0
		for _, u := range x.askers[who].wide {
			if out[u] || !trusted && (len(out) >= MostLabels || first[who.name.Namespace] >= MostLabelsOf) {
				continue
			}
			out[u] = true
			if !trusted {
				first[who.name.Namespace]++
			}
		}
	}
	return out
}

// rankOf puts the mesh's configuration first.
func rankOf(who asker) int {
	if who.kind == KindConfigMap {
		return 0
	}
	return 1
}

// settleLabels admits labels, and marks the workloads whose labels travel or cease to, and the rules that ask about these.
func (r *Registry) settleLabels(d *Dirty) {
	x := &r.traffic.labels
	if !x.stale {
		return
	}
	x.stale = false
	was, now := x.wide, x.admit()
	x.wide = now
	changed := map[labelUse]bool{}
	for u := range was {
		if !now[u] {
			changed[u] = true
			x.key(u.key, -1)
		}
	}
	for u := range now {
		if !was[u] {
			changed[u] = true
			x.key(u.key, 1)
		}
	}
	if len(changed) == 0 {
		return
	}
	for u := range changed {
		r.dirtyBehind(u, d)
	}
	for who, a := range x.askers {
		if !slices.ContainsFunc(a.wide, func(u labelUse) bool { return changed[u] }) {
			continue
		}
		switch who.kind {
		case KindVirtualService:
			d.Virtual[who.name] = true
			mark(d.Virtual, r.traffic.roots[who.name])
		case KindDestinationRule:
			d.Rules[who.name] = true
		}
	}
}

// CallerLabel reports whether nodes know the label of every caller.
func (r *Registry) CallerLabel(key string) bool { return r.traffic.labels.wide[labelUse{"", key}] }

// RefusedLabels are the fields of a DestinationRule that name labels which do not travel, since others have used the limits up; sorted.
func (r *Registry) RefusedLabels(rule *DestinationRule) []string {
	var out []string
	for u, field := range usesOf(rule) {
		if u.wide() && !r.traffic.labels.wide[u] {
			out = append(out, field)
		}
	}
	slices.Sort(out)
	return out
}
