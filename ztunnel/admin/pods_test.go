package admin

import (
	"slices"
	"strings"
	"testing"

	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/ztunnel/explain"
)

// fakePod is a pod that called one service.
type fakePod struct {
	drained []bool
	snap    *client.Snapshot
}

func (p *fakePod) Stats(yield func(Stat) bool) {
	const of = "outbound|8000||httpbin.default.svc.cluster.local"
	for _, s := range []Stat{
		{ScopeCluster, of, "upstream_rq_pending_total", 29, false}, {ScopeCluster, of, "upstream_rq_pending_overflow", 21, false},
		{ScopeCluster, of, "circuit_breakers.default.remaining_pending", 1, true}, {ScopeCluster, of, "upstream_rq_pending_active", 0, true},
		{ScopeHTTP, "outbound_0.0.0.0_8000", "downstream_rq_total", 50, false}, {ScopeCluster, `inbound|80||"`, "upstream_rq_pending_total", 2, false},
	} {
		if !yield(s) {
			return
		}
	}
}

func (p *fakePod) Clusters(yield func(string) bool) {
	_ = yield("a::default_priority::max_connections::1") && yield("a::10.0.0.1:80::cx_total::2")
}

func (p *fakePod) Drain(on bool) { p.drained = append(p.drained, on) }

func (p *fakePod) World() explain.World { return explain.World{Snapshot: p.snap} }

func withPod(t *testing.T) (*Admin, *fakePod) {
	p := &fakePod{}
	a, _ := fixture(t, func(c *Config) {
		c.Pod = func(namespace, name string) Pod {
			if namespace == "default" && name == "fortio" {
				return p
			}
			return nil
		}
	})
	return a, p
}

func TestStatsOfPod(t *testing.T) {
	a, _ := withPod(t)
	const path, cluster = "/pods/default/fortio/stats", "cluster.outbound|8000||httpbin.default.svc.cluster.local."
	for query, want := range map[string]string{
		"?filter=pending": `cluster.inbound|80||".upstream_rq_pending_total: 2
` + cluster + `circuit_breakers.default.remaining_pending: 1
` + cluster + `upstream_rq_pending_active: 0
` + cluster + `upstream_rq_pending_overflow: 21
` + cluster + `upstream_rq_pending_total: 29
`,
		"?usedonly&filter=httpbin.*pending_(active|overflow)$": cluster + "upstream_rq_pending_overflow: 21\n",
		"?filter=downstream": "http.outbound_0.0.0.0_8000;.downstream_rq_total: 50\n",
		"?format=prometheus&filter=rq_.*total": `# TYPE envoy_cluster_upstream_rq_pending_total counter
envoy_cluster_upstream_rq_pending_total{cluster_name="inbound|80||\""} 2
envoy_cluster_upstream_rq_pending_total{cluster_name="outbound|8000||httpbin.default.svc.cluster.local"} 29
# TYPE envoy_http_downstream_rq_total counter
envoy_http_downstream_rq_total{http_conn_manager_prefix="outbound_0.0.0.0_8000"} 50
`,
	} {
		if code, body := ask(a.Handler(), "GET", path+query, "localhost"); code != 200 || body != want {
			t.Errorf("%s: %d\n%s\nwant\n%s", query, code, body, want)
		}
	}
	code, body := ask(a.Handler(), "GET", path+"/prometheus", "localhost")
	if code != 200 || !strings.Contains(body, "# TYPE envoy_cluster_circuit_breakers_default_remaining_pending gauge\n") {
		t.Errorf("all as Prometheus reads them: %d\n%s", code, body)
	}
	for _, bad := range []string{"?filter=(", "?filter=" + strings.Repeat("a", maxFilter+1)} {
		if code, _ := ask(a.Handler(), "GET", path+bad, "localhost"); code != 400 {
			t.Errorf("%.20s: %d", bad, code)
		}
	}
}

func TestPodViews(t *testing.T) {
	a, p := withPod(t)
	for _, c := range []struct {
		method, target string
		code           int
		want           string
	}{
		{"GET", "/pods/default/fortio/clusters", 200, "a::default_priority::max_connections::1\na::10.0.0.1:80::cx_total::2\n"},
		{"GET", "/pods/default/other/stats", 404, "pod default/other is not served here\n"},
		{"GET", "/pods/default/fortio/drain_listeners", 405, "Method Not Allowed\n"},
		{"POST", "/pods/default/fortio/drain_listeners", 200, "OK\n"},
		{"POST", "/pods/default/fortio/drain_listeners?undo", 200, "OK\n"},
	} {
		if code, body := ask(a.Handler(), c.method, c.target, "localhost"); code != c.code || body != c.want {
			t.Errorf("%s %s: %d %s", c.method, c.target, code, body)
		}
	}
	snap, err := client.NewSnapshot(client.Resource{Message: &workloadapi.Workload{Uid: "u", Name: "fortio", Namespace: "default"}})
	if err != nil {
		t.Fatal(err)
	}
	p.snap = snap
	for query, want := range map[string]struct {
		code int
		text string
	}{
		"?url=http://10.0.0.9/x&header=a:+b": {200, `"address":"10.0.0.9:80"`}, "?url=http://10.0.0.9/&record": {200, `"resources":[`},
		"?url=ftp://a": {400, "neither http nor https"},
	} {
		if code, body := ask(a.Handler(), "GET", "/pods/default/fortio/explain"+query, "localhost"); code != want.code || !strings.Contains(body, want.text) {
			t.Errorf("%s: %d %s", query, code, body)
		}
	}
	if code, body := ask(a.Handler(), "GET", "/pods/default/fortio/snapshot", "localhost"); code != 200 {
		t.Error("snapshot:", code, body)
	} else if again, err := explain.ReadWorld([]byte(body)); err != nil || again.Snapshot.WorkloadByUID("u") == nil {
		t.Error("snapshot:", err, body)
	}
	if !slices.Equal(p.drained, []bool{true, false}) {
		t.Error("drained", p.drained)
	}
	if code, _ := ask(a.StatsHandler(), "GET", "/pods/default/fortio/stats", "localhost"); code != 404 {
		t.Error("the address that everybody reaches serves the views of pods:", code)
	}
	if code, _ := ask(a.Handler(), "POST", "/pods/default/fortio/drain_listeners", "evil.example"); code != 403 {
		t.Error("a name that is not this machine drains a pod:", code)
	}
	none, _ := fixture(t, nil)
	if code, _ := ask(none.Handler(), "GET", "/pods/default/fortio/stats", "localhost"); code != 404 {
		t.Error("views without pods:", code)
	}
}
