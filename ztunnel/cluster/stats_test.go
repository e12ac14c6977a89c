package cluster_test

import (
	"strings"
	"testing"

	"github.com/undermesh/undermesh/ztunnel/cluster"
)

// counted are the statistics that who proxies counts (by Inc), not this package. Tests of ztunnel/http and ztunnel/proxy move them.
var counted = map[cluster.Stat]bool{
	cluster.CxHTTP1: true, cluster.CxHTTP2: true, cluster.CxProtocolError: true,
	cluster.RqTimeout: true, cluster.RqPerTryTimeout: true, cluster.RqMaxDuration: true,
	cluster.RqRxReset: true, cluster.RqTxReset: true, cluster.RqRetry: true, cluster.RqRetrySuccess: true,
	cluster.RqRetryLimitExceeded: true, cluster.RqRetryBackoffExponential: true,
	cluster.RetryOrShadowAbandoned: true,
}

// Names are Envoy's, each there once.
func TestStatNames(t *testing.T) {
	w := newWorld(t, limits(1, 1, 1, ""), endpoints(1)...)
	for s := range counted {
		before := w.stat(s.String())
		w.Inc(s)
		w.Inc(s)
		w.Inc(s)
		if w.stat(s.String()) != before+3 || w.Get(s) != before+3 {
			t.Errorf("%s does not count", s)
		}
	}
	w.Dec(cluster.RqTimeout)
	for _, status := range []int{100, 204, 200, 200, 404, 503, 99, 600, -1} {
		w.CountStatus(status)
	}
	w.wantStats(map[string]uint64{"upstream_rq_completed": 9, "upstream_rq_1xx": 1, "upstream_rq_2xx": 3, "upstream_rq_200": 2,
		"upstream_rq_204": 1, "upstream_rq_4xx": 1, "upstream_rq_503": 1, "upstream_rq_timeout": 2})
	seen := map[string]bool{}
	for name := range w.Stats {
		if name == "" || seen[name] || strings.Contains(name, "Stat(") {
			t.Errorf("the name %q is empty or there twice", name)
		}
		seen[name] = true
	}
	for _, name := range []string{
		"circuit_breakers.default.remaining_pending", "circuit_breakers.default.rq_pending_open", "circuit_breakers.high.rq_pending_open",
		"upstream_rq_pending_active", "upstream_rq_pending_failure_eject", "upstream_rq_pending_overflow", "upstream_rq_pending_total",
	} { // RS-08 lists them
		if !seen[name] {
			t.Errorf("there is no %s", name)
		}
	}
	for name := range w.Stats { // may be ended anywhere
		if name == "circuit_breakers.high.cx_open" {
			break
		}
	}
	if got := cluster.Stat(255).String(); got != "Stat(255)" {
		t.Error(got)
	}
}

// Counting allocates nothing.
func TestCountingAllocatesNothing(t *testing.T) {
	w := newWorld(t, `{"outlierDetection": {}}`, endpoints(3)...)
	w.picks(9)
	p := newPool(t, w, 1)
	p.must(1).Release(true, false)
	w.CountStatus(200)
	if n := testing.AllocsPerRun(200, func() {
		h, _ := w.Pick(cluster.PickInput{})
		h.Begin()
		l, _ := p.Acquire(t.Context())
		w.CountStatus(200)
		w.Inc(cluster.RqTimeout)
		h.Report(cluster.Answered, 200)
		l.Release(true, false)
		h.End()
	}); n != 0 {
		t.Errorf("%v allocations for a request", n)
	}
}
