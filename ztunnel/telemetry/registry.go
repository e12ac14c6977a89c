package telemetry

import (
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// Config is what a Registry needs. Clock is required.
type Config struct {
	Clock clock.Clock
	// Out receives the lines of connections and requests, whole ones and several in a write. Default: discard.
	Out io.Writer
	// Level is the least that is written: lines of errors have slog.LevelError, all others slog.LevelInfo. Default: both.
	Level slog.Leveler
	// Access says what the mesh wants logged, asked for each line. Default: everything, as JSON.
	Access func() Access
	// Gather is how long lines are gathered, to be written together. Default 10 ms; below 0: a line waits for no other.
	Gather time.Duration
	// LogBuffer is the number of lines that may wait for the writer. Default 4096.
	LogBuffer int
	// MaxSeries bounds the number of label sets. Default 10,000.
	MaxSeries int
	// ExpireAfter is how long a series without connections is kept. Default 1 h.
	ExpireAfter time.Duration
}

func (c Config) withDefaults() Config {
	if c.Out == nil {
		c.Out = io.Discard
	}
	if c.Level == nil {
		c.Level = slog.LevelInfo
	}
	if c.Access == nil {
		c.Access = func() Access { return Access{} }
	}
	if c.Gather == 0 {
		c.Gather = 10 * time.Millisecond
	}
	if c.LogBuffer == 0 {
		c.LogBuffer = 4096
	}
	if c.MaxSeries == 0 {
		c.MaxSeries = 10_000
	}
	if c.ExpireAfter == 0 {
		c.ExpireAfter = time.Hour
	}
	return c
}

// Validate names the first field that is missing or out of range.
func (c Config) Validate() error {
	switch {
	case c.Clock == nil:
		return errors.New("telemetry config: Clock is not set")
	case c.LogBuffer < 0, c.MaxSeries < 0, c.ExpireAfter < 0:
		return errors.New("telemetry config: LogBuffer, MaxSeries or ExpireAfter is negative")
	}
	return nil
}

// Registry holds the series and the log of one process. It is a prometheus.Collector. Safe for concurrent use.
type Registry struct {
	cfg     Config
	lines   chan Line
	dropped atomic.Uint64 // log lines
	merged  atomic.Uint64 // connections counted in an overflow series
	refused [256]atomic.Uint64

	mu     sync.Mutex // protects below
	series map[Labels]*series
	flows  map[*Flow]struct{} // the live ones
}

// series are the counters of one label set. Counters only grow.
type series struct {
	opened, closed, failed atomic.Uint64
	received, sent         atomic.Uint64
	live                   atomic.Int64
	usedNS                 atomic.Int64 // when a connection last began or ended
}

// New returns a Registry. It panics on a Config that Validate refuses, since that is a fault of the program.
func New(cfg Config) *Registry {
	if err := cfg.Validate(); err != nil {
		panic(err)
	}
	cfg = cfg.withDefaults()
	return &Registry{cfg: cfg, lines: make(chan Line, cfg.LogBuffer), series: map[Labels]*series{}, flows: map[*Flow]struct{}{}}
}

// Flow counts one connection for one or two reporters.
type Flow struct {
	r      *Registry
	series [2]*series
	n      int
	bytes  func() (received, sent uint64)

	mu             sync.Mutex // protects below
	received, sent uint64     // counted so far
}

// Open counts a connection as opened under each of the label sets (at most two). bytes returns what the connection has
// received from and sent to the client so far; it is called on every scrape and by Close, from any goroutine.
func (r *Registry) Open(bytes func() (received, sent uint64), sets ...Labels) *Flow {
	f := &Flow{r: r, bytes: bytes}
	for _, l := range sets {
		if f.n == len(f.series) {
			break
		}
		s := r.take(l)
		s.opened.Add(1)
		f.series[f.n] = s
		f.n++
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.flows[f] = struct{}{}
	return f
}

// count adds what came since the last call.
func (f *Flow) count() {
	f.mu.Lock()
	defer f.mu.Unlock()
	received, sent := f.bytes()
	for _, s := range f.series[:f.n] {
		s.received.Add(received - f.received)
		s.sent.Add(sent - f.sent)
	}
	f.received, f.sent = received, sent
}

// Close counts the connection as closed. Call it once.
func (f *Flow) Close() {
	f.r.mu.Lock()
	delete(f.r.flows, f)
	f.r.mu.Unlock()
	f.count()
	for _, s := range f.series[:f.n] {
		s.closed.Add(1)
		f.r.give(s)
	}
}

// Failed counts a connection that was never opened, with the flag of its reason.
func (r *Registry) Failed(why reason.Reason, sets ...Labels) {
	for _, l := range sets {
		l.Flags = why.Flag()
		s := r.take(l)
		s.failed.Add(1)
		r.give(s)
	}
}

// Refused counts a refusal by its reason.
func (r *Registry) Refused(why reason.Reason) {
	if int(why) < len(r.refused) {
		r.refused[why].Add(1)
	}
}

// take returns the series of l with one more live connection, so that it does not expire before give.
func (r *Registry) take(l Labels) *series {
	l = l.canonical()
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.series[l]
	if s == nil && len(r.series) >= r.cfg.MaxSeries {
		r.expireLocked()
		if len(r.series) >= r.cfg.MaxSeries {
			r.merged.Add(1)
			l = l.overflow()
			s = r.series[l]
		}
	}
	if s == nil {
		s = &series{}
		r.series[l] = s
	}
	s.live.Add(1)
	return s
}

func (r *Registry) give(s *series) {
	s.usedNS.Store(r.cfg.Clock.Now().UnixNano())
	s.live.Add(-1)
}

func (r *Registry) expireLocked() {
	limit := r.cfg.Clock.Now().Add(-r.cfg.ExpireAfter).UnixNano()
	for l, s := range r.series {
		if s.live.Load() == 0 && s.usedNS.Load() < limit {
			delete(r.series, l)
		}
	}
}

var (
	openedDesc = prometheus.NewDesc("istio_tcp_connections_opened_total", "Connections opened.", labelNames, nil)
	closedDesc = prometheus.NewDesc("istio_tcp_connections_closed_total", "Connections closed.", labelNames, nil)
	recvDesc   = prometheus.NewDesc("istio_tcp_received_bytes_total", "Bytes received from clients.", labelNames, nil)
	sentDesc   = prometheus.NewDesc("istio_tcp_sent_bytes_total", "Bytes sent to clients.", labelNames, nil)
	failedDesc = prometheus.NewDesc("istio_tcp_connections_failed", "Connections that were refused or could not be made.", labelNames, nil)

	refusedDesc = prometheus.NewDesc("undermesh_connections_refused_total", "Connections refused or ended by the mesh, by reason.",
		[]string{"reason", "layer"}, nil)
	droppedDesc = prometheus.NewDesc("undermesh_access_log_dropped_total", "Lines of the connection log that found its buffer full.", nil, nil)
	mergedDesc  = prometheus.NewDesc("undermesh_telemetry_merged_total", "Connections counted without workload labels because there are too many series.", nil, nil)
	liveDesc    = prometheus.NewDesc("undermesh_connections", "Connections that are open now, as reporter counts them.", []string{"reporter"}, nil)
)

// Describe implements prometheus.Collector.
func (r *Registry) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{openedDesc, closedDesc, recvDesc, sentDesc, failedDesc, refusedDesc, droppedDesc, mergedDesc, liveDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (r *Registry) Collect(ch chan<- prometheus.Metric) {
	r.mu.Lock()
	flows := make([]*Flow, 0, len(r.flows))
	for f := range r.flows {
		flows = append(flows, f)
	}
	r.mu.Unlock()
	for _, f := range flows {
		f.count()
	}
	r.mu.Lock()
	r.expireLocked()
	all := make(map[Labels]*series, len(r.series))
	for l, s := range r.series {
		all[l] = s
	}
	r.mu.Unlock()
	live := map[Reporter]int64{Source: 0, Destination: 0}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	for l, s := range all {
		values := l.values()
		if opened := s.opened.Load(); opened > 0 {
			counter(openedDesc, opened, values...)
			counter(closedDesc, s.closed.Load(), values...)
			counter(recvDesc, s.received.Load(), values...)
			counter(sentDesc, s.sent.Load(), values...)
			live[l.Reporter] += s.live.Load()
		}
		if failed := s.failed.Load(); failed > 0 {
			counter(failedDesc, failed, values...)
		}
	}
	for reporter, n := range live {
		ch <- prometheus.MustNewConstMetric(liveDesc, prometheus.GaugeValue, float64(n), string(reporter))
	}
	for i := range r.refused {
		if n := r.refused[i].Load(); n > 0 {
			counter(refusedDesc, n, reason.Reason(i).String(), "proxy")
		}
	}
	counter(droppedDesc, r.dropped.Load())
	counter(mergedDesc, r.merged.Load())
}
