package cluster_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/cluster"
)

// fakeClock is advanced by hand.
type fakeClock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *fakeClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *fakeClock) AfterFunc(time.Duration, func()) clock.Timer { panic("the cluster has no timers") }

func (c *fakeClock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// world is a cluster with what it depends on.
type world struct {
	*cluster.Cluster
	t     testing.TB
	clock *fakeClock
	rand  func() uint64
}

func compile(t testing.TB, text string) *cluster.Spec {
	t.Helper()
	c := &clusterv3.Cluster{}
	if err := protojson.Unmarshal([]byte(text), c); err != nil {
		t.Fatal(err)
	}
	if c.Name == "" {
		c.Name = "outbound|80||a.b.svc.cluster.local"
	}
	s, err := cluster.Compile(c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// newWorld makes a cluster of a spec in JSON.
func newWorld(t testing.TB, spec string, hosts ...cluster.Endpoint) *world {
	t.Helper()
	var mu sync.Mutex
	r := rand.New(rand.NewPCG(1, 2))
	w := &world{t: t, clock: &fakeClock{now: time.Unix(1_700_000_000, 0)}}
	w.rand = func() uint64 {
		mu.Lock()
		defer mu.Unlock()
		return r.Uint64()
	}
	w.Cluster = cluster.New(cluster.Config{Clock: w.clock, Rand: w.rand}, compile(t, spec), cluster.NewHosts(hosts))
	return w
}

// endpoint is the i-th pod, healthy.
func endpoint(i int) cluster.Endpoint {
	return cluster.Endpoint{
		Key: fmt.Sprintf("pod-%03d", i), Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 8080),
		Healthy: true,
	}
}

func endpoints(n int, change ...func(i int, e *cluster.Endpoint)) []cluster.Endpoint {
	out := make([]cluster.Endpoint, n)
	for i := range out {
		out[i] = endpoint(i)
		for _, f := range change {
			f(i, &out[i])
		}
	}
	return out
}

// pick returns the key of the host that is picked, "" for none.
func (w *world) pick(in cluster.PickInput) string {
	h, why := w.Pick(in)
	if (h == nil) != (why != cluster.Picked) {
		w.t.Fatalf("host %v, why %v", h, why)
	}
	if h == nil {
		return ""
	}
	return h.Endpoint().Key
}

// picks counts the hosts of n picks.
func (w *world) picks(n int) map[string]int {
	out := map[string]int{}
	for range n {
		out[w.pick(cluster.PickInput{})]++
	}
	return out
}

// host picks until it is the host of the key.
func (w *world) host(key string) *cluster.Host {
	w.t.Helper()
	for range 10_000 {
		if h, _ := w.Pick(cluster.PickInput{Hash: w.rand(), HasHash: true}); h != nil && h.Endpoint().Key == key {
			return h
		}
	}
	w.t.Fatalf("%s is never picked", key)
	return nil
}

func (w *world) stat(name string) uint64 {
	w.t.Helper()
	for n, v := range w.Stats {
		if n == name {
			return v
		}
	}
	w.t.Fatalf("there is no statistic %s", name)
	return 0
}

func (w *world) wantStats(want map[string]uint64) {
	w.t.Helper()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if got := w.stat(name); got != want[name] {
			w.t.Errorf("%s is %d, want %d", name, got, want[name])
		}
	}
}

func TestRoundRobin(t *testing.T) {
	w := newWorld(t, `{}`, endpoints(3)...)
	var order []string
	for range 9 {
		order = append(order, w.pick(cluster.PickInput{}))
	}
	for i := 3; i < 9; i++ {
		if order[i] != order[i-3] || order[i] == order[i-1] {
			t.Fatalf("not in turn: %q", order)
		}
	}
}

func TestRoundRobinByWeight(t *testing.T) {
	w := newWorld(t, `{}`, endpoints(3, func(i int, e *cluster.Endpoint) { e.Weight = []uint32{10, 30, 60}[i] })...)
	got := w.picks(1000)
	for i, want := range []int{100, 300, 600} {
		if n := got[endpoint(i).Key]; n != want {
			t.Errorf("endpoint %d was picked %d of 1000 times, want %d", i, n, want)
		}
	}
}
