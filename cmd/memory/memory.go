// Package memory sets the garbage collector of the mesh's daemons. Most of what they hold lives as long as its pods and objects
// do, and collecting it is a fraction of a percent of their CPU.
package memory

import (
	"os"
	"runtime/debug"
	"strconv"
	"strings"
)

// gcPercent is how much the heap grows between two collections. Go's own default keeps as much garbage as state, which is
// 0.7 GB of the controller's at 100,000 pods.
const gcPercent = 50

// limitFile is the file that says how much memory the container may use, in bytes (cgroup v2).
const limitFile = "/sys/fs/cgroup/memory.max"

// Tune is called once, by the main of a process that is one daemon and nothing else: its heap grows less, and is collected more
// often before the limit of the container is reached. GOGC and GOMEMLIMIT override it.
func Tune() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if raw, err := os.ReadFile(limitFile); err == nil && os.Getenv("GOMEMLIMIT") == "" {
		if limit, ok := softLimit(string(raw)); ok {
			debug.SetMemoryLimit(limit)
		}
	}
}

// softLimit leaves a tenth of the container's memory to what the runtime does not count; ok is false without a limit.
func softLimit(text string) (limit int64, ok bool) {
	n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64) // else "max"
	if err != nil || n <= 0 {
		return 0, false
	}
	return n - n/10, true
}
