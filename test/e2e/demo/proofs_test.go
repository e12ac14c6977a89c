package main

import (
	"fmt"
	"strings"
	"testing"
)

func TestNarrate(t *testing.T) {
	var said strings.Builder
	passed, skipped := narrate(strings.NewReader(`=== RUN   TestA
=== RUN   TestA/control:_without_it
    e2e_test.go:42:   50 long connections
--- PASS: TestA (1.00s)
    --- PASS: TestA/control:_without_it (0.10s)
--- SKIP: TestB (0.00s)
PASS
`), func(f string, args ...any) { fmt.Fprintf(&said, f+"\n", args...) })
	want := "    50 long connections\n  ✓ TestA\n  ✓ control: without it\n  - TestB\n"
	if passed != 2 || skipped != 1 || said.String() != want {
		t.Errorf("%d passed, %d skipped:\n%s", passed, skipped, said.String())
	}
}
