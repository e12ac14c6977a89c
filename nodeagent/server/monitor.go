package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/nodeagent/enroll"
)

// Counters are what the kernel counted since its maps were made.
type Counters struct {
	Reasons map[reason.Reason]uint64 // refusals
	Events  map[string]uint64
}

// MonitorConfig configures readiness and metrics.
type MonitorConfig struct {
	MetricsAddr string // host:port of /metrics and /pods; "" serves none
	ReadyAddr   string // host:port of /readyz and /healthz; "" serves none
	Log         *slog.Logger
	Ready       func() error // why the agent is not ready; required
	Pods        func() []enroll.Status
	Counters    func() (Counters, error)
	Connected   func() bool // a ztunnel is there
	Registry    *prometheus.Registry
}

// Monitor serves readiness and metrics.
type Monitor struct{ cfg MonitorConfig }

// NewMonitor returns a monitor and registers its metrics; Run starts it.
func NewMonitor(cfg MonitorConfig) *Monitor {
	m := &Monitor{cfg: cfg}
	cfg.Registry.MustRegister(m)
	return m
}

var (
	descPods      = prometheus.NewDesc("undermesh_agent_pods", "Pods that the agent looks after, by step.", []string{"step"}, nil)
	descFailing   = prometheus.NewDesc("undermesh_agent_pods_failing", "Pods whose last step failed.", nil, nil)
	descConnected = prometheus.NewDesc("undermesh_agent_ztunnel_connected", "1 when a ztunnel takes new pods.", nil, nil)
	descReasons   = prometheus.NewDesc("undermesh_kernel_refusals_total", "Connections that the kernel refused, by reason.", []string{"reason"}, nil)
	descEvents    = prometheus.NewDesc("undermesh_kernel_events_total", "What the kernel did, by event.", []string{"event"}, nil)
)

// Describe implements prometheus.Collector.
func (m *Monitor) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descPods, descFailing, descConnected, descReasons, descEvents} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *Monitor) Collect(ch chan<- prometheus.Metric) {
	steps := map[enroll.Step]float64{enroll.StepEnrolled: 0}
	failing := 0.0
	for _, p := range m.cfg.Pods() {
		steps[p.Step]++
		if p.Err != "" {
			failing++
		}
	}
	for s, n := range steps {
		ch <- prometheus.MustNewConstMetric(descPods, prometheus.GaugeValue, n, string(s))
	}
	ch <- prometheus.MustNewConstMetric(descFailing, prometheus.GaugeValue, failing)
	connected := 0.0
	if m.cfg.Connected() {
		connected = 1
	}
	ch <- prometheus.MustNewConstMetric(descConnected, prometheus.GaugeValue, connected)
	c, err := m.cfg.Counters()
	if err != nil {
		ch <- prometheus.NewInvalidMetric(descReasons, err)
		return
	}
	for r, n := range c.Reasons {
		ch <- prometheus.MustNewConstMetric(descReasons, prometheus.CounterValue, float64(n), r.String())
	}
	for e, n := range c.Events {
		ch <- prometheus.MustNewConstMetric(descEvents, prometheus.CounterValue, float64(n), e)
	}
}

// Run serves until ctx ends and then returns nil.
func (m *Monitor) Run(ctx context.Context) error {
	ready := http.NewServeMux()
	ready.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	ready.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := m.cfg.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ready\n"))
	})
	metrics := http.NewServeMux()
	metrics.Handle("GET /metrics", promhttp.HandlerFor(m.cfg.Registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}))
	metrics.HandleFunc("GET /pods", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(m.cfg.Pods()); err != nil {
			m.cfg.Log.Debug("reader of pods left", "err", err)
		}
	})
	if m.cfg.ReadyAddr == m.cfg.MetricsAddr {
		metrics.Handle("/", ready)
		return serve(ctx, m.cfg.MetricsAddr, metrics)
	}
	done := make(chan error, 2)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { defer cancel(); done <- serve(ctx, m.cfg.ReadyAddr, ready) }()
	go func() { defer cancel(); done <- serve(ctx, m.cfg.MetricsAddr, metrics) }()
	return errors.Join(<-done, <-done)
}

// serve serves h at addr until ctx ends; with no address it only waits.
func serve(ctx context.Context, addr string, h http.Handler) error {
	if addr == "" {
		<-ctx.Done()
		return nil
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("listen for monitoring: %w", err)
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	defer context.AfterFunc(ctx, func() { _ = srv.Close() })()
	if err := srv.Serve(ln); ctx.Err() == nil {
		return fmt.Errorf("serve monitoring: %w", err)
	}
	return nil
}

// Decision is one record of the kernel: a connection that it refused or that lost its standing.
type Decision struct {
	Layer, Verdict string
	Reason         reason.Reason
	Src, Dst       netip.AddrPort
	UID            string
	Generation     uint64
}

// maxDecisions bounds the lines logged in a second; the counters have all.
const maxDecisions = 100

// DecisionLog writes decisions as structured lines, at most 100 a second. For one goroutine.
type DecisionLog struct {
	Log     *slog.Logger
	PodName func(uid string) string

	second     time.Time
	written    int
	suppressed int
}

// Write logs d.
func (l *DecisionLog) Write(d Decision) {
	if now := time.Now().Truncate(time.Second); now != l.second {
		if l.suppressed > 0 {
			l.Log.Warn("kernel decisions not logged", "count", l.suppressed)
		}
		l.second, l.written, l.suppressed = now, 0, 0
	}
	if l.written++; l.written > maxDecisions {
		l.suppressed++
		return
	}
	attrs := []any{"layer", d.Layer, "verdict", d.Verdict, "reason", d.Reason.String(), "dst", d.Dst.String(), "uid", d.UID}
	if d.Src.IsValid() {
		attrs = append(attrs, "src", d.Src.String())
	}
	if name := l.PodName(d.UID); name != "" {
		attrs = append(attrs, "pod", name)
	}
	if d.Generation != 0 {
		attrs = append(attrs, "generation", d.Generation)
	}
	l.Log.Info("kernel decision", attrs...)
}
