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
	merged map[Key]*merged
}

type file struct {
	data     string
	docs     []*document // the last good state
	problems []Problem   // of the present content
}

// merged is an entry made of a document and the overlays on it.
type merged struct {
	base     *document
	overlays []*document
	entry    *Entry
	problem  *Problem
}

func newCache() *cache {
	return &cache{files: map[string]*file{}, merged: map[Key]*merged{}}
}

// update makes the view of the files. Files that cannot be read or parsed keep their last good documents.
func (c *cache) update(raw []rawFile) *View {
	present := map[string]bool{}
	view := &View{entries: map[Key]*Entry{}}
	var bases, overlays []*document
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
	maps.DeleteFunc(c.files, func(path string, _ *file) bool { return !present[path] })
	c.merge(view, bases, overlays)
	view.keys = slices.SortedFunc(maps.Keys(view.entries), compareKeys)
	return view
}

func (c *cache) read(r rawFile) *file {
	f := c.files[r.path]
	if f == nil {
		f = &file{}
		c.files[r.path] = f
	} else if r.err == nil && f.data == r.data {
		return f
	}
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
	if !slices.ContainsFunc(problems, func(p Problem) bool { return !p.Carried }) {
		f.docs = docs
	}
	return f
}

func (c *cache) merge(view *View, bases, overlays []*document) {
	byKey := map[Key][]*document{}
	for _, o := range overlays {
		byKey[o.entry.Key] = append(byKey[o.entry.Key], o)
	}
	first := map[Key]*document{}
	for _, b := range bases {
		k := b.entry.Key
		if other := first[k]; other != nil {
			view.Problems = append(view.Problems, Problem{File: b.file, Document: b.index, Object: k.String(),
				Message: fmt.Sprintf("object is defined already in file %s, document %d", other.file, other.index)})
			continue
		}
		first[k] = b
		m := c.merged[k]
		if m == nil || m.base != b || !slices.Equal(m.overlays, byKey[k]) {
			m = mergeDocuments(b, byKey[k], m)
			c.merged[k] = m
		}
		view.entries[k] = m.entry
		if m.problem != nil {
			view.Problems = append(view.Problems, *m.problem)
		}
	}
	maps.DeleteFunc(c.merged, func(k Key, _ *merged) bool { return first[k] == nil })
}
