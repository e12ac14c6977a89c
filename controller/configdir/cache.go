package configdir

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// cache remembers what each file held, so that unchanged files cost a comparison and keep their objects' addresses.
type cache struct {
	files  map[string]*file
	ghosts map[string]*ghost
	merged map[Key]*merged
}

type file struct {
	data     string
	docs     []*document // the last good state
	problems []Problem   // of the present content
	overlay  bool
	changed  bool // by the last update
}

// hides reports whether the present content is not what is served.
func (f *file) hides() bool {
	return slices.ContainsFunc(f.problems, func(p Problem) bool { return !p.Carried })
}

// merged is an entry made of a document and the overlays on it.
type merged struct {
	base     *document
	overlays []*document
	entry    *Entry
	problem  *Problem
}

func newCache() *cache {
	return &cache{files: map[string]*file{}, ghosts: map[string]*ghost{}, merged: map[Key]*merged{}}
}

// update makes the view of the files. Files that cannot be read or parsed keep their last good documents.
func (c *cache) update(raw []rawFile) *View {
	view := &View{entries: map[Key]*Entry{}}
	var bases, overlays []*document
	for _, f := range c.files {
		f.changed = false
	}
	present := map[string]bool{}
	for _, r := range raw {
		present[r.path] = true
		f := c.read(r)
		view.Problems = append(view.Problems, f.problems...)
		if r.overlay {
			overlays = append(overlays, f.docs...)
		} else {
			bases = append(bases, f.docs...)
		}
	}
	c.bury(present)
	c.merge(view, bases, c.haunt(view), overlays)
	view.keys = slices.SortedFunc(maps.Keys(view.entries), compareKeys)
	return view
}

func (c *cache) read(r rawFile) *file {
	f := c.files[r.path]
	if f == nil {
		f = &file{overlay: r.overlay}
		if g := c.ghosts[r.path]; g != nil { // it is back: what it held is its last good state again
			f.docs = g.docs
			delete(c.ghosts, r.path)
		}
		c.files[r.path] = f
	} else if r.err == nil && f.data == r.data {
		return f
	}
	f.changed = true
	if r.err != nil {
		f.data, f.problems = "", []Problem{{File: r.path, Message: "read file: " + r.err.Error()}}
		return f
	}
	docs, problems := parseFile(r)
	if len(f.docs) > 0 && strings.TrimSpace(r.data) == "" {
		// Editors empty a file before they fill it: policies must not be gone meanwhile.
		problems = []Problem{{File: r.path, Message: "is empty; what it held is served until the file is removed"}}
	}
	f.data, f.problems = r.data, problems
	if !f.hides() {
		f.docs = docs
	}
	return f
}

// merge chooses one document for each object. Of several the one whose file was served before counts: a file that is added
// must not replace a policy unseen. The ghosts' documents count for objects that no file defines.
func (c *cache) merge(view *View, bases, ghosts, overlays []*document) {
	byKey := map[Key][]*document{}
	for _, o := range overlays {
		byKey[o.entry.Key] = append(byKey[o.entry.Key], o)
	}
	chosen := map[Key]*document{}
	for _, b := range bases {
		k := b.entry.Key
		if old := c.merged[k]; chosen[k] == nil || (old != nil && old.base.file == b.file) {
			chosen[k] = b
		}
	}
	for _, b := range bases {
		k := b.entry.Key
		if other := chosen[k]; other != b {
			view.Problems = append(view.Problems, Problem{File: b.file, Document: b.index, Object: k.String(),
				Message: fmt.Sprintf("object is defined already in file %s, document %d, which is served", other.file, other.index)})
		}
	}
	for _, g := range ghosts {
		if k := g.entry.Key; chosen[k] == nil {
			chosen[k] = g
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(chosen), compareKeys) {
		b, m := chosen[k], c.merged[k]
		if m == nil || m.base != b || !slices.Equal(m.overlays, byKey[k]) {
			m = mergeDocuments(b, byKey[k], m)
			c.merged[k] = m
		}
		view.entries[k] = m.entry
		if m.problem != nil {
			view.Problems = append(view.Problems, *m.problem)
		}
	}
	maps.DeleteFunc(c.merged, func(k Key, _ *merged) bool { return chosen[k] == nil })
}
