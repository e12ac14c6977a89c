package validate

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// MaxFile is the size in bytes of the largest file that is read.
const MaxFile = 16 << 20

// Report is what was found in one file.
type Report struct {
	Objects    int      // that were looked at
	NotChecked []string // objects of kinds that this program does not know: FILE:LINE: KIND NS/NAME (APIVERSION)
	Findings   []Finding
}

// Worst returns the highest severity in the report.
func (r *Report) Worst() Severity { return Worst(r.Findings) }

// file is the reading of one file.
type file struct {
	catalogue *Catalogue
	name      string
	effort    *effort
	places    places
	seen      map[string]int                           // object → line of the first one of that name
	keep      func(w *walker, n *yaml.Node, at string) // called with each object whose kind is known; may be nil
	report    Report
}

var yamlLine = regexp.MustCompile(`^(?:yaml: )?(?:line (\d+): )?`)

// File checks every object of a file in YAML or JSON: one or many documents, lists unpacked. It never fails: what cannot be
// read is a finding. The work is bounded by the size of the file, also when its aliases multiply.
func (c *Catalogue) File(name string, data []byte) *Report {
	return c.file(fileEffort(nil, len(data)), name, data, nil)
}

// What Object takes: an API server stores no more, and what is read of a text is many times as large as the text.
const (
	maxObject = 4 << 20 // bytes
	maxValues = 1 << 18 // values, about
)

// Object checks one object in JSON as an API server hands it out: who sends it may be anybody. It is neither a list nor several
// documents. What is too large to be looked at is a Warning.
func (c *Catalogue) Object(data []byte) []Finding {
	values := 0
	for _, b := range data { // in texts too: some are read as YAML
		switch b {
		case ',', ':', '[', '{', '\\', '\n':
			values++
		}
	}
	if len(data) > maxObject || values > maxValues {
		return []Finding{{Severity: Warning, Skipped: true, Message: fmt.Sprintf("not checked: it is too large (%d bytes, about %d values)", len(data), values)}}
	}
	var head struct{ Items json.RawMessage }
	if err := json.Unmarshal(data, &head); err != nil || head.Items != nil {
		return []Finding{{Severity: Error, Message: "is not one object in JSON"}}
	}
	return c.File("", data).Findings
}

func (c *Catalogue) file(e *effort, name string, data []byte, keep func(w *walker, n *yaml.Node, at string)) *Report {
	f := &file{catalogue: c, name: name, effort: e, places: places{}, seen: map[string]int{}, keep: keep}
	if len(data) > MaxFile {
		f.add(Finding{Severity: Error, Line: 1, Message: fmt.Sprintf("is larger than %d bytes", MaxFile)})
		return &f.report
	}
	dec := yaml.NewDecoder(stoppable{bytes.NewReader(data), e})
	for {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return &f.report
		}
		if e.stopped {
			f.add(Finding{Severity: Error, Kind: "YAML", Line: 1, Message: errStopped.Error()})
			return &f.report
		}
		if err != nil {
			f.syntax(err, data)
			return &f.report
		}
		if len(doc.Content) == 1 && !isNull(doc.Content[0]) {
			f.object(doc.Content[0], "")
		}
	}
}

func (f *file) add(found ...Finding) {
	for i := range found {
		found[i].File = f.name
	}
	f.report.Findings = append(f.report.Findings, found...)
}

// syntax reports that the text is not YAML. What follows in the file is not read.
func (f *file) syntax(err error, data []byte) {
	text, line := err.Error(), 1
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		text = text[len(m[0]):]
		if n, err := strconv.Atoi(m[1]); err == nil {
			line = n
		}
	}
	lines := strings.Split(string(data), "\n")
	line = max(line, errorLine(lines, len(data), text))
	finding := Finding{Severity: Error, Kind: "YAML", Line: line, Message: text + "; not checked: this document and what follows it"}
	for i := max(0, line-2); i < min(len(lines), line+1); i++ {
		switch body := strings.TrimSpace(lines[i]); {
		case strings.HasPrefix(lines[i], "\t") || strings.HasPrefix(strings.TrimLeft(lines[i], " "), "\t"):
			finding.Hint = fmt.Sprintf("line %d is indented with a tab: use spaces", i+1)
		case body == "...":
			finding.Hint = fmt.Sprintf("line %d is \"...\", which ends a document in YAML: put the omitted lines in its place", i+1)
		case len(body) > 1 && body[0] == '-' && body[1] != ' ' && body[1] != '-' && strings.Contains(body, ":"):
			finding.Hint = fmt.Sprintf("line %d: a blank is missing behind the dash", i+1)
		case strings.Count(body, ": ") > 2 && finding.Hint == "":
			finding.Hint = fmt.Sprintf("line %d holds several fields: the line breaks are lost", i+1)
		}
	}
	if finding.Hint == "" {
		finding.Hint = "compare the indentation with the lines before it"
	}
	f.add(finding)
}

// errorLine finds the line at which reading fails with that message: the parser tells where the enclosing block began, which
// may be far above. It returns 0 for files that are too large to be read several times.
func errorLine(lines []string, size int, message string) int {
	const largest = 256 << 10
	if size > largest {
		return 0
	}
	return 1 + sort.Search(len(lines)-1, func(i int) bool {
		dec := yaml.NewDecoder(strings.NewReader(strings.Join(lines[:i+1], "\n") + "\n"))
		for {
			var doc yaml.Node
			if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
				return false
			} else if err != nil {
				return strings.HasSuffix(err.Error(), message)
			}
		}
	})
}

// object checks one object; at is the path of it inside a list, "" for one that stands alone.
func (f *file) object(n *yaml.Node, at string) {
	for hops := 0; n.Kind == yaml.AliasNode && n.Alias != nil && hops < maxDepth; hops++ {
		n = n.Alias
	}
	if !f.effort.spend(1) {
		if !f.effort.stopped {
			f.add(Finding{Severity: Error, Line: n.Line, Field: at, Message: "is too large once its aliases are followed"})
		}
		return
	}
	if n.Kind != yaml.MappingNode {
		f.report.Objects++
		f.add(Finding{Severity: Error, Kind: "YAML", Field: at, Line: n.Line, Message: "is not an object: it has no apiVersion and no kind"})
		return
	}
	apiVersion, kind := child(n, "apiVersion"), child(n, "kind")
	if items := childNode(n, "items"); strings.HasSuffix(kind, "List") && items != nil && items.Kind == yaml.SequenceNode && strings.Count(at, "[") < 8 {
		for i, item := range items.Content {
			f.object(item, fmt.Sprintf("%sitems[%d]", at, i))
		}
		return
	}
	f.report.Objects++
	w := &walker{effort: f.effort, collector: collector{kind: kind}}
	if meta := childNode(n, "metadata"); meta != nil {
		w.namespace, w.name = child(meta, "namespace"), child(meta, "name")
	}
	id := apiVersion + " " + kind + " " + w.namespace + "/" + w.name
	if line, twice := f.seen[id]; twice && w.name != "" {
		w.add(Warning, "metadata.name", "an object of this kind and name stands in this file already; the last one counts")
		w.hint("the first begins in line %d", line)
	}
	f.seen[id] = n.Line
	if !f.catalogue.check(w, n, apiVersion, kind) {
		f.report.NotChecked = append(f.report.NotChecked, fmt.Sprintf("%s:%d: %s %s/%s (%s)", f.name, n.Line, kind, w.namespace, w.name, apiVersion))
	}
	if f.keep != nil && w.whole != nil {
		f.keep(w, n, at)
	}
	for i := range w.found {
		if w.found[i].Line == 0 {
			w.found[i].Line = f.places.lineOf(n, w.found[i].Field)
		}
		if at != "" {
			w.found[i].Field = join(at, w.found[i].Field)
		}
	}
	slices.SortStableFunc(w.found, func(a, b Finding) int {
		return cmp.Or(a.Line-b.Line, strings.Compare(a.Field, b.Field), strings.Compare(a.Message, b.Message))
	})
	f.add(w.found...)
}

// childNode returns the value of a key of a mapping, nil when there is none.
func childNode(n *yaml.Node, key string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			if v := n.Content[i+1]; v.Kind != yaml.AliasNode {
				return v
			}
			return n.Content[i+1].Alias
		}
	}
	return nil
}

// child returns the text of a key, "" when there is none.
func child(n *yaml.Node, key string) string {
	if v := childNode(n, key); v != nil && v.Kind == yaml.ScalarNode && !isNull(v) {
		return v.Value
	}
	return ""
}

// lineOf finds the line of a path: that of the last key or item of it that is in the text.
func (p places) lineOf(n *yaml.Node, path string) int {
	line := n.Line
	for range maxDepth {
		path = strings.TrimPrefix(path, ".")
		if n.Kind == yaml.AliasNode && n.Alias != nil {
			n = n.Alias
		}
		switch n.Kind {
		case yaml.MappingNode:
			best, key := p.key(n, path)
			if best < 0 {
				return line
			}
			line, n, path = n.Content[best].Line, n.Content[best+1], path[len(key):]
		case yaml.SequenceNode:
			number, rest, ok := strings.Cut(strings.TrimPrefix(path, "["), "]")
			i, err := strconv.Atoi(number)
			if !ok || err != nil || i < 0 || i >= len(n.Content) {
				return line
			}
			n, path = n.Content[i], rest
			line = n.Line
		default:
			return line
		}
	}
	return line
}

// String is FILE:LINE: SEVERITY KIND NS/NAME FIELD: MESSAGE (HINT).
func (f Finding) String() string {
	text := f.Error()
	if f.Hint != "" {
		text += " (" + f.Hint + ")"
	}
	if f.File != "" {
		text = fmt.Sprintf("%s:%d: %s", f.File, f.Line, text)
	}
	return text
}

// camel is the name of a protobuf field as the API writes it; "" when that is the same.
func camel(name string) string {
	if !strings.Contains(name, "_") {
		return ""
	}
	parts := strings.Split(name, "_")
	for i, p := range parts[1:] {
		if p != "" {
			parts[i+1] = strings.ToUpper(p[:1]) + p[1:]
		}
	}
	return strings.Join(parts, "")
}
