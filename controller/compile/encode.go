package compile

import (
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// encode is deterministic: equal messages are equal bytes. A text that is no UTF-8, which the API server stores when it comes
// as protobuf and which our messages cannot carry, loses the bytes in question: one object of one tenant must not end the
// compilation of all.
func encode(m proto.Message) []byte {
	opts := proto.MarshalOptions{Deterministic: true}
	data, err := opts.Marshal(m)
	if err == nil {
		return data
	}
	cleanText(m.ProtoReflect())
	if data, err = opts.Marshal(m); err != nil {
		panic("encode " + string(m.ProtoReflect().Descriptor().FullName()) + ": " + err.Error()) // proto3 has no other reason
	}
	return data
}

// cleanText makes every text in m valid UTF-8. Two keys of a map that become equal are one.
func cleanText(m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap():
			clean := m.NewField(f).Map()
			v.Map().Range(func(k protoreflect.MapKey, e protoreflect.Value) bool {
				if f.MapKey().Kind() == protoreflect.StringKind {
					k = validText(k.Value()).MapKey()
				}
				clean.Set(k, cleanValue(f.MapValue(), e))
				return true
			})
			m.Set(f, protoreflect.ValueOfMap(clean))
		case f.IsList():
			for i := range v.List().Len() {
				v.List().Set(i, cleanValue(f, v.List().Get(i)))
			}
		default:
			m.Set(f, cleanValue(f, v))
		}
		return true
	})
}

func cleanValue(f protoreflect.FieldDescriptor, v protoreflect.Value) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.StringKind:
		return validText(v)
	case protoreflect.MessageKind:
		cleanText(v.Message())
	}
	return v
}

func validText(v protoreflect.Value) protoreflect.Value {
	return protoreflect.ValueOfString(strings.ToValidUTF8(v.String(), "\uFFFD"))
}
