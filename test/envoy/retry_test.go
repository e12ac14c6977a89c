package envoy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
)

// retryPlans are what routes say of other tries and the time between them.
var retryPlans = []plan{
	{"usual", `{"timeout": "60s", "retryPolicy": {"retryOn": "5xx", "numRetries": 6, "retryBackOff": null}}`, false},
	{"base", `{"timeout": "60s", "retryPolicy": {"retryOn": "5xx", "numRetries": 3, "retryBackOff": {"baseInterval": "0.1s"}}}`, false},
	{"most", `{"timeout": "60s", "retryPolicy": {"retryOn": "5xx", "numRetries": 3, "retryBackOff": {"baseInterval": "0.08s", "maxInterval": "0.1s"}}}`, false},
	{"tenfold", `{"timeout": "60s", "retryPolicy": {"retryOn": "5xx", "numRetries": 6, "retryBackOff": {"baseInterval": "0.01s"}}}`, false},
	{"same", `{"timeout": "60s", "retryPolicy": {"retryOn": "5xx", "numRetries": 2}}`, false},
	{"other", `{"timeout": "60s", "retryPolicy": {"retryOn": "5xx", "numRetries": 2, "hostSelectionRetryMaxAttempts": 60, "retryHostPredicate": [
		{"name": "envoy.retry_host_predicates.previous_hosts", "typedConfig": {"@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"}}]}}`, false},
	{"many", `{"timeout": "60s", "retryPolicy": {"retryOn": "5xx", "numRetries": 5, "hostSelectionRetryMaxAttempts": 5, "retryHostPredicate": [
		{"name": "envoy.retry_host_predicates.previous_hosts", "typedConfig": {"@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"}}]}}`, false},
}

// waits are the limits of the times before the tries of a plan; how long exactly is chance.
var waits = map[string][]time.Duration{
	"usual":   {25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 200 * time.Millisecond, 250 * time.Millisecond, 250 * time.Millisecond},
	"base":    {100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond},
	"most":    {80 * time.Millisecond, 100 * time.Millisecond, 100 * time.Millisecond},
	"tenfold": {10 * time.Millisecond, 20 * time.Millisecond, 40 * time.Millisecond, 80 * time.Millisecond, 100 * time.Millisecond, 100 * time.Millisecond},
}

// retryClusters are where they lead: one host, three by chance, and budgets of other tries.
var retryClusters = []failingCluster{
	{"up", `{"circuitBreakers": {"thresholds": [{"maxRetries": 1000}]}}`, []string{"up"}, false},
	{"three", `{"lbPolicy": "RANDOM", "circuitBreakers": {"thresholds": [{"maxRetries": 1000}]}}`, []string{"up 1", "up 2", "up 3"}, false},
	{"few", `{"circuitBreakers": {"thresholds": [{"maxRetries": 1000, "retryBudget": {"budgetPercent": {"value": 0}, "minRetryConcurrency": 2}}]}}`, []string{"up"}, false},
	{"share", `{"circuitBreakers": {"thresholds": [{"retryBudget": {"budgetPercent": {"value": 20}, "minRetryConcurrency": 1}}]}}`, []string{"up"}, false},
	{"usual-share", `{"circuitBreakers": {"thresholds": [{"retryBudget": {}}]}}`, []string{"up"}, false},
	{"limit", `{"circuitBreakers": {"thresholds": [{"maxRetries": 2}]}}`, []string{"up"}, false},
	{"usual-limit", `{}`, []string{"up"}, false},
}

// beside are so many requests that hang in their first try, of clusters of their own.
const beside = 12

// retrying are both proxies before the retryClusters, for HTTP/1.1.
func retrying(t *testing.T) *differential {
	t.Helper()
	Require(t)
	list := slices.Clone(retryClusters)
	for _, c := range retryClusters {
		c.name += "-busy"
		list = append(list, c)
	}
	theirEchoes, theirClusters := failingClusters(t, list, false, nil)
	ourEchoes, ourClusters := failingClusters(t, list, false, nil)
	configs := []*routev3.RouteConfiguration{failures(t, list, retryPlans)}
	return &differential{envoy: StartProxy(t, 1, configs, theirClusters), we: startOurs(t, configs, ourClusters), envoys: theirEchoes, ours: ourEchoes}
}

// failAll sends so many requests of a plan whose every try is answered by 503, some at a time, and compares what came of them but for hosts.
func (d *differential) failAll(t *testing.T, cluster, plan string, count int) {
	t.Helper()
	q := toFailing([]call{{Method: "GET"}}, cluster, plan, everyTry("answer 503"))
	var wait sync.WaitGroup
	const atOnce = 8
	for i := range atOnce {
		wait.Go(func() {
			d.through(t, false, "f", fmt.Sprintf("%s-%s-%d", cluster, plan, i), slices.Repeat(q, count/atOnce))
		})
	}
	wait.Wait()
}

// TestEnvoyAgreesOnBackOff: both wait alike before another try: at random below a limit that doubles from the base, 25 ms unless said,
// up to the most, ten times the base unless said.
func TestEnvoyAgreesOnBackOff(t *testing.T) {
	d := retrying(t)
	const count = 24
	var wait sync.WaitGroup
	for plan := range waits {
		wait.Go(func() { d.failAll(t, "up", plan, count) })
	}
	wait.Go(func() { d.failAll(t, "up", "same", count) })
	wait.Wait()
	d.compare(t)
	for side, e := range map[string]*Echoes{"Envoy": d.envoys, "we": d.ours} {
		late := mean(d.gaps(e, "same", 0))*3 + 20*time.Millisecond // of what the machine adds
		for plan, limits := range waits {
			for i, limit := range limits {
				if gaps := d.gaps(e, plan, i); len(gaps) != count {
					t.Errorf("%s, %s: %d waits before try %d, want %d", side, plan, len(gaps), i+2, count)
				} else if msg := even(gaps, limit, late); msg != "" {
					t.Errorf("%s, %s, before try %d: %s", side, plan, i+2, msg)
				}
			}
		}
	}
}

// gaps are the times between a try and the next of all requests of a plan.
func (d *differential) gaps(e *Echoes, plan string, try int) (out []time.Duration) {
	for _, x := range d.pairs {
		if times := e.Times(x.number); strings.HasSuffix(x.call.Target, "/"+plan) && len(times) > try+1 {
			out = append(out, times[try+1].Sub(times[try]))
		}
	}
	return out
}

func mean(list []time.Duration) time.Duration {
	var sum time.Duration
	for _, d := range list {
		sum += d
	}
	return sum / time.Duration(max(1, len(list)))
}

// even says how times are not those of chance below a limit; late is what the machine adds to them.
func even(gaps []time.Duration, limit, late time.Duration) string {
	slices.Sort(gaps)
	m, n := mean(gaps), len(gaps)
	switch {
	case m < limit/5 || m > limit*4/5+late:
		return fmt.Sprintf("%s in the mean, of a limit of %s", m, limit)
	case gaps[n/8] > limit/2+late:
		return fmt.Sprintf("an eighth is below %s only, of a limit of %s", gaps[n/8], limit)
	case gaps[n*7/8] > limit+late:
		return fmt.Sprintf("an eighth is above %s, of a limit of %s", gaps[n*7/8], limit)
	}
	return ""
}

// TestEnvoyAgreesOnOtherHosts: where hosts that were tried are passed over, both try each host once, and then any; where not, chance says.
func TestEnvoyAgreesOnOtherHosts(t *testing.T) {
	t.Parallel()
	d := retrying(t)
	for _, plan := range []string{"same", "other", "many"} {
		d.failAll(t, "three", plan, 40)
	}
	d.arrivals()
	for side, e := range map[string]*Echoes{"Envoy": d.envoys, "we": d.ours} {
		for plan, tries := range map[string]int{"same": 3, "other": 3, "many": 6} {
			again := 0
			for _, x := range d.pairs {
				if !strings.HasSuffix(x.call.Target, "/"+plan) {
					continue
				}
				hosts := map[string]bool{}
				seen := e.Arrived(x.number)
				for _, s := range seen {
					hosts[s.Cluster] = true
				}
				if len(seen) != tries {
					t.Errorf("%s, %s: %d tries, want %d", side, plan, len(seen), tries)
				}
				if len(hosts) < 3 {
					again++
				}
			}
			switch {
			case plan == "same" && again == 0:
				t.Errorf("%s, %s: no request came to one host twice", side, plan)
			case plan != "same" && again > 0:
				t.Errorf("%s, %s: %d requests did not come to all hosts", side, plan, again)
			}
		}
	}
}

// TestEnvoyAgreesOnRetryBudget: as many other tries are under way at a time, of those that hang, with a budget, with a limit, and with
// neither; each beside so many requests that hang in their first.
func TestEnvoyAgreesOnRetryBudget(t *testing.T) {
	t.Parallel()
	d := retrying(t)
	for _, c := range retryClusters[2:] {
		for name, others := range map[string]int{c.name: 0, c.name + "-busy": beside} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				got := [2]string{}
				var wait sync.WaitGroup
				wait.Go(func() { got[0] = budget(t, d.envoy.addrs["f"], d.envoys, name, others) })
				wait.Go(func() { got[1] = budget(t, d.we.addrs["f"], d.ours, name, others) })
				wait.Wait()
				if got[0] != got[1] {
					t.Errorf("Envoy: %s\nwe:    %s", got[0], got[1])
				}
				t.Log(got[0])
			})
		}
	}
}

// budget says what came of ten requests, one after the other, whose first try fails and whose second hangs: "again" or the status. Other
// requests hang beside them.
func budget(t *testing.T, to netip.AddrPort, e *Echoes, cluster string, others int) string {
	const limit = "x-envoy-upstream-rq-timeout-ms: 4000"
	var wait sync.WaitGroup
	defer wait.Wait()
	begin := func(number, do string, tries int) string {
		said := make(chan string, 1)
		wait.Go(func() {
			c := Client{addr: to}
			q := toFailing([]call{{Method: "GET", Fields: []string{limit}}}, cluster, "same", do)[0]
			o, err := c.Do(q, number)
			said <- fmt.Sprint(o.Status, err)
			_ = c.Close()
		})
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case s := <-said:
				return s
			case <-tick.C:
				if len(e.Arrived(number)) == tries {
					return "again"
				}
			}
		}
	}
	for i := range others {
		if s := begin(fmt.Sprintf("%s-beside-%d", cluster, i), "hang", 1); s != "again" {
			t.Error(cluster, s)
		}
	}
	var out []string
	for i := range 10 {
		out = append(out, begin(fmt.Sprintf("%s-%d", cluster, i), "answer 503;hang;hang", 2))
	}
	return strings.Join(out, ", ")
}
