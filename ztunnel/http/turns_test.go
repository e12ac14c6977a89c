package http

import (
	"context"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/undermesh/undermesh/ztunnel/clock"
)

// TestTurnsAreFair: a workload with a thousand long pieces of work that wait leaves half of the time to one with short ones, and none of
// these waits for more than one of the long ones.
func TestTurnsAreFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		epoch := time.Now()
		turns := newTurns(1, func() int64 { return int64(time.Since(epoch)) })
		hot, mild := NewTenant(TenantLimits{}), NewTenant(TenantLimits{})
		ctx, cancel := context.WithCancel(t.Context())
		var had [2]atomic.Int64
		var longest atomic.Int64
		work := func(i int, w *Tenant, d time.Duration) {
			for {
				asked := turns.now()
				if !turns.try() && !turns.wait(ctx, w) {
					return
				}
				since := turns.now()
				if d := since - asked; i == 1 && d > longest.Load() { // none is served beside another
					longest.Store(d)
				}
				alive := clock.Pause(ctx, clock.System(), d)
				had[i].Add(turns.now() - since)
				if turns.end(w, since); !alive {
					return
				}
			}
		}
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() { work(0, hot, 100*time.Millisecond) })
		}
		time.Sleep(time.Minute) // what it had while nobody else waited is its own
		had[0].Store(0)
		for range 2 {
			wg.Go(func() { work(1, mild, time.Millisecond) })
		}
		time.Sleep(time.Minute)
		long, short := time.Duration(had[0].Load()), time.Duration(had[1].Load())
		if short < 29*time.Second || long < 29*time.Second || long+short > time.Minute+time.Second {
			t.Errorf("%s and %s of a minute", long, short)
		}
		if d := time.Duration(longest.Load()); d > 102*time.Millisecond {
			t.Errorf("waited for %s", d)
		}
		cancel()
		wg.Wait()
		if n := turns.state.Load(); n != 0 || len(turns.lines)+len(turns.waiting) != 0 {
			t.Errorf("state %#x, lines %v", n, turns.lines)
		}
	})
}

// TestTurnsAreNeitherLostNorMade, whoever gives up when.
func TestTurnsAreNeitherLostNorMade(t *testing.T) {
	for most := 1; most <= 4; most *= 2 {
		turns := newTurns(most, func() int64 { return 1 })
		var tenants [3]*Tenant
		for i := range tenants {
			tenants[i] = NewTenant(TenantLimits{})
		}
		var have, got atomic.Int64
		var wg sync.WaitGroup
		for i := range 24 {
			wg.Go(func() {
				w, chance := tenants[i%len(tenants)], rand.New(rand.NewPCG(uint64(i), 1))
				for range 500 {
					ctx, cancel := context.WithCancel(t.Context())
					if chance.IntN(3) == 0 {
						go cancel()
					}
					if turns.try() || turns.wait(ctx, w) {
						if n := have.Add(1); n > int64(most) {
							t.Errorf("%d of %d have a turn", n, most)
						}
						got.Add(1)
						have.Add(-1)
						turns.end(w, 1)
					}
					cancel()
				}
			})
		}
		wg.Wait()
		if n := turns.state.Load(); n != 0 || len(turns.lines)+len(turns.waiting) != 0 || got.Load() < 24*300 {
			t.Errorf("of %d: state %#x, lines %v, %d turns", most, n, turns.lines, got.Load())
		}
	}
}

// TestTurnsForgetWhoIsGone: workloads that do not wait are not kept for ever while others do.
func TestTurnsForgetWhoIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(1, func() int64 { return 1 })
		ctx, cancel := context.WithCancel(t.Context())
		turns.try()
		go turns.wait(ctx, NewTenant(TenantLimits{}))
		go turns.wait(ctx, NewTenant(TenantLimits{}))
		synctest.Wait()
		for range 3 * maxLines {
			short, end := context.WithCancel(ctx)
			end()
			turns.wait(short, NewTenant(TenantLimits{}))
		}
		if n := len(turns.lines); n > maxLines {
			t.Errorf("%d workloads are kept", n)
		}
		cancel()
		synctest.Wait()
	})
}

// toilsome is a route whose regular expression costs a request with a path of n bytes 6,400 steps for each.
const toilsome = `{"match":{"safeRegex":{"regex":"/(a?a?a?a?a?a?a?a?){400}b"}},"route":{"cluster":"up"}},`

func longPath(n int) string {
	return "GET /" + strings.Repeat("a", n) + " HTTP/1.1\r\nHost: a\r\n\r\n"
}

// TestToilWaitsForATurn: requests whose rules cost much wait while others do such work, and nothing else does. They may leave meanwhile, and
// their timeouts hold.
func TestToilWaitsForATurn(t *testing.T) {
	inBubble(t, func(c *Config) { c.Turns = 1 }, func(t *testing.T, w *world) {
		w.routes("a", toilsome+toUp)
		w.cluster("up", nil, answers(ok, ok, ok), answers(ok, ok, ok), answers(ok, ok, ok))
		hot := w.flow.Workload
		if !w.e.toils.try() {
			t.Fatal("no turn is there")
		}
		since := w.e.now()
		var clients []*testClient
		for range 3 {
			c := w.connect()
			c.send(longPath(100))
			clients = append(clients, c)
		}
		synctest.Wait()
		if s := hot.Stats(); s.TurnsAwaited != 3 || s.ActiveRequests != 3 || w.dials != 0 {
			t.Errorf("%+v, %d connections to hosts", s, w.dials)
		}
		w.flow.Workload = NewTenant(TenantLimits{})
		if a := w.connect().get("GET / HTTP/1.1", "Host: a"); a.StatusCode != 200 {
			t.Errorf("another workload is answered %d", a.StatusCode)
		}
		w.flow.Workload = hot
		if a := w.connect().get("GET / HTTP/1.1", "Host: a"); a.StatusCode != 200 {
			t.Errorf("a request that costs little is answered %d", a.StatusCode)
		}
		_ = clients[0].Close()
		time.Sleep(2 * lookFirst)
		synctest.Wait()
		if s := hot.Stats(); s.ActiveRequests != 2 {
			t.Errorf("of a client that left: %+v", s)
		}
		w.e.toils.end(hot, since)
		for _, c := range clients[1:] {
			if a := c.read("GET"); a.StatusCode != 200 {
				t.Errorf("answered %d when the turn came", a.StatusCode)
			}
		}
		synctest.Wait()
		if n := w.e.toils.state.Load(); n != 0 {
			t.Errorf("%d turns are held", n)
		}
	})
}

// TestTurnsAreNotHeldWhileSomethingIsAwaited: a host that does not answer, a client that does not read, a delay, a wait before another try.
func TestTurnsAreNotHeldWhileSomethingIsAwaited(t *testing.T) {
	mute := func(c net.Conn) { _, _ = c.Read(make([]byte, 4096)); _, _ = c.Read(make([]byte, 1)) }
	for name, c := range map[string]struct {
		route, request string
		host           func(net.Conn)
	}{
		"host":       {toUp, longPath(100), mute},
		"client":     {`{"match":{"prefix":"/"},"directResponse":{"status":200,"body":{"inlineString":"x"}}}`, longPath(100), nil},
		"excess":     {toUp, longPath(30_000), nil},
		"answer":     {toUp, longPath(100), answers(ok)},
		"continue":   {toUp, "POST /" + strings.Repeat("a", 100) + " HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n", nil},
		"delay":      {`{"match":{"prefix":"/"},"route":{"cluster":"up"},"typedPerFilterConfig":{"envoy.filters.http.fault":{"@type":"type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault","delay":{"fixedDelay":"3600s","percentage":{"numerator":100}}}}}`, longPath(100), nil},
		"next try":   {`{"match":{"prefix":"/"},"route":{"cluster":"up","retryPolicy":{"retryOn":"5xx","numRetries":1,"retryBackOff":{"baseInterval":"3600s","maxInterval":"3600s"}}}}`, longPath(100), answers("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")},
		"connecting": {`{"match":{"prefix":"/"},"route":{"cluster":"none"}}`, longPath(100), nil},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(c *Config) { c.Turns = 1 }, func(t *testing.T, w *world) {
				w.flow.Workload = NewTenant(TenantLimits{Unhindered: 1})
				w.routes("a", toilsome+c.route)
				if c.host != nil {
					w.cluster("up", nil, c.host)
				}
				for range 2 { // the second is of a crowd
					conn := w.connect()
					_, _ = conn.Write([]byte(c.request)) // and nothing is read
				}
				synctest.Wait()
				if s := w.flow.Workload.Stats(); s.ActiveRequests != 2 {
					t.Errorf("%+v", s)
				}
				if w.e.toils.state.Load() != 0 || w.e.crowds.state.Load() != 0 {
					t.Errorf("held: %d, %d", w.e.toils.state.Load(), w.e.crowds.state.Load())
				}
			})
		})
	}
}

// TestCrowdWaitsForTurns: of a workload with many requests under way new ones begin one after the other, those of others at once.
func TestCrowdWaitsForTurns(t *testing.T) {
	inBubble(t, func(c *Config) { c.Turns = 1 }, func(t *testing.T, w *world) {
		hot := NewTenant(TenantLimits{Unhindered: 10})
		w.flow.Workload = hot
		seen := make(chan string, 100)
		w.cluster("up", nil, func(c net.Conn) {
			b := make([]byte, 4096)
			_, _ = c.Read(b)
			seen <- ""
			_, _ = c.Read(b)
		})
		w.e.crowds.try()
		for range 30 {
			w.connect().send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		}
		synctest.Wait()
		if s := hot.Stats(); len(seen) != 10 || s.TurnsAwaited != 20 {
			t.Errorf("%d requests were sent, %+v", len(seen), s)
		}
		w.flow.Workload = NewTenant(TenantLimits{})
		w.connect().send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		synctest.Wait()
		if len(seen) != 11 {
			t.Error("another workload waits")
		}
		w.e.crowds.end(hot, w.e.now())
		synctest.Wait()
		if len(seen) != 31 {
			t.Errorf("%d requests were sent in the end", len(seen))
		}
	})
}

// TestBusyNeighbour: a workload whose every request burns a processor leaves others theirs. Ten requests of another one are answered while
// it has hardly a few done, which is the one measure that holds on a machine that is busy with other things: without turns it were hundreds.
func TestBusyNeighbour(t *testing.T) {
	w := newWorld(t)
	w.loopback = true
	w.routes("a", toilsome+toUp)
	w.routes("b", toUp)
	w.cluster("up", nil, fixed(ok))
	mild, hot := w.flow.Workload, NewTenant(TenantLimits{})
	var done atomic.Uint64
	w.flow.Workload = hot
	for range 64 {
		c := w.connect()
		w.wg.Go(func() { c.repeat(longPath(1000), func() { done.Add(1) }) })
	}
	deadline := time.After(5 * time.Minute)
	for tick := time.Tick(time.Millisecond); done.Load() == 0; {
		select {
		case <-tick:
		case <-deadline:
			t.Fatal("nothing is answered")
		}
	}
	w.flow.Workload = mild
	c := w.connect()
	before, start := done.Load(), time.Now()
	for range 10 {
		if a := c.get("GET / HTTP/1.1", "Host: b"); a.StatusCode != 200 {
			t.Fatalf("status %d", a.StatusCode)
		}
	}
	n := done.Load() - before
	t.Logf("ten requests in %s, of the neighbour %d", time.Since(start), n)
	if n > 100 {
		t.Errorf("the neighbour had %d requests answered meanwhile", n)
	}
	if s := hot.Stats(); s.TurnsAwaited == 0 {
		t.Errorf("%+v", s)
	}
}

// repeat sends a request again and again, until the connection ends.
func (c *testClient) repeat(request string, answered func()) {
	in, out := make([]byte, 4096), []byte(request)
	for {
		if _, err := c.Write(out); err != nil {
			return
		}
		if _, err := c.Conn.Read(in); err != nil {
			return
		}
		answered()
	}
}
