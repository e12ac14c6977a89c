package validate

import (
	"math"
	"slices"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// protoSchemas makes schemas of protobuf messages, each message once.
type protoSchemas map[protoreflect.FullName]*schema

// message returns the schema of the JSON form of a message.
func (p protoSchemas) message(d protoreflect.MessageDescriptor) *schema {
	if s := wellKnown(d.FullName()); s != nil {
		return s
	}
	if s := p[d.FullName()]; s != nil {
		return s
	}
	s := object()
	p[d.FullName()] = s
	for i := range d.Fields().Len() {
		fd := d.Fields().Get(i)
		f := field{schema: p.field(fd), name: fd.JSONName()}
		if o := fd.ContainingOneof(); o != nil && !o.IsSynthetic() {
			f.oneof = string(o.Name())
		}
		if opts, ok := fd.Options().(*descriptorpb.FieldOptions); ok {
			f.deprecated = opts.GetDeprecated()
			behavior, _ := proto.GetExtension(opts, annotations.E_FieldBehavior).([]annotations.FieldBehavior)
			f.required = slices.Contains(behavior, annotations.FieldBehavior_REQUIRED)
		}
		s.fields[fd.JSONName()] = f
		if name := string(fd.Name()); name != fd.JSONName() {
			f.other = true
			s.fields[name] = f
		}
	}
	return s
}

// wellKnown is the schema of messages whose JSON form is not an object of their fields; nil for all others.
func wellKnown(name protoreflect.FullName) *schema {
	switch name {
	case "google.protobuf.Duration":
		return of(shapeDuration)
	case "google.protobuf.Timestamp":
		return of(shapeTime)
	case "google.protobuf.Struct":
		return mapOf(of(shapeAny))
	case "google.protobuf.Value", "google.protobuf.Any":
		return of(shapeAny)
	case "google.protobuf.ListValue":
		return listOf(of(shapeAny))
	case "google.protobuf.BoolValue":
		return of(shapeBool)
	case "google.protobuf.StringValue":
		return of(shapeString)
	case "google.protobuf.BytesValue":
		return of(shapeBytes)
	case "google.protobuf.DoubleValue", "google.protobuf.FloatValue":
		return of(shapeNumber)
	case "google.protobuf.Int32Value":
		return number(protoreflect.Int32Kind)
	case "google.protobuf.UInt32Value":
		return number(protoreflect.Uint32Kind)
	case "google.protobuf.Int64Value":
		return number(protoreflect.Int64Kind)
	case "google.protobuf.UInt64Value":
		return number(protoreflect.Uint64Kind)
	}
	return nil
}

func (p protoSchemas) field(fd protoreflect.FieldDescriptor) *schema {
	switch {
	case fd.IsMap():
		s := mapOf(p.value(fd.MapValue()))
		if k := p.value(fd.MapKey()); k.shape == shapeInt {
			s.keys = k
		}
		return s
	case fd.IsList():
		return listOf(p.value(fd))
	}
	return p.value(fd)
}

func (p protoSchemas) value(fd protoreflect.FieldDescriptor) *schema {
	switch fd.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return p.message(fd.Message())
	case protoreflect.EnumKind:
		s := of(shapeEnum)
		for i := range fd.Enum().Values().Len() {
			s.enum = append(s.enum, string(fd.Enum().Values().Get(i).Name()))
		}
		return s
	case protoreflect.StringKind:
		return of(shapeString)
	case protoreflect.BytesKind:
		return of(shapeBytes)
	case protoreflect.BoolKind:
		return of(shapeBool)
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		return of(shapeNumber)
	default:
		return number(fd.Kind())
	}
}

// number is the schema of an integer of that kind.
func number(k protoreflect.Kind) *schema {
	s := &schema{shape: shapeInt, min: math.MinInt32, max: math.MaxInt32}
	switch k {
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		s.min, s.max = 0, math.MaxUint32
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		s.min, s.max = 0, math.MaxUint64
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		s.min, s.max = math.MinInt64, math.MaxInt64
	}
	return s
}
