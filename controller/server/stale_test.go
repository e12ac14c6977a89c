package server

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/undermesh/undermesh/ztunnel/clock"
)

// TestStaleness: the metric is 0 while the API server answers, grows from its last answer while it does not, also when it
// only hangs, and is 0 again afterwards.
func TestStaleness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mode atomic.Int32 // 0 answers, 1 refuses, 2 hangs
		reg := prometheus.NewRegistry()
		s, err := newStaleness(clock.System(), slog.New(slog.DiscardHandler), func(ctx context.Context) error {
			switch mode.Load() {
			case 1:
				return errors.New("refused")
			case 2:
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}, reg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.run(ctx) }()
		value := func() float64 {
			families, err := reg.Gather()
			if err != nil || len(families) != 1 {
				t.Fatal(families, err)
			}
			return families[0].GetMetric()[0].GetGauge().GetValue()
		}
		time.Sleep(time.Minute)
		for m, name := range []string{"", "it refuses", "it hangs"} {
			if m == 0 {
				continue
			}
			if v := value(); v != 0 {
				t.Errorf("while it answers: %v s", v)
			}
			mode.Store(int32(m))
			time.Sleep(time.Minute)
			if v := value(); v < 55 || v > 66 {
				t.Errorf("a minute after %s: %v s", name, v)
			}
			mode.Store(0)
			time.Sleep(11 * time.Second)
		}
		if v := value(); v != 0 {
			t.Errorf("when it answers again: %v s", v)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
