package dated

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestRunsOfOneDayAreKept(t *testing.T) {
	dir, day := filepath.Join(t.TempDir(), "reports"), time.Date(2026, 5, 1, 23, 0, 0, 0, time.FixedZone("", -2*3600))
	for i, want := range []string{"x-2026-05-02.md", "x-2026-05-02-2.md", "x-2026-05-02-3.md"} {
		path, err := Write(dir, "x-", day, want)
		if err != nil || path != filepath.Join(dir, want) {
			t.Fatalf("run %d: %s, %v", i+1, path, err)
		}
	}
	if raw, err := os.ReadFile(filepath.Join(dir, "x-2026-05-02.md")); err != nil || string(raw) != "x-2026-05-02.md" {
		t.Errorf("the first run is %q, %v", raw, err)
	}
	if _, err := Write("/dev/null/x", "", day, ""); err == nil {
		t.Error("a directory that cannot be made")
	}
}
