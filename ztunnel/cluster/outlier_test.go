package cluster_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/undermesh/undermesh/ztunnel/cluster"
)

// outlier is a cluster with outlier detection; fields are added to it.
func outlier(fields string) string {
	return `{"commonLbConfig": {"healthyPanicThreshold": {"value": 0}}, "outlierDetection": {` + fields + `}}`
}

// answer reports n answers.
func answer(h *cluster.Host, status, n int) {
	for range n {
		h.Report(cluster.Answered, status)
	}
}

func (w *world) ejected() (keys []string) {
	for s := range w.Status {
		if s.Ejected {
			keys = append(keys, s.Endpoint.Key)
		}
	}
	return keys
}

func (w *world) wantEjected(n int) {
	w.t.Helper()
	if got := w.ejected(); len(got) != n {
		w.t.Errorf("ejected are %q, want %d", got, n)
	}
	w.wantStats(map[string]uint64{"outlier_detection.ejections_active": uint64(n)})
}

func TestConsecutive5xx(t *testing.T) {
	w := newWorld(t, outlier(`"consecutive5xx": 3, "maxEjectionPercent": 100`), endpoints(3)...)
	h := w.host(endpoint(0).Key)
	answer(h, 500, 2)
	answer(h, 200, 1)
	answer(h, 502, 2)
	w.wantEjected(0)
	answer(h, 500, 1)
	w.wantEjected(1)
	if got := w.picks(300); got[endpoint(0).Key] != 0 || len(got) != 2 {
		t.Errorf("an ejected host is picked: %v", got)
	}
	w.wantStats(map[string]uint64{
		"outlier_detection.ejections_detected_consecutive_5xx": 1, "outlier_detection.ejections_enforced_consecutive_5xx": 1,
		"outlier_detection.ejections_enforced_total": 1, "outlier_detection.ejections_total": 1,
		"outlier_detection.ejections_consecutive_5xx": 1, "outlier_detection.ejections_overflow": 0, "membership_healthy": 2,
	})
	answer(h, 500, 10) // what comes late changes nothing
	w.wantEjected(1)
	w.clock.advance(29 * time.Second)
	w.wantEjected(1)
	w.clock.advance(time.Second)
	w.wantEjected(0)
	if got := w.picks(300); got[endpoint(0).Key] != 100 {
		t.Errorf("the host has not returned: %v", got)
	}
}

// Every ejection lasts longer than the last, up to max_ejection_time; good behaviour makes it shorter again.
func TestEjectionTime(t *testing.T) {
	w := newWorld(t, outlier(`"consecutive5xx": 1, "maxEjectionPercent": 100, "baseEjectionTime": "30s", "maxEjectionTime": "70s"`), endpoints(2)...)
	h := w.host(endpoint(0).Key)
	for _, want := range []time.Duration{30, 60, 70, 70} {
		answer(h, 503, 1)
		w.clock.advance((want - 10) * time.Second)
		w.wantEjected(1)
		w.clock.advance(10 * time.Second) // the next interval
		w.wantEjected(0)
	}
	w.clock.advance(time.Minute)
	answer(h, 503, 1)
	w.clock.advance(20 * time.Second)
	w.wantEjected(1)
	w.clock.advance(10 * time.Second)
	w.wantEjected(0)
}

// A base of centuries ejects, and does not overflow into none.
func TestEjectionForEver(t *testing.T) {
	w := newWorld(t, outlier(`"consecutive5xx": 1, "maxEjectionPercent": 100, "baseEjectionTime": "9000000000s"`), endpoints(3)...)
	answer(w.host(endpoint(0).Key), 500, 1)
	w.wantEjected(1)
	w.clock.advance(24 * time.Hour)
	w.wantEjected(1)
}

func TestEjectionJitter(t *testing.T) {
	w := newWorld(t, outlier(`"consecutive5xx": 1, "maxEjectionPercent": 100, "interval": "1s", "maxEjectionTimeJitter": "100s"`), endpoints(50)...)
	for i := range 50 {
		answer(w.host(endpoint(i).Key), 503, 1)
		if i == 48 {
			break
		}
	}
	seen := map[int]bool{}
	for range 130 {
		w.clock.advance(time.Second)
		seen[len(w.ejected())] = true
	}
	if len(seen) < 10 || len(w.ejected()) != 0 {
		t.Errorf("%d different numbers of ejected hosts were seen; at the end there are %d", len(seen), len(w.ejected()))
	}
}

func TestGatewayFailures(t *testing.T) {
	w := newWorld(t, outlier(`"consecutiveGatewayFailure": 2, "enforcingConsecutiveGatewayFailure": 100, "consecutive5xx": 100, "maxEjectionPercent": 100`),
		endpoints(2)...)
	h := w.host(endpoint(0).Key)
	answer(h, 504, 1)
	answer(h, 500, 1) // a server error that is no gateway error
	answer(h, 503, 1)
	w.wantEjected(0)
	h.Report(cluster.ConnectFailed, 0) // counts as 503
	w.wantEjected(1)
	w.wantStats(map[string]uint64{
		"outlier_detection.ejections_detected_consecutive_gateway_failure": 1,
		"outlier_detection.ejections_enforced_consecutive_gateway_failure": 1,
		"outlier_detection.ejections_total":                                0,
	})
	w = newWorld(t, outlier(`"consecutiveGatewayFailure": 2, "consecutive5xx": 100, "maxEjectionPercent": 100`), endpoints(2)...)
	answer(w.host(endpoint(0).Key), 503, 2)
	w.wantEjected(0) // detected, but not enforced by default
	w.wantStats(map[string]uint64{
		"outlier_detection.ejections_detected_consecutive_gateway_failure": 1,
		"outlier_detection.ejections_enforced_consecutive_gateway_failure": 0,
	})
}

// The results without a status stand for one.
func TestResults(t *testing.T) {
	for _, c := range []struct {
		r       cluster.Result
		status  int
		errors  bool
		gateway bool
	}{
		{cluster.Answered, 200, false, false}, {cluster.Answered, 404, false, false}, {cluster.Answered, 500, true, false},
		{cluster.Connected, 0, false, false}, {cluster.ConnectedFinal, 0, false, false}, {cluster.ConnectFailed, 0, true, true},
		{cluster.TimedOut, 0, true, true}, {cluster.TimedOut, 504, true, true}, {cluster.RequestFailed, 0, true, false},
		{cluster.RequestDone, 0, false, false},
	} {
		w := newWorld(t, outlier(`"consecutive5xx": 1, "maxEjectionPercent": 100, "consecutiveGatewayFailure": 1`), endpoints(2)...)
		w.host(endpoint(0).Key).Report(c.r, c.status)
		for stat, want := range map[string]bool{"consecutive_5xx": c.errors, "consecutive_gateway_failure": c.gateway} {
			if got := w.stat("outlier_detection.ejections_detected_" + stat); (got == 1) != want {
				t.Errorf("result %d, status %d: %s detected %d times", c.r, c.status, stat, got)
			}
		}
	}
}

func TestLocalOriginApart(t *testing.T) {
	w := newWorld(t, outlier(`"splitExternalLocalOriginErrors": true, "consecutiveLocalOriginFailure": 3, "consecutive5xx": 2, "maxEjectionPercent": 100`),
		endpoints(3)...)
	a, b := w.host(endpoint(0).Key), w.host(endpoint(1).Key)
	a.Report(cluster.ConnectFailed, 0)
	a.Report(cluster.TimedOut, 504)
	a.Report(cluster.Connected, 0)
	a.Report(cluster.ConnectFailed, 0)
	a.Report(cluster.ConnectFailed, 0)
	w.wantEjected(0) // neither three in a row, nor a 5xx
	a.Report(cluster.ConnectFailed, 0)
	w.wantEjected(1)
	b.Report(cluster.RequestFailed, 0)
	b.Report(cluster.RequestDone, 0)
	answer(b, 500, 1)
	w.wantEjected(1)
	answer(b, 500, 1)
	w.wantEjected(2)
	w.wantStats(map[string]uint64{
		"outlier_detection.ejections_detected_consecutive_local_origin_failure": 1,
		"outlier_detection.ejections_enforced_consecutive_local_origin_failure": 1,
		"outlier_detection.ejections_detected_consecutive_5xx":                  1,
	})
}

func TestMaxEjectionPercent(t *testing.T) {
	for _, c := range []struct {
		hosts, percent, want int
		one                  bool
	}{{10, 10, 1, false}, {10, 9, 0, false}, {3, 10, 0, false}, {3, 10, 1, true}, {3, 34, 1, false}, {10, 50, 5, false}, {10, 100, 10, false}, {1, 0, 0, false}, {1, 10, 0, true}, {2, 10, 1, true}} {
		w := newWorld(t, outlier(fmt.Sprintf(`"consecutive5xx": 1, "maxEjectionPercent": %d, "alwaysEjectOneHost": %v`, c.percent, c.one)), endpoints(c.hosts)...)
		var all []*cluster.Host
		for i := range c.hosts {
			all = append(all, w.host(endpoint(i).Key))
		}
		for _, h := range all {
			answer(h, 500, 1)
		}
		w.wantEjected(c.want)
		w.wantStats(map[string]uint64{"outlier_detection.ejections_overflow": uint64(c.hosts - c.want)})
	}
}

// TestEjectsOneOfEachPlace: with a host in each place, all but the last may be taken out (LB-08).
func TestEjectsOneOfEachPlace(t *testing.T) {
	for one, want := range map[bool]int{true: 3, false: 0} {
		w := newWorld(t, outlier(fmt.Sprintf(`"consecutive5xx": 1, "alwaysEjectOneHost": %v`, one)), endpoints(4, func(i int, e *cluster.Endpoint) { e.Priority = uint32(i) })...)
		for range 4 {
			answer(w.host(w.pick(cluster.PickInput{})), 500, 1)
		}
		w.wantEjected(want)
	}
}

func TestEnforcingPercent(t *testing.T) {
	w := newWorld(t, outlier(`"consecutive5xx": 1, "maxEjectionPercent": 100, "enforcingConsecutive5xx": 30`), endpoints(400)...)
	var all []*cluster.Host
	for i := range 400 {
		all = append(all, w.host(endpoint(i).Key))
	}
	for _, h := range all {
		answer(h, 500, 1)
	}
	near(t, "ejected", len(w.ejected()), 400, 0.3)
	w.wantStats(map[string]uint64{"outlier_detection.ejections_detected_consecutive_5xx": 400})
}

func TestSuccessRate(t *testing.T) {
	for _, local := range []bool{false, true} {
		w := newWorld(t, outlier(fmt.Sprintf(`"consecutive5xx": 1000, "consecutiveLocalOriginFailure": 1000, "maxEjectionPercent": 100,
			"successRateMinimumHosts": 5, "successRateRequestVolume": 100, "splitExternalLocalOriginErrors": %v`, local)), endpoints(6)...)
		report := func(i, good, bad int) {
			h := w.host(endpoint(i).Key)
			for range good {
				if local {
					h.Report(cluster.Connected, 0)
				} else {
					h.Report(cluster.Answered, 200)
				}
			}
			for range bad {
				if local {
					h.Report(cluster.ConnectFailed, 0)
				} else {
					h.Report(cluster.Answered, 500)
				}
			}
		}
		for i := range 4 {
			report(i, 100, 0)
		}
		report(4, 50, 50)
		w.clock.advance(10 * time.Second) // mean 90, deviation 20, threshold 52
		name := map[bool]string{false: "success_rate", true: "local_origin_success_rate"}[local]
		if got := w.ejected(); len(got) != 1 || got[0] != endpoint(4).Key {
			t.Errorf("%s: ejected are %q", name, got)
		}
		w.wantStats(map[string]uint64{
			"outlier_detection.ejections_detected_" + name: 1, "outlier_detection.ejections_enforced_" + name: 1,
			"outlier_detection.ejections_success_rate": 1,
		})
		// The next interval begins anew, and too few hosts or requests say nothing.
		for i := range 3 {
			report(i, 100, 0)
		}
		report(3, 99, 0)
		report(5, 0, 100)
		w.clock.advance(10 * time.Second)
		w.wantEjected(1)
	}
}

func TestFailurePercentage(t *testing.T) {
	for _, local := range []bool{false, true} {
		kind := map[bool]string{false: "enforcingFailurePercentage", true: "enforcingFailurePercentageLocalOrigin"}[local]
		w := newWorld(t, outlier(fmt.Sprintf(`"consecutive5xx": 1000, "consecutiveLocalOriginFailure": 1000, "maxEjectionPercent": 100, "%s": 100,
			"enforcingSuccessRate": 0, "enforcingLocalOriginSuccessRate": 0, "failurePercentageMinimumHosts": 2,
			"failurePercentageRequestVolume": 10, "failurePercentageThreshold": 60, "splitExternalLocalOriginErrors": %v`, kind, local)), endpoints(3)...)
		for i, bad := range []int{6, 5, 9} {
			h := w.host(endpoint(i).Key)
			n := 10
			if i == 2 {
				n = 9 // too few
			}
			for j := range n {
				switch {
				case j < bad && local:
					h.Report(cluster.ConnectFailed, 0)
				case j < bad:
					h.Report(cluster.Answered, 500)
				case local:
					h.Report(cluster.Connected, 0)
				default:
					h.Report(cluster.Answered, 200)
				}
			}
		}
		w.clock.advance(10 * time.Second)
		if got := w.ejected(); len(got) != 1 || got[0] != endpoint(0).Key {
			t.Errorf("local %v: ejected are %q", local, got)
		}
		name := map[bool]string{false: "failure_percentage", true: "local_origin_failure_percentage"}[local]
		w.wantStats(map[string]uint64{"outlier_detection.ejections_detected_" + name: 1, "outlier_detection.ejections_enforced_" + name: 1})
	}
}

// When all are ejected nothing is left without a panic threshold; with one (Istio's minHealthPercent) all are used.
func TestAllEjected(t *testing.T) {
	for threshold, want := range map[int]int{0: 0, 1: 3, 50: 3} {
		w := newWorld(t, fmt.Sprintf(`{"commonLbConfig": {"healthyPanicThreshold": {"value": %d}},
			"outlierDetection": {"consecutive5xx": 1, "maxEjectionPercent": 100}}`, threshold), endpoints(3)...)
		var all []*cluster.Host
		for i := range 3 {
			all = append(all, w.host(endpoint(i).Key))
		}
		for _, h := range all {
			answer(h, 500, 1)
		}
		got := w.picks(300)
		if delete(got, ""); len(got) != want {
			t.Errorf("threshold %d: picked are %v", threshold, got)
		}
	}
}

// LB-09: without outlier detection a bad host is not left, and nothing fails over.
func TestWithoutOutlierDetection(t *testing.T) {
	w := newWorld(t, `{}`, endpoints(2, func(i int, e *cluster.Endpoint) { e.Priority = uint32(i) })...)
	answer(w.host(endpoint(0).Key), 503, 100)
	if got := w.picks(100); got[endpoint(0).Key] != 100 {
		t.Errorf("picked are %v", got)
	}
	w = newWorld(t, outlier(`"consecutive5xx": 1, "maxEjectionPercent": 100`), endpoints(2, func(i int, e *cluster.Endpoint) { e.Priority = uint32(i) })...)
	answer(w.host(endpoint(0).Key), 503, 1)
	if got := w.picks(100); got[endpoint(1).Key] != 100 {
		t.Errorf("with it, picked are %v", got)
	}
}

func TestEjectionSurvivesUpdate(t *testing.T) {
	w := newWorld(t, outlier(`"consecutive5xx": 1, "maxEjectionPercent": 100`), endpoints(3)...)
	h := w.host(endpoint(1).Key)
	answer(h, 500, 1)
	list := endpoints(5)[1:]
	w.Update(w.Spec(), cluster.NewHosts(list))
	w.wantEjected(1)
	if got := w.picks(300); got[endpoint(1).Key] != 0 || got[endpoint(4).Key] != 100 {
		t.Errorf("after the update: %v", got)
	}
	w.Update(compile(t, outlier(`"consecutive5xx": 7, "maxEjectionPercent": 100`)), w.Hosts())
	w.wantEjected(1)
	w.clock.advance(30 * time.Second)
	w.wantEjected(0)
	answer(h, 500, 7)
	w.wantEjected(1)
	t.Run("a pod made anew is not ejected", func(t *testing.T) {
		list := endpoints(5)[1:]
		list[0].Key += "-new"
		w.Update(w.Spec(), cluster.NewHosts(list))
		w.wantEjected(0)
		if got := w.picks(300); got[list[0].Key] == 0 {
			t.Errorf("picked are %v", got)
		}
	})
	t.Run("without outlier detection all return", func(t *testing.T) {
		answer(w.host(endpoint(2).Key), 500, 7)
		w.wantEjected(1)
		w.Update(compile(t, `{}`), w.Hosts())
		w.wantEjected(0)
		if got := w.picks(400); got[endpoint(2).Key] != 100 {
			t.Errorf("picked are %v", got)
		}
	})
}

// The sweeps are due by the clock, not by use: what would have been found in time is found.
func TestSweepAfterSilence(t *testing.T) {
	w := newWorld(t, outlier(`"consecutive5xx": 1000, "maxEjectionPercent": 100, "enforcingFailurePercentage": 100, "enforcingSuccessRate": 0,
		"failurePercentageMinimumHosts": 1, "failurePercentageRequestVolume": 10, "baseEjectionTime": "20s"`), endpoints(2)...)
	answer(w.host(endpoint(0).Key), 500, 10)
	w.clock.advance(25 * time.Second) // swept at 10: ejected until 30
	w.wantEjected(1)
	w.clock.advance(5 * time.Second)
	w.wantEjected(0)
	answer(w.host(endpoint(0).Key), 500, 10)
	w.clock.advance(1000 * time.Hour)
	w.wantEjected(0)
	w.wantStats(map[string]uint64{"outlier_detection.ejections_enforced_failure_percentage": 2})
}

// Whatever hosts answer and however endpoints change: never more than the share is ejected, the gauge is right, and no ejected
// host is picked.
func TestEjectionInvariants(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 1))
		percent := r.IntN(101)
		w := newWorld(t, outlier(fmt.Sprintf(`"consecutive5xx": 2, "maxEjectionPercent": %d, "interval": "1s", "baseEjectionTime": "3s",
			"failurePercentageMinimumHosts": 1, "failurePercentageRequestVolume": 3, "enforcingFailurePercentage": 100`, percent)), endpoints(10)...)
		n := 10
		for range 600 {
			before := len(w.ejected())
			switch r.IntN(20) {
			case 0:
				w.clock.advance(time.Duration(r.IntN(2500)) * time.Millisecond)
			case 1:
				n = 1 + r.IntN(20)
				from := r.IntN(3)
				w.Update(w.Spec(), cluster.NewHosts(endpoints(n + from)[from:]))
				before = len(w.ejected()) // those that are left may be more than the share of fewer hosts
			default:
				if h, _ := w.Pick(cluster.PickInput{}); h != nil {
					answer(h, []int{200, 500, 503}[r.IntN(3)], 1+r.IntN(3))
				}
			}
			now := w.ejected()
			if len(now) > before && 100*len(now) > percent*n {
				t.Fatalf("seed %d: %d of %d are ejected, allowed are %d percent", seed, len(now), n, percent)
			}
			w.wantStats(map[string]uint64{"outlier_detection.ejections_active": uint64(len(now)), "membership_healthy": uint64(n - len(now))})
			if h, _ := w.Pick(cluster.PickInput{}); h != nil {
				for _, k := range now {
					if h.Endpoint().Key == k {
						t.Fatalf("seed %d: %s is ejected and picked", seed, k)
					}
				}
			} else if len(now) < n {
				t.Fatalf("seed %d: nothing is picked with %d of %d ejected", seed, len(now), n)
			}
		}
	}
}
