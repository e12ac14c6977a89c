package leaktest

import (
	"os"
	"strings"
	"testing"
)

// TestGoroutines: one that waits is found, and not any more when it has ended.
func TestGoroutines(t *testing.T) {
	stop, over := make(chan struct{}), make(chan struct{})
	go func() { // it begins with a function of the module
		defer close(over)
		<-stop
	}()
	before := openFDs()
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	if n := openFDs(); n != before+1 {
		t.Errorf("%d descriptors, want %d", n, before+1)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	found := func() bool { return strings.Contains(strings.Join(goroutines(), "\n"), "TestGoroutines.func1") }
	if !found() {
		t.Error("a goroutine that waits is not found")
	}
	close(stop)
	<-over
	for range 1000 {
		if !found() {
			return
		}
	}
	t.Error("one that has ended is found")
}
