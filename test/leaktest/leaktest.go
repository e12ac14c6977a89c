// Package leaktest fails a test binary whose tests leave goroutines of this module or file descriptors behind.
//
// It knows goroutines by the module's name in their stacks, so that those of libraries and of the runtime are not its matter unless code
// of the module has started them.
package leaktest

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

const (
	module = "github.com/undermesh/undermesh/"
	own    = module + "test/leaktest."
	limit  = 5 * time.Second // what is about to end has so long
)

// Run runs the tests and returns the status to exit with: another than 0 when they have left something behind, which it prints.
func Run(m *testing.M) int {
	before := openFDs()
	code := m.Run()
	if code != 0 {
		return code
	}
	if msg := leaked(before); msg != "" {
		fmt.Fprintln(os.Stderr, msg)
		return 1
	}
	return 0
}

func openFDs() int {
	l, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return -1
	}
	return len(l)
}

// leaked waits a little for what is about to end and describes what does not.
func leaked(before int) string {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(limit); ; <-tick.C {
		msg := strings.Join(goroutines(), "\n\n")
		// the poller keeps up to two descriptors of its own after its first use
		if n := openFDs(); msg != "" {
			msg = "leaked goroutines:\n" + msg
		} else if n > before+2 {
			msg = fmt.Sprintf("leaked file descriptors: %d before, %d after", before, n)
		}
		if msg == "" || time.Now().After(deadline) {
			return msg
		}
	}
}

// goroutines are the stacks of those of the module, but for the one that asks.
func goroutines() (out []string) {
	buf := make([]byte, 4<<20)
	for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(g, module) && !strings.Contains(g, own+"goroutines") {
			out = append(out, g)
		}
	}
	return out
}
