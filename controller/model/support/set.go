package support

import (
	"maps"
	"reflect"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// setPaths lists the leaves, as protoLeaves and goLeaves name them, that a spec sets: sorted, once each. Zero values of
// fields without presence count as not set; a message that is set and empty counts as its leaves do, not at all.
func setPaths(spec any) []string {
	seen := map[string]bool{}
	if m, ok := spec.(proto.Message); ok {
		setProto(m.ProtoReflect(), "", nil, seen)
	} else if spec != nil {
		setGo(reflect.ValueOf(spec), "", nil, seen)
	}
	return slices.Sorted(maps.Keys(seen))
}

func setProto(m protoreflect.Message, path string, above []protoreflect.FullName, seen map[string]bool) {
	name := m.Descriptor().FullName()
	if m.Descriptor().Fields().Len() == 0 || strings.HasPrefix(string(name), "google.protobuf.") || slices.Contains(above, name) {
		seen[path] = true
		return
	}
	above = append(slices.Clone(above), name)
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		at := join(path, fd.JSONName())
		switch {
		case fd.IsMap():
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
				if fd.MapValue().Message() == nil {
					seen[at+"{}"] = true
				} else {
					setProto(v.Message(), at+"{}", above, seen)
				}
				return true
			})
		case fd.IsList():
			for i := range v.List().Len() {
				if fd.Message() == nil {
					seen[at+"[]"] = true
				} else {
					setProto(v.List().Get(i).Message(), at+"[]", above, seen)
				}
			}
		case fd.Message() != nil:
			setProto(v.Message(), at, above, seen)
		default:
			seen[at] = true
		}
		return true
	})
}

func setGo(v reflect.Value, path string, above []reflect.Type, seen map[string]bool) {
	for v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return
		}
		v = v.Elem()
	}
	t := v.Type()
	switch {
	case v.IsZero() && path != "":
	case t.Kind() == reflect.Slice && t.Elem().Kind() != reflect.Uint8:
		for i := range v.Len() {
			setGo(v.Index(i), path+"[]", above, seen)
		}
	case t.Kind() == reflect.Map:
		for _, key := range v.MapKeys() {
			setGo(v.MapIndex(key), path+"{}", above, seen)
		}
	case t.Kind() == reflect.Struct && !opaque(t) && !slices.Contains(above, t):
		above = append(slices.Clone(above), t)
		for i := range t.NumField() {
			f := t.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			switch {
			case name == "-" || !f.IsExported():
			case name == "" && f.Anonymous:
				setGo(v.Field(i), path, above, seen)
			default:
				setGo(v.Field(i), join(path, name), above, seen)
			}
		}
	default:
		seen[path] = true
	}
}
