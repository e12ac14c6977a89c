package validate

import (
	"encoding/base64"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/api/resource"
)

// placeholders are the forms in which documents leave a value open.
var placeholders = regexp.MustCompile(`<[A-Za-z][A-Za-z0-9 _.-]*>|\$\{[A-Z][A-Z0-9_]*\}|^\$[A-Z][A-Z0-9_]*$`)

// placeholder returns the part of the text that somebody forgot to fill in, "" when there is none.
func placeholder(text string) string {
	if len(text) > 256 {
		return ""
	}
	return placeholders.FindString(text)
}

// scalar checks a scalar against its schema.
func (w *walker) scalar(n *yaml.Node, s *schema, path string) any {
	kind := kindOf(n)
	switch s.shape {
	case shapeBool:
		if kind != "boolean" && !(w.lenient && (n.Value == "true" || n.Value == "false")) {
			w.wrong(path, n, s)
			return nil
		}
		return w.any(n, path)
	case shapeInt:
		return w.integer(n, s, path, kind)
	case shapeNumber:
		f, err := strconv.ParseFloat(n.Value, 64)
		if err != nil || f-f != 0 || (kind != "number" && !w.lenient) {
			w.wrong(path, n, s)
			return nil
		}
		return f
	case shapeIntOrString:
		if i, err := strconv.ParseInt(n.Value, 0, 32); err == nil && kind == "number" {
			return float64(i)
		}
	case shapeQuantity:
		if _, err := resource.ParseQuantity(n.Value); err != nil {
			w.bad(path, "%q is not a quantity like 100m or 1Gi", n.Value)
			return nil
		}
		return n.Value
	case shapeEnum:
		return w.enum(n, s, path, kind)
	case shapeDuration:
		return w.duration(n, s, path, kind)
	}
	if kind != "string" {
		w.wrong(path, n, s)
		return nil
	}
	return w.text(n, s, path)
}

// bad records an Error that makes decoding senseless.
func (w *walker) bad(path, format string, args ...any) {
	w.broken = true
	w.add(Error, path, format, args...)
}

func (w *walker) integer(n *yaml.Node, s *schema, path, kind string) any {
	text := strings.ReplaceAll(n.Value, "_", "")
	f, err := strconv.ParseFloat(text, 64)
	if i, intErr := strconv.ParseInt(text, 0, 64); intErr == nil {
		f, err = float64(i), nil
	}
	switch {
	case err != nil || f-f != 0 || f != math.Trunc(f) || (kind != "number" && !w.lenient):
		w.wrong(path, n, s)
		return nil
	case f < s.min || f > s.max:
		w.bad(path, "%s is not from %.0f to %.0f", n.Value, s.min, s.max)
		return nil
	}
	return f
}

func (w *walker) enum(n *yaml.Node, s *schema, path, kind string) any {
	if i, err := strconv.Atoi(n.Value); err == nil && w.lenient && i >= 0 && i < len(s.enum) {
		return s.enum[i]
	}
	if kind == "string" && slices.Contains(s.enum, n.Value) {
		return n.Value
	}
	w.bad(path, "%q is not one of %s", n.Value, strings.Join(s.enum, ", "))
	w.suggest(n.Value, s.enum)
	return nil
}

func (w *walker) duration(n *yaml.Node, s *schema, path, kind string) any {
	d, err := time.ParseDuration(n.Value)
	if err != nil || kind != "string" {
		w.bad(path, "%q is not a duration like 10s or 1.5s", n.Value)
		if _, err := strconv.ParseFloat(n.Value, 64); err == nil {
			w.hint("the unit is missing: %ss?", n.Value)
		}
		return nil
	}
	return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) + "s"
}

func (w *walker) text(n *yaml.Node, s *schema, path string) any {
	switch s.shape {
	case shapeBytes:
		if _, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(n.Value), "")); err != nil {
			w.bad(path, "is not base64")
			if p := placeholder(n.Value); p != "" {
				w.hint("%s looks like a placeholder", p)
			} else {
				w.hint("plain text belongs into stringData, or encode it")
			}
			return nil
		}
		return strings.Join(strings.Fields(n.Value), "")
	case shapeTime:
		if _, err := time.Parse(time.RFC3339Nano, n.Value); err != nil {
			w.bad(path, "%q is not a time like 2024-01-31T12:00:00Z", n.Value)
			return nil
		}
	case shapeString, shapeIntOrString:
		if note := removedValues[n.Value]; note != "" {
			w.add(Warning, path, "%q %s", n.Value, note)
		}
		if p := placeholder(n.Value); p != "" && !strings.Contains(n.Value, "\n") {
			w.add(Warning, path, "%s looks like a placeholder", p)
			w.hint("put the real value in its place")
		}
	}
	return n.Value
}
