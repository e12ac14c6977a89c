package cluster_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/undermesh/undermesh/ztunnel/cluster"
)

// near fails when n of total is not part of it, within four standard deviations.
func near(t *testing.T, what string, n, total int, part float64) {
	t.Helper()
	if d := math.Abs(float64(n) - part*float64(total)); d > 4*math.Sqrt(float64(total)*part*(1-part))+1 {
		t.Errorf("%s: %d of %d, want %.0f", what, n, total, part*float64(total))
	}
}

func weights(list ...uint32) func(int, *cluster.Endpoint) {
	return func(i int, e *cluster.Endpoint) { e.Weight = list[i] }
}

func TestRandomTakesAllAlike(t *testing.T) {
	w := newWorld(t, `{"lbPolicy": "RANDOM"}`, endpoints(4, weights(1, 1, 50, 100))...)
	got := w.picks(8000)
	for i := range 4 {
		near(t, endpoint(i).Key, got[endpoint(i).Key], 8000, 0.25)
	}
}

// The heavier endpoint is not picked in a run: within any ten picks the shares hold to within one.
func TestRoundRobinSpreadsWeight(t *testing.T) {
	w := newWorld(t, `{}`, endpoints(2, weights(1, 9))...)
	last, gap := -1, 0
	for i := range 200 {
		if w.pick(cluster.PickInput{}) == endpoint(0).Key {
			if last >= 0 {
				gap = max(gap, i-last)
			}
			last = i
		}
	}
	if gap != 10 {
		t.Errorf("the light endpoint waits up to %d picks, want 10", gap)
	}
}

func TestLeastRequest(t *testing.T) {
	w := newWorld(t, `{"lbPolicy": "LEAST_REQUEST"}`, endpoints(2)...)
	busy := w.host(endpoint(0).Key)
	for range 10 {
		busy.Begin()
	}
	got := w.picks(4000)
	near(t, "busy endpoint", got[endpoint(0).Key], 4000, 0.25) // only when both choices are it
	for range 10 {
		busy.End()
	}
	got = w.picks(4000)
	near(t, "endpoint that is idle again", got[endpoint(0).Key], 4000, 0.5)
}

func TestLeastRequestByWeight(t *testing.T) {
	w := newWorld(t, `{"lbPolicy": "LEAST_REQUEST"}`, endpoints(2, weights(1, 3))...)
	got := w.picks(8000)
	near(t, "light endpoint without load", got[endpoint(0).Key], 8000, 0.25)
	// Under load the requests that are under way are in proportion to the weights.
	for range 400 {
		h, _ := w.Pick(cluster.PickInput{})
		h.Begin()
	}
	if n := w.host(endpoint(0).Key).Active(); n < 90 || n > 110 {
		t.Errorf("%d of 400 requests are at an endpoint with a quarter of the weight", n)
	}
}

func TestNoHost(t *testing.T) {
	for name, w := range map[string]*world{
		"none":      newWorld(t, `{}`),
		"unhealthy": newWorld(t, `{"commonLbConfig": {"healthyPanicThreshold": {"value": 0}}}`, endpoints(3, unhealthy(0, 1, 2))...),
		"ring":      newWorld(t, `{"lbPolicy": "RING_HASH"}`),
		"maglev": newWorld(t, `{"lbPolicy": "MAGLEV", "commonLbConfig": {"healthyPanicThreshold": {"value": 0}}}`,
			endpoints(3, unhealthy(0, 1, 2))...),
	} {
		if h, why := w.Pick(cluster.PickInput{}); h != nil || why != cluster.NoHealthy || why.String() != "no_healthy_upstream" {
			t.Errorf("%s: host %v, why %v", name, h, why)
		}
		w.wantStats(map[string]uint64{"upstream_cx_none_healthy": 1, "membership_healthy": 0})
	}
}

func unhealthy(list ...int) func(int, *cluster.Endpoint) {
	return func(i int, e *cluster.Endpoint) { e.Healthy = !slices.Contains(list, i) }
}

func TestPanic(t *testing.T) {
	w := newWorld(t, `{}`, endpoints(4, unhealthy(0, 1, 2))...) // threshold 50
	if got := w.picks(400); len(got) != 4 {
		t.Errorf("with a quarter healthy all are to be used: %v", got)
	}
	w.wantStats(map[string]uint64{"lb_healthy_panic": 400, "membership_healthy": 1, "membership_total": 4})
	w = newWorld(t, `{}`, endpoints(4, unhealthy(0))...)
	if got := w.picks(400); len(got) != 3 {
		t.Errorf("with three quarters healthy only they are to be used: %v", got)
	}
	w.wantStats(map[string]uint64{"lb_healthy_panic": 0})
}

// Half of the first priority is down: 1.4 times its health is 70 percent of the load, the rest spills over.
func TestPriorities(t *testing.T) {
	byPriority := func(i int, e *cluster.Endpoint) { e.Priority = uint32(i / 4) }
	for _, c := range []struct {
		name string
		down []int
		want [3]float64
	}{
		{"all up", nil, [3]float64{1, 0, 0}},
		{"a quarter down", []int{0}, [3]float64{1, 0, 0}},
		{"half down", []int{0, 1}, [3]float64{0.7, 0.3, 0}},
		{"three quarters down", []int{0, 1, 2}, [3]float64{0.35, 0.65, 0}},
		{"first down", []int{0, 1, 2, 3}, [3]float64{0, 1, 0}},
		{"first down, half of the second", []int{0, 1, 2, 3, 4, 5}, [3]float64{0, 0.7, 0.3}},
		{"half of all", []int{0, 1, 4, 5, 8, 9}, [3]float64{0.7, 0.3, 0}},
		{"one left", []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, [3]float64{0, 0, 1}},
	} {
		for _, policy := range []string{"ROUND_ROBIN", "RANDOM", "LEAST_REQUEST", "RING_HASH", "MAGLEV"} {
			w := newWorld(t, `{"lbPolicy": "`+policy+`", "commonLbConfig": {"healthyPanicThreshold": {"value": 0}}}`,
				endpoints(12, byPriority, unhealthy(c.down...))...)
			var got [3]int
			for range 4000 {
				h, _ := w.Pick(cluster.PickInput{})
				if e := h.Endpoint(); !e.Healthy {
					t.Fatalf("%s, %s: an unhealthy host was picked", c.name, policy)
				} else {
					got[e.Priority]++
				}
			}
			for p, n := range got {
				near(t, c.name+", "+policy, n, 4000, c.want[p])
			}
		}
	}
}

// All priorities together cannot serve: each that has too few healthy ones uses all of its hosts.
func TestPriorityPanic(t *testing.T) {
	w := newWorld(t, `{}`, endpoints(8, unhealthy(0, 1, 2, 4, 5, 6), func(i int, e *cluster.Endpoint) { e.Priority = uint32(i / 4) })...)
	if got := w.picks(4000); len(got) != 8 {
		t.Errorf("%d of 8 hosts are used", len(got))
	}
}

func TestAvoidPriorities(t *testing.T) {
	w := newWorld(t, `{}`, endpoints(4, func(i int, e *cluster.Endpoint) { e.Priority = uint32(i / 2) })...)
	first, _ := w.Pick(cluster.PickInput{})
	in := cluster.PickInput{Tried: []*cluster.Host{first}, AvoidPriorities: true}
	for range 100 {
		h, _ := w.Pick(in)
		if h.Endpoint().Priority != 1 {
			t.Fatal("a priority that was tried is tried again while there is another")
		}
	}
	second, _ := w.Pick(in)
	in.Tried = append(in.Tried, second)
	for range 100 {
		if h, _ := w.Pick(in); h.Endpoint().Priority != 0 {
			t.Fatal("after all were tried they count as before")
		}
	}
}

func zones(list []string, share map[string]uint32) func(int, *cluster.Endpoint) {
	return func(i int, e *cluster.Endpoint) {
		e.Locality = cluster.Locality{Region: "r", Zone: list[i]}
		e.LocalityWeight = share[list[i]]
	}
}

func TestLocalityWeights(t *testing.T) {
	where := []string{"a", "a", "b", "c", "d"}
	share := map[string]uint32{"a": 70, "b": 20, "c": 0, "d": 10}
	for _, policy := range []string{"ROUND_ROBIN", "RANDOM", "LEAST_REQUEST", "RING_HASH", "MAGLEV"} {
		w := newWorld(t, `{"lbPolicy": "`+policy+`", "commonLbConfig": {"localityWeightedLbConfig": {}}, "ringHashLbConfig": {"minimumRingSize": 65536}}`,
			endpoints(5, zones(where, share))...)
		got := map[string]int{}
		for range 10_000 {
			h, _ := w.Pick(cluster.PickInput{})
			got[h.Endpoint().Locality.Zone]++
		}
		for zone, percent := range share {
			want := float64(percent) / 100
			if d := math.Abs(float64(got[zone])/10_000 - want); d > 0.02 {
				t.Errorf("%s: zone %s got %d of 10000, want %d percent", policy, zone, got[zone], percent)
			}
		}
		if policy == "ROUND_ROBIN" && (got["a"] != 7000 || got["b"] != 2000 || got["d"] != 1000) {
			t.Errorf("round robin is exact over a round: %v", got)
		}
	}
	// Without locality weighted balancing the weights of localities mean nothing.
	w := newWorld(t, `{}`, endpoints(5, zones(where, share))...)
	if got := w.picks(100); got[endpoint(3).Key] != 20 {
		t.Errorf("without: %v", got)
	}
}

// A locality of which half is down has 1.4 / 2 of its weight.
func TestLocalityHealth(t *testing.T) {
	w := newWorld(t, `{"commonLbConfig": {"localityWeightedLbConfig": {}}}`,
		endpoints(4, zones([]string{"a", "a", "b", "b"}, map[string]uint32{"a": 50, "b": 50}), unhealthy(0))...)
	got := w.picks(1700)
	if got[endpoint(1).Key] != 700 || got[endpoint(2).Key] != 500 {
		t.Errorf("half of zone a is down: %v", got)
	}
}

func TestDraining(t *testing.T) {
	draining := func(list ...int) func(int, *cluster.Endpoint) {
		return func(i int, e *cluster.Endpoint) { e.Draining = slices.Contains(list, i) }
	}
	w := newWorld(t, `{}`, endpoints(3)...)
	h := w.host(endpoint(1).Key)
	if h.Leaving() {
		t.Error("a host that stays is said to leave")
	}
	w.Update(w.Spec(), cluster.NewHosts(endpoints(3, draining(1))))
	if got := w.picks(300); got[endpoint(1).Key] != 0 {
		t.Errorf("a draining host is picked: %v", got)
	}
	if !h.Leaving() {
		t.Error("a draining host is not said to leave")
	}
	for _, policy := range []string{"ROUND_ROBIN", "MAGLEV"} { // what terminates is not ready, and serves to the last
		w := newWorld(t, `{"lbPolicy": "`+policy+`", "commonLbConfig": {"healthyPanicThreshold": {"value": 0}}}`,
			endpoints(3, draining(0, 1, 2), unhealthy(0, 1, 2))...)
		if got := w.picks(300); len(got) != 3 || got[""] > 0 {
			t.Errorf("%s: when all are draining they serve to the end: %v", policy, got)
		}
	}
	w.Update(w.Spec(), cluster.NewHosts(endpoints(3, draining(0, 1, 2))))
	if got := w.picks(300); len(got) != 3 {
		t.Errorf("when all are draining they serve to the end: %v", got)
	}
	if w.host(endpoint(1).Key) != h {
		t.Error("the host is another one")
	}
	w.Update(w.Spec(), cluster.NewHosts(nil))
	if got := w.pick(cluster.PickInput{}); got != "" || !h.Leaving() {
		t.Errorf("picked %q, which is gone", got)
	}
}

func TestTried(t *testing.T) {
	w := newWorld(t, `{}`, endpoints(3)...)
	a, b := w.host(endpoint(0).Key), w.host(endpoint(1).Key)
	for range 100 {
		if h, _ := w.Pick(cluster.PickInput{Tried: []*cluster.Host{a, b}, Attempts: 5}); h == a || h == b {
			t.Fatal("a host is tried again while there is another")
		}
	}
	seen := map[string]bool{}
	for range 100 {
		h, _ := w.Pick(cluster.PickInput{Tried: []*cluster.Host{a, b}})
		seen[h.Endpoint().Key] = true
	}
	if len(seen) != 3 {
		t.Error("without attempts the first choice stands")
	}
	all := []*cluster.Host{a, b, w.host(endpoint(2).Key)}
	if h, why := w.Pick(cluster.PickInput{Tried: all, Attempts: 5}); h == nil || why != cluster.Picked {
		t.Error("when all were tried one is tried again")
	}
	for _, policy := range []string{"RING_HASH", "MAGLEV"} {
		w := newWorld(t, `{"lbPolicy": "`+policy+`"}`, endpoints(5)...)
		first, _ := w.Pick(cluster.PickInput{Hash: 7, HasHash: true})
		if second, _ := w.Pick(cluster.PickInput{Hash: 7, HasHash: true, Tried: []*cluster.Host{first}, Attempts: 20}); second == first {
			t.Errorf("%s: the host of the hash is tried again", policy)
		}
	}
}

func TestSlowStart(t *testing.T) {
	for _, policy := range []string{`"ROUND_ROBIN", "roundRobinLbConfig"`, `"LEAST_REQUEST", "leastRequestLbConfig"`} {
		spec := `{"lbPolicy": ` + policy + `: {"slowStartConfig": {"slowStartWindow": "100s"}}}`
		w := newWorld(t, spec, endpoints(2, func(i int, e *cluster.Endpoint) {
			if i == 1 {
				e.Since = time.Unix(1_700_000_000, 0)
			}
		})...)
		for _, c := range []struct {
			at   time.Duration
			part float64 // of the young one's weight
		}{{0, 0.1}, {5 * time.Second, 0.1}, {50 * time.Second, 0.5}, {80 * time.Second, 0.8}, {101 * time.Second, 1}} {
			w.clock.advance(c.at - w.clock.Now().Sub(time.Unix(1_700_000_000, 0)))
			got := w.picks(5000)
			want := c.part / (1 + c.part)
			if d := math.Abs(float64(got[endpoint(1).Key])/5000 - want); d > 0.03 {
				t.Errorf("%s after %s: the young host got %d of 5000, want %.0f", policy, c.at, got[endpoint(1).Key], 5000*want)
			}
		}
	}
}

func TestSlowStartAggression(t *testing.T) {
	w := newWorld(t, `{"roundRobinLbConfig": {"slowStartConfig": {"slowStartWindow": "100s", "aggression": {"defaultValue": 2},
		"minWeightPercent": {"value": 0}}}}`, endpoints(2, func(i int, e *cluster.Endpoint) {
		if i == 1 {
			e.Since = time.Unix(1_700_000_000, 0)
		}
	})...)
	w.clock.advance(25 * time.Second)
	got := w.picks(3000) // the square root of a quarter
	if n := got[endpoint(1).Key]; n < 980 || n > 1020 {
		t.Errorf("the young host got %d of 3000, want 1000", n)
	}
}

// Whatever the endpoints are, each policy gives each endpoint its share, and nothing to those that are not fit.
func TestDistribution(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 0))
		n := 1 + r.IntN(20)
		list := endpoints(n, func(_ int, e *cluster.Endpoint) {
			e.Weight = uint32(1 + r.IntN(10))
			e.Healthy = r.IntN(5) > 0
			e.Draining = r.IntN(6) == 0
		})
		policy := []string{"ROUND_ROBIN", "RANDOM", "LEAST_REQUEST", "RING_HASH", "MAGLEV"}[seed%5]
		total, fit := 0, map[string]int{}
		allDraining := !slices.ContainsFunc(list, func(e cluster.Endpoint) bool { return !e.Draining })
		for _, e := range list {
			if e.Healthy && (!e.Draining || allDraining) {
				fit[e.Key] = int(e.Weight)
				if policy == "RANDOM" {
					fit[e.Key] = 1
				}
				total += fit[e.Key]
			}
		}
		w := newWorld(t, `{"lbPolicy": "`+policy+`", "commonLbConfig": {"healthyPanicThreshold": {"value": 0}},
			"ringHashLbConfig": {"minimumRingSize": 20000}}`, list...)
		const rounds = 4000
		for key, got := range w.picks(rounds) {
			if key == "" && len(fit) == 0 {
				continue
			}
			want := float64(fit[key]) / float64(total)
			if d := math.Abs(float64(got)/rounds - want); d > 0.05 || fit[key] == 0 {
				t.Errorf("seed %d, %s: %q got %.3f, want %.3f", seed, policy, key, float64(got)/rounds, want)
			}
		}
	}
}
