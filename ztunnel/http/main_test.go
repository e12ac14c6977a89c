package http

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestMain fails when a test leaves a goroutine of the engine or of its codecs behind.
func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if msg := leaked(); msg != "" {
			fmt.Fprintln(os.Stderr, msg)
			code = 1
		}
	}
	os.Exit(code)
}

// leaked waits a little for what is about to end and describes what does not.
func leaked() string {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	buf := make([]byte, 4<<20)
	var bad []string
	for range 500 {
		bad = nil
		for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if strings.Contains(g, "/ztunnel/http") && !strings.Contains(g, "http.TestMain") {
				bad = append(bad, g)
			}
		}
		if len(bad) == 0 {
			return ""
		}
		<-tick.C
	}
	return "leaked goroutines:\n" + strings.Join(bad, "\n\n")
}
