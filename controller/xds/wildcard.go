package xds

import "slices"

// nameSet is names and aliases that a client asked for.
type nameSet map[string]struct{}

// cover reports whether they ask for the resource: by its name, an alias, or a group that it is a member of.
func (s nameSet) cover(e *entry) bool {
	asked := func(n string) bool { _, ok := s[n]; return ok }
	return asked(e.name) || slices.ContainsFunc(e.aliases, asked) || slices.ContainsFunc(e.groups, asked)
}

// hold takes down that an on-demand client has a resource from an earlier stream. It is subscribed to it, by name where it
// says nothing else: the protocol's clients do not repeat what they asked for.
func (sub *subscription) hold(e *entry) {
	sub.sent[e.name] = struct{}{}
	if !sub.names.cover(e) {
		sub.names[e.name] = struct{}{}
		sub.nameBytes += len(e.name)
	}
}

// joinAll answers a client that had asked for some by name and takes everything from now on: what it has of that is not
// kept track of under a wildcard, so it is sent again.
func (l *log) joinAll(pos uint64, d *delta) {
	l.since(pos, d) // what was removed
	d.upserts = l.all(d.short)
	clear(d.sub.sent)
}

// leaveAll is for a client that had everything up to the position and follows what it asked for by name from now on: that
// is what it keeps. What changed after the position may have had another alias in the client's form.
func (l *log) leaveAll(pos uint64, sub *subscription) {
	clear(sub.sent)
	for n := range sub.names {
		if e := l.entries[n]; e != nil && e.short != nil {
			sub.sent[n] = struct{}{}
		}
		for _, e := range l.aliases[n].sorted() {
			sub.sent[e.name] = struct{}{}
		}
	}
	for _, root := range []*entry{&l.live, &l.gone} {
		for e := root.prev; e != root && e.seq > pos; e = e.prev {
			sub.sent[e.name] = struct{}{}
		}
	}
}

// drop ends what an on-demand client followed by aliases alone that its last request ended.
func (s *Store) drop(sub *subscription) {
	dropped := sub.dropped
	if sub.dropped = nil; len(sub.sent) == 0 || len(dropped) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.logLocked(sub.typ)
	for _, n := range dropped {
		for _, e := range l.aliases[n].sorted() {
			if !sub.names.cover(e) {
				delete(sub.sent, e.name)
			}
		}
	}
}
