package proxy

import (
	"bufio"
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/client"
)

// counted are the pod's statistics under their whole names.
func (p *testPod) counted() map[string]uint64 {
	synctest.Wait()
	out := map[string]uint64{}
	for _, c := range p.Clusters() {
		for name, v := range c.Stats {
			out["cluster."+c.Name()+"."+name] = v
		}
	}
	for l := range p.Tenant().Listeners {
		for name, v := range l.Stats {
			out["http."+l.Prefix()+"."+name] = v
		}
	}
	return out
}

const (
	inCluster = "cluster.inbound|80||."
	inHTTP    = "http.inbound_0.0.0.0_80."
)

func (p *testPod) wantCounted(t *testing.T, what string, want map[string]uint64) {
	t.Helper()
	got := p.counted()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if v, there := got[name]; !there || v != want[name] {
			t.Errorf("%s: %s of %s is %d (there: %v), want %d", what, name, p.cfg.Name, v, there, want[name])
		}
	}
}

// TestArrivals: what comes to a pod is in its own statistics, by whichever way it came, and in nobody else's.
func TestArrivals(t *testing.T) {
	inTown(t, "http", func(t *testing.T, w *world, c, v1, v2 *testPod) {
		w.apply(byVersion()...)
		for user, p := range map[string]*testPod{"bob": v1, "jason": v2} { // on the client's node, and by a tunnel
			if n := len(p.counted()); n != 0 {
				t.Errorf("%s begins with %d statistics", p.cfg.Name, n)
			}
			for range 3 {
				if got := c.ask(t, reviewsVIP, "reviews", "end-user: "+user); !strings.HasPrefix(got, "200 "+p.cfg.Name) {
					t.Fatal(got)
				}
			}
			p.wantCounted(t, "calls of the mesh", map[string]uint64{
				inCluster + "upstream_rq_total": 3, inCluster + "upstream_rq_200": 3, inCluster + "upstream_rq_2xx": 3, inCluster + "upstream_rq_active": 0,
				inCluster + "upstream_cx_total": 1, inCluster + "upstream_cx_active": 1, inCluster + "upstream_cx_http1_total": 1,
				inHTTP + "downstream_rq_2xx": 3, inHTTP + "downstream_rq_total": 3, inHTTP + "downstream_rq_active": 0,
				inHTTP + "downstream_cx_total": 1, inHTTP + "downstream_cx_active": 1, inHTTP + "downstream_cx_http1_total": 1,
			})
			conn := p.arrive(p.in, "10.9.9.9:4444", 80)
			if got := askOn(t, conn, bufio.NewReader(conn), "reviews"); !strings.HasPrefix(got, "200") {
				t.Fatal(got)
			}
			p.wantCounted(t, "and one in plain text", map[string]uint64{
				inCluster + "upstream_rq_200": 4, inCluster + "upstream_cx_total": 2, inCluster + "upstream_cx_active": 2,
				inHTTP + "downstream_rq_2xx": 4, inHTTP + "downstream_cx_total": 2, inHTTP + "downstream_cx_active": 2,
			})
			_ = conn.Close()
			p.wantCounted(t, "which has ended", map[string]uint64{inCluster + "upstream_cx_active": 1, inHTTP + "downstream_cx_active": 1})
		}
		for name := range c.counted() {
			if strings.Contains(name, "inbound") {
				t.Errorf("the client, which nobody called, has %s", name)
			}
		}
		c.wantCounted(t, "the client", map[string]uint64{
			"cluster.outbound|80|v1|reviews.foo.svc.cluster.local.upstream_rq_200": 3, "http.outbound_0.0.0.0_80.downstream_rq_2xx": 6,
			"http.outbound_0.0.0.0_80.downstream_cx_total": 6, "http.outbound_0.0.0.0_80.downstream_cx_active": 0,
		})
	})
}

// TestStreamsArrive: connections that are not HTTP count too, and those that speak it late are requests after all.
func TestStreamsArrive(t *testing.T) {
	for protocol, late := range map[string]bool{"tcp": false, "": true} {
		inTown(t, protocol, func(t *testing.T, w *world, c, v1, v2 *testPod) {
			for _, p := range []*testPod{v1, v2} {
				conn := c.connect(p.ip.String() + ":80")
				if late {
					wait(time.Second)
				}
				if got := askOn(t, conn, bufio.NewReader(conn), "reviews"); !strings.HasPrefix(got, "200 "+p.cfg.Name) {
					t.Fatal(got)
				}
				requests := uint64(0)
				if late {
					requests = 1
				}
				p.wantCounted(t, "open, port declares "+protocol, map[string]uint64{inCluster + "upstream_cx_total": 1, inCluster + "upstream_cx_active": 1,
					inCluster + "upstream_rq_completed": requests})
				_ = conn.Close()
				p.wantCounted(t, "closed, port declares "+protocol, map[string]uint64{inCluster + "upstream_cx_total": 1, inCluster + "upstream_cx_active": 0})
				if n := p.counted()[inHTTP+"downstream_rq_2xx"]; n != requests {
					t.Errorf("port declares %q: %d requests of HTTP", protocol, n)
				}
			}
			for _, p := range []*testPod{v1, v2} {
				_ = p.app.Close()
				wait(time.Second)
				conn := c.connect(p.ip.String() + ":80")
				if late {
					wait(time.Second)
				}
				if got := askOn(t, conn, bufio.NewReader(conn), "reviews"); strings.HasPrefix(got, "200") {
					t.Error(got)
				}
				_ = conn.Close()
				p.wantCounted(t, "nobody listens, port declares "+protocol, map[string]uint64{inCluster + "upstream_cx_connect_fail": 1, inCluster + "upstream_cx_active": 0})
			}
		})
	}
}

// withdraw takes workloads of foo out of the mesh.
func (w *world) withdraw(names ...string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	var gone []client.Key
	for _, name := range names {
		gone = append(gone, client.Key{Type: api.AddressType, Name: "Kubernetes//Pod/foo/" + name})
	}
	snap, err := w.snap.With(w.snap.Generation()+1, nil, gone)
	if err != nil {
		w.t.Fatal(err)
	}
	w.snap, w.resources = snap, nil
	for _, ch := range w.subs {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// TestPodsLeaveNothing: a thousand pods come, are called on a port, and go, and a pod that stays calls each of them.
func TestPodsLeaveNothing(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		c := w.pod("a", "sleep", "10.0.0.1")
		defer w.stop(c)
		w.apply(client.Resource{Message: workload("foo", "sleep", c.ip)})
		round := func(from, to int) {
			for i := from; i < to; i++ {
				name := fmt.Sprintf("web-%d", i)
				p := w.pod("a", name, netip.AddrFrom4([4]byte{10, 0, byte(1 + i>>8), byte(i)}).String())
				srv := p.web()
				w.apply(client.Resource{Message: workload("foo", name, p.ip)})
				if got := c.ask(t, p.ip.String()+":80", "a"); !strings.HasPrefix(got, "200 "+name) {
					t.Fatal(got)
				}
				if n := p.counted()[inCluster+"upstream_rq_200"]; n != 1 {
					t.Fatalf("%s has counted %d requests", name, n)
				}
				_ = srv.Close()
				w.withdraw(name)
				p.Remove()
				wait(2 * time.Second)
				w.net.forget(p.ip)
			}
			wait(2 * time.Hour)
			for _, tel := range w.tel { // series of metrics are dropped as they are read
				reg := prometheus.NewRegistry()
				reg.MustRegister(tel)
				if _, err := reg.Gather(); err != nil {
					t.Fatal(err)
				}
			}
			w.log.mu.Lock()
			w.log.b = bytes.Buffer{}
			w.log.mu.Unlock()
		}
		held := func() (heap uint64) {
			runtime.GC()
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return m.HeapAlloc
		}
		round(0, 100)
		before := held()
		round(100, 1000)
		if after := held(); after > before+1<<20 { // less than 1.2 kB for each
			t.Errorf("the heap grew from %d to %d bytes", before, after)
		}
		w.nodes["a"].mu.Lock()
		pods, all := len(w.nodes["a"].pods), len(w.nodes["a"].all)
		w.nodes["a"].mu.Unlock()
		if pods != 1 || all != 1 {
			t.Errorf("%d and %d pods are known", pods, all)
		}
		if got := c.counted(); len(got) != 0 {
			t.Errorf("the caller keeps %d statistics", len(got))
		}
	})
}
