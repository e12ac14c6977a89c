package shape

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var fuzzer = regexp.MustCompile(`(?m)^func (Fuzz\w+)\(`)

// TestFuzzersAreListed: docs/fuzz.md names every fuzzer, and none that is gone.
func TestFuzzersAreListed(t *testing.T) {
	root := filepath.Join("..", "..")
	doc, err := os.ReadFile(filepath.Join(root, "docs", "fuzz.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(doc), "## The fuzzers")
	list, _, _ = strings.Cut(list, "\n## ")
	listed := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(.+)` \\| `(Fuzz.+)` \\|$").FindAllStringSubmatch(list, -1) {
		listed[m[1]+" "+m[2]] = true
	}
	if len(listed) == 0 {
		t.Fatal("docs/fuzz.md lists none")
	}
	for _, room := range []string{"cmd", "cni", "controller", "nodeagent", "ztunnel"} {
		err := filepath.WalkDir(filepath.Join(root, room), func(path string, _ os.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, "_test.go") {
				return err
			}
			src, err := os.ReadFile(path)
			dir, _ := filepath.Rel(root, filepath.Dir(path))
			for _, m := range fuzzer.FindAllSubmatch(src, -1) {
				if key := filepath.ToSlash(dir) + " " + string(m[1]); !listed[key] {
					t.Errorf("docs/fuzz.md does not list %s", key)
				} else {
					delete(listed, key)
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for key := range listed {
		t.Errorf("docs/fuzz.md lists %s, which is not there", key)
	}
}
