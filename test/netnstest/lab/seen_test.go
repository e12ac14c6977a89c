package lab

import (
	"encoding/json"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/undermesh/undermesh/test/rows"
	"github.com/undermesh/undermesh/ztunnel/explain"
)

// admin asks the ztunnel of the pod's node for one of the pod's views.
func (p *Pod) admin(method, view string) (string, int) {
	p.Node.lab.T.Helper()
	out, code := p.Node.lab.run(p.Node.NS, "", 10*time.Second, "curl", "-s", "-m", "8", "-X", method, "-w", "\n%{http_code}",
		fmt.Sprintf("http://127.0.0.1:15000/pods/%s/%s/%s", p.Namespace, p.Name, view))
	i := strings.LastIndexByte(out, '\n')
	if code != 0 || i < 0 {
		p.Node.lab.T.Fatalf("ask for %s of %s: exit code %d: %s", view, p.Name, code, out)
	}
	status, _ := strconv.Atoi(out[i+1:])
	return out[:i], status
}

// counted is the value of a statistic of the pod, -1 when there is none.
func (p *Pod) counted(name string) int {
	text, _ := p.admin("GET", "stats?filter="+url.QueryEscape(regexp.QuoteMeta(name)))
	_, value, ok := strings.Cut(text, name+": ")
	if !ok {
		return -1
	}
	n, err := strconv.Atoi(strings.TrimSpace(strings.SplitN(value, "\n", 2)[0]))
	if err != nil {
		p.Node.lab.T.Fatalf("statistic %s: %v", name, err)
	}
	return n
}

// TestSeen: what is shown of a pod is what became of its requests.
func TestSeen(t *testing.T) {
	w := newShop(t)
	w.Apply("vs", byUser)
	w.Apply("dr", subsets)
	w.only(w.client, 3, "200 v2", "-H", "end-user: jason")
	t.Run("explain says where requests go", w.explained)
	t.Run("SI-14 statistics of a pod", w.statistics)
	t.Run("SI-14 what comes to a pod", w.arrivals)
	t.Run("LB-12 drain", w.drained)
	t.Run("RS-08 overflow", w.overflow)
}

// explained compares what the node says of a request with what becomes of it.
func (w *shop) explained(t *testing.T) {
	for user, version := range map[string]string{"jason": "v2", "bob": "v3", "eve": "v1"} {
		text, status := w.client.admin("GET", "explain?"+url.Values{"url": {"http://reviews/x"}, "header": {"end-user: " + user}}.Encode())
		var d explain.Decision
		if err := json.Unmarshal([]byte(text), &d); err != nil || status != 200 {
			t.Fatalf("%d, %v: %s", status, err, text)
		}
		var picked []string
		for _, c := range d.Clusters {
			for _, e := range c.Endpoints {
				if e.Share > 0 {
					picked = append(picked, e.Workload+" "+e.Path)
				}
			}
		}
		path := map[string]string{"v1": "proxied", "v2": "tunnel", "v3": "proxied"}[version]
		if want := "foo/reviews-" + version + " " + path; len(picked) != 1 || picked[0] != want || d.Outcome != "forwarded" {
			t.Errorf("%s: %v, want %s\n%s", user, picked, want, d.Text())
		}
		w.only(w.client, 3, "200 "+version, "-H", "end-user: "+user)
	}
}

func (w *shop) statistics(t *testing.T) {
	const name = "cluster.outbound|80|v2|" + shopHost + ".upstream_rq_200"
	before := w.client.counted(name)
	w.only(w.client, 7, "200 v2", "-H", "end-user: jason")
	if after := w.client.counted(name); after < before+10 || before < 0 {
		t.Errorf("%s went from %d to %d by ten requests", name, before, after)
	}
	if text, status := w.client.admin("GET", "stats/prometheus"); status != 200 || !strings.Contains(text, `envoy_cluster_upstream_rq_200{cluster_name="outbound|80|v2|`+shopHost+`"}`) {
		t.Errorf("in the form of Prometheus: %d\n%s", status, text)
	}
	at := "outbound|80|v2|" + shopHost + "::" + w.versions["v2"].Addr.String() + ":8080::cx_total::"
	if text, status := w.client.admin("GET", "clusters"); status != 200 || !strings.Contains(text, at) {
		t.Errorf("no line %s: %d\n%s", at, status, text)
	}
	t.Run("SI-14 control: without calls", func(t *testing.T) {
		if n := w.versions["v1"].counted(name); n != -1 {
			t.Errorf("a pod that called nobody counts %d", n)
		}
	})
	t.Run("SI-14 control: outside the mesh", func(t *testing.T) {
		if text, status := w.legacy.admin("GET", "stats"); status != 404 {
			t.Errorf("%d: %s", status, text)
		}
	})
}

// arrivals: what comes to a pod counts for it by its port, whether it comes from its node, by a tunnel or from outside the mesh.
func (w *shop) arrivals(t *testing.T) {
	const cluster, listener = "cluster.inbound|8080||.", "http.inbound_0.0.0.0_8080;."
	names := []string{cluster + "upstream_rq_total", cluster + "upstream_rq_200", cluster + "upstream_rq_2xx", cluster + "upstream_rq_completed",
		listener + "downstream_rq_total", listener + "downstream_rq_2xx", listener + "downstream_rq_completed"}
	count := func(p *Pod) (out []int) {
		for _, name := range names {
			out = append(out, p.counted(name))
		}
		return out
	}
	// grows wants every one of them to grow by n.
	grows := func(what string, p *Pod, n int, ask func()) {
		before := count(p)
		ask()
		w.Until(5*time.Second, what, func() error {
			for i, after := range count(p) {
				if grown := after - before[i]; grown != n || before[i] < 0 {
					return fmt.Errorf("%s of %s went from %d to %d by %d requests", names[i], p.Name, before[i], after, n)
				}
			}
			return nil
		})
	}
	for user, version := range map[string]string{"bob": "v3", "jason": "v2"} { // on this node, and by a tunnel
		p := w.versions[version]
		grows("calls of the mesh", p, 7, func() {
			if seen := w.spread(w.client, 7, "-H", "end-user: "+user); seen["200 "+version] != 7 {
				t.Errorf("%v", seen)
			}
		})
		grows("calls from outside", p, 3, func() {
			for range 3 {
				if got := w.legacy.Curl(fmt.Sprintf("http://%s:8080/", p.Addr)); got != "200 0" {
					t.Error(got)
				}
			}
		})
		for _, name := range []string{cluster + "upstream_cx_total", listener + "downstream_cx_total", listener + "downstream_cx_http1_total"} {
			if n := p.counted(name); n <= 0 {
				t.Errorf("%s of %s is %d", name, p.Name, n)
			}
		}
	}
	t.Run("SI-14 control: without calls to it", func(t *testing.T) {
		for i, n := range count(w.client) {
			if n != -1 {
				t.Errorf("a pod that nobody called counts %d: %s", n, names[i])
			}
		}
	})
}

// drained: one of three is told to take no connections, and the callers go to the others without an error.
func (w *shop) drained(t *testing.T) {
	w.Delete("vs")
	w.Apply("dr", `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: reviews, namespace: foo}
spec:
  host: reviews
  trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: 1}}}
`)
	all := func(want int) {
		w.T.Helper()
		w.Until(10*time.Second, fmt.Sprintf("%d versions to answer", want), func() error {
			if seen := w.spread(w.client, 12); len(seen) != want || seen["200 v2"] > 0 != (want == 3) {
				return fmt.Errorf("%v", seen)
			}
			return nil
		})
	}
	t.Run("LB-12 control: without it", func(*testing.T) { all(3) })
	if text, status := w.versions["v2"].admin("POST", "drain_listeners"); status != 200 || text != "OK\n" {
		t.Fatalf("%d: %s", status, text)
	}
	all(2)
	if got := w.legacy.Curl(fmt.Sprintf("http://%s:8080/", w.versions["v2"].Addr)); !strings.HasPrefix(got, "000 ") {
		t.Errorf("who is outside the mesh still gets in: %s", got)
	}
	if text, status := w.versions["v2"].admin("POST", "drain_listeners?undo"); status != 200 {
		t.Fatalf("%d: %s", status, text)
	}
	all(3)
	t.Run("LB-12 control: outside the mesh", func(t *testing.T) {
		if _, status := w.legacy.admin("POST", "drain_listeners"); status != 404 {
			t.Errorf("a pod that is not served here is drained: %d", status)
		}
	})
}

// overflow: of requests beside one that takes a second and one that waits all are turned away, and each is counted.
func (w *shop) overflow(t *testing.T) {
	bin := w.Nodes[1].Pod("foo", "httpbin")
	bin.Start("samples", "httpbin", "--bind=:8000")
	w.Apply("svc-httpbin", `apiVersion: v1
kind: Service
metadata: {name: httpbin, namespace: foo}
spec: {clusterIP: 10.97.0.20, clusterIPs: [10.97.0.20], selector: {app: httpbin}, ports: [{name: http, port: 8000}]}
`)
	bin.Enrolled(true)
	const base, name = "http://10.97.0.20:8000", "cluster.outbound|8000||httpbin.foo.svc.cluster.local.upstream_rq_pending_overflow"
	w.Until(15*time.Second, "httpbin to answer", func() error {
		if got := w.client.Curl(base+"/get", "-H", "Host: httpbin:8000"); got != "200 0" {
			return fmt.Errorf("%s", got)
		}
		return nil
	})
	// together sends so many at once and returns how many were turned away.
	together := func(p *Pod, to string, n int) int {
		args := []string{"-s", "-Z", "--parallel-immediate", "-m", "20", "-w", "%{http_code}\n", "-H", "Host: httpbin:8000"}
		for range n {
			args = append(args, "-o", "/dev/null", to+"/delay/1")
		}
		out, code := p.Run(30*time.Second, "curl", args...)
		if code != 0 {
			w.T.Fatalf("curl ended with %d: %s", code, out)
		}
		return strings.Count(out, "503")
	}
	t.Run("RS-08 control: without the DestinationRule", func(t *testing.T) {
		if refused, counted := together(w.client, base, 6), w.client.counted(name); refused != 0 || counted != 0 {
			t.Errorf("%d turned away, %d counted", refused, counted)
		}
	})
	w.Apply("dr-httpbin", `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: httpbin, namespace: foo}
spec:
  host: httpbin
  trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1, maxRequestsPerConnection: 1}}}
`)
	w.Until(10*time.Second, "the limit to count", func() error {
		if n := w.client.counted("cluster.outbound|8000||httpbin.foo.svc.cluster.local.circuit_breakers.default.remaining_pending"); n != 1 {
			w.client.Curl(base+"/get", "-H", "Host: httpbin:8000")
			return fmt.Errorf("%d may wait", n)
		}
		return nil
	})
	before := w.client.counted(name)
	refused := together(w.client, base, 6)
	if counted := w.client.counted(name) - before; refused < 3 || refused > 5 || counted != refused {
		t.Errorf("%d of 6 were turned away, and %d counted", refused, counted)
	}
	// What the documents' last command of the task shows.
	text, _ := w.client.admin("GET", "stats?filter="+url.QueryEscape("httpbin.*pending"))
	var lines []string
	for l := range strings.Lines(text) {
		lines = append(lines, strings.TrimRight(strings.TrimPrefix(l, "cluster.outbound|8000||httpbin.foo.svc.cluster.local."), ": 0123456789\n"))
	}
	if want := rows.Pending; !slices.Equal(lines, want) {
		t.Errorf("%q, want %q", lines, want)
	}
	t.Run("RS-08 control: outside the mesh", func(t *testing.T) {
		if refused := together(w.legacy, fmt.Sprintf("http://%s:8000", bin.Addr), 6); refused != 0 {
			t.Errorf("%d turned away", refused)
		}
	})
}
