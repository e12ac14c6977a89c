package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/undermesh/undermesh/ztunnel/cluster"
)

// limits is a cluster with circuit breakers.
func limits(connections, pending, requests int, more string) string {
	return fmt.Sprintf(`{"circuitBreakers": {"thresholds": [{"maxConnections": %d, "maxPendingRequests": %d, "maxRequests": %d,
		"maxRetries": 2, "trackRemaining": true}]}%s}`, connections, pending, requests, more)
}

const oneRequest = `, "maxRequestsPerConnection": 1`

type pool struct {
	*cluster.Pool[int]
	t      *testing.T
	made   int
	closed []int
	mu     sync.Mutex
}

func newPool(t *testing.T, w *world, streams int) *pool {
	p := &pool{t: t}
	p.Pool = cluster.NewPool(w.host(endpoint(0).Key), cluster.Default, streams, func(c int) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.closed = append(p.closed, c)
	})
	return p
}

// get acquires a connection, which it makes when it must.
func (p *pool) get(ctx context.Context, streams int) (cluster.Lease[int], error) {
	l, err := p.Acquire(ctx)
	if err != nil || !l.MustDial() {
		return l, err
	}
	p.mu.Lock()
	p.made++
	n := p.made
	p.mu.Unlock()
	return l.Connected(n, streams)
}

func (p *pool) must(streams int) cluster.Lease[int] {
	p.t.Helper()
	l, err := p.get(p.t.Context(), streams)
	if err != nil {
		p.t.Fatal(err)
	}
	return l
}

func TestPoolReuses(t *testing.T) {
	w := newWorld(t, `{}`, endpoints(1)...)
	p := newPool(t, w, 1)
	a := p.must(1)
	b := p.must(1)
	if a.Conn() == b.Conn() {
		t.Fatal("two requests at a time on one connection of HTTP/1.1")
	}
	w.wantStats(map[string]uint64{"upstream_cx_total": 2, "upstream_cx_active": 2, "upstream_rq_active": 2, "upstream_rq_total": 2,
		"upstream_rq_pending_total": 2, "upstream_rq_pending_active": 0})
	a.Release(true, false)
	if c := p.must(1); c.Conn().Conn != 1 {
		t.Errorf("connection %d is used, want the one that is free", c.Conn().Conn)
	} else {
		c.Release(false, true)
	}
	b.Release(false, false)
	w.wantStats(map[string]uint64{"upstream_cx_active": 0, "upstream_rq_active": 0, "upstream_rq_total": 3,
		"upstream_rq_pending_total": 2, "upstream_cx_destroy": 2, "upstream_cx_destroy_remote": 1, "upstream_cx_destroy_local": 1})
	if len(p.closed) != 2 {
		t.Errorf("closed are %v", p.closed)
	}
}

func TestPoolOneRequestPerConnection(t *testing.T) {
	w := newWorld(t, `{`+oneRequest[1:]+`}`, endpoints(1)...)
	p := newPool(t, w, 1)
	for range 5 {
		p.must(1).Release(true, false)
	}
	w.wantStats(map[string]uint64{"upstream_cx_total": 5, "upstream_cx_active": 0, "upstream_cx_max_requests": 5, "upstream_rq_total": 5})
	w = newWorld(t, `{"maxRequestsPerConnection": 3}`, endpoints(1)...)
	p = newPool(t, w, 100)
	a, b, c := p.must(100), p.must(100), p.must(100)
	d := p.must(100)
	if a.Conn() != b.Conn() || b.Conn() != c.Conn() || c.Conn() == d.Conn() {
		t.Error("a connection is to carry three requests, and no fourth")
	}
}

// The limit of connections makes requests wait, that of pending ones refuses them (RS-07, RS-09).
func TestPoolLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, limits(2, 1, 1024, oneRequest), endpoints(1)...)
		p := newPool(t, w, 1)
		defer p.must(1).Release(true, false)
		w.wantStats(map[string]uint64{"circuit_breakers.default.remaining_cx": 1, "circuit_breakers.default.remaining_pending": 1,
			"circuit_breakers.default.rq_pending_open": 0, "circuit_breakers.default.cx_open": 0})
		a := p.must(1)
		second := make(chan cluster.Lease[int])
		go func() {
			l, err := p.get(t.Context(), 1)
			if err != nil {
				t.Error(err)
			}
			second <- l
		}()
		synctest.Wait()
		w.wantStats(map[string]uint64{
			"upstream_rq_pending_active": 1, "circuit_breakers.default.rq_pending_open": 1, "circuit_breakers.default.cx_open": 1,
			"circuit_breakers.default.remaining_cx": 0, "circuit_breakers.default.remaining_pending": 0, "upstream_cx_overflow": 1,
		})
		if _, err := p.get(t.Context(), 1); !errors.Is(err, cluster.ErrOverflow) {
			t.Errorf("the third request is told %v", err)
		}
		w.wantStats(map[string]uint64{"upstream_rq_pending_overflow": 1})
		select {
		case <-second:
			t.Fatal("the second request did not wait")
		default:
		}
		a.Release(true, false) // one request per connection: the second dials
		b := <-second
		w.wantStats(map[string]uint64{"upstream_cx_total": 3, "upstream_cx_active": 2, "upstream_rq_pending_active": 0})
		b.Release(true, false)
	})
}

func TestPoolMaxRequests(t *testing.T) {
	w := newWorld(t, limits(10, 10, 1, ""), endpoints(1)...)
	p := newPool(t, w, 1)
	a := p.must(1)
	w.wantStats(map[string]uint64{"circuit_breakers.default.rq_open": 1, "circuit_breakers.default.remaining_rq": 0})
	if _, err := p.get(t.Context(), 1); !errors.Is(err, cluster.ErrOverflow) {
		t.Errorf("the second request is told %v", err)
	}
	a.Release(true, false)
	w.wantStats(map[string]uint64{"upstream_rq_pending_overflow": 1, "upstream_cx_active": 2, "circuit_breakers.default.rq_open": 0,
		"upstream_rq_pending_active": 0})
	p.must(1).Release(true, false)
}

// A pool may have one connection, whatever others have; limits of a host are its own.
func TestPoolLimitOfHosts(t *testing.T) {
	w := newWorld(t, limits(1, 10, 1024, ""), endpoints(2)...)
	for _, host := range []string{endpoint(0).Key, endpoint(0).Key, endpoint(1).Key} {
		p := cluster.NewPool(w.host(host), cluster.Default, 1, func(int) {})
		if l, err := p.Acquire(t.Context()); err != nil || !l.MustDial() {
			t.Fatalf("%v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := p.Acquire(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("the second connection: %v", err)
		}
	}
	w.wantStats(map[string]uint64{"upstream_cx_active": 3, "upstream_cx_overflow": 5})
	w = newWorld(t, `{"circuitBreakers": {"perHostThresholds": [{"maxConnections": 2}]}}`, endpoints(2)...)
	for i := range 2 {
		p := cluster.NewPool(w.host(endpoint(i).Key), cluster.Default, 1, func(int) {})
		for range 2 {
			if l, err := p.Acquire(t.Context()); err != nil || !l.MustDial() {
				t.Fatalf("%v", err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := p.Acquire(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("the third connection to host %d: %v", i, err)
		}
	}
	w.wantStats(map[string]uint64{"upstream_cx_overflow": 2, "upstream_rq_cancelled": 2, "upstream_cx_total": 4})
}

func TestPoolDialFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, limits(2, 10, 1024, ""), endpoints(1)...)
		p := newPool(t, w, 1)
		other := p.must(1)
		l, err := p.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		boom, got := errors.New("boom"), make(chan error)
		go func() {
			_, err := p.Acquire(t.Context())
			got <- err
		}()
		synctest.Wait()
		l.Failed(boom, true)
		if err := <-got; !errors.Is(err, boom) {
			t.Errorf("who waited is told %v", err)
		}
		w.wantStats(map[string]uint64{"upstream_cx_connect_fail": 1, "upstream_cx_connect_timeout": 1, "upstream_rq_pending_failure_eject": 2,
			"upstream_rq_pending_active": 0, "upstream_cx_active": 1})
		// When the request that dialled is given up, who waits dials.
		l, err = p.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		next := make(chan cluster.Lease[int])
		go func() {
			l, err := p.Acquire(t.Context())
			if err != nil {
				t.Error(err)
			}
			next <- l
		}()
		synctest.Wait()
		l.Failed(nil, false)
		if l = <-next; !l.MustDial() {
			t.Error("who waited does not dial")
		}
		l.Failed(boom, false)
		w.wantStats(map[string]uint64{"upstream_rq_cancelled": 1, "upstream_cx_connect_fail": 2, "upstream_cx_active": 1,
			"upstream_rq_pending_active": 0})
		other.Release(false, false)
	})
}

func TestPoolStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, `{}`, endpoints(1)...)
		p := newPool(t, w, 100)
		first, err := p.Acquire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan cluster.Lease[int], 10)
		for range 4 {
			go func() {
				l, err := p.Acquire(t.Context())
				if err != nil {
					t.Error(err)
				}
				got <- l
			}()
		}
		synctest.Wait()
		w.wantStats(map[string]uint64{"upstream_rq_pending_active": 5, "upstream_cx_active": 1})
		first, err = first.Connected(1, 4) // the server wants fewer than was thought: the last one dials
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if len(got) != 4 {
			t.Fatalf("%d of 4 who wait were served", len(got))
		}
		var leases []cluster.Lease[int]
		for range 4 {
			if l := <-got; l.MustDial() {
				l.Failed(errors.New("no"), false)
			} else {
				leases = append(leases, l)
			}
		}
		if len(leases) != 3 {
			t.Fatalf("%d beside the first are on the connection that takes four", len(leases))
		}
		first.Conn().Limit(6)
		leases = append(leases, p.must(6), p.must(6), first)
		first.Conn().Retire(true) // GOAWAY
		if l := p.must(4); l.Conn() == first.Conn() {
			t.Error("a connection is used after it was retired")
		} else {
			l.Release(false, false)
		}
		for _, l := range leases {
			if len(p.closed) > 1 {
				t.Error("the connection is closed with requests on it")
			}
			l.Release(true, false)
		}
		w.wantStats(map[string]uint64{"upstream_cx_active": 0, "upstream_rq_active": 0, "upstream_rq_pending_active": 0})
	})
}

func TestPoolLost(t *testing.T) {
	w := newWorld(t, `{}`, endpoints(1)...)
	p := newPool(t, w, 10)
	a := p.must(10)
	a.Conn().Lost(true)
	a.Conn().Lost(true)
	a.Release(false, true)
	b := p.must(10)
	c := p.must(10)
	b.Conn().Lost(false)
	b.Release(true, false)
	c.Release(true, false)
	d := p.must(1)
	d.Release(true, false)
	d = p.must(1) // found dead before anything was sent
	d.Stale()
	w.wantStats(map[string]uint64{
		"upstream_cx_active": 0, "upstream_cx_total": 3, "upstream_cx_destroy_with_active_rq": 2, "upstream_rq_total": 4,
		"upstream_cx_destroy_remote_with_active_rq": 1, "upstream_cx_destroy_local_with_active_rq": 1, "upstream_rq_active": 0,
	})
	if len(p.closed) != 3 {
		t.Errorf("closed are %v", p.closed)
	}
}

func TestPoolReap(t *testing.T) {
	w := newWorld(t, `{}`, endpoints(1)...)
	p := newPool(t, w, 1)
	a, b := p.must(1), p.must(1)
	a.Release(true, false)
	for i, want := range []int{2, 2, 1, 1} {
		if got := p.Reap(3); got != want {
			t.Errorf("after %d calls %d connections are left, want %d", i+1, got, want)
		}
	}
	b.Release(true, false)
	for range 3 {
		p.Reap(3)
	}
	w.wantStats(map[string]uint64{"upstream_cx_idle_timeout": 2, "upstream_cx_active": 0})
}

// A host that leaves closes what is idle, and lets what is under way end.
func TestPoolDrainsWithItsHost(t *testing.T) {
	w := newWorld(t, `{}`, endpoints(2)...)
	h := w.host(endpoint(0).Key)
	if h.Attach(func() any { return 1 }) != any(1) || h.Attach(func() any { return 2 }) != any(1) {
		t.Fatal("what is attached is not kept")
	}
	p := newPool(t, w, 1)
	a, b := p.must(1), p.must(1)
	a.Release(true, false)
	w.Update(w.Spec(), cluster.NewHosts(endpoints(2, func(i int, e *cluster.Endpoint) { e.Draining = i == 0 })))
	w.wantStats(map[string]uint64{"upstream_cx_active": 1})
	b.Release(true, false)
	w.wantStats(map[string]uint64{"upstream_cx_active": 0})
	c := p.must(1) // who chose the host before is served
	c.Release(true, false)
	w.wantStats(map[string]uint64{"upstream_cx_active": 0, "upstream_rq_active": 0})
	if len(p.closed) != 3 {
		t.Errorf("closed are %v", p.closed)
	}
}

func TestRetries(t *testing.T) {
	w := newWorld(t, limits(1, 1, 1, ""), endpoints(1)...)
	b := w.Breakers(cluster.Default)
	if first, second, third := b.TryRetry(), b.TryRetry(), b.TryRetry(); !first || !second || third {
		t.Error("two retries are allowed at a time")
	}
	w.wantStats(map[string]uint64{"upstream_rq_retry_overflow": 1, "circuit_breakers.default.rq_retry_open": 1,
		"circuit_breakers.default.remaining_retries": 0, "circuit_breakers.high.rq_retry_open": 0})
	b.DoneRetry()
	if !b.TryRetry() {
		t.Error("a retry is over, another is not allowed")
	}
}

// A budget allows retries in proportion to the requests that are under way, but never fewer than its minimum.
func TestRetryBudget(t *testing.T) {
	w := newWorld(t, `{"circuitBreakers": {"thresholds": [{"retryBudget": {"budgetPercent": {"value": 50}, "minRetryConcurrency": 2}}]}}`, endpoints(1)...)
	p := newPool(t, w, 1)
	b := w.Breakers(cluster.Default)
	for requests, want := range []int{0: 2, 1: 2, 4: 2, 6: 3, 9: 4} {
		if want == 0 {
			continue
		}
		for w.stat("upstream_rq_active") < uint64(requests) {
			p.must(1)
		}
		n := 0
		for b.TryRetry() {
			n++
		}
		if n != want {
			t.Errorf("with %d requests under way %d retries are allowed, want %d", requests, n, want)
		}
		for range n {
			b.DoneRetry()
		}
	}
}

func TestTCPConnections(t *testing.T) {
	w := newWorld(t, limits(2, 1, 1, ""), endpoints(2)...)
	b, h := w.Breakers(cluster.Default), w.host(endpoint(0).Key)
	if !b.TryConnection(h) || !b.TryConnection(w.host(endpoint(1).Key)) || b.TryConnection(h) {
		t.Error("two connections are allowed at a time")
	}
	w.wantStats(map[string]uint64{"upstream_cx_total": 2, "upstream_cx_active": 2, "upstream_cx_overflow": 1, "circuit_breakers.default.cx_open": 1})
	b.DoneConnection(h, true)
	if !b.TryConnection(h) {
		t.Error("a connection has ended, another is not allowed")
	}
	w.wantStats(map[string]uint64{"upstream_cx_destroy_remote": 1, "upstream_cx_active": 2})
}

// Connections that were made under another configuration end, or its limits would not count until they do.
func TestPoolIsRenewed(t *testing.T) {
	w := newWorld(t, `{}`, endpoints(2)...)
	p := newPool(t, w, 1)
	a, b := p.must(1), p.must(1)
	a.Release(true, false)
	w.Update(compile(t, limits(1, 1, 1024, oneRequest)), cluster.NewHosts(endpoints(1)))
	w.wantStats(map[string]uint64{"upstream_cx_active": 1, "upstream_rq_active": 1})
	b.Release(true, false)
	w.wantStats(map[string]uint64{"upstream_cx_active": 0, "upstream_cx_total": 2})
	for range 3 {
		p.must(1).Release(true, false)
	}
	w.wantStats(map[string]uint64{"upstream_cx_active": 0, "upstream_cx_total": 5})
	w.Update(w.Spec(), cluster.NewHosts(endpoints(3))) // other endpoints alone end nothing
	c := p.must(1)
	w.wantStats(map[string]uint64{"upstream_cx_active": 1})
	c.Release(true, false)
}

// Limits are those of the configuration in force.
func TestLimitsChangeLive(t *testing.T) {
	w := newWorld(t, limits(1, 1, 1, ""), endpoints(1)...)
	b, h := w.Breakers(cluster.Default), w.host(endpoint(0).Key)
	if !b.TryConnection(h) || b.TryConnection(h) {
		t.Error("one connection is allowed")
	}
	w.Update(compile(t, limits(3, 1, 1, "")), w.Hosts())
	if first, second, third := b.TryConnection(h), b.TryConnection(h), b.TryConnection(h); !first || !second || third {
		t.Error("three connections are allowed now")
	}
}

// Whatever happens in whatever order: limits hold, gauges return to zero, every connection that was made is closed once.
func TestPoolInvariants(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) { poolHistory(t, seed) })
	}
}

func poolHistory(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 2))
	maxConns, maxPending, streams := 1+r.IntN(4), 1+r.IntN(6), 1+r.IntN(3)*r.IntN(2)
	w := newWorld(t, limits(maxConns, maxPending, 1+r.IntN(12), []string{"", oneRequest, `, "maxRequestsPerConnection": 3`}[r.IntN(3)]), endpoints(1)...)
	p := newPool(t, w, streams)
	var clients sync.WaitGroup
	for range 30 {
		r := rand.New(rand.NewPCG(seed, r.Uint64()))
		clients.Go(func() {
			for range 20 {
				time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond)
				p.request(r, streams)
			}
		})
	}
	stop := make(chan struct{})
	go func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				p.Reap(5)
				if n := w.stat("upstream_cx_active"); n > uint64(max(2, maxConns)) {
					t.Errorf("seed %d: %d connections, allowed are %d", seed, n, maxConns)
				}
				if n := w.stat("upstream_rq_pending_active"); n > uint64(maxPending) {
					t.Errorf("seed %d: %d requests are pending, allowed are %d", seed, n, maxPending)
				}
			}
		}
	}()
	clients.Wait()
	close(stop)
	p.Drain()
	w.wantStats(map[string]uint64{"upstream_cx_active": 0, "upstream_rq_active": 0, "upstream_rq_pending_active": 0,
		"upstream_cx_destroy": w.stat("upstream_cx_total"), "circuit_breakers.default.rq_open": 0, "circuit_breakers.default.cx_open": 0})
	seen := map[int]bool{}
	for _, c := range p.closed {
		if seen[c] {
			t.Errorf("seed %d: connection %d was closed twice", seed, c)
		}
		seen[c] = true
	}
	if len(seen) != p.made {
		t.Errorf("seed %d: %d connections were made, %d closed", seed, p.made, len(seen))
	}
}

// request is one request with one of the fates that there are.
func (p *pool) request(r *rand.Rand, streams int) {
	ctx, cancel := context.WithTimeout(p.t.Context(), time.Duration(1+r.IntN(30))*time.Millisecond)
	defer cancel()
	l, err := p.Acquire(ctx)
	if err != nil {
		return
	}
	if l.MustDial() {
		time.Sleep(time.Duration(r.IntN(5)) * time.Millisecond)
		if fate := r.IntN(10); fate == 0 {
			l.Failed(errors.New("refused"), r.IntN(2) == 0)
			return
		} else if fate == 1 {
			l.Failed(nil, false)
			return
		}
		p.mu.Lock()
		p.made++
		n := p.made
		p.mu.Unlock()
		if l, err = l.Connected(n, streams); err != nil {
			return
		}
	}
	time.Sleep(time.Duration(r.IntN(10)) * time.Millisecond)
	switch r.IntN(10) {
	case 0:
		l.Conn().Lost(r.IntN(2) == 0)
		l.Release(r.IntN(2) == 0, false)
	case 1:
		l.Conn().Retire(true)
		l.Release(true, false)
	case 2:
		l.Stale()
	case 3:
		l.Release(false, true)
	default:
		l.Release(true, false)
	}
}

// A connection that carries no further request makes place as soon as the answer is there, and is closed when it has been passed on.
func TestPoolMakesPlaceEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, limits(1, 1, 1024, oneRequest), endpoints(1)...)
		p := newPool(t, w, 1)
		a := p.must(1)
		second := make(chan cluster.Lease[int])
		go func() {
			l, err := p.get(t.Context(), 1)
			if err != nil {
				t.Error(err)
			}
			second <- l
		}()
		synctest.Wait()
		a.Answered()
		a.Answered()
		b := <-second
		if len(p.closed) != 0 {
			t.Error("the connection is closed while its answer is passed on")
		}
		w.wantStats(map[string]uint64{"upstream_cx_total": 2, "upstream_cx_active": 1, "upstream_rq_active": 2, "upstream_rq_pending_active": 0})
		a.Release(true, false)
		if len(p.closed) != 1 {
			t.Errorf("closed are %v", p.closed)
		}
		b.Release(true, false)
		w.wantStats(map[string]uint64{"upstream_cx_active": 0, "upstream_cx_destroy": 2, "upstream_rq_active": 0})
		c := newPool(t, newWorld(t, limits(2, 1, 1024, ""), endpoints(1)...), 1)
		d := c.must(1)
		d.Answered()
		d.Release(true, false)
		if e := c.must(1); e.Conn() != d.Conn() {
			t.Error("a connection that goes on was given up")
		} else {
			e.Release(true, false)
		}
	})
}

// TestPoolTellsThePlace: who made a connection that no request may go over now learns its place all the same, and says what becomes
// of it.
func TestPoolTellsThePlace(t *testing.T) {
	w := newWorld(t, `{"circuitBreakers":{"thresholds":[{"maxRequests":1}]}}`, endpoints(1)...)
	first, second := newPool(t, w, 4), newPool(t, w, 4)
	busy := first.must(4)
	l, err := second.get(t.Context(), 4)
	if !errors.Is(err, cluster.ErrOverflow) || l.Conn() == nil {
		t.Fatalf("a lease %+v and error %v, want a place and an overflow", l, err)
	}
	busy.Release(true, false)
	l.Conn().Limit(0)
	if l, err = second.Acquire(t.Context()); err != nil || !l.MustDial() {
		t.Errorf("a connection that takes no request is used: %+v, %v", l, err)
	}
	l.Failed(nil, false)
}
