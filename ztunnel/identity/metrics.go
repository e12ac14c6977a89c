package identity

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the collectors of one Manager.
type metrics struct {
	requests   *prometheus.CounterVec
	duration   prometheus.Histogram
	handshakes *prometheus.CounterVec
	reloads    *prometheus.CounterVec
}

func newMetrics(m *Manager, to prometheus.Registerer) (*metrics, error) {
	c := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "undermesh_identity_requests_total", Help: "Requests for a certificate that were answered, by result.",
		}, []string{"result"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "undermesh_identity_request_seconds", Help: "Time from a request to the CA to its verified answer.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 8),
		}),
		handshakes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "undermesh_identity_peers_total", Help: "Peers whose certificate was checked, by side and cause of refusal.",
		}, []string{"side", "cause"}),
		reloads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "undermesh_identity_root_reads_total", Help: "Readings of the root file, by result.",
		}, []string{"result"}),
	}
	if to == nil {
		return c, nil
	}
	for _, each := range []prometheus.Collector{c.requests, c.duration, c.handshakes, c.reloads,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "undermesh_identity_certificates", Help: "Valid certificates held.",
		}, func() float64 { return float64(m.countValid()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "undermesh_identity_wanted", Help: "Identities in use on the node.",
		}, func() float64 { return float64(m.countWanted()) }),
	} {
		if err := to.Register(each); err != nil {
			return nil, fmt.Errorf("register metrics of identities: %w", err)
		}
	}
	return c, nil
}

func (c *metrics) issued(took time.Duration, err error) {
	c.requests.WithLabelValues(result(err)).Inc()
	c.duration.Observe(took.Seconds())
}

func (c *metrics) rootReload(err error) { c.reloads.WithLabelValues(result(err)).Inc() }

func (c *metrics) handshake(side string, err error) {
	cause := "none"
	if err != nil {
		cause = Cause(err)
	}
	c.handshakes.WithLabelValues(side, cause).Inc()
}

func result(err error) string {
	if err != nil {
		return "error"
	}
	return "ok"
}
