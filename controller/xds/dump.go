package xds

import (
	"slices"
	"strings"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// Dump returns what the store serves of a type now, in full, sorted by name, and the generation that it is of. It costs as
// much as a client that asks for everything; the caller decides who may.
func (s *Store) Dump(typ string) (generation uint64, all []*discovery.Resource) {
	s.mu.Lock()
	generation = s.generation
	if l := s.logs[typ]; l != nil {
		for e := l.live.next; e != &l.live; e = e.next {
			all = append(all, &discovery.Resource{Name: e.name, Aliases: e.aliases, Version: e.short.GetVersion(), Resource: e.short.GetResource()})
		}
	}
	s.mu.Unlock()
	for _, r := range all { // what the store holds is never modified
		r.Resource = &anypb.Any{TypeUrl: typ, Value: inFull(typ, r.GetName(), r.GetResource().GetValue())}
	}
	slices.SortFunc(all, func(a, b *discovery.Resource) int { return strings.Compare(a.GetName(), b.GetName()) })
	return generation, all
}
