package client

import (
	"cmp"
	"slices"
	"strings"
)

// ownOnly is the export_to of a CallRule that counts in its own namespace alone.
const ownOnly = "~"

// CallRules returns the rules that count when the workload calls the host of a service in the namespace: those of the first
// place that has any for it (SR-17), which are the caller's namespace, the service's and the root namespace; the last two
// only as far as they are exported to the caller, and the root namespace's own only as the last. They have one host, the most
// specific. Either those that select the caller, or those for everybody, the oldest first.
func (s *Snapshot) CallRules(caller *Workload, namespace, host string) []*CallRule {
	if s.rules.size == 0 || caller == nil {
		return nil
	}
	root := s.mesh.GetRootNamespace()
	places := [...]string{caller.GetNamespace(), namespace, root}
	if places[0] == root {
		places[0] = ""
	}
	for i, place := range places {
		if place == "" || slices.Contains(places[:i], place) {
			continue
		}
		if found := s.callRulesIn(place, caller, host); len(found) > 0 {
			return found
		}
	}
	return nil
}

// callRulesIn looks under the host and under the patterns that cover it, the longest first.
func (s *Snapshot) callRulesIn(place string, caller *Workload, host string) []*CallRule {
	if found := countingRules(s.rulesFor.at(name{place, host}), caller); len(found) > 0 {
		return found
	}
	if s.patterns.at(place) == 0 {
		return nil
	}
	for i := 1; i < len(host); i++ { // "*" stands for one character at least
		if found := countingRules(s.rulesFor.at(name{place, "*" + host[i:]}), caller); len(found) > 0 {
			return found
		}
	}
	return countingRules(s.rulesFor.at(name{place, "*"}), caller)
}

func countingRules(all []*CallRule, caller *Workload) []*CallRule {
	var selecting, rest []*CallRule
	for _, r := range all {
		own := r.GetNamespace() == caller.GetNamespace()
		switch to := r.GetExportTo(); {
		case !own && (r.GetSelective() || len(to) > 0 && (to[0] == ownOnly || !slices.Contains(to, caller.GetNamespace()))):
		case !r.GetSelective():
			rest = append(rest, r)
		case slices.Contains(caller.Settings.GetCallRules(), r.GetNamespace()+"/"+r.GetName()):
			selecting = append(selecting, r)
		}
	}
	if len(selecting) > 0 {
		return selecting
	}
	return rest
}

func (b *builder) putRule(r *CallRule) {
	s, at := b.s, name{r.GetNamespace(), r.GetHost()}
	s.rules = s.rules.set(b.edit, r.GetNamespace()+"/"+r.GetName(), r)
	s.rulesFor = s.rulesFor.set(b.edit, at, insert(s.rulesFor.at(at), r, byAge))
	b.countPattern(at, 1)
}

func (b *builder) removeRule(key string) {
	s := b.s
	r := s.rules.at(key)
	if r == nil {
		return
	}
	at := name{r.GetNamespace(), r.GetHost()}
	s.rules = s.rules.delete(b.edit, key)
	s.rulesFor = put(s.rulesFor, b.edit, at, drop(s.rulesFor.at(at), r))
	b.countPattern(at, -1)
}

func (b *builder) countPattern(at name, change int) {
	if strings.HasPrefix(at.name, "*") {
		b.s.patterns = b.s.patterns.set(b.edit, at.namespace, b.s.patterns.at(at.namespace)+change)
	}
}

// byAge orders rules of one namespace.
func byAge(a, b *CallRule) int {
	return cmp.Or(a.GetCreated().AsTime().Compare(b.GetCreated().AsTime()), strings.Compare(a.GetName(), b.GetName()))
}
