package h2

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestMain fails when a test leaves a goroutine of this package or a file descriptor behind.
func TestMain(m *testing.M) {
	before := openFDs()
	code := m.Run()
	if code == 0 {
		if msg := leaked(before); msg != "" {
			fmt.Fprintln(os.Stderr, msg)
			code = 1
		}
	}
	os.Exit(code)
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
	msg := ""
	for range 300 {
		buf := make([]byte, 4<<20)
		var bad []string
		for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if strings.Contains(g, "http/h2.") && !strings.Contains(g, "h2.TestMain") {
				bad = append(bad, g)
			}
		}
		msg = ""
		// the poller keeps up to two descriptors of its own after its first use
		if n := openFDs(); n > before+2 {
			msg = fmt.Sprintf("leaked file descriptors: %d before, %d after", before, n)
		}
		if len(bad) > 0 {
			msg = "leaked goroutines:\n" + strings.Join(bad, "\n\n")
		}
		if msg == "" {
			return ""
		}
		<-tick.C
	}
	return msg
}
