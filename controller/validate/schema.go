package validate

import (
	"maps"
	"slices"
	"strings"
)

// shape is the JSON form of a value.
type shape int

const (
	shapeAny shape = iota
	shapeObject
	shapeMap
	shapeList
	shapeString
	shapeBool
	shapeInt
	shapeNumber
	shapeEnum
	shapeDuration // as protobuf writes it: "1.5s"; Go's "1h30m" is understood by the API too
	shapeTime
	shapeQuantity
	shapeIntOrString
	shapeBytes // base64
)

// schema is what may stand at a place. It does not change once its kind is in the catalogue; it may refer to itself.
type schema struct {
	shape    shape
	fields   map[string]field // of shapeObject, by the name written in the file
	elem     *schema          // of shapeMap and shapeList
	keys     *schema          // of shapeMap: the numbers that keys may be; nil when they may be any text
	enum     []string         // of shapeEnum
	min, max float64          // of shapeInt
	open     bool             // of shapeObject: fields that are not listed may be anything
	lenient  bool             // what is below is read as mesh configuration is: other spellings, numbers as text
}

// field is one field of an object.
type field struct {
	schema     *schema
	name       string // as the API writes it
	oneof      string // the group of which only one may be set; "" for none
	required   bool
	deprecated bool
	note       string // why it should not be written; "" for nothing
	other      bool   // not the API's own spelling: read in mesh configuration, not in objects of the cluster
}

func object(pairs ...any) *schema {
	s := &schema{shape: shapeObject, fields: map[string]field{}}
	for i := 0; i+1 < len(pairs); i += 2 {
		name, _ := pairs[i].(string)
		sub, _ := pairs[i+1].(*schema)
		s.fields[name] = field{schema: sub, name: name}
	}
	return s
}

func listOf(s *schema) *schema { return &schema{shape: shapeList, elem: s} }

func mapOf(s *schema) *schema { return &schema{shape: shapeMap, elem: s} }

func of(s shape) *schema { return &schema{shape: s} }

// names lists the fields as the API writes them, sorted.
func (s *schema) names() []string {
	if s == nil || s.shape != shapeObject {
		return nil
	}
	var names []string
	for _, n := range slices.Sorted(maps.Keys(s.fields)) {
		if !s.fields[n].other {
			names = append(names, n)
		}
	}
	return names
}

// inner is the object that a list or a map holds, or the object itself; nil when there is none.
func (s *schema) inner() *schema {
	for s != nil && (s.shape == shapeList || s.shape == shapeMap) {
		s = s.elem
	}
	if s == nil || s.shape != shapeObject {
		return nil
	}
	return s
}

// below finds the field name at most depth objects further down; path is where, "" when it is nowhere.
func (s *schema) below(name string, depth int) (path string) {
	obj := s.inner()
	if obj == nil || depth == 0 {
		return ""
	}
	for _, n := range obj.names() {
		sub := obj.fields[n].schema.inner()
		if sub == nil {
			continue
		}
		if f, ok := sub.fields[name]; ok && !f.other {
			return n
		}
	}
	for _, n := range obj.names() {
		if path := obj.fields[n].schema.below(name, depth-1); path != "" {
			return n + "." + path
		}
	}
	return ""
}

// closest finds the name that was probably meant; "" when none is near.
func closest(name string, names []string) string {
	best, bestCost, plain := "", len(name)/3+1, strings.NewReplacer("_", "", "-", "").Replace(name)
	for _, n := range names {
		if strings.EqualFold(n, name) || strings.EqualFold(n, plain) {
			return n
		}
		if cost := distance(strings.ToLower(name), strings.ToLower(n)); cost < bestCost || (cost == bestCost && best == "" && cost < len(name)) {
			best, bestCost = n, cost
		}
	}
	if best == "" && len(name) > 3 { // a part of one name only
		parts := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !strings.Contains(strings.ToLower(n), strings.ToLower(name)) })
		if len(parts) == 1 {
			return parts[0]
		}
	}
	return best
}

// distance counts the insertions, removals, replacements and swaps of neighbours that make b of a.
func distance(a, b string) int {
	const limit = 64
	if len(a) > limit || len(b) > limit {
		return limit
	}
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
