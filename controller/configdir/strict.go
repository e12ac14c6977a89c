package configdir

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

// cleanMessage removes from value what a message of the type cannot hold and reports each removal with its path.
func cleanMessage(value any, md protoreflect.MessageDescriptor, path string) (any, []Issue) {
	if value == nil {
		return nil, nil
	}
	if text, ok := value.(string); ok && md.FullName() == "google.protobuf.Duration" {
		// Istio's documents write 3m and 500ms where the JSON of protobuf has seconds only.
		if d, err := time.ParseDuration(text); err == nil {
			value = strconv.FormatFloat(d.Seconds(), 'f', -1, 64) + "s"
		}
	}
	if strings.HasPrefix(string(md.FullName()), "google.protobuf.") { // wrappers, durations, Struct: JSON of their own
		return cleanLeaf(value, path, func() error { return unmarshalProto(value, dynamicpb.NewMessage(md)) })
	}
	in, ok := value.(map[string]any)
	if !ok {
		return nil, []Issue{{path, fmt.Sprintf("is a %s, want an object", typeName(value))}}
	}
	out := make(map[string]any, len(in))
	var issues []Issue
	oneofs := map[protoreflect.Name]string{}
	for _, name := range slices.Sorted(maps.Keys(in)) {
		at := path + "." + name
		fd := md.Fields().ByJSONName(name)
		if fd == nil {
			fd = md.Fields().ByTextName(name)
		}
		if fd == nil {
			issues = append(issues, Issue{at, "unknown field"})
			continue
		}
		if o := fd.ContainingOneof(); o != nil && !o.IsSynthetic() && in[name] != nil {
			if other := oneofs[o.Name()]; other != "" {
				issues = append(issues, Issue{at, "excludes " + other})
				continue
			}
			oneofs[o.Name()] = name
		}
		clean, found := cleanField(in[name], fd, at)
		issues = append(issues, found...)
		if clean != nil {
			if _, twice := out[fd.JSONName()]; twice {
				issues = append(issues, Issue{at, "is given twice"})
				continue
			}
			out[fd.JSONName()] = clean
		}
	}
	return out, issues
}

func cleanField(value any, fd protoreflect.FieldDescriptor, path string) (any, []Issue) {
	switch {
	case value == nil:
		return nil, nil
	case fd.IsMap():
		return cleanMap(value, fd, path)
	case fd.IsList():
		in, ok := value.([]any)
		if !ok {
			return nil, []Issue{{path, fmt.Sprintf("is a %s, want a list", typeName(value))}}
		}
		out := make([]any, 0, len(in))
		var issues []Issue
		for i, v := range in {
			at := fmt.Sprintf("%s[%d]", path, i)
			if v == nil {
				issues = append(issues, Issue{at, "is null"})
				continue
			}
			clean, found := cleanSingular(v, fd, at)
			issues = append(issues, found...)
			if clean != nil {
				out = append(out, clean)
			}
		}
		return out, issues
	}
	return cleanSingular(value, fd, path)
}

func cleanMap(value any, fd protoreflect.FieldDescriptor, path string) (any, []Issue) {
	in, ok := value.(map[string]any)
	if !ok {
		return nil, []Issue{{path, fmt.Sprintf("is a %s, want an object", typeName(value))}}
	}
	out := make(map[string]any, len(in))
	var issues []Issue
	for _, name := range slices.Sorted(maps.Keys(in)) {
		at := path + "." + name
		_, found := cleanSingular(name, fd.MapKey(), at)
		if len(found) > 0 {
			issues = append(issues, Issue{at, "the key does not fit: " + found[0].Message})
			continue
		}
		v := in[name]
		if v == nil && fd.MapValue().Message() != nil {
			v = map[string]any{}
		}
		clean, found := cleanSingular(v, fd.MapValue(), at)
		issues = append(issues, found...)
		if clean != nil {
			out[name] = clean
		}
	}
	return out, issues
}

func cleanSingular(value any, fd protoreflect.FieldDescriptor, path string) (any, []Issue) {
	if fd.Message() != nil {
		return cleanMessage(value, fd.Message(), path)
	}
	if fd.Enum() != nil {
		return cleanEnum(value, fd.Enum(), path)
	}
	return cleanLeaf(value, path, func() error { return scalarFits(value, fd.Kind()) })
}

func cleanEnum(value any, ed protoreflect.EnumDescriptor, path string) (any, []Issue) {
	var names []string
	for i := range ed.Values().Len() {
		v := ed.Values().Get(i)
		if value == string(v.Name()) || value == int64(v.Number()) {
			return value, nil
		}
		names = append(names, string(v.Name()))
	}
	return nil, []Issue{{path, fmt.Sprintf("unknown value %v, want one of %s", value, strings.Join(names, ", "))}}
}

func cleanLeaf(value any, path string, fits func() error) (any, []Issue) {
	if err := fits(); err != nil {
		return nil, []Issue{{path, err.Error()}}
	}
	return value, nil
}

// scalarFits applies the JSON mapping of protobuf: numbers may be strings, 64-bit ones are usually.
func scalarFits(value any, kind protoreflect.Kind) error {
	want := ""
	switch kind {
	case protoreflect.StringKind:
		if _, ok := value.(string); !ok {
			want = "a string"
		}
	case protoreflect.BoolKind:
		_, isBool := value.(bool)
		if text, isText := value.(string); !isBool && (!isText || (text != "true" && text != "false")) {
			want = "a boolean"
		}
	case protoreflect.BytesKind:
		if _, ok := value.(string); !ok {
			want = "base64 text"
		}
	case protoreflect.DoubleKind, protoreflect.FloatKind:
		if !isNumber(value, false) {
			want = "a number"
		}
	default:
		if !isNumber(value, true) {
			want = "an integer"
		}
		if strings.HasPrefix(kind.String(), "u") && strings.HasPrefix(fmt.Sprint(value), "-") {
			want = "a number that is not negative"
		}
	}
	if want == "" {
		return nil
	}
	return fmt.Errorf("%s %v, want %s", typeName(value), value, want)
}

func isNumber(value any, integer bool) bool {
	switch v := value.(type) {
	case int64:
		return true
	case float64:
		return !integer || v == float64(int64(v))
	case string:
		var n int64
		var f float64
		if _, err := fmt.Sscan(v, &n); err == nil && fmt.Sprint(n) == v {
			return true
		}
		_, err := fmt.Sscan(v, &f)
		return !integer && err == nil
	}
	return false
}

func typeName(value any) string {
	switch value.(type) {
	case map[string]any:
		return "object"
	case []any:
		return "list"
	case string:
		return "string"
	case bool:
		return "boolean"
	case int64, float64:
		return "number"
	}
	return fmt.Sprintf("%T", value)
}
