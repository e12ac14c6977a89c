package sim

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"testing"
)

// TestRequests plays histories of HTTP: -seed plays one, -first and -histories choose others.
func TestRequests(t *testing.T) {
	first, n := *firstFlag, uint64(*historiesFlag/6)
	if *seedFlag != 0 {
		first, n = *seedFlag, 1
	}
	var total struct{ requests, answered, rejected atomic.Int64 }
	t.Run("all", func(t *testing.T) {
		for seed := first; seed < first+n; seed++ {
			t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
				t.Parallel()
				opt := Options{Seed: seed, Requests: true}
				if *seedFlag != 0 && testing.Verbose() {
					opt.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
				}
				r := history(t, opt)
				for _, v := range r.Violations {
					t.Error(v)
				}
				if len(r.Violations) > 0 {
					t.Errorf("again with: go test ./test/sim -run TestRequests -seed %d -v\n%s", seed, strings.Join(r.Script, "\n"))
				}
				total.requests.Add(int64(r.Requests))
				total.answered.Add(int64(r.Answered))
				total.rejected.Add(int64(r.Rejected))
			})
		}
	})
	t.Logf("%d histories, %d requests: %d answered by an application, %d by the mesh", n, total.requests.Load(), total.answered.Load(), total.rejected.Load())
	if m := int64(n); n > 9 && (total.answered.Load() < 60*m || total.rejected.Load() < 5*m) {
		t.Error("histories are too quiet to show anything")
	}
}
