package main

import (
	"slices"
	"testing"
)

func TestAskedLevel(t *testing.T) {
	for _, c := range []struct {
		level string
		reset bool
		want  string
		bad   bool
	}{
		{"", false, "", false}, {"", true, "info", false}, {"debug", false, "debug", false}, {"WARN", false, "warn", false},
		{"warning", false, "warn", false}, {"loud", false, "", true}, {"debug", true, "", true},
	} {
		got, err := askedLevel(c.level, c.reset)
		if got != c.want || (err != nil) != c.bad {
			t.Errorf("%+v: %q, %v", c, got, err)
		}
	}
	rows := levelRows([]levelShown{{"b.istio-system", "n2", "info"}, {"a.istio-system", "n1", "debug"}})
	if want := [][]string{{"ZTUNNEL", "NODE", "LEVEL"}, {"a.istio-system", "n1", "debug"}, {"b.istio-system", "n2", "info"}}; !slices.EqualFunc(rows, want, slices.Equal) {
		t.Error(rows)
	}
}
