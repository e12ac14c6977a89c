package http

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"

	"github.com/undermesh/undermesh/ztunnel/cluster"
)

// stats are those of a listener.
func (l *Listener) stats() map[string]uint64 {
	out := map[string]uint64{}
	for name, v := range l.Stats {
		out[name] = v
	}
	return out
}

// engineCounts are the names of the cluster's statistics that a test of ztunnel/cluster leaves to this one.
func engineCounts(t *testing.T) []string {
	t.Helper()
	read := func(name string) string {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	names := map[string]string{}
	for _, m := range regexp.MustCompile(`(\w+):\s+"([a-z][\w.]+)"`).FindAllStringSubmatch(read("../cluster/stats.go"), -1) {
		names[m[1]] = m[2]
	}
	var out []string
	for _, m := range regexp.MustCompile(`cluster\.(\w+): true`).FindAllStringSubmatch(read("../cluster/stats_test.go"), -1) {
		if names[m[1]] == "" {
			t.Fatalf("cluster.%s has no name", m[1])
		}
		out = append(out, names[m[1]])
	}
	if len(out) < 10 {
		t.Fatalf("%d names were found", len(out))
	}
	return out
}

// TestEveryStatisticMoves: each name that a listener shows, and each of a cluster that the engine counts, is moved by the request that
// stands beside it here.
func TestEveryStatisticMoves(t *testing.T) {
	movers := moversOf()
	want := append(engineCounts(t), slices.Collect(func(yield func(string) bool) {
		for name := range new(Listener).Stats {
			if !yield(name) {
				return
			}
		}
	})...)
	for _, name := range want {
		t.Run(name, func(t *testing.T) {
			move := movers[name]
			if move == nil {
				t.Fatal("nothing moves it")
			}
			inBubble(t, nil, func(t *testing.T, w *world) {
				w.flow.Listener = w.flow.Workload.Listener(w.flow.Direction, 80)
				value := func() (n uint64) {
					synctest.Wait()
					n = w.flow.Listener.stats()[name]
					w.mu.Lock()
					defer w.mu.Unlock()
					for _, c := range w.clusters {
						for at, v := range c.Stats {
							if at == name {
								n += v
							}
						}
					}
					return n
				}
				if n := value(); n != 0 {
					t.Fatalf("it begins at %d", n)
				}
				move(w)
				if n := value(); n == 0 {
					t.Error("it stays at 0")
				}
				gauges := strings.HasSuffix(name, "_active")
				w.close()
				if n := value(); gauges && n != 0 {
					t.Errorf("it is %d when all is over", n)
				}
			})
		})
	}
	for name := range movers {
		if !slices.Contains(want, name) {
			t.Errorf("there is no %s", name)
		}
	}
}

// toUpWith is a route to the cluster up.
func toUpWith(more string) string {
	return `{"name":"r","match":{"prefix":"/"},"route":{"cluster":"up"` + more + `}}`
}

// oneRequest makes a world do one request to hosts of the cluster up.
func oneRequest(text, route string, change func(*clusterv3.Cluster), hosts ...func(net.Conn)) func(*world) {
	return func(w *world) {
		if route == "" {
			route = toUpWith("")
		}
		w.routes("a", route)
		w.cluster("up", change, hosts...)
		c := w.connect()
		c.send(text)
		method, _, _ := strings.Cut(text, " ")
		_, _ = http.ReadResponse(c.r, &http.Request{Method: method})
	}
}

// leaving is a client that asks a host which does not answer, and leaves.
func leaving(w *world) {
	w.routes("a", toUpWith(""))
	w.cluster("up", nil, silent)
	c := w.connect()
	c.send(get)
	synctest.Wait()
	_ = c.Close()
	time.Sleep(time.Second) // it is looked for
}

// askTwo is a client of HTTP/2 that asks once.
func askTwo(change func(*clusterv3.Cluster)) func(*world) {
	return func(w *world) {
		w.routes("a", toUpWith(""))
		w.cluster("up", change, standard(func(http.ResponseWriter, *http.Request) {}))
		c := w.standardClient(true)
		resp, err := c.Get("http://a/")
		if err != nil {
			w.t.Fatal(err)
		}
		_ = resp.Body.Close()
	}
}

func drained(w *world) {
	oneRequest(get, "", nil, answers(ok))(w)
	synctest.Wait()
	w.flow.Workload.Drain()
}

func crowded(w *world) {
	w.flow.Workload = NewTenant(TenantLimits{Connections: 1, Requests: 1})
	w.cluster("up", nil, silent)
	first := w.connect()
	first.send(get)
	synctest.Wait()
	w.connect().over()
}

// requestsCrowded has one request too many.
func requestsCrowded(w *world) {
	w.flow.Workload = NewTenant(TenantLimits{Requests: 1})
	w.cluster("up", nil, silent)
	w.connect().send(get)
	synctest.Wait()
	w.connect().get("GET / HTTP/1.1", "Host: a")
}

func upgraded(w *world) {
	w.routes("a", toUpWith(""))
	w.cluster("up", nil, func(c net.Conn) {
		r := bufio.NewReader(c)
		_, _ = readMessage(r)
		_, _ = io.WriteString(c, "HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		_, _ = io.Copy(c, r)
	})
	c := w.connect()
	c.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	c.read("GET")
}

func pending(w *world) {
	w.routes("a", toUpWith(""))
	w.cluster("up", nil, silent)
	w.connect().send(get)
}

const httpFault = `,"typedPerFilterConfig":{"envoy.filters.http.fault":{"@type":"type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",`

// moversOf says for each name what moves it.
func moversOf() map[string]func(*world) {
	status := func(n int) func(*world) {
		return oneRequest(get, "", nil, answers(fmt.Sprintf("HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n", n)))
	}
	good := status(200)
	retried := func(w *world) {
		texts := []string{"HTTP/1.1 503 S\r\nContent-Length: 0\r\n\r\n", ok}
		oneRequest(get, toUpWith(`,"retryPolicy":{"retryOn":"5xx","numRetries":1}`), nil, func(c net.Conn) {
			text := texts[0]
			texts = texts[1:]
			answers(text)(c)
		})(w)
	}
	busy := oneRequest(get, toUpWith(`,"retryPolicy":{"retryOn":"5xx","numRetries":1}`), nil, answers("HTTP/1.1 503 S\r\nContent-Length: 0\r\n\r\n"))
	long := strings.Repeat("x", 100<<10)
	return map[string]func(*world){
		// of the cluster
		"upstream_cx_http1_total": good, "upstream_cx_http2_total": askTwo(overHTTP2),
		"upstream_cx_protocol_error":            oneRequest(get, "", nil, answers("nonsense\r\n\r\n")),
		"upstream_rq_timeout":                   oneRequest(get, toUpWith(`,"timeout":"1s"`), nil, silent),
		"upstream_rq_per_try_timeout":           oneRequest(get, toUpWith(`,"retryPolicy":{"retryOn":"5xx","numRetries":1,"perTryTimeout":"1s"}`), nil, silent),
		"upstream_rq_max_duration_reached":      oneRequest("GET / HTTP/1.1\r\nHost: a\r\nx-envoy-upstream-stream-duration-ms: 50\r\n\r\n", toUp, nil, silent),
		"upstream_rq_rx_reset":                  oneRequest(get, "", nil, answers()),
		"upstream_rq_tx_reset":                  leaving,
		"upstream_rq_retry":                     retried,
		"upstream_rq_retry_success":             retried,
		"upstream_rq_retry_limit_exceeded":      busy,
		"upstream_rq_retry_backoff_exponential": retried,
		"retry_or_shadow_abandoned": oneRequest("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: "+itoa(len(long))+"\r\n\r\n"+long,
			toUpWith(`,"requestMirrorPolicies":[{"cluster":"up"}]`), nil, answers(ok)),
		// of the listener
		"downstream_rq_1xx": func(w *world) { upgraded(w); _ = w.conns[0].Close() }, "downstream_rq_2xx": good, "downstream_rq_3xx": status(301), "downstream_rq_4xx": status(404), "downstream_rq_5xx": status(500),
		"downstream_rq_completed": good, "downstream_rq_total": good, "downstream_rq_http1_total": good, "downstream_rq_http2_total": askTwo(nil),
		"downstream_rq_active": pending, "downstream_cx_total": good, "downstream_cx_active": pending,
		"downstream_cx_http1_total": good, "downstream_cx_http1_active": good, "downstream_cx_http2_total": askTwo(nil), "downstream_cx_http2_active": askTwo(nil),
		"downstream_cx_idle_timeout":              func(w *world) { good(w); time.Sleep(2 * time.Hour) },
		"downstream_cx_drain_close":               drained,
		"downstream_cx_overload_reject":           crowded,
		"downstream_cx_protocol_error":            oneRequest("nonsense\r\n\r\n", "", nil),
		"downstream_cx_upgrades_total":            upgraded,
		"downstream_cx_upgrades_active":           upgraded,
		"downstream_rq_rx_reset":                  leaving,
		"downstream_rq_tx_reset":                  oneRequest(get, "", nil, answers("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")),
		"downstream_rq_timeout":                   slowBody,
		"downstream_rq_header_timeout":            oneRequest("GET / HTTP/1.1\r\nHost:", "", nil),
		"downstream_rq_idle_timeout":              oneRequest(get, toUpWith(`,"timeout":"0s","idleTimeout":"1s"`), nil, silent),
		"downstream_rq_max_duration_reached":      oneRequest(get, toUpWith(`,"timeout":"0s","maxStreamDuration":{"maxStreamDuration":"1s"}`), nil, silent),
		"downstream_rq_overload_close":            requestsCrowded,
		"downstream_rq_failed_path_normalization": oneRequest("GET /%00 HTTP/1.1\r\nHost: a\r\n\r\n", "", nil),
		"downstream_rq_non_relative_path":         oneRequest("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "", nil),
		"downstream_rq_ws_on_non_ws_route":        oneRequest("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n", "", nil),
		"no_route":                                oneRequest("GET / HTTP/1.1\r\nHost: nobody\r\n\r\n", "", nil),
		"no_cluster":                              oneRequest(get, `{"match":{"prefix":"/"},"route":{"cluster":"missing"}}`, nil),
		"rq_direct_response":                      oneRequest(get, `{"match":{"prefix":"/"},"directResponse":{"status":200}}`, nil),
		"rq_redirect":                             oneRequest(get, `{"match":{"prefix":"/"},"redirect":{"pathRedirect":"/x"}}`, nil),
		"fault.delays_injected":                   oneRequest(get, strings.TrimSuffix(toUpWith(""), "}")+httpFault+`"delay":{"fixedDelay":"1s","percentage":{"numerator":100}}}}}`, nil, answers(ok)),
		"fault.aborts_injected":                   oneRequest(get, strings.TrimSuffix(toUpWith(""), "}")+httpFault+`"abort":{"httpStatus":500,"percentage":{"numerator":100}}}}}`, nil),
	}
}

// slowBody is a client that does not send what it has announced.
func slowBody(w *world) {
	w.e.cfg.Limits.Request = time.Second
	oneRequest("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf", "", nil, silent)(w)
}

// TestListenersAreBounded: whoever calls any number of ports has the statistics of some, and loses no connection from them; what is
// unused goes.
func TestListenersAreBounded(t *testing.T) {
	tenant, now := NewTenant(TenantLimits{}), time.Unix(1_000_000, 0)
	for port := range uint16(60_000) {
		l := tenant.Listener(Outbound, port+1)
		l.opened(now)
		l.speaks(HTTP1)
		if port != 7 {
			l.closed(HTTP1)
		}
	}
	count := func() (n int, total uint64) {
		for l := range tenant.Listeners {
			n++
			total += l.stats()["downstream_cx_total"]
		}
		return n, total
	}
	if n, total := count(); n != maxListeners+1 || total != 60_000 {
		t.Errorf("%d listeners with %d connections", n, total)
	}
	tenant.Forget(now)
	if n, _ := count(); n != maxListeners+1 {
		t.Errorf("%d listeners are left too early", n)
	}
	tenant.Forget(now.Add(time.Second))
	if n, _ := count(); n != 1 || tenant.Listener(Outbound, 8).stats()["downstream_cx_active"] != 1 {
		t.Errorf("%d listeners are left", n)
	}
	if got := tenant.Listener(Inbound, 8080).Prefix() + " " + tenant.Listener(Outbound, 0).Prefix(); got != "inbound_0.0.0.0_8080 outbound_0.0.0.0_0" {
		t.Error(got)
	}
}

// leads is a world whose connections lead to a callee.
type leads struct {
	*world
	to *Callee
}

func (l leads) Dial(ctx context.Context, c *cluster.Cluster, h *cluster.Host) (*Conn, error) {
	conn, err := l.world.Dial(ctx, c, h)
	if err == nil {
		conn.Callee, conn.Leg = l.to, &Peer{}
	}
	return conn, err
}

// TestCallee: requests over a leg count for who is called, tries that fail too.
func TestCallee(t *testing.T) {
	for _, two := range []bool{false, true} {
		inBubble(t, nil, func(t *testing.T, w *world) {
			called := NewTenant(TenantLimits{})
			spec, err := cluster.Compile(&clusterv3.Cluster{Name: "inbound|80||", LbPolicy: clusterv3.Cluster_CLUSTER_PROVIDED,
				ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST}})
			if err != nil {
				t.Fatal(err)
			}
			in := cluster.New(cluster.Config{Clock: w.e.cfg.Clock, Rand: w.e.cfg.Random}, spec, cluster.NewHosts(nil))
			to := &Callee{Listener: called.Listener(Inbound, 80), Host: in.Original(netip.MustParseAddrPort("10.0.0.2:80"))}
			w.flow.Upstreams = leads{w, to}
			w.routes("a", toUpWith(`,"timeout":"1s","retryPolicy":{"retryOn":"5xx","numRetries":1}`))
			n := 0
			w.cluster("up", spoken(two), standard(func(rw http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/silent" {
					<-r.Context().Done()
				}
				if n++; n == 1 {
					rw.WriteHeader(503)
				}
			}))
			to.Opened(time.Now())
			c := w.connect()
			if a := c.get("GET / HTTP/1.1", "Host: a"); a.StatusCode != 200 { // the second try
				t.Error(a.StatusCode)
			}
			if a := c.get("GET /silent HTTP/1.1", "Host: a"); a.StatusCode != 504 {
				t.Error(a.StatusCode)
			}
			synctest.Wait()
			got := to.Listener.stats()
			for name, v := range in.Stats {
				got[name] = v
			}
			tries := got["downstream_rq_total"]
			if tries < 3 || got["downstream_rq_active"] != 0 || got["upstream_rq_total"] != tries || got["upstream_rq_active"] != 0 ||
				got["downstream_rq_2xx"] != 1 || got["upstream_rq_503"] != 1 || got["downstream_rq_rx_reset"] != tries-2 || got["upstream_rq_completed"] != 2 {
				t.Errorf("HTTP2 %v: %v", two, got)
			}
			if (got["upstream_cx_http2_total"] > 0) != two || (got["downstream_cx_http1_total"] > 0) == two || got["upstream_cx_active"] != 1 {
				t.Errorf("HTTP2 %v: %v", two, got)
			}
			to.Closed()
			if in.Get(cluster.CxActive) != 0 || to.Listener.stats()["downstream_cx_active"] != 0 {
				t.Error("the connection goes on")
			}
			_ = c.Close()
			w.close()
		})
	}
}
