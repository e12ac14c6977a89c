package configdir

import (
	"maps"
	"slices"
	"strings"
)

// ghost is what a file held that is gone while another file is not understood: it may have been renamed, and its policies
// must not go with its name. Only policies are kept.
type ghost struct {
	docs     []*document
	suspects map[string]bool // files whose content may be the one that is gone
}

// policies returns the documents that are policies.
func policies(docs []*document) []*document {
	var all []*document
	for _, d := range docs {
		if d.entry.Key.Group == securityGroup {
			all = append(all, d)
		}
	}
	return all
}

// loses reports whether a file with policies that the cache knows is not among the files.
func (c *cache) loses(raw []rawFile) bool {
	present := map[string]bool{}
	for _, r := range raw {
		present[r.path] = true
	}
	for path, f := range c.files {
		if !f.overlay && !present[path] && len(policies(f.docs)) > 0 {
			return true
		}
	}
	return false
}

// bury forgets the files that are gone, but for the policies of those that may be in a file which is not understood, and
// lets go of policies when no such file is left.
func (c *cache) bury(present map[string]bool) {
	suspects := map[string]bool{}
	for path, f := range c.files {
		// A file that was understood once, and whose content is not new, hides only what it held itself.
		if present[path] && !f.overlay && f.hides() && (f.changed || len(f.docs) == 0) {
			suspects[path] = true
		}
	}
	for path, g := range c.ghosts {
		moved := false
		for at := range g.suspects {
			moved = moved || !present[at]
		}
		maps.DeleteFunc(g.suspects, func(at string, _ bool) bool { return !present[at] || !c.files[at].hides() })
		if moved {
			maps.Copy(g.suspects, suspects)
		}
		if len(g.suspects) == 0 {
			delete(c.ghosts, path)
		}
	}
	for path, f := range c.files {
		if present[path] {
			continue
		}
		delete(c.files, path)
		if docs := policies(f.docs); !f.overlay && len(docs) > 0 && len(suspects) > 0 {
			c.ghosts[path] = &ghost{docs: docs, suspects: maps.Clone(suspects)}
		}
	}
}

// haunt returns the documents of the ghosts and says in the view why they are served.
func (c *cache) haunt(view *View) []*document {
	var docs []*document
	for _, path := range slices.Sorted(maps.Keys(c.ghosts)) {
		g := c.ghosts[path]
		docs = append(docs, g.docs...)
		view.Problems = append(view.Problems, Problem{File: path, Message: "is gone; its policies are served while this is not understood: file " +
			strings.Join(slices.Sorted(maps.Keys(g.suspects)), ", file ")})
	}
	return docs
}
