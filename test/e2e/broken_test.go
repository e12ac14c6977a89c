package e2e

import (
	"testing"
	"time"
)

// TestBrokenOnce: the death of a proxy explains what was in it, and no connection that was refused or came late.
func TestBrokenOnce(t *testing.T) {
	died := time.UnixMilli(10_000)
	long := Tally{Started: 2 * loadLong, OK: 10 * loadLong, Failed: loadLong}
	for range loadLong {
		long.Failures = append(long.Failures, Failure{AtMS: 10_005, Op: "read", Err: "EOF"})
	}
	for name, c := range map[string]struct {
		failures []Failure
		ok       bool
	}{
		"none":    {nil, true},
		"cut off": {[]Failure{{AtMS: 10_020, Op: "read", Err: "EOF"}}, true},
		"accepted, and reset before the client looked": {[]Failure{{AtMS: 10_022, Op: "connect", Err: "dial tcp 10.96.0.9:9000: connect: connection reset by peer"}}, true},
		"refused":                     {[]Failure{{AtMS: 10_022, Op: "connect", Err: "dial tcp 10.96.0.9:9000: connect: connection refused"}}, false},
		"lost":                        {[]Failure{{AtMS: 10_500, Op: "connect", Err: "dial tcp 10.96.0.9:9000: i/o timeout"}}, false},
		"reset when all was over":     {[]Failure{{AtMS: 13_000, Op: "connect", Err: "dial tcp 10.96.0.9:9000: connect: connection reset by peer"}}, false},
		"cut off before the death":    {[]Failure{{AtMS: 9_000, Op: "read", Err: "EOF"}}, false},
		"more than were in the proxy": {make([]Failure, loadRate), false},
	} {
		for i := range c.failures {
			if c.failures[i].Op == "" {
				c.failures[i] = Failure{AtMS: 10_010, Op: "read", Err: "EOF"}
			}
		}
		r := LoadReport{Node: "node1", StartMS: 8_000, EndMS: 12_000, Long: long,
			New: Tally{Started: 4 * loadRate, OK: 4*loadRate - len(c.failures), Failed: len(c.failures), Failures: c.failures}}
		if err := BrokenOnce([]LoadReport{r}, []string{"node1"}, died, time.Second); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
