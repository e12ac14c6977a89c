package validate

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"
)

// errStopped says that nobody waits for a judgement any more.
var errStopped = errors.New("was not checked to its end, because it was told to stop")

// effort bounds the work of one judgement: it is over when its steps are used up, or when its context ends. A step is about
// as much as reading one node, or comparing two names.
type effort struct {
	done    <-chan struct{} // of the context; nil never ends
	left    int             // steps
	guesses int             // comparisons left for finding out what was meant: a hint is worth less than an answer
	since   int             // steps since done was looked at
	stopped bool
}

// newEffort allows as many steps until done, which may be nil.
func newEffort(done <-chan struct{}, steps int) *effort {
	return &effort{done: done, left: steps, guesses: 200_000}
}

// fileEffort is the effort for a text of that size: a node has two bytes at least.
func fileEffort(done <-chan struct{}, size int) *effort { return newEffort(done, size+100_000) }

// spend takes steps; false says that it is over.
func (e *effort) spend(n int) bool {
	const often = 4096
	e.left -= n
	if e.since += n; e.since >= often {
		e.since = 0
		e.stop()
	}
	return e.left >= 0 && !e.stopped
}

// stop says whether the context has ended.
func (e *effort) stop() bool {
	select {
	case <-e.done:
		e.stopped = true
	default:
	}
	return e.stopped
}

// guess says whether n names may still be compared with what was written.
func (e *effort) guess(n int) bool {
	e.guesses -= n
	return e.guesses >= 0
}

// stoppable is a text whose reading ends with the context, also in the middle of a document.
type stoppable struct {
	text   io.Reader
	effort *effort
}

func (s stoppable) Read(p []byte) (int, error) {
	if s.effort.stop() {
		return 0, errStopped
	}
	return s.text.Read(p)
}

// places finds the lines of the fields of one file.
type places map[*yaml.Node]*keyIndex

// keyIndex is the keys of a mapping that is too large to look through for each finding.
type keyIndex struct {
	at      map[string]int // key, in both spellings → where it is in the content
	longest int
}

// key finds the entry of a mapping with which a path begins: the longest key. It returns -1 when there is none.
func (p places) key(n *yaml.Node, path string) (at int, key string) {
	const small = 16
	if len(n.Content) <= 2*small {
		return scanKeys(n, path)
	}
	index := p[n]
	if index == nil {
		index = &keyIndex{at: map[string]int{}}
		for i := 0; i+1 < len(n.Content); i += 2 {
			for _, k := range []string{n.Content[i].Value, camel(n.Content[i].Value)} {
				if _, twice := index.at[k]; k != "" && !twice {
					index.at[k] = i
					index.longest = max(index.longest, len(k))
				}
			}
		}
		p[n] = index
	}
	at = -1
	for end, ends := 1, 0; end <= len(path) && end <= index.longest && ends < maxDepth; end++ {
		if end < len(path) && path[end] != '.' && path[end] != '[' {
			continue
		}
		ends++
		if i, ok := index.at[path[:end]]; ok {
			at, key = i, path[:end]
		}
	}
	return at, key
}

// scanKeys is key for a mapping without an index.
func scanKeys(n *yaml.Node, path string) (at int, key string) {
	at = -1
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i].Value
		rest, ok := strings.CutPrefix(path, k)
		if other := camel(k); !ok && other != "" {
			k = other
			rest, ok = strings.CutPrefix(path, k)
		}
		if ok && k != "" && (rest == "" || rest[0] == '.' || rest[0] == '[') && (at < 0 || len(k) > len(key)) {
			at, key = i, k
		}
	}
	return at, key
}

// mentioned is how many of a list a message names.
const mentioned = 10

// someOf joins the first of many texts with commas.
func someOf(list []string) string {
	if len(list) <= mentioned {
		return strings.Join(list, ", ")
	}
	return strings.Join(list[:mentioned], ", ") + fmt.Sprintf(" and %d more", len(list)-mentioned)
}

// some lists the first of many values for a message, as fmt prints a list: a message is not as long as the file.
func some[T any](list []T) string { return someOfMany(list[:min(len(list), mentioned)], len(list)) }

// someOfMany lists values of which there are so many in all.
func someOfMany[T any](list []T, all int) string {
	if all <= len(list) {
		return fmt.Sprint(list)
	}
	return strings.TrimSuffix(fmt.Sprint(list), "]") + fmt.Sprintf(" and %d more]", all-len(list))
}
