package sim

import (
	"bufio"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

var (
	seedFlag      = flag.Uint64("seed", 0, "play only the history of this seed; with -v print its script and its logs")
	firstFlag     = flag.Uint64("first", 1, "seed of the first history")
	historiesFlag = flag.Int("histories", 150, "how many histories are played, beside those of testdata/seeds")
)

// history plays one seed in a bubble.
func history(t *testing.T, opt Options) (r *Result) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var err error
		if r, err = Run(t.Context(), opt); err != nil {
			t.Fatal(err)
		}
	})
	return r
}

// report fails the test for each violation and says how to see the history again.
func report(t *testing.T, seed uint64, r *Result) {
	t.Helper()
	for _, v := range r.Violations {
		t.Error(v)
	}
	if len(r.Violations) > 0 {
		t.Errorf("again with: go test ./test/sim -run TestHistories -seed %d -v\n%s", seed, strings.Join(r.Script, "\n"))
	}
}

// seeds reads testdata/seeds: one seed a line that showed a defect once, and what it was.
func seeds(t *testing.T) []uint64 {
	t.Helper()
	f, err := os.Open("testdata/seeds")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var list []uint64
	for in := bufio.NewScanner(f); in.Scan(); {
		word, _, _ := strings.Cut(strings.TrimSpace(in.Text()), " ")
		if word == "" || strings.HasPrefix(word, "#") {
			continue
		}
		seed, err := strconv.ParseUint(word, 10, 64)
		if err != nil {
			t.Fatalf("testdata/seeds: %v", err)
		}
		list = append(list, seed)
	}
	return list
}

// TestHistories plays the seeds of old defects, then -histories others.
func TestHistories(t *testing.T) {
	if *seedFlag != 0 {
		opt := Options{Seed: *seedFlag}
		if testing.Verbose() {
			opt.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
		}
		r := history(t, opt)
		report(t, *seedFlag, r)
		t.Logf("%d connections: %d delivered, %d refused, %d broken\n%s", r.Streams, r.Delivered, r.Refused, r.Broken, strings.Join(r.Outcome, "\n"))
		return
	}
	list := seeds(t)
	for i := range uint64(*historiesFlag) {
		list = append(list, *firstFlag+i)
	}
	var total struct{ streams, delivered, refused, broken atomic.Int64 }
	t.Run("all", func(t *testing.T) {
		for _, seed := range list {
			t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
				t.Parallel()
				r := history(t, Options{Seed: seed})
				report(t, seed, r)
				total.streams.Add(int64(r.Streams))
				total.delivered.Add(int64(r.Delivered))
				total.refused.Add(int64(r.Refused))
				total.broken.Add(int64(r.Broken))
			})
		}
	})
	t.Logf("%d histories, %d connections: %d delivered, %d refused, %d broken", len(list), total.streams.Load(), total.delivered.Load(),
		total.refused.Load(), total.broken.Load())
	n := int64(len(list))
	if total.delivered.Load() < 10*n || total.refused.Load() < 5*n || total.broken.Load() < n/2 {
		t.Error("histories are too quiet to show anything")
	}
}

// TestEnrolmentCutsNothing plays calm histories.
func TestEnrolmentCutsNothing(t *testing.T) {
	if *seedFlag != 0 {
		r := history(t, Options{Seed: *seedFlag, Calm: true})
		report(t, *seedFlag, r)
		return
	}
	for seed := *firstFlag; seed < *firstFlag+uint64(*historiesFlag/6); seed++ {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			r := history(t, Options{Seed: seed, Calm: true})
			report(t, seed, r)
			if r.Delivered < 20 {
				t.Errorf("only %d connections", r.Delivered)
			}
		})
	}
}

// TestSeedRepeats: a seed gives the same script, and connections that end the same way. The order of goroutines at one
// instant is not the seed's, so a few connections may differ; many would mean that something has another source of chance.
func TestSeedRepeats(t *testing.T) {
	for seed := uint64(1); seed <= 5; seed++ {
		a, b := history(t, Options{Seed: seed}), history(t, Options{Seed: seed})
		if !slices.Equal(a.Script, b.Script) {
			t.Errorf("seed %d has two scripts:\n%s\n\n%s", seed, strings.Join(a.Script, "\n"), strings.Join(b.Script, "\n"))
		}
		if differ := differences(a.Outcome, b.Outcome); differ > len(a.Outcome)/20 {
			t.Errorf("seed %d: %d of %d connections end differently:\n%s\n\n%s", seed, differ, len(a.Outcome),
				strings.Join(a.Outcome, "\n"), strings.Join(b.Outcome, "\n"))
		}
	}
}

// differences counts the connections of the longer list that have no counterpart in the other, in order. Numbers do not
// count: after the last fault a pair is tried until it ends as it should, so that one try more moves those of all that follow.
func differences(a, b []string) int {
	what := func(line string) string { _, s, _ := strings.Cut(line, " "); return s }
	common := make([]int, len(b)+1) // of what was seen of a, and of b up to there
	for i := range a {
		before := 0
		for j := range b {
			above := common[j+1]
			if what(a[i]) == what(b[j]) {
				common[j+1] = before + 1
			} else {
				common[j+1] = max(above, common[j])
			}
			before = above
		}
	}
	return max(len(a), len(b)) - common[len(b)]
}

func TestDifferences(t *testing.T) {
	a := []string{"1 x", "2 y", "3 z"}
	for _, tc := range []struct {
		b    []string
		want int
	}{
		{a, 0},
		{[]string{"1 x", "2 w", "3 z"}, 1},
		{[]string{"1 x", "2 x", "3 y", "4 z"}, 1},
		{[]string{"1 z", "2 y", "3 x"}, 2},
		{nil, 3},
	} {
		if got := differences(a, tc.b); got != tc.want {
			t.Errorf("%q: %d, want %d", tc.b, got, tc.want)
		}
	}
}
