package proxy

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
)

// TestTurns: of n numbers each comes once in n, for any n; a port's turns are its own.
func TestTurns(t *testing.T) {
	seed := rand.Uint64()
	chance := rand.New(rand.NewPCG(seed, 1))
	for n := 1; n <= 300; n++ {
		var all turns
		a, b := all.of(turnKey{port: 1}, chance), all.of(turnKey{port: 2}, chance)
		for round := range 3 {
			var got []int
			for range n {
				got = append(got, a.IntN(n))
				b.IntN(n)
			}
			slices.Sort(got)
			for want, have := range got {
				if want != have {
					t.Fatalf("seed %d: round %d of %d: %v", seed, round, n, got)
				}
			}
		}
	}
}

// TestTurnsOfWeights: an endpoint with nine of ten places is never taken more than twenty times in a row, as chance would.
func TestTurnsOfWeights(t *testing.T) {
	var all turns
	r, row := all.of(turnKey{}, rand.New(rand.NewPCG(1, 1))), 0
	light := 0
	for range 1000 {
		if r.IntN(100) < 90 {
			row++
		} else {
			row = 0
			light++
		}
		if row > 20 {
			t.Fatal("more than twenty in a row")
		}
	}
	if light != 100 {
		t.Errorf("%d of 1000, want 100", light)
	}
}

func TestTurnsAreBounded(t *testing.T) {
	var all turns
	chance := rand.New(rand.NewPCG(1, 1))
	for i := range 3 * maxTurns {
		all.of(turnKey{service: serviceName{"foo", fmt.Sprint(i)}}, chance).IntN(3)
		if len(all.next) > maxTurns {
			t.Fatalf("%d are kept", len(all.next))
		}
	}
}

// TestSR02EndpointsInTurn: each client's connections go to the ready endpoints in turn, whatever other clients do.
func TestSR02EndpointsInTurn(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		pods := []*testPod{w.pod("a", "sleep", "10.0.0.1"), w.pod("a", "other", "10.0.0.2")}
		defer func() { w.stop(pods...) }()
		svc := client.Resource{Message: &workloadapi.Service{Name: "reviews", Namespace: "foo", Hostname: "reviews.foo.svc.cluster.local",
			Addresses: []*workloadapi.NetworkAddress{{Address: netip.MustParseAddr("10.96.0.1").AsSlice()}},
			Ports:     []*workloadapi.Port{{ServicePort: 80, TargetPort: 80}}}}
		member := func(n int, status workloadapi.WorkloadStatus) client.Resource {
			wl := workload("foo", fmt.Sprint("v", n), pods[n+1].ip)
			wl.Status = status
			wl.Services = map[string]*workloadapi.PortList{"foo/reviews.foo.svc.cluster.local": {Ports: []*workloadapi.Port{{ServicePort: 80, TargetPort: 80}}}}
			return client.Resource{Message: wl}
		}
		w.apply(svc, client.Resource{Message: workload("foo", "sleep", pods[0].ip)}, client.Resource{Message: workload("foo", "other", pods[1].ip)})
		for n := 1; n <= 4; n++ {
			pods = append(pods, w.pod("b", fmt.Sprint("v", n), fmt.Sprint("10.0.1.", n)))
			pods[n+1].echo()
			status := workloadapi.WorkloadStatus_HEALTHY
			if n == 4 {
				status = workloadapi.WorkloadStatus_UNHEALTHY
			}
			w.apply(member(n, status))
		}
		ask := func(p *testPod) string {
			t.Helper()
			before := len(w.log.String())
			if _, err := say(t, p.connect("10.96.0.1:80"), "x"); err != nil {
				return err.Error()
			}
			synctest.Wait()
			for line := range strings.Lines(w.log.String()[before:]) {
				if _, rest, ok := strings.Cut(line, "dst.workload="); ok && strings.Contains(line, "direction=outbound") {
					return strings.Fields(rest)[0]
				}
			}
			return "nobody"
		}
		var got []string
		for i := range 9 {
			got = append(got, ask(pods[0]))
			for range i % 3 {
				ask(pods[1])
			}
		}
		first := slices.Clone(got[:3])
		slices.Sort(first)
		if !slices.Equal(first, []string{"v1", "v2", "v3"}) || !slices.Equal(got[:6], got[3:]) {
			t.Errorf("not in turn over those that are ready: %v", got)
		}
	})
}

// patchy is a network where some addresses refuse and some never answer.
type patchy struct {
	*memSockets
	refuse, silent string
}

func (p patchy) Dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	switch {
	case strings.Contains(p.silent, to.String()):
		<-ctx.Done()
		return nil, context.Cause(ctx)
	case strings.Contains(p.refuse, to.String()):
		return nil, fmt.Errorf("dial %s: %w", to, syscall.ECONNREFUSED)
	}
	return p.memSockets.Dial(ctx, to)
}

// TestNextAddressOfAName: a host's other addresses are tried when one does not answer, those of the mesh and of the pod's own
// listeners never.
func TestNextAddressOfAName(t *testing.T) {
	external(t, []string{"192.0.2.1:80", "192.0.2.2:80", "192.0.2.3:80"}, func(t *testing.T, w *world, a *testPod, names *fakeNames) {
		net := &patchy{memSockets: a.sockets}
		a.cfg.Sockets = net
		b := w.pod("b", "httpbin", "10.0.1.1")
		defer w.stop(b)
		w.apply(client.Resource{Message: workload("foo", "httpbin", b.ip)})
		w.apply(declared(t, "foo", "many.example", dns(), []string{"240.240.0.1/32"}, 80, 80, "many.example")...)
		rr := &settings.ServiceSettings{External: true, Resolution: settings.ServiceSettings_RESOLUTION_DNS_ROUND_ROBIN}
		w.apply(declared(t, "foo", "first.example", rr, []string{"240.240.0.2/32"}, 80, 80, "first.example")...)
		names.set("many.example", "192.0.2.1", "192.0.2.2", "192.0.2.3")
		names.set("first.example", "192.0.2.3", "192.0.2.2", "192.0.2.1")
		seen := map[string]int{}
		for range 6 {
			seen[reaches(t, a, "240.240.0.1:80")]++
		}
		if len(seen) != 3 || seen["192.0.2.1:80"] != 2 || seen["192.0.2.2:80"] != 2 {
			t.Errorf("not in turn: %v", seen)
		}
		for range 3 {
			want(t, "the first", reaches(t, a, "240.240.0.2:80"), "192.0.2.3:80")
		}
		net.refuse, net.silent = "192.0.2.3:80", "192.0.2.2:80"
		for range 4 {
			start := time.Now()
			want(t, "the one that answers", reaches(t, a, "240.240.0.1:80"), "192.0.2.1:80")
			if d := time.Since(start); d > 6*time.Second {
				t.Errorf("after %s", d)
			}
		}
		want(t, "the first that answers", reaches(t, a, "240.240.0.2:80"), "192.0.2.1:80")
		w.wantLog("dst.service=first.example", "dst.addr=192.0.2.1:80")
		net.refuse = "192.0.2.1:80 192.0.2.2:80 192.0.2.3:80"
		want(t, "none", reaches(t, a, "240.240.0.1:80"), "reset")
		w.wantLog("reason=upstream_connect", "192.0.2.1:80", "192.0.2.3:80")
		names.set("first.example", "192.0.2.3", "10.0.1.1", "10.0.0.1")
		want(t, "addresses of the mesh are no second choice", reaches(t, a, "240.240.0.2:80"), "reset")
	})
}
