// Package dated writes the reports of benchmarks: one file a run, named by its day, and no run is ever overwritten.
package dated

import (
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Write makes PREFIXdate.md in dir, or PREFIXdate-2.md and so on, with the day in UTC. It returns the file's path.
func Write(dir, prefix string, at time.Time, text string) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make directory of reports: %w", err)
	}
	for n := 1; ; n++ {
		name := prefix + at.UTC().Format(time.DateOnly)
		if n > 1 {
			name += fmt.Sprintf("-%d", n)
		}
		path := filepath.Join(dir, name+".md")
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if os.IsExist(err) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("write report: %w", err)
		}
		_, err = f.WriteString(text)
		if closed := f.Close(); err == nil {
			err = closed
		}
		if err != nil {
			return path, fmt.Errorf("write report: %w", err)
		}
		return path, nil
	}
}
