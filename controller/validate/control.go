package validate

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// noControls names each text of m, at whatever depth, that has a control character. Most of what a route says becomes part of a line of
// HTTP, where one would begin another line; only the body of a direct response may have them.
func (c *collector) noControls(m proto.Message, at string) {
	eachText(m.ProtoReflect(), at, func(text, at string) {
		if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			c.add(Error, at, "has a control character")
		}
	})
}

// eachText calls visit with each text in m and its place, in the order of the fields' numbers.
func eachText(m protoreflect.Message, at string, visit func(text, at string)) {
	value := func(fd protoreflect.FieldDescriptor, v protoreflect.Value, at string) {
		switch fd.Kind() {
		case protoreflect.StringKind:
			visit(v.String(), at)
		case protoreflect.MessageKind:
			if fd.Message().Name() != "HTTPBody" {
				eachText(v.Message(), at, visit)
			}
		default: // numbers and switches
		}
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if !m.Has(fd) {
			continue
		}
		at, v := at+"."+fd.JSONName(), m.Get(fd)
		switch {
		case fd.IsMap():
			var keys []string
			v.Map().Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool {
				keys = append(keys, k.String())
				return true
			})
			slices.Sort(keys)
			for _, k := range keys {
				visit(k, at)
				value(fd.MapValue(), v.Map().Get(protoreflect.ValueOfString(k).MapKey()), fmt.Sprintf("%s.%s", at, k))
			}
		case fd.IsList():
			for i := range v.List().Len() {
				value(fd, v.List().Get(i), at+indexed("", i))
			}
		default:
			value(fd, v, at)
		}
	}
}
