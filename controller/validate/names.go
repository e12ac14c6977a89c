package validate

import (
	"iter"
	"strings"
)

// names is something that is known by names of hosts, of which some are wildcards. It is asked for what covers a name, and
// looks at the name only, not at everything it has.
type names[T any] struct {
	exact map[string][]T // by name in lower case, wildcards too
	wild  map[string][]T // wildcards, by what follows "*"
}

func newNames[T any]() *names[T] { return &names[T]{exact: map[string][]T{}, wild: map[string][]T{}} }

func (n *names[T]) add(name string, x T) {
	name = strings.ToLower(name)
	n.exact[name] = append(n.exact[name], x)
	if suffix, ok := strings.CutPrefix(name, "*"); ok {
		n.wild[suffix] = append(n.wild[suffix], x)
	}
}

// covering yields what has a name that covers this one, grouped by the name: the same name first, then the longest wildcard.
func (n *names[T]) covering(name string) iter.Seq[[]T] {
	return func(yield func([]T) bool) {
		const longest = 512 // no host has such a name
		name = strings.ToLower(name)
		if same := n.exact[name]; len(same) > 0 && !yield(same) {
			return
		}
		if len(n.wild) == 0 {
			return
		}
		for i := max(0, len(name)-longest); i <= len(name); i++ {
			if i == 1 && name[0] == '*' {
				continue // the same name
			}
			if group := n.wild[name[i:]]; len(group) > 0 && !yield(group) {
				return
			}
		}
	}
}

// covers says whether something has a name that covers this one.
func (n *names[T]) covers(name string) bool {
	for range n.covering(name) {
		return true
	}
	return false
}
