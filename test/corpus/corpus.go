// Package corpus finds the collected documents that users bring: good, obsolete and damaged ones. They are not part of the
// repository. All tests that read them go by this package, so that none is skipped where another fails.
package corpus

import (
	"encoding/csv"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
)

// Dir returns the directory of the documents: CORPUS, or ../shared/spec/corpus beside the checkout. Without them the test is
// skipped; where they must be there, because CI is true or CORPUS is set, it fails.
func Dir(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("CORPUS")
	if dir == "" {
		_, file, _, _ := runtime.Caller(0)
		dir = filepath.Join(filepath.Dir(file), "..", "..", "..", "shared", "spec", "corpus")
	}
	if _, err := os.Stat(dir); err != nil {
		if os.Getenv("CI") == "true" || os.Getenv("CORPUS") != "" {
			t.Fatal("the corpus must be there (name its directory in CORPUS):", err)
		}
		t.Skip("no corpus:", err)
	}
	return dir
}

// File is a document and what the index says of it.
type File struct {
	Path     string
	Name     string
	Obsolete bool   // or deliberately incomplete: a message is due
	Printed  string // the damaged form; "" when there is none that differs
}

// Files lists the documents of the index in its order.
func Files(t testing.TB) []File {
	t.Helper()
	dir := Dir(t)
	in, err := os.Open(filepath.Join(dir, "INDEX.tsv"))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	r := csv.NewReader(in)
	r.Comma, r.LazyQuotes = '\t', true
	rows, err := r.ReadAll()
	if err != nil || len(rows) < 2 {
		t.Fatal("the index has no rows:", err)
	}
	column := func(name string) int {
		i := slices.Index(rows[0], name)
		if i < 0 {
			t.Fatalf("the index has no column %s", name)
		}
		return i
	}
	file, obsolete, printed := column("file"), column("obsolete"), column("printed_yaml")
	var out []File
	for _, row := range rows[1:] {
		f := File{Path: filepath.Join(dir, row[file]), Name: row[file], Obsolete: row[obsolete] != "n"}
		if p := filepath.Join(dir, "as-printed", row[file]); row[printed] != "same" {
			if _, err := os.Stat(p); err == nil {
				f.Printed = p
			}
		}
		out = append(out, f)
	}
	return out
}
