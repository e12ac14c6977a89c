package validate

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Bounds of the work for one object.
const (
	maxDepth = 100  // its nesting
	maxKey   = 1024 // bytes of a key: the paths of findings are made of keys
	// maxHelped findings are explained; more of them in one object help nobody.
	maxHelped = 200
)

// walker checks one YAML document against a schema and turns it into what encoding/json would have read.
type walker struct {
	collector
	lenient bool    // as mesh configuration is read: other spellings and numbers as text are accepted
	effort  *effort // aliases are followed as often as they are written
	broken  bool    // something has the wrong type: decoding it further makes no sense
	stack   []rung

	group string         // of the API that the object belongs to
	whole map[string]any // the object, once its form was checked
	// sibling names another kind whose spec has a field that this one has not; nil knows none.
	sibling func(field string) string
	body    any // the spec of a kind of the mesh, or the typed object of another one; nil when it was not read
}

// rung is an object around the place where the walker stands.
type rung struct {
	path   string
	schema *schema
}

// guessCost is what finding out where an unknown field belongs takes: as many names are looked at.
const guessCost = 200

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// value checks n, which stands at path, against s.
func (w *walker) value(n *yaml.Node, s *schema, path string) any {
	goOn := w.effort.spend(1 + len(path)/256 + len(n.Value)/64)
	switch {
	case !goOn && w.effort.stopped:
		w.broken = true
		return nil
	case !goOn || len(w.stack) > maxDepth || strings.Count(path, "[") > maxDepth:
		if !w.broken {
			w.add(Error, path, "is too large or too deep once its aliases are followed")
		}
		w.broken = true
		return nil
	case n.Kind == yaml.AliasNode && n.Alias != nil:
		return w.value(n.Alias, s, path)
	case isNull(n):
		return nil
	}
	if s.lenient && !w.lenient {
		w.lenient = true
		defer func() { w.lenient = false }()
	}
	switch s.shape {
	case shapeObject:
		return w.object(n, s, path)
	case shapeMap:
		return w.mapping(n, s, path)
	case shapeList:
		return w.list(n, s, path)
	case shapeAny:
		return w.any(n, path)
	}
	if n.Kind != yaml.ScalarNode {
		w.wrong(path, n, s)
		return nil
	}
	return w.scalar(n, s, path)
}

// any takes a value without a schema.
func (w *walker) any(n *yaml.Node, path string) any {
	free := of(shapeAny)
	switch n.Kind {
	case yaml.MappingNode:
		return w.mapping(n, mapOf(free), path)
	case yaml.SequenceNode:
		return w.list(n, listOf(free), path)
	}
	switch kindOf(n) {
	case "boolean":
		return strings.EqualFold(n.Value, "true") || slices.Contains(oldTrue, n.Value)
	case "number":
		if f, err := strconv.ParseFloat(strings.ReplaceAll(n.Value, "_", ""), 64); err == nil && f-f == 0 {
			return f
		}
	}
	return n.Value
}

// wrong says that n is not of the type that s has.
func (w *walker) wrong(path string, n *yaml.Node, s *schema) {
	w.broken = true
	w.add(Error, path, "must be %s, and is %s", s.noun(), describe(n))
	switch {
	case placeholder(n.Value) != "":
		w.hint("%s looks like a placeholder", placeholder(n.Value))
	case s.shape == shapeString && n.Kind == yaml.ScalarNode:
		w.hint("write it in quotes: %q", n.Value)
	case n.Kind == yaml.ScalarNode && n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle) != 0 && (s.shape == shapeInt || s.shape == shapeBool || s.shape == shapeNumber):
		w.hint("write it without quotes")
	case s.shape == shapeList:
		w.hint("write each item behind \"- \"")
	}
}

func (s *schema) noun() string {
	switch s.shape {
	case shapeObject, shapeMap:
		return "an object"
	case shapeList:
		return "a list"
	case shapeBool:
		return "true or false"
	case shapeInt:
		return "a whole number"
	case shapeNumber:
		return "a number"
	case shapeIntOrString:
		return "a number or a string"
	}
	return "a string"
}

func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "an object"
	case yaml.SequenceNode:
		return "a list"
	}
	text := n.Value
	if len(text) > 40 {
		text = text[:40] + "…"
	}
	return fmt.Sprintf("the %s %q", kindOf(n), text)
}

// pair is one entry of a mapping.
type pair struct{ key, value *yaml.Node }

// pairs lists the entries of a mapping, those of "<<" behind its own, and reports duplicate keys.
func (w *walker) pairs(n *yaml.Node, path string) []pair {
	var out, merged []pair
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		switch {
		case k.Tag == "!!merge":
			merged = append(merged, w.merge(v, path)...)
			continue
		case k.Kind == yaml.AliasNode && k.Alias != nil:
			k = k.Alias
		}
		if k.Kind != yaml.ScalarNode {
			w.broken = true
			w.add(Error, path, "has a key that is not a string")
			continue
		}
		if len(k.Value) > maxKey {
			w.broken = true
			w.add(Error, path, "has a key of %d bytes, and no key is longer than %d", len(k.Value), maxKey)
			w.found[len(w.found)-1].Line = k.Line
			continue
		}
		if line, twice := seen[k.Value]; twice {
			w.broken = true
			w.add(Error, join(path, k.Value), "is written twice")
			w.hint("the first is in line %d", line)
			w.found[len(w.found)-1].Line = k.Line
			continue
		}
		seen[k.Value] = k.Line
		out = append(out, pair{k, v})
	}
	for _, p := range merged {
		if _, own := seen[p.key.Value]; !own {
			seen[p.key.Value] = p.key.Line
			out = append(out, p)
		}
	}
	return out
}

// merge lists the entries that "<<: v" adds.
func (w *walker) merge(v *yaml.Node, path string) []pair {
	goOn := w.effort.spend(1)
	if v.Kind == yaml.AliasNode && v.Alias != nil {
		v = v.Alias
	}
	switch {
	case !goOn:
		return nil
	case v.Kind == yaml.SequenceNode:
		var out []pair
		for _, item := range v.Content {
			if item.Kind == yaml.SequenceNode {
				continue
			}
			out = append(out, w.merge(item, path)...)
		}
		return out
	case v.Kind != yaml.MappingNode:
		w.broken = true
		w.add(Error, path, "merges something that is not an object")
		return nil
	}
	var out []pair
	for i := 0; i+1 < len(v.Content); i += 2 {
		if v.Content[i].Kind == yaml.ScalarNode && v.Content[i].Tag != "!!merge" {
			out = append(out, pair{v.Content[i], v.Content[i+1]})
			w.effort.spend(1)
		}
	}
	return out
}

func (w *walker) object(n *yaml.Node, s *schema, path string) any {
	if n.Kind != yaml.MappingNode {
		w.wrong(path, n, s)
		return nil
	}
	w.stack = append(w.stack, rung{path, s})
	defer func() { w.stack = w.stack[:len(w.stack)-1] }()
	out, oneof, unknown, wrong := map[string]any{}, map[string]string{}, false, map[string]bool{}
	pairs := w.pairs(n, path)
	for i, p := range pairs {
		name := p.key.Value
		f, ok := s.fields[name]
		if !ok && s.open {
			out[name] = w.value(p.value, of(shapeAny), join(path, name))
			continue
		}
		if !ok || (f.other && !w.lenient) {
			unknown = true
			w.unknown(s, name, path)
			if above := i - 1; above >= 0 && isNull(pairs[above].value) && s.fields[pairs[above].key.Value].schema != nil {
				w.hint("%s above it is empty: indent it below that", pairs[above].key.Value)
			}
			continue
		}
		at := join(path, name)
		if f.deprecated {
			w.add(Warning, at, "is deprecated")
			if group := w.successor(s, f.name); group != "" {
				w.hint("use %s", group)
			}
		}
		if f.note != "" {
			w.add(Warning, at, "%s", f.note)
		}
		if _, twice := out[f.name]; twice {
			w.broken = true
			w.add(Error, at, "is written twice, in two spellings")
			continue
		}
		v := w.value(p.value, f.schema, at)
		if v == nil {
			wrong[f.name] = !isNull(p.value) // and was told
			continue
		}
		if f.oneof != "" {
			if first := oneof[f.oneof]; first != "" {
				w.broken = true
				w.add(Error, at, "cannot stand beside %s: only one of them may be set", first)
			}
			oneof[f.oneof] = name
		}
		out[f.name] = v
	}
	w.required(s, out, wrong, path, unknown)
	return out
}

// successor names fields that begin as a deprecated one does.
func (w *walker) successor(s *schema, name string) string {
	var next []string
	for _, n := range s.names() {
		if f := s.fields[n]; n != name && !f.deprecated && len(n) > len(name)/2 && strings.HasPrefix(n, name[:min(len(name), 11)]) {
			next = append(next, n)
		}
	}
	return strings.Join(next, " or ")
}

// required reports the fields that must be there and are not: neither in have nor among those whose value is wrong. unknown is
// whether one stands there with a wrong name.
func (w *walker) required(s *schema, have map[string]any, wrong map[string]bool, path string, unknown bool) {
	for _, n := range s.names() {
		f := s.fields[n]
		if !f.required || wrong[n] || (f.schema.shape == shapeMap && have[n] != nil) {
			continue
		}
		v, ok := have[n]
		if list, isList := v.([]any); ok && v != "" && (!isList || len(list) > 0) {
			continue
		}
		w.add(Error, join(path, n), "is required")
		if unknown {
			w.hint("an unknown field stands beside it")
		}
	}
}

// unknown reports a field that the object does not have, and where it may belong.
func (w *walker) unknown(s *schema, name, path string) {
	if w.lenient { // the mesh reads its configuration without what it does not know
		w.add(Warning, join(path, name), "unknown field: it is ignored")
	} else {
		w.add(Error, join(path, name), "unknown field")
	}
	if len(w.found) > maxHelped {
		return
	}
	for i := len(w.stack) - 2; i >= 0 && name != "name"; i-- { // nearly everything has a name
		r := w.stack[i]
		if f, ok := r.schema.fields[name]; ok && !f.other {
			where := r.path
			if where == "" {
				where = "the object itself"
			}
			w.hint("it is a field of %s: the indentation is probably wrong", where)
			return
		}
	}
	if !w.effort.guess(guessCost) {
		return
	}
	if path == "spec" && w.sibling != nil {
		if other := w.sibling(name); other != "" {
			w.hint("it is a field of %s", other)
			return
		}
	}
	if below := s.below(name, 4); below != "" {
		w.hint("it is a field of %s: the indentation is probably wrong", join(path, below))
		return
	}
	if meant := closest(name, s.names()); meant != "" {
		w.hint("did you mean %q?", meant)
		return
	}
	names := s.names()
	if len(names) > 0 && len(names) <= 16 {
		w.hint("the fields here are %s", strings.Join(names, ", "))
	}
}

func (w *walker) mapping(n *yaml.Node, s *schema, path string) any {
	if n.Kind != yaml.MappingNode {
		w.wrong(path, n, s)
		return nil
	}
	w.stack = append(w.stack, rung{path, s})
	defer func() { w.stack = w.stack[:len(w.stack)-1] }()
	out := map[string]any{}
	for _, p := range w.pairs(n, path) {
		if k, err := strconv.ParseFloat(p.key.Value, 64); s.keys != nil && (err != nil || k != math.Trunc(k) || k < s.keys.min || k > s.keys.max) {
			w.bad(join(path, p.key.Value), "the key %q is not a whole number from %.0f to %.0f", p.key.Value, s.keys.min, s.keys.max)
			continue
		}
		if v := w.value(p.value, s.elem, join(path, p.key.Value)); v != nil {
			out[p.key.Value] = v
		}
	}
	return out
}

func (w *walker) list(n *yaml.Node, s *schema, path string) any {
	if n.Kind != yaml.SequenceNode {
		w.wrong(path, n, s)
		return nil
	}
	out := make([]any, 0, min(len(n.Content), 1024))
	for i, item := range n.Content {
		at := fmt.Sprintf("%s[%d]", path, i)
		v := w.value(item, s.elem, at)
		if v == nil && isNull(item) && s.elem.shape != shapeAny {
			w.broken = true
			w.add(Error, at, "is empty")
			continue
		}
		out = append(out, v)
	}
	return out
}

// oldTrue and oldFalse are the words of YAML 1.1 that kubectl takes for booleans, beside true and false.
var (
	oldTrue  = []string{"y", "Y", "yes", "Yes", "YES", "on", "On", "ON"}
	oldFalse = []string{"n", "N", "no", "No", "NO", "off", "Off", "OFF"}
)

// kindOf names what an unquoted scalar is for the Kubernetes API: YAML 1.1, in which yes, on and y are true.
func kindOf(n *yaml.Node) string {
	switch n.ShortTag() {
	case "!!bool":
		return "boolean"
	case "!!int", "!!float":
		return "number"
	case "!!null":
		return "null"
	}
	plain := n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) == 0
	if plain && (slices.Contains(oldTrue, n.Value) || slices.Contains(oldFalse, n.Value)) {
		return "boolean"
	}
	return "string"
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }
