package validate

import (
	"encoding/json"
	"math"
	"reflect"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// goSchemas makes schemas of the Go types of Kubernetes, each type once.
type goSchemas map[reflect.Type]*schema

// of returns the schema of the JSON form of a type.
func (g goSchemas) of(t reflect.Type) *schema {
	if t.Kind() == reflect.Pointer {
		return g.of(t.Elem())
	}
	switch t {
	case reflect.TypeFor[metav1.Time](), reflect.TypeFor[metav1.MicroTime]():
		return of(shapeTime)
	case reflect.TypeFor[metav1.Duration]():
		return of(shapeDuration)
	case reflect.TypeFor[resource.Quantity]():
		return of(shapeQuantity)
	case reflect.TypeFor[intstr.IntOrString]():
		return of(shapeIntOrString)
	}
	if s := g[t]; s != nil {
		return s
	}
	if reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]()) {
		return of(shapeAny) // it reads JSON in its own way
	}
	switch t.Kind() {
	case reflect.Struct:
		s := object()
		g[t] = s
		g.addFields(s, t)
		return s
	case reflect.Map:
		return mapOf(g.of(t.Elem()))
	case reflect.Slice, reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 {
			return of(shapeBytes)
		}
		return listOf(g.of(t.Elem()))
	}
	return goScalar(t)
}

func goScalar(t reflect.Type) *schema {
	switch t.Kind() {
	case reflect.String:
		return of(shapeString)
	case reflect.Bool:
		return of(shapeBool)
	case reflect.Float32, reflect.Float64:
		return of(shapeNumber)
	case reflect.Int, reflect.Int64:
		return &schema{shape: shapeInt, min: math.MinInt64, max: math.MaxInt64}
	case reflect.Int8, reflect.Int16, reflect.Int32:
		bits := t.Bits()
		return &schema{shape: shapeInt, min: -math.Pow(2, float64(bits-1)), max: math.Pow(2, float64(bits-1)) - 1}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return &schema{shape: shapeInt, max: math.Pow(2, float64(t.Bits())) - 1}
	}
	return of(shapeAny)
}

func (g goSchemas) addFields(s *schema, t reflect.Type) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-" || (!f.IsExported() && !f.Anonymous):
		case name == "" && (f.Anonymous || strings.Contains(opts, "inline")):
			inner := f.Type
			if inner.Kind() == reflect.Pointer {
				inner = inner.Elem()
			}
			if inner.Kind() == reflect.Struct {
				g.addFields(s, inner)
			}
		default:
			if name == "" {
				name = f.Name
			}
			s.fields[name] = field{schema: g.of(f.Type), name: name}
		}
	}
}
