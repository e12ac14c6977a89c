package compile

import (
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/undermesh/undermesh/controller/api/settings"
)

// TestTextThatIsNoUTF8: the API server stores annotations with any bytes; what is made of one is served without them, in
// fields, lists, maps and their keys.
func TestTextThatIsNoUTF8(t *testing.T) {
	bad := "a\xffb"
	value, err := structpb.NewList([]any{"x"})
	if err != nil {
		t.Fatal(err)
	}
	value.Values[0] = structpb.NewStringValue(bad)
	for name, m := range map[string]proto.Message{
		"list":  &settings.ServiceSettings{ExportTo: []string{"ok", bad}},
		"field": &settings.SettingsRef{Name: bad},
		"map":   &structpb.Struct{Fields: map[string]*structpb.Value{bad: structpb.NewListValue(value)}},
	} {
		t.Run(name, func(t *testing.T) {
			again := proto.Clone(m)
			raw := encode(m)
			if err := proto.Unmarshal(raw, again); err != nil {
				t.Errorf("%q, %v", raw, err)
			}
			if want := "a\uFFFDb"; name == "field" && again.(*settings.SettingsRef).GetName() != want {
				t.Errorf("got %v", again)
			}
			if pack(m) == nil || contentName(m) == "" {
				t.Error("it has no content")
			}
		})
	}
}
