package sim

import (
	"flag"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"testing/synctest"
)

var (
	seedFlag      = flag.Uint64("seed", 0, "play only the history of this seed, with its script and logs")
	historiesFlag = flag.Int("histories", 100, "how many histories are played")
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

func report(t *testing.T, seed uint64, r *Result) {
	t.Helper()
	if len(r.Violations) == 0 {
		return
	}
	for _, v := range r.Violations {
		t.Error(v)
	}
	t.Errorf("seed %d, again with: go test ./test/sim -run TestHistories -seed %d\n%s", seed, seed, strings.Join(r.Script, "\n"))
}

func TestHistories(t *testing.T) {
	if *seedFlag != 0 {
		opt := Options{Seed: *seedFlag}
		if testing.Verbose() {
			opt.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
		}
		r := history(t, opt)
		report(t, *seedFlag, r)
		t.Logf("%d streams, %d delivered, %d refused, %d broken", r.Streams, r.Delivered, r.Refused, r.Broken)
		return
	}
	for i := range *historiesFlag {
		seed := uint64(i + 1)
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			r := history(t, Options{Seed: seed})
			report(t, seed, r)
			t.Logf("%d streams, %d delivered, %d refused, %d broken", r.Streams, r.Delivered, r.Refused, r.Broken)
		})
	}
}
