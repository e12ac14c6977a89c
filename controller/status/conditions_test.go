package status

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/undermesh/undermesh/controller/validate"
)

// TestMessagesAreBounded: an object that is full of what is wrong still gets a status, and the same one again.
func TestMessagesAreBounded(t *testing.T) {
	s := validate.Status{Kind: "AuthorizationPolicy", Message: strings.Repeat("spec.rules[0].to[0]: ü; ", 100_000)}
	list, _ := render(s, nil, time.Unix(1, 0))
	had := map[string]map[string]any{}
	for _, c := range list {
		m := c.(map[string]any)
		text := m["message"].(string)
		if len(text) > maxMessage || !utf8.ValidString(text) || !strings.HasSuffix(text, " … and more") {
			t.Errorf("%v: %d bytes", m["type"], len(text))
		}
		had[m["type"].(string)] = m
	}
	if _, changed := render(s, had, time.Unix(2, 0)); changed {
		t.Error("the status changes with every look")
	}
	short := validate.Status{Kind: "AuthorizationPolicy", Message: "spec: wrong"}
	if list, _ := render(short, nil, time.Unix(1, 0)); list[0].(map[string]any)["message"] != "spec: wrong" {
		t.Error("a short message is changed")
	}
}
