package envoy

import (
	"math"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/undermesh/undermesh/ztunnel/cluster"
)

// sidecarThreads is how many workers an Istio sidecar has by default.
const sidecarThreads = 2

// storm calls as the documents' fortio does, over and over from so many connections, each call as soon as the last has its answer,
// and closes a connection after any other answer than 200. It returns how many calls were 200 and 503.
func storm(t *testing.T, to netip.AddrPort, clients, calls int) (served, refused int) {
	t.Helper()
	var wait sync.WaitGroup
	var mu sync.Mutex
	for range clients {
		wait.Go(func() {
			c := &Client{addr: to}
			defer c.Close()
			for range calls / clients {
				o, err := c.Do(call{Method: "GET", Target: "/", Authority: "a", Fields: []string{"x-echo-wait: 2ms"}}, "0")
				mu.Lock()
				switch {
				case err != nil:
					t.Errorf("call: %v", err)
				case o.Status == 200:
					served++
				case o.Status == 503 && strings.HasSuffix(o.Body, "reset reason: overflow"):
					refused++
				default:
					t.Errorf("a call is answered %d %q", o.Status, o.Body)
				}
				mu.Unlock()
				if err == nil && o.Status != 200 {
					_ = c.Close()
				}
			}
		})
	}
	wait.Wait()
	return served, refused
}

// TestEnvoyBreaksAlike: the documents' circuit breaker refuses the same share of calls through Envoy with the threads of a sidecar and
// through our engine, by the same statistics. Rounds of both alternate, so that both meet the same machine.
func TestEnvoyBreaksAlike(t *testing.T) {
	Require(t)
	const rounds, tolerance = 40, 0.12
	config := &routev3.RouteConfiguration{Name: "breaker", VirtualHosts: []*routev3.VirtualHost{{Name: "all", Domains: []string{"*"},
		Routes: []*routev3.Route{{Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
			Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: limited}}}}}}}}
	configs := []*routev3.RouteConfiguration{config}
	_, theirs := Echo(t, []string{limited}, echoCluster)
	_, ours := Echo(t, []string{limited}, echoCluster)
	p, o := StartProxy(t, sidecarThreads, configs, theirs), startOurs(t, configs, ours)
	var served, refused [2]int
	for clients := 1; clients <= 3; clients++ {
		var good, bad [2]float64
		for range rounds {
			for i, to := range []netip.AddrPort{p.addrs["breaker"], o.addrs["breaker"]} {
				g, b := storm(t, to, clients, 10*clients)
				good[i], bad[i] = good[i]+float64(g), bad[i]+float64(b)
				served[i], refused[i] = served[i]+g, refused[i]+b
			}
		}
		theirs, ours := bad[0]/(good[0]+bad[0]), bad[1]/(good[1]+bad[1])
		t.Logf("%d clients: Envoy refuses %.0f %%, we %.0f %%", clients, 100*theirs, 100*ours)
		if math.Abs(theirs-ours) > tolerance || clients == 1 && theirs+ours > 0 || clients > 1 && (theirs == 0 || ours == 0) {
			t.Errorf("%d clients: Envoy refuses %.3f, we %.3f", clients, theirs, ours)
		}
	}
	said, err := p.Admin("/stats?filter=cluster.limited.upstream_")
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		stat cluster.Stat
		want [2]int
	}{{cluster.RqPendingOverflow, refused}, {cluster.RqPendingTotal, served}, {cluster.CxMaxRequests, served}, {cluster.CxTotal, served},
		{cluster.RqTotal, served}, {cluster.RqPendingFailureEject, [2]int{}}} {
		theirs := -1
		for line := range strings.Lines(string(said)) {
			if v, ok := strings.CutPrefix(line, "cluster.limited."+x.stat.String()+": "); ok {
				if theirs, err = strconv.Atoi(strings.TrimSpace(v)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if ours := int(o.clusters[limited].Get(x.stat)); theirs != x.want[0] || ours != x.want[1] {
			t.Errorf("%s: Envoy counts %d of %d, we %d of %d", x.stat, theirs, x.want[0], ours, x.want[1])
		}
	}
}
