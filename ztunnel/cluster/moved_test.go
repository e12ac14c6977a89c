package cluster_test

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/undermesh/undermesh/ztunnel/cluster"
)

// moving collects the names of the statistics that were seen, and of those that have moved from where they began.
type moving struct {
	t     *testing.T
	seen  map[string]bool
	moved map[string]bool
	begun map[*world]map[string]uint64
}

func (m *moving) world(spec string, hosts ...cluster.Endpoint) *world {
	w := newWorld(m.t, spec, hosts...)
	m.begun[w] = map[string]uint64{}
	for name, v := range w.Stats {
		m.begun[w][name] = v
		m.seen[name] = true
	}
	return w
}

func (m *moving) look(w *world) {
	for name, v := range w.Stats {
		m.seen[name] = true
		if v != m.begun[w][name] {
			m.moved[name] = true
		}
	}
}

// TestEveryStatisticMoves: each name that a cluster shows is moved by what it is named after, or is one of those that who proxies
// counts, each of which a test of ztunnel/http moves.
func TestEveryStatisticMoves(t *testing.T) {
	m := &moving{t: t, seen: map[string]bool{}, moved: map[string]bool{}, begun: map[*world]map[string]uint64{}}
	for _, priority := range []cluster.Priority{cluster.Default, cluster.High} {
		m.limits(priority)
	}
	m.connections()
	m.balance()
	m.zones()
	m.ejections()
	for s := range counted {
		m.moved[s.String()] = true
	}
	for name := range m.seen {
		if !m.moved[name] {
			t.Errorf("nothing moves %s", name)
		}
	}
	if len(m.seen) < 70 {
		t.Errorf("%d statistics were seen", len(m.seen))
	}
}

// limits reaches each limit of a priority.
func (m *moving) limits(p cluster.Priority) {
	w := m.world(fmt.Sprintf(`{"circuitBreakers": {"thresholds": [{"priority": %q, "maxConnections": 1, "maxPendingRequests": 1, "maxRequests": 1, "maxRetries": 1,
		"trackRemaining": true}]}}`, []string{"DEFAULT", "HIGH"}[p]), endpoints(1)...)
	h := w.host(endpoint(0).Key)
	pool := cluster.NewPool(h, p, 1, func(int) {})
	l, err := pool.Acquire(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	if _, err := pool.Acquire(m.t.Context()); !errors.Is(err, cluster.ErrOverflow) {
		m.t.Errorf("a second pending request: %v", err)
	}
	m.look(w)
	if l, err = l.Connected(1, 1); err != nil {
		m.t.Fatal(err)
	}
	b := w.Breakers(p)
	if b.TryConnection(h) || !b.TryRetry() || b.TryRetry() {
		m.t.Error("the limits do not count")
	}
	m.look(w)
	l.Release(true, false)
}

// connections begin, fail and end in each way.
func (m *moving) connections() {
	w := m.world(`{"maxRequestsPerConnection": 2}`, endpoints(1)...)
	pool := cluster.NewPool(w.host(endpoint(0).Key), cluster.Default, 2, func(int) {})
	get := func() cluster.Lease[int] {
		l, err := pool.Acquire(m.t.Context())
		if err != nil || !l.MustDial() {
			m.t.Fatal(err)
		}
		return l
	}
	use := func() cluster.Lease[int] {
		l, err := get().Connected(1, 1)
		if err != nil {
			m.t.Fatal(err)
		}
		return l
	}
	get().Failed(errors.New("boom"), true)
	get().Failed(nil, false)
	for _, remote := range []bool{true, false} {
		l := use()
		l.Conn().Lost(remote)
		l.Release(false, remote)
	}
	use().Release(true, false)
	pool.Reap(1)
	use().Release(true, false)
	l, err := pool.Acquire(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	l.Release(true, false)
	for class := 1; class <= 5; class++ {
		w.CountStatus(class*100 + 1)
	}
	w.Update(w.Spec(), cluster.NewHosts(endpoints(2)))
	m.look(w)
}

// balance finds nobody, and too few.
func (m *moving) balance() {
	for _, w := range []*world{
		m.world(`{}`), m.world(`{}`, endpoints(2, unhealthy(0, 1))...), m.world(`{"type": "ORIGINAL_DST", "lbPolicy": "CLUSTER_PROVIDED"}`),
	} {
		_, _ = w.Pick(cluster.PickInput{})
		m.look(w)
	}
}

// zones are kept to, all, in part, and not because the cluster is small.
func (m *moving) zones() {
	for size, clients := range map[int]string{5: "ab", 7: "ab", 8: "aaab"} { // small; half and more endpoints in a; fewer than clients
		w := m.world(`{"commonLbConfig": {"zoneAwareLbConfig": {}}}`, endpoints(size)...)
		w.Update(w.Spec(), cluster.NewHostsFrom(from(clients), endpoints(size, inZones("abaabbab"))))
		for range 50 {
			_, _ = w.Pick(cluster.PickInput{})
		}
		m.look(w)
	}
}

// ejections come about for each reason.
func (m *moving) ejections() {
	const all = `"maxEjectionPercent": 100, "enforcingConsecutiveGatewayFailure": 100, "enforcingConsecutiveLocalOriginFailure": 100,
		"enforcingFailurePercentage": 100, "enforcingFailurePercentageLocalOrigin": 100, "interval": "10s", `
	const split = `"splitExternalLocalOriginErrors": true, `
	for _, c := range []struct {
		fields string
		result cluster.Result
		status int
	}{
		{all + `"consecutive5xx": 1`, cluster.Answered, 500}, {`"maxEjectionPercent": 0, "consecutive5xx": 1`, cluster.Answered, 500},
		{all + `"consecutiveGatewayFailure": 1`, cluster.Answered, 503}, {all + split + `"consecutiveLocalOriginFailure": 1`, cluster.ConnectFailed, 0},
		{all + `"consecutive5xx": 9, "successRateMinimumHosts": 1, "successRateRequestVolume": 1, "successRateStdevFactor": 0`, cluster.Answered, 500},
		{all + split + `"consecutiveLocalOriginFailure": 9, "successRateMinimumHosts": 1, "successRateRequestVolume": 1, "successRateStdevFactor": 0`, cluster.ConnectFailed, 0},
		{all + `"consecutive5xx": 9, "failurePercentageMinimumHosts": 1, "failurePercentageRequestVolume": 1`, cluster.Answered, 500},
		{all + split + `"consecutiveLocalOriginFailure": 9, "failurePercentageMinimumHosts": 1, "failurePercentageRequestVolume": 1`, cluster.ConnectFailed, 0},
	} {
		w := m.world(outlier(c.fields), endpoints(2)...)
		w.host(endpoint(0).Key).Report(c.result, c.status)
		w.host(endpoint(1).Key).Report(cluster.RequestDone, 0)
		w.clock.advance(11 * time.Second)
		_, _ = w.Pick(cluster.PickInput{})
		m.look(w)
	}
}

// TestPart: what a part carries is the whole's, and nobody else's; its connections and hosts are its own.
func TestPart(t *testing.T) {
	whole := newWorld(t, `{"type": "ORIGINAL_DST", "lbPolicy": "CLUSTER_PROVIDED", "cleanupInterval": "3600s"}`)
	spec, at := compile(t, `{}`), endpoint(0)
	part := func() *cluster.Pool[int] {
		c := whole.Part(spec, cluster.NewHosts([]cluster.Endpoint{at}))
		h, why := c.Pick(cluster.PickInput{})
		if why != cluster.Picked || h.Cluster() != c {
			t.Fatalf("%v, of %p", why, h.Cluster())
		}
		t.Cleanup(func() { c.Update(spec, cluster.NewHosts(nil)) })
		return cluster.NewPool(h, cluster.Default, 1, func(int) {})
	}
	var leases []cluster.Lease[int]
	for _, p := range []*cluster.Pool[int]{part(), part()} {
		l, err := p.Acquire(t.Context())
		if err != nil || !l.MustDial() {
			t.Fatalf("the other part's connection is taken: %v", err)
		}
		if l, err = l.Connected(1, 1); err != nil {
			t.Fatal(err)
		}
		leases = append(leases, l)
	}
	whole.wantStats(map[string]uint64{"upstream_cx_total": 2, "upstream_cx_active": 2, "upstream_rq_active": 2, "upstream_rq_total": 2,
		"membership_total": 1, "membership_change": 1})
	for s := range whole.Status {
		if s.Endpoint.Addr != at.Addr || s.Connections != 2 || s.Active != 2 {
			t.Errorf("%+v", s)
		}
	}
	for _, l := range leases {
		l.Release(false, false)
	}
	whole.wantStats(map[string]uint64{"upstream_cx_total": 2, "upstream_cx_active": 0, "upstream_rq_active": 0, "upstream_cx_destroy": 2})
	if h := whole.Original(netip.MustParseAddrPort("10.9.9.9:1")); h.Active() != 0 {
		t.Error("another address has what this one carries")
	}
}
