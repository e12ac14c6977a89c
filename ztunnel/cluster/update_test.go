package cluster_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/cluster"
)

func TestOriginalDestination(t *testing.T) {
	w := newWorld(t, specs["original"], endpoints(3)...)
	if h, why := w.Pick(cluster.PickInput{}); h != nil || why != cluster.NoOriginal {
		t.Errorf("without an address: %v, %v", h, why)
	}
	addr := netip.MustParseAddrPort("192.0.2.1:80")
	h, _ := w.Pick(cluster.PickInput{Original: addr})
	if h == nil || h.Endpoint().Addr != addr {
		t.Fatalf("host %v", h)
	}
	if again, _ := w.Pick(cluster.PickInput{Original: addr}); again != h {
		t.Error("the same address is another host")
	}
	other, _ := w.Pick(cluster.PickInput{Original: netip.MustParseAddrPort("192.0.2.1:81")})
	if other == h {
		t.Error("another port is the same host")
	}
	answer(h, 500, 100) // there is nothing to go to instead
	w.wantStats(map[string]uint64{"original_dst_host_invalid": 1, "membership_total": 2})
	other.Begin()
	for range 5 {
		w.clock.advance(3 * time.Second)
		if again, _ := w.Pick(cluster.PickInput{Original: addr}); again != h {
			t.Fatal("a host in use is forgotten")
		}
	}
	w.clock.advance(20 * time.Second)
	w.Pick(cluster.PickInput{Original: netip.MustParseAddrPort("192.0.2.2:80")})
	if !h.Leaving() || other.Leaving() {
		t.Errorf("after a while: unused leaving %v, in use leaving %v", h.Leaving(), other.Leaving())
	}
	w.wantStats(map[string]uint64{"membership_total": 2})
	w.Update(compile(t, `{}`), cluster.NewHosts(endpoints(1)))
	if !other.Leaving() {
		t.Error("a host of an address stays when the cluster has endpoints")
	}
	w.wantStats(map[string]uint64{"membership_total": 1})
}

// A pod that dials everywhere takes no more memory than is allowed, and is served all the same.
func TestOriginalDestinationsAreBounded(t *testing.T) {
	w := newWorld(t, specs["original"])
	for i := range 20_000 {
		h, why := w.Pick(cluster.PickInput{Original: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 80)})
		if why != cluster.Picked {
			t.Fatal(why)
		}
		h.Begin()
	}
	if n := w.stat("membership_total"); n > 4096 {
		t.Errorf("%d hosts are kept", n)
	}
}

// The node moves to another zone, or endpoints do: who is first is another at once.
func TestZoneChangeLive(t *testing.T) {
	prefer := func(zone string) []cluster.Endpoint {
		return endpoints(4, func(i int, e *cluster.Endpoint) {
			e.Locality.Zone = []string{"a", "b"}[i/2]
			if e.Locality.Zone != zone {
				e.Priority = 1
			}
		})
	}
	w := newWorld(t, outlier(`"consecutive5xx": 1, "maxEjectionPercent": 100`), prefer("a")...)
	h := w.host(endpoint(1).Key)
	answer(h, 503, 1)
	if got := w.picks(10); got[endpoint(2).Key]+got[endpoint(3).Key] == 10 {
		t.Errorf("before: %v", got)
	}
	w.Update(w.Spec(), cluster.NewHosts(prefer("b")))
	if got := w.picks(10); got[endpoint(2).Key] != 5 || got[endpoint(3).Key] != 5 {
		t.Errorf("after the change: %v", got)
	}
	w.wantEjected(1)
	w.Update(w.Spec(), cluster.NewHosts(prefer("a")))
	if got := w.picks(100); got[endpoint(1).Key] != 0 {
		t.Errorf("the ejected host is picked: %v", got)
	}
}

func TestNewHosts(t *testing.T) {
	list := endpoints(3)
	list = append(list, list[1])
	list[3].Weight = 9
	h := cluster.NewHosts(list)
	if h.Len() != 3 || h.Endpoint(1).Weight != 9 {
		t.Errorf("%d endpoints, weight %d: of one key the last counts", h.Len(), h.Endpoint(1).Weight)
	}
}

// When an endpoint goes or is ejected, few (a ring has, as in Envoy, other numbers of points then) hashes move beside its own; when it comes back all are where they were.
func TestHashingMovesLittle(t *testing.T) {
	const keys, n = 20_000, 10
	for policy, allowed := range map[string]float64{"RING_HASH": 0.1, "MAGLEV": 0.03} {
		spec := `{"lbPolicy": "` + policy + `", "commonLbConfig": {"healthyPanicThreshold": {"value": 0}},
			"outlierDetection": {"consecutive5xx": 1, "maxEjectionPercent": 100}}`
		w := newWorld(t, spec, endpoints(n)...)
		where := func() []string {
			out := make([]string, keys)
			for i := range out {
				out[i] = w.pick(cluster.PickInput{Hash: uint64(i) * 0x9e3779b97f4a7c15, HasHash: true})
			}
			return out
		}
		all := where()
		moved := func(what string, now []string, of string, most float64) {
			t.Helper()
			others := 0
			for i := range all {
				if all[i] != now[i] && all[i] != of {
					others++
				}
				if now[i] == of {
					t.Fatalf("%s, %s: a hash leads to the endpoint that is gone", policy, what)
				}
			}
			if float64(others)/keys > most {
				t.Errorf("%s, %s: %d of %d hashes of others moved", policy, what, others, keys)
			}
		}
		gone := endpoint(4).Key
		answer(w.host(gone), 500, 1)
		moved("ejected", where(), gone, 0)
		w.clock.advance(time.Minute)
		if now := where(); !slices.Equal(now, all) {
			t.Errorf("%s: after the ejection hashes lead elsewhere", policy)
		}
		w.Update(w.Spec(), cluster.NewHosts(slices.Delete(endpoints(n), 4, 5)))
		moved("removed", where(), gone, allowed)
		w.Update(w.Spec(), cluster.NewHosts(endpoints(n)))
		if now := where(); !slices.Equal(now, all) {
			t.Errorf("%s: hashes depend on what was before", policy)
		}
	}
}

// Everything at once, for the race detector.
func TestConcurrentUse(t *testing.T) {
	for _, policy := range []string{"ROUND_ROBIN", "LEAST_REQUEST", "MAGLEV"} {
		w := newWorld(t, `{"lbPolicy": "`+policy+`", "outlierDetection": {"consecutive5xx": 2, "maxEjectionPercent": 50, "interval": "0.001s"}}`, endpoints(8)...)
		var all sync.WaitGroup
		for i := range 6 {
			all.Go(func() {
				r := rand.New(rand.NewPCG(uint64(i), 3))
				for n := range 400 {
					h, _ := w.Pick(cluster.PickInput{Hash: r.Uint64(), HasHash: true})
					if h == nil {
						t.Error("no host")
						return
					}
					h.Begin()
					p, _ := h.Attach(func() any { return cluster.NewPool(h, cluster.Default, 1, func(int) {}) }).(*cluster.Pool[int])
					if l, err := p.Acquire(t.Context()); err == nil {
						if l.MustDial() {
							l, err = l.Connected(n, 1)
						}
						if err == nil {
							l.Release(r.IntN(3) > 0, false)
						}
					}
					h.Report(cluster.Answered, []int{200, 500}[r.IntN(2)])
					h.End()
					switch n % 50 {
					case 7:
						w.Update(w.Spec(), cluster.NewHosts(endpoints(4+r.IntN(6))))
					case 17:
						w.clock.advance(time.Second)
					case 27:
						for range w.Stats {
						}
						for range w.Status {
						}
					}
				}
			})
		}
		all.Wait()
		w.wantStats(map[string]uint64{"upstream_rq_active": 0})
	}
}

// A hundred source pods that see a service of a thousand endpoints share what is immutable.
func TestMemoryOfManySources(t *testing.T) {
	const sources, size = 100, 1000
	var lists cluster.Lists
	for policy, most := range map[string]int{"ROUND_ROBIN": 14 << 10, "RING_HASH": 14 << 10, "MAGLEV": 14 << 10} {
		spec := compile(t, `{"lbPolicy": "`+policy+`", "outlierDetection": {}}`)

		var clusters []*cluster.Cluster
		before := heap()
		for range sources {
			c := cluster.New(cluster.Config{Clock: clock.System(), Rand: rand.Uint64}, spec, lists.Hosts(cluster.Origin{}, endpoints(size)))
			for range 10 { // of which each uses ten
				c.Pick(cluster.PickInput{})
			}
			clusters = append(clusters, c)
		}
		each := int(heap()-before) / sources
		t.Logf("%s: %d bytes for each source, with ten hosts in use of %d", policy, each, size)
		if each > most+(2<<20)/sources {
			t.Errorf("%s: %d bytes for each source, want at most %d", policy, each, most)
		}
		runtime.KeepAlive(clusters)
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func BenchmarkPick(b *testing.B) {
	for _, policy := range []string{"ROUND_ROBIN", "RANDOM", "LEAST_REQUEST", "RING_HASH", "MAGLEV"} {
		for _, n := range []int{3, 1000} {
			for _, o := range []string{`"name": "plain"`, `"outlierDetection": {}`} {
				b.Run(fmt.Sprintf("%s/%d/%s", policy, n, strings.Split(o, `"`)[1]), func(b *testing.B) {
					spec := compile(b, `{"lbPolicy": "`+policy+`", `+o+`}`)
					c := cluster.New(cluster.Config{Clock: clock.System(), Rand: rand.Uint64}, spec, cluster.NewHosts(endpoints(n)))
					b.ReportAllocs()
					for i := range b.N {
						h, _ := c.Pick(cluster.PickInput{Hash: uint64(i) * 0x9e3779b97f4a7c15, HasHash: true})
						h.Report(cluster.Answered, 200)
					}
				})
			}
		}
	}
}

func BenchmarkPool(b *testing.B) {
	c := cluster.New(cluster.Config{Clock: clock.System(), Rand: rand.Uint64}, compile(b, `{}`), cluster.NewHosts(endpoints(1)))
	h, _ := c.Pick(cluster.PickInput{})
	p := cluster.NewPool(h, cluster.Default, 1, func(int) {})
	l, _ := p.Acquire(b.Context())
	l, _ = l.Connected(1, 1)
	l.Release(true, false)
	b.ReportAllocs()
	for b.Loop() {
		l, _ := p.Acquire(b.Context())
		l.Release(true, false)
	}
}

// Equal lists are one, lists that differ anywhere are not, and what nobody has any more is forgotten.
func TestLists(t *testing.T) {
	var l cluster.Lists
	here := cluster.Locality{Region: "r", Zone: "a"}
	from := func(places ...cluster.Locality) cluster.Origin { return cluster.NewOrigin(here, places) }
	a := l.Hosts(from(here), endpoints(100))
	if l.Hosts(from(here), endpoints(100)) != a {
		t.Error("equal lists are two")
	}
	for name, change := range map[string]func(*cluster.Endpoint){
		"key": func(e *cluster.Endpoint) { e.Key += "x" }, "health": func(e *cluster.Endpoint) { e.Healthy = false },
		"zone": func(e *cluster.Endpoint) { e.Locality.Zone = "z" }, "weight": func(e *cluster.Endpoint) { e.Weight = 3 },
		"value": func(e *cluster.Endpoint) { e.Value = 1 }, "hostname": func(e *cluster.Endpoint) { e.Hostname = "h" },
		"address": func(e *cluster.Endpoint) { e.Addr = netip.AddrPort{} }, "since": func(e *cluster.Endpoint) { e.Since = time.Unix(1, 0) },
		"locality weight": func(e *cluster.Endpoint) { e.LocalityWeight = 3 }, "draining": func(e *cluster.Endpoint) { e.Draining = true },
		"priority": func(e *cluster.Endpoint) { e.Priority = 1 },
	} {
		list := endpoints(100)
		change(&list[50])
		if l.Hosts(from(here), list) == a {
			t.Errorf("lists that differ by %s are one", name)
		}
	}
	there := cluster.Locality{Region: "r", Zone: "b"}
	for name, o := range map[string]cluster.Origin{
		"nowhere": {}, "another place": cluster.NewOrigin(there, []cluster.Locality{here}), "more clients": from(here, here), "clients elsewhere": from(here, there),
	} {
		if l.Hosts(o, endpoints(100)) == a {
			t.Errorf("lists of origins that differ are one: %s", name)
		}
	}
	runtime.KeepAlive(a)
}
