package validate

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	kschema "k8s.io/apimachinery/pkg/runtime/schema"
)

// mutant is one fault put into a good document.
type mutant struct{ what, text string }

// goodFiles are documents without errors: our own, and each sixteenth of the corpus where it is.
func goodFiles(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("testdata/good/*.yaml")
	if err != nil || len(files) < 5 {
		t.Fatal("no documents", err)
	}
	dir := os.Getenv("CORPUS") // without it our own documents are enough
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "spec", "corpus")
	}
	more, err := filepath.Glob(filepath.Join(dir, "[0-9]*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(more); i += 16 {
		files = append(files, more[i])
	}
	return files
}

// plain says whether every object of the file has a schema to its last field: nothing in it may be anything.
func plain(t *testing.T, c *Catalogue, data []byte) bool {
	t.Helper()
	for _, d := range documents(t, data) {
		gvk := kschema.FromAPIVersionAndKind(child(d, "apiVersion"), child(d, "kind"))
		if _, gone := removedKind(gvk); gone || c.kinds[gvk] == nil || slices.Contains([]string{"IstioOperator", "EnvoyFilter", "ConfigMap", "WasmPlugin"}, gvk.Kind) {
			return false
		}
	}
	return true
}

// TestGood: our own documents have neither errors nor warnings, alone and as everything there is but what they call.
func TestGood(t *testing.T) {
	c, err := NewCatalogue()
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]bool{}
	files, err := filepath.Glob("testdata/good/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		r := c.File(path, data)
		for _, f := range r.Findings {
			if f.Severity > Info && !strings.Contains(f.Message, "has no effect") && !strings.Contains(f.Message, "not supported") {
				t.Error(f)
			}
		}
		for _, d := range documents(t, data) {
			kinds[child(d, "kind")] = true
		}
	}
	for gvk := range c.kinds { // every kind of the mesh has a document
		if strings.HasSuffix(gvk.Group, "istio.io") && !kinds[gvk.Kind] {
			t.Errorf("testdata/good has no %s", gvk.Kind)
		}
	}
}

func documents(t *testing.T, data []byte) []*yaml.Node {
	t.Helper()
	var out []*yaml.Node
	for dec := yaml.NewDecoder(strings.NewReader(string(data))); ; {
		var doc yaml.Node
		if err := dec.Decode(&doc); err != nil {
			return out
		}
		if len(doc.Content) == 1 && doc.Content[0].Kind == yaml.MappingNode {
			out = append(out, doc.Content[0])
		}
	}
}

// TestMutants puts one fault after the other into each good document: a misspelt field, a value of another type, a word that
// is no word of an enumeration, a field one level too high. Each must be found at its line.
func TestMutants(t *testing.T) {
	c, err := NewCatalogue()
	if err != nil {
		t.Fatal(err)
	}
	total := 0
	for _, path := range goodFiles(t) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, doc := range documents(t, data) {
			gvk := kschema.FromAPIVersionAndKind(child(doc, "apiVersion"), child(doc, "kind"))
			k := c.kinds[gvk]
			if _, gone := removedKind(gvk); gone || k == nil {
				continue
			}
			k.once.Do(func() { k.schema = k.make() })
			before := severe(c.File("f", encode(t, doc)))
			for _, m := range mutants(t, doc, k.schema) {
				total++
				if after := severe(c.File("f", []byte(m.text))); len(after) == 0 || slices.Equal(before, after) {
					t.Errorf("%s %s: %s was not found:\n%s", filepath.Base(path), gvk.Kind, m.what, m.text)
				}
			}
		}
	}
	if total < 2000 {
		t.Errorf("only %d mutants were made", total)
	}
	t.Logf("%d mutants", total)
}

func severe(r *Report) []string {
	var out []string
	for _, f := range r.Findings {
		if f.Severity > Info {
			out = append(out, f.Field+": "+f.Message)
		}
	}
	return out
}

func encode(t *testing.T, n *yaml.Node) []byte {
	t.Helper()
	out, err := yaml.Marshal(n)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// mutants makes the faults of a document, one at a time: the node is put back after each.
func mutants(t *testing.T, doc *yaml.Node, s *schema) []mutant {
	t.Helper()
	var out []mutant
	try := func(what string, n *yaml.Node, with yaml.Node) {
		old := *n
		*n = with
		out = append(out, mutant{what, string(encode(t, doc))})
		*n = old
	}
	scalarNode := func(tag, value string, style yaml.Style) yaml.Node {
		return yaml.Node{Kind: yaml.ScalarNode, Tag: tag, Value: value, Style: style}
	}
	list := yaml.Node{Kind: yaml.SequenceNode, Content: []*yaml.Node{{Kind: yaml.ScalarNode, Tag: "!!str", Value: "x"}}}
	mapping := yaml.Node{Kind: yaml.MappingNode, Content: []*yaml.Node{{Kind: yaml.ScalarNode, Tag: "!!str", Value: "x"}, {Kind: yaml.ScalarNode, Tag: "!!str", Value: "y"}}}
	var walk func(n *yaml.Node, s *schema, path string, parent *yaml.Node, above *schema)
	walk = func(n *yaml.Node, s *schema, path string, parent *yaml.Node, above *schema) {
		if isNull(n) || s.lenient || s.open || n.Kind == yaml.AliasNode {
			return
		}
		switch s.shape {
		case shapeAny:
		case shapeObject:
			try(path+" is a list", n, list)
			for i := 0; i+1 < len(n.Content); i += 2 {
				key, value := n.Content[i], n.Content[i+1]
				f, ok := s.fields[key.Value]
				if !ok || (path == "" && (key.Value == "apiVersion" || key.Value == "kind")) {
					continue
				}
				at := join(path, key.Value)
				if !isNull(value) && !f.deprecated {
					try(at+" is misspelt", key, scalarNode("!!str", key.Value+"q", 0))
					if len(key.Value) > 3 {
						try(at+" is misspelt inside", key, scalarNode("!!str", key.Value[:1]+key.Value[2:], 0))
					}
				}
				if parent != nil && above != nil && above.shape == shapeObject && above.fields[key.Value].schema == nil {
					own, theirs := n.Content, parent.Content
					n.Content = slices.Concat(own[:i:i], own[i+2:])
					parent.Content = slices.Concat(theirs, []*yaml.Node{key, value})
					out = append(out, mutant{at + " is one level too high", string(encode(t, doc))})
					n.Content, parent.Content = own, theirs
				}
				if at != "status" {
					walk(value, f.schema, at, n, s)
				}
			}
		case shapeMap:
			try(path+" is a list", n, list)
			for i := 0; i+1 < len(n.Content); i += 2 {
				walk(n.Content[i+1], s.elem, join(path, n.Content[i].Value), nil, nil)
			}
		case shapeList:
			try(path+" is a string", n, scalarNode("!!str", "x", 0))
			try(path+" is an object", n, mapping)
			for i, item := range n.Content {
				walk(item, s.elem, fmt.Sprintf("%s[%d]", path, i), nil, nil)
			}
		case shapeEnum:
			try(path+" is no word of the enumeration", n, scalarNode("!!str", n.Value+"X", 0))
		case shapeBool:
			try(path+" is text", n, scalarNode("!!str", "maybe", 0))
		case shapeInt, shapeNumber:
			try(path+" is text", n, scalarNode("!!str", "many", 0))
		case shapeDuration:
			try(path+" is no duration", n, scalarNode("!!str", "soon", 0))
			try(path+" is a number", n, scalarNode("!!int", "7", 0))
		case shapeString, shapeBytes:
			try(path+" is a list", n, list)
			try(path+" is an object", n, mapping)
			try(path+" is a number", n, scalarNode("!!int", "7", 0))
		default:
			try(path+" is a list", n, list)
		}
	}
	walk(doc, s, "", nil, nil)
	return out
}

// TestIndentation shifts each line of a good document: what is another object then must be found.
func TestIndentation(t *testing.T) {
	c, err := NewCatalogue()
	if err != nil {
		t.Fatal(err)
	}
	total, quiet := 0, []string{}
	for _, path := range goodFiles(t) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !plain(t, c, data) {
			continue
		}
		lines := strings.Split(string(data), "\n")
		before, want := severe(c.File("f", data)), canonical(string(data))
		for i, line := range lines {
			for _, shift := range []string{"  ", " ", ""} {
				changed := shift + line
				if shift == " " && i%5 > 0 {
					continue // mostly not YAML any more
				}
				if shift == "" {
					if !strings.HasPrefix(line, "  ") {
						continue
					}
					changed = line[2:]
				}
				text := strings.Join(slices.Concat(lines[:i:i], []string{changed}, lines[i+1:]), "\n")
				if canonical(text) == want {
					continue // a comment, or the form only
				}
				total++
				if after := severe(c.File("f", []byte(text))); len(after) == 0 || slices.Equal(before, after) {
					quiet = append(quiet, fmt.Sprintf("%s:%d %q", filepath.Base(path), i+1, changed))
				}
			}
		}
	}
	// What is left is right as well at its new place: a policy of a rule or of its subset, an entry of a free map.
	t.Logf("%d lines shifted, %d not noticed: %q", total, len(quiet), quiet)
	if total < 500 || len(quiet)*100 > total {
		t.Errorf("%d of %d shifted lines were not noticed", len(quiet), total)
	}
}

// canonical is the meaning of a text, whatever its form; the error when it has none.
func canonical(text string) string {
	var out []string
	dec := yaml.NewDecoder(strings.NewReader(text))
	for {
		var v any
		if err := dec.Decode(&v); err != nil {
			if err.Error() != "EOF" {
				out = append(out, err.Error())
			}
			return strings.Join(out, "\n---\n")
		}
		out = append(out, fmt.Sprintf("%#v", v))
	}
}
