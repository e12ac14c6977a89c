package build

import (
	"os"
	"path/filepath"
	"testing"
)

// TestContentKey: all that decides the bytes changes the key, tests do not.
func TestContentKey(t *testing.T) {
	base := t.TempDir()
	put := func(name, text string) {
		t.Helper()
		file := filepath.Join(base, "m", name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m := component{name: "m", dir: "m", bins: []binary{{"m", "./cmd", ""}}}
	key := func(version string) string {
		t.Helper()
		k, err := contentKey(base, m, version)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	if _, err := contentKey(base, m, "go1"); err == nil {
		t.Error("a component without go.mod has a key")
	}
	put("go.mod", "module m")
	put("go.sum", "")
	put("cmd/main.go", "package main")
	first := key("go1")
	put("cmd/main_test.go", "package main")
	if key("go1") != first {
		t.Error("a test changes the key")
	}
	seen := map[string]string{first: "nothing"}
	for _, c := range []struct {
		what   string
		change func()
	}{
		{"source", func() { put("cmd/main.go", "package main // changed") }},
		{"new file", func() { put("cmd/more.go", "package main") }},
		{"go.sum", func() { put("go.sum", "x") }},
		{"tags", func() { m.tags = "seccomp" }},
		{"linker flags", func() { m.bins[0].ldflags = "-X a=b" }},
		{"static", func() { m.static = true }},
	} {
		c.change()
		k := key("go1")
		if other, ok := seen[k]; ok {
			t.Errorf("a change of %s gives the key of %s", c.what, other)
		}
		seen[k] = c.what
	}
	if seen[key("go2")] != "" {
		t.Error("another toolchain has the same key")
	}
}

// TestComponentsArePinned: each module that is compiled has committed sums.
func TestComponentsArePinned(t *testing.T) {
	for _, m := range components() {
		for _, f := range []string{"go.mod", "go.sum"} {
			if _, err := os.Stat(filepath.Join("..", m.dir, f)); err != nil {
				t.Errorf("component %s: %v", m.name, err)
			}
		}
	}
}
