package configdir

import (
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Object is any typed Kubernetes object.
type Object interface {
	metav1.Object
	runtime.Object
}

// Key names one object of a view. Group is "" for core/v1 kinds; Namespace is "" for kinds without one.
type Key struct {
	Group, Kind, Namespace, Name string
}

// String is KIND.GROUP NAMESPACE/NAME.
func (k Key) String() string {
	kind, name := k.Kind, k.Name
	if k.Group != "" {
		kind += "." + k.Group
	}
	if k.Namespace != "" {
		name = k.Namespace + "/" + name
	}
	return kind + " " + name
}

func compareKeys(a, b Key) int {
	for _, c := range []int{
		strings.Compare(a.Group, b.Group), strings.Compare(a.Kind, b.Kind), strings.Compare(a.Namespace, b.Namespace),
	} {
		if c != 0 {
			return c
		}
	}
	return strings.Compare(a.Name, b.Name)
}

// Issue is a field of a policy that could not be understood; the field is not in the typed object.
type Issue struct {
	Field   string // path below the object, for example spec.rules[0].from[0].source.user
	Message string
}

func (i Issue) String() string { return i.Field + ": " + i.Message }

// Problem is what is wrong with one file.
type Problem struct {
	File     string // relative to the directory
	Document int    // counted from 1; 0 when the whole file is meant
	Object   string // "Kind namespace/name" as far as it is known
	Field    string // "" when no single field is to blame
	Message  string
	Carried  bool // the object is served all the same and carries the problem as an Issue
}

// Error makes a Problem an error.
func (p Problem) Error() string {
	var b strings.Builder
	b.WriteString("file " + p.File)
	if p.Document > 0 {
		fmt.Fprintf(&b, ", document %d", p.Document)
	}
	if p.Object != "" {
		b.WriteString(", " + p.Object)
	}
	if p.Field != "" {
		b.WriteString(", field " + p.Field)
	}
	return b.String() + ": " + p.Message
}

// Entry is one object with the fields of it that were not understood. Entries and objects are shared: do not modify.
type Entry struct {
	Key    Key
	Object Object
	Issues []Issue
}

// View is an immutable state of the directory. Entries that did not change between two views are the same pointer.
type View struct {
	Problems []Problem // in order of files
	entries  map[Key]*Entry
	keys     []Key // sorted
}

// Get returns the entry of the key, nil when there is none.
func (v *View) Get(k Key) *Entry {
	if v == nil {
		return nil
	}
	return v.entries[k]
}

// Entries returns all entries, sorted by key.
func (v *View) Entries() []*Entry {
	if v == nil {
		return nil
	}
	all := make([]*Entry, len(v.keys))
	for i, k := range v.keys {
		all[i] = v.entries[k]
	}
	return all
}

// List returns the objects of one type, for example List[*corev1.Pod](v), sorted by key.
func List[T Object](v *View) []T {
	var all []T
	for _, e := range v.Entries() {
		if o, ok := e.Object.(T); ok {
			all = append(all, o)
		}
	}
	return all
}

// Diff returns the keys whose entry is not the same in both views, sorted; either view may be nil.
func Diff(old, now *View) []Key {
	var keys []Key
	if old != nil {
		for k := range old.entries {
			if now.Get(k) == nil {
				keys = append(keys, k)
			}
		}
	}
	if now != nil {
		for k, e := range now.entries {
			if old.Get(k) != e {
				keys = append(keys, k)
			}
		}
	}
	slices.SortFunc(keys, compareKeys)
	return keys
}

func (v *View) equal(other *View) bool {
	return slices.Equal(v.Problems, other.Problems) && len(Diff(other, v)) == 0
}

func (v *View) hasProblem(p Problem) bool { return slices.Contains(v.Problems, p) }
