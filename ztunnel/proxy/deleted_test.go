package proxy

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/policy"
)

// meshRetries are what Istio's defaults ask for, of which the documents speak.
func meshRetries() client.Resource {
	return client.Resource{Message: &settings.MeshSettings{TrustDomain: "cluster.local", CallDefaults: &settings.CallDefaults{RetryPolicy: packed(
		&routev3.RetryPolicy{RetryOn: "connect-failure", NumRetries: wrapperspb.UInt32(2), HostSelectionRetryMaxAttempts: 5,
			RetryHostPredicate: []*routev3.RetryPolicy_RetryHostPredicate{{Name: "envoy.retry_host_predicates.previous_hosts"}}})}}, Name: "mesh"}
}

// TestDeletedPodEndsItsConnections: a pod that is deleted keeps no connection for long, whatever is under way, and who waits hears of it.
func TestDeletedPodEndsItsConnections(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		a, b := w.pod("a", "sleep", "10.0.0.1"), w.pod("b", "httpbin", "10.0.1.1")
		defer w.stop(a, b)
		b.echo()
		w.apply(client.Resource{Message: workload("foo", "sleep", a.ip)}, client.Resource{Message: workload("foo", "httpbin", b.ip)})
		conns := []net.Conn{a.connect("10.0.1.1:80"), b.arrive(b.in, "10.9.0.1:5000", 80)}
		for _, c := range conns {
			if _, err := io.ReadFull(c, make([]byte, len("10.0.0.1\n"))); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		b.Delete()
		for i, c := range conns {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("connection %d at the end: %v, want a reset", i, err)
			}
		}
		<-b.finished
		if d := time.Since(start); d > 500*time.Millisecond {
			t.Errorf("ended after %v, want at most 500 ms", d)
		}
		w.wantLog("reason=pod_removed")
	})
}

// TestDeletedPodIsToldOf: requests go on while pods are deleted of which the mesh does not know yet, on the client's node and on
// another, whatever the method: none is lost on a connection that was there, and none waits for a network that has gone.
func TestDeletedPodIsToldOf(t *testing.T) {
	for _, method := range []string{"GET", "POST"} {
		for _, name := range []string{"v1", "v2"} { // on the client's node, and on the other
			t.Run(method+" "+name, func(t *testing.T) {
				inTown(t, "http", func(t *testing.T, w *world, c, v1, v2 *testPod) {
					w.apply(meshRetries())
					const clients = 8
					conns, readers := make([]net.Conn, clients), make([]*bufio.Reader, clients)
					ask := func(i int) string {
						return askWith(t, conns[i], readers[i], method, "reviews", "content-length: 0")
					}
					for i := range clients {
						conns[i] = c.connect(reviewsVIP)
						defer conns[i].Close()
						readers[i] = bufio.NewReader(conns[i])
					}
					seen := map[string]bool{}
					for n := range 4 * clients {
						seen[ask(n % clients)[:6]] = true
					}
					if !seen["200 v1"] || !seen["200 v2"] {
						t.Fatalf("before: %v", seen)
					}
					gone, left := v1, "200 v2"
					if name == "v2" {
						gone, left = v2, "200 v1"
					}
					_ = gone.server.Close()
					gone.Delete()
					<-gone.finished
					w.net.cut(gone.ip)
					for n := range 4 * clients {
						start := time.Now()
						if got := ask(n % clients); !strings.HasPrefix(got, left) || time.Since(start) > time.Second {
							t.Fatalf("%s was deleted: %s after %v, want %s", name, got, time.Since(start), left)
						}
					}
				})
			})
		}
	}
}

// TestCutOffTunnels: the network of a pod goes without a word, as when its node dies. Requests that wait for it go on elsewhere soon
// after the mesh has said that the pod is about to go, or is gone; so do those that were about to connect.
func TestCutOffTunnels(t *testing.T) {
	for name, say := range map[string]func(w *world, v2 *testPod){
		"it is unhealthy": func(w *world, v2 *testPod) {
			ending := labelled("v2", v2.ip, "v2")
			ending.Status = workloadapi.WorkloadStatus_UNHEALTHY
			w.apply(client.Resource{Message: ending})
		},
		"it has no address any more": func(w *world, v2 *testPod) {
			moved := labelled("v2", v2.ip.Next(), "v2")
			w.apply(client.Resource{Message: moved})
		},
	} {
		t.Run(name, func(t *testing.T) {
			inTown(t, "http", func(t *testing.T, w *world, c, v1, v2 *testPod) {
				w.apply(meshRetries())
				old := c.connect(reviewsVIP)
				defer old.Close()
				in := bufio.NewReader(old)
				for range 4 { // a connection to each
					askOn(t, old, in, "reviews")
				}
				w.net.cut(v2.ip)
				type result struct {
					got string
					dur time.Duration
				}
				const asked = 6
				results := make(chan result, asked)
				start := time.Now()
				for range asked { // of which every other one finds a connection, or makes one, to v2
					go func() { results <- result{c.ask(t, reviewsVIP, "reviews"), time.Since(start)} }()
				}
				synctest.Wait()
				if n := len(results); n == asked {
					t.Fatal("control: nothing waits")
				}
				say(w, v2)
				for range asked {
					if r := <-results; !strings.HasPrefix(r.got, "200 v1") || r.dur > 5*time.Second {
						t.Errorf("%s after %v", r.got, r.dur)
					}
				}
			})
		})
	}
}

// TestSlowRequestsOutliveTermination: a request that takes its time is not cut because its pod terminates, nor because it is gone for
// the mesh, while the pod lives.
func TestSlowRequestsOutliveTermination(t *testing.T) {
	inTown(t, "http", func(t *testing.T, w *world, c, v1, v2 *testPod) {
		w.apply(byVersion()...)
		got := make(chan string, 1)
		go func() { got <- c.ask(t, reviewsVIP, "reviews", "end-user: jason", "delay: 12s") }()
		synctest.Wait()
		ending := labelled("v2", v2.ip, "v2")
		ending.Status = workloadapi.WorkloadStatus_UNHEALTHY
		w.apply(client.Resource{Message: ending})
		wait(5 * time.Second)
		if len(got) > 0 {
			t.Fatalf("while it terminates: %s", <-got)
		}
		w.apply(client.Resource{Message: labelled("v2", v2.ip.Next(), "v2")})
		if r := <-got; !strings.HasPrefix(r, "200 v2") {
			t.Errorf("%s", r)
		}
	})
}

// TestMoved: who answers at an address that the workload lost while it was dialled is another.
func TestMoved(t *testing.T) {
	snapshot := func(list ...client.Resource) *client.Snapshot {
		s, err := client.NewSnapshot(list...)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	at := netip.MustParseAddr("10.0.1.1")
	was := snapshot(client.Resource{Message: labelled("v2", at, "v2")})
	r := &way{snap: was, addr: netip.AddrPortFrom(at, 80), path: policy.Path{Destination: was.WorkloadFor("foo", "", at)}}
	for name, c := range map[string]struct {
		now   *client.Snapshot
		moved bool
	}{
		"nothing changed":             {was, false},
		"others changed":              {snapshot(client.Resource{Message: labelled("v2", at, "v2")}, client.Resource{Message: labelled("v1", at.Next(), "v1")}), false},
		"it is gone":                  {snapshot(client.Resource{Message: labelled("v1", at.Next(), "v1")}), true},
		"another one has the address": {snapshot(client.Resource{Message: labelled("v1", at, "v1")}, client.Resource{Message: labelled("v2", at.Next(), "v2")}), true},
	} {
		if got := r.moved(c.now); got != c.moved {
			t.Errorf("%s: moved is %v", name, got)
		}
	}
}
