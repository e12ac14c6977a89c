package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/undermesh/undermesh/test/netnstest"
)

// TestLeftovers: what a killed test leaves is gone when the next one begins, and a lab beside it is not disturbed.
func TestLeftovers(t *testing.T) {
	const env = "LAB_IS_KILLED"
	if file := os.Getenv(env); file != "" {
		l := New(t, Config{Nodes: 1})
		l.Namespace("foo", false)
		l.Nodes[0].Pod("foo", "sleep")
		if err := os.WriteFile(file, []byte(l.tmp), 0o600); err != nil {
			t.Fatal(err)
		}
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	netnstest.Require(t)
	beside := New(t, Config{Nodes: 1, Bare: true})
	pod := beside.Nodes[0].Pod("foo", "sleep")
	server := pod.Start("/bin/sleep", "infinity")
	file := filepath.Join(t.TempDir(), "dir")
	cmd := exec.Command(os.Args[0], "-test.run=^TestLeftovers$")
	cmd.Env = append(os.Environ(), env+"="+file)
	out, _ := cmd.CombinedOutput() // it is killed
	dir, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	list, err := os.ReadFile(filepath.Join(string(dir), leftFile))
	if err != nil {
		t.Fatal(err)
	}
	left := func() map[string]int {
		n := map[string]int{}
		for line := range strings.Lines(string(list)) {
			kind, value, _ := strings.Cut(strings.TrimSpace(line), " ")
			there := false
			if text, start, ok := strings.Cut(value, " "); ok && kind == leftProcess {
				pid, _ := strconv.Atoi(text)
				there = startOf(pid) == start
			} else {
				_, err := os.Stat(value)
				there = err == nil
			}
			if there {
				n[kind]++
			}
		}
		return n
	}
	before := left()
	for _, kind := range []string{leftProcess, leftGroup, leftMount, leftPins} {
		if before[kind] == 0 {
			t.Errorf("nothing of kind %s is left, so nothing is shown: %v", kind, before)
		}
	}
	sweep(t)
	beside.Until(5*time.Second, "what was left to be gone", func() error {
		if n := left(); len(n) > 0 {
			return fmt.Errorf("%v", n)
		}
		return nil
	})
	if _, err := os.Stat(string(dir)); !os.IsNotExist(err) {
		t.Errorf("directory: %v", err)
	}
	if _, err := os.Stat(beside.tmp); err != nil || !server.Alive() {
		t.Errorf("the lab beside it is disturbed: %v, alive: %v", err, server.Alive())
	}
}
