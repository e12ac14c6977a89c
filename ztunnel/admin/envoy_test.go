package admin

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/cluster"
)

func liveCluster(t *testing.T) *cluster.Cluster {
	t.Helper()
	c := &clusterv3.Cluster{}
	if err := protojson.Unmarshal([]byte(`{"name":"outbound|443||www.example.com","circuitBreakers":{"thresholds":[{"maxConnections":1,
		"maxPendingRequests":2,"trackRemaining":true}]},"outlierDetection":{"consecutive5xx":1,"interval":"1s","maxEjectionPercent":100}}`), c); err != nil {
		t.Fatal(err)
	}
	spec, err := cluster.Compile(c)
	if err != nil {
		t.Fatal(err)
	}
	return cluster.New(cluster.Config{Clock: clock.System(), Rand: func() uint64 { return 0 }}, spec, cluster.NewHosts([]cluster.Endpoint{
		{Key: "a", Addr: netip.MustParseAddrPort("10.0.0.1:443"), Hostname: "a.example.com", Weight: 3, Healthy: true,
			Locality: cluster.Locality{Region: "r", Zone: "z", SubZone: "s"}},
		{Key: "b", Hostname: "b.example.com", Priority: 1},
	}))
}

func TestClusterLines(t *testing.T) {
	c := liveCluster(t)
	h, why := c.Pick(cluster.PickInput{})
	if h == nil {
		t.Fatal(why)
	}
	b := c.Breakers(cluster.Default)
	for range 2 {
		if !b.TryConnection(h) {
			t.Fatal("no connection")
		}
		h.Begin()
		h.End()
		h.Report(cluster.Answered, 200)
		b.DoneConnection(h, true)
	}
	h.Begin()
	h.Report(cluster.TimedOut, 504)
	got := slices.Collect(ClusterLines(c))
	for _, want := range []string{
		"outbound|443||www.example.com::observability_name::outbound|443||www.example.com",
		"outbound|443||www.example.com::default_priority::max_connections::1",
		"outbound|443||www.example.com::default_priority::max_pending_requests::2",
		"outbound|443||www.example.com::high_priority::max_connections::1024",
		"outbound|443||www.example.com::added_via_api::true",
		"outbound|443||www.example.com::10.0.0.1:443::cx_total::2",
		"outbound|443||www.example.com::10.0.0.1:443::cx_active::0",
		"outbound|443||www.example.com::10.0.0.1:443::rq_total::3",
		"outbound|443||www.example.com::10.0.0.1:443::rq_success::2",
		"outbound|443||www.example.com::10.0.0.1:443::rq_timeout::1",
		"outbound|443||www.example.com::10.0.0.1:443::rq_error::1",
		"outbound|443||www.example.com::10.0.0.1:443::rq_active::1",
		"outbound|443||www.example.com::10.0.0.1:443::hostname::a.example.com",
		"outbound|443||www.example.com::10.0.0.1:443::health_flags::/failed_outlier_check",
		"outbound|443||www.example.com::10.0.0.1:443::weight::3",
		"outbound|443||www.example.com::10.0.0.1:443::sub_zone::s",
		"outbound|443||www.example.com::b.example.com::health_flags::/failed_eds_health",
		"outbound|443||www.example.com::b.example.com::priority::1",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("no line %s in\n%s", want, strings.Join(got, "\n"))
		}
	}
}

func TestClusterStats(t *testing.T) {
	c := liveCluster(t)
	if h, _ := c.Pick(cluster.PickInput{}); !c.Breakers(cluster.Default).TryConnection(h) {
		t.Fatal("no connection")
	}
	c.CountStatus(503)
	have := map[string]Stat{}
	for s := range ClusterStats(c) {
		if s.Scope != ScopeCluster || s.Of != "outbound|443||www.example.com" {
			t.Errorf("%+v", s)
		}
		have[s.Name] = s
	}
	for name, want := range map[string]struct {
		value uint64
		gauge bool
	}{
		"upstream_cx_total": {1, false}, "upstream_cx_active": {1, true}, "upstream_rq_5xx": {1, false}, "upstream_rq_pending_overflow": {0, false},
		"circuit_breakers.default.cx_open": {1, true}, "circuit_breakers.default.remaining_pending": {2, true}, "membership_total": {2, true},
		"membership_change": {1, false}, "outlier_detection.ejections_active": {0, true}, "upstream_rq_retry": {0, false},
	} {
		if s, ok := have[name]; !ok || s.Value != want.value || s.Gauge != want.gauge {
			t.Errorf("%s is %+v, want %v", name, s, want)
		}
	}
}
