package support

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// protoLeaves lists the paths of all fields of a message that hold values: [] stands for the elements of a list, {} for
// the values of a map. Messages whose JSON form is not an object of their fields are leaves, and so is a message inside itself.
func protoLeaves(md protoreflect.MessageDescriptor) []string {
	var out []string
	var walk func(md protoreflect.MessageDescriptor, path string, above []protoreflect.FullName)
	walk = func(md protoreflect.MessageDescriptor, path string, above []protoreflect.FullName) {
		fields := md.Fields()
		if fields.Len() == 0 || strings.HasPrefix(string(md.FullName()), "google.protobuf.") || slices.Contains(above, md.FullName()) {
			out = append(out, path)
			return
		}
		above = append(slices.Clone(above), md.FullName())
		for i := range fields.Len() {
			fd := fields.Get(i)
			at := join(path, fd.JSONName())
			element := fd
			switch {
			case fd.IsMap():
				at, element = at+"{}", fd.MapValue()
			case fd.IsList():
				at += "[]"
			}
			if element.Message() == nil {
				out = append(out, at)
				continue
			}
			walk(element.Message(), at, above)
		}
	}
	walk(md, "", nil)
	slices.Sort(out)
	return out
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// goLeaves is protoLeaves for the Go type of a Kubernetes object's part.
func goLeaves(t reflect.Type) []string {
	var out []string
	var walk func(t reflect.Type, path string, above []reflect.Type)
	walk = func(t reflect.Type, path string, above []reflect.Type) {
		for t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		switch {
		case t.Kind() == reflect.Slice && t.Elem().Kind() != reflect.Uint8:
			walk(t.Elem(), path+"[]", above)
		case t.Kind() == reflect.Map:
			walk(t.Elem(), path+"{}", above)
		case t.Kind() == reflect.Struct && !opaque(t) && !slices.Contains(above, t):
			for i := range t.NumField() {
				f := t.Field(i)
				name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
				switch {
				case name == "-" || !f.IsExported():
				case name == "" && f.Anonymous:
					walk(f.Type, path, append(slices.Clone(above), t))
				default:
					walk(f.Type, join(path, name), append(slices.Clone(above), t))
				}
			}
		default:
			out = append(out, path)
		}
	}
	walk(t, "", nil)
	slices.Sort(out)
	return slices.Compact(out)
}

// opaque types have a JSON form of their own.
func opaque(t reflect.Type) bool {
	switch t {
	case reflect.TypeFor[metav1.Time](), reflect.TypeFor[metav1.Duration](), reflect.TypeFor[resource.Quantity](),
		reflect.TypeFor[intstr.IntOrString]():
		return true
	}
	return reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]())
}
