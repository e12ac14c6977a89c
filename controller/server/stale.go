package server

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/undermesh/undermesh/ztunnel/clock"
)

// How often the API server is asked whether it is there, and how long it may take to say so.
const (
	probePeriod = 5 * time.Second
	probeLimit  = 5 * time.Second
)

// staleness knows since when the API server has not been heard of: what is served meanwhile is what was known then.
type staleness struct {
	clock clock.Clock
	log   *slog.Logger
	probe func(context.Context) error
	heard atomic.Int64 // when it answered last, or when this process began; Unix nanoseconds
	away  atomic.Bool  // the last question was not answered
}

// newStaleness registers the metric. It begins as if the API server had answered just now.
func newStaleness(c clock.Clock, log *slog.Logger, probe func(context.Context) error, reg prometheus.Registerer) (*staleness, error) {
	s := &staleness{clock: c, log: log, probe: probe}
	s.heard.Store(c.Now().UnixNano())
	return s, reg.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "undermesh_controller_api_server_stale_seconds",
		Help: "How long the API server has not answered; 0 while it does. What is served is at least as old."}, func() float64 { return s.age().Seconds() }))
}

// age is 0 while the API server answers, and where there is none: then s is nil.
func (s *staleness) age() time.Duration {
	if s == nil || !s.away.Load() {
		return 0
	}
	return s.clock.Now().Sub(time.Unix(0, s.heard.Load()))
}

// run asks until ctx ends.
func (s *staleness) run(ctx context.Context) error {
	for {
		bounded, cancel := clock.WithTimeout(ctx, s.clock, probeLimit, nil)
		err := s.probe(bounded)
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			gap := s.age()
			s.heard.Store(s.clock.Now().UnixNano())
			if s.away.Swap(false) {
				s.log.Info("API server answers again", "dur", gap)
			}
		case !s.away.Swap(true):
			s.log.Warn("API server does not answer: what was known last is served", "err", err)
		}
		if !clock.Pause(ctx, s.clock, probePeriod) {
			return nil
		}
	}
}
