package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestReplay: the committed record is decided again; one that says otherwise is told, with what differs.
func TestReplay(t *testing.T) {
	run := func(args ...string) (string, error) {
		var out, errw strings.Builder
		root := newRoot("undermesh", strings.NewReader(""), &out, &errw)
		root.SetArgs(append([]string{"explain"}, args...))
		err := root.Execute()
		return out.String(), err
	}
	const path = "../../ztunnel/explain/testdata/record.json"
	out, err := run("--replay", path)
	if err != nil || !strings.Contains(out, "route         jason of VirtualService default/reviews") || !strings.Contains(out, "outcome       forwarded\n") {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := run("--replay", path, "-o", "json"); err != nil || !strings.Contains(out, `"outcome": "forwarded"`) {
		t.Errorf("-o json: %v: %s", err, out)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	changed := filepath.Join(t.TempDir(), "record.json")
	if err := os.WriteFile(changed, []byte(strings.Replace(string(text), `"outcome": "forwarded"`, `"outcome": "refused"`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := run("--replay", changed); err == nil || !strings.Contains(err.Error(), `outcome was "refused" and is "forwarded"`) {
		t.Error("a record that says otherwise:", err)
	}
	if _, err := run("--replay", "/nonexistent"); err == nil {
		t.Error("no file is no error")
	}
}
