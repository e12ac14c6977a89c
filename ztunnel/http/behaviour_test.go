package http

import (
	"bufio"
	"context"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/undermesh/undermesh/ztunnel/cluster"
	"github.com/undermesh/undermesh/ztunnel/http/head"
	"github.com/undermesh/undermesh/ztunnel/http/route"
)

const get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"

// inBubble runs a test on a clock of its own, over connections of memory.
func inBubble(t *testing.T, change func(*Config), test func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var w *world
		if change != nil {
			w = newWorld(t, change)
		} else {
			w = newWorld(t)
		}
		w.routes("a", toUp)
		test(t, w)
		w.close()
		w.e.Close()
	})
}

// seen is a host that tells what it reads, and answers.
func seen(out chan<- string, text string) func(net.Conn) {
	return func(c net.Conn) {
		r := bufio.NewReader(c)
		for {
			m, err := readMessage(r)
			if err != nil {
				return
			}
			out <- m
			if _, err := io.WriteString(c, text); err != nil {
				return
			}
		}
	}
}

func TestMirror(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.routes("a:80", `{"match":{"prefix":"/"},"route":{"cluster":"up","requestMirrorPolicies":[{"cluster":"copy"}]}}`)
		got := make(chan string, 1)
		w.cluster("up", nil, answers(ok))
		w.cluster("copy", nil, seen(got, "HTTP/1.1 500 No\r\nContent-Length: 3\r\n\r\nbad"))
		a := w.connect().get("POST /x HTTP/1.1", "Host: a:80", "Content-Length: 3", "X-Forwarded-For: 192.0.2.9", "X-Envoy-Upstream-Rq-Per-Try-Timeout-Ms: 1000", "", "abc")
		if a.StatusCode != 200 || a.body != "ok" {
			t.Errorf("%d %q", a.StatusCode, a.body)
		}
		m := <-got
		if own := w.flow.Source.Addr().Unmap().String(); !strings.Contains(m, "x-forwarded-for: 192.0.2.9,"+own+"\r\n") || !strings.Contains(m, "x-envoy-expected-rq-timeout-ms: 15000\r\n") {
			t.Errorf("the copy was %q: no word of %s, or of a time that is not its own", m, own)
		}
		if !strings.Contains(m, "host: a-shadow:80\r\n") || !strings.HasSuffix(m, "\r\n\r\nabc") || !strings.HasPrefix(m, "POST /x ") {
			t.Errorf("the copy was %q", m)
		}
		synctest.Wait()
		if s := w.flow.Workload.Stats(); s.ActiveMirrors != 0 || s.ActiveRequests != 0 || s.HeldBytes != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestUpgrade(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.cluster("up", nil, func(c net.Conn) {
			r := bufio.NewReader(c)
			m, err := readMessage(r)
			if err != nil || !strings.Contains(m, "connection: upgrade\r\nupgrade: websocket\r\n") {
				t.Errorf("the host saw %q, %v", m, err)
			}
			_, _ = io.WriteString(c, "HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst")
			_, _ = io.Copy(c, r)
		})
		c := w.connect()
		c.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello")
		a := c.read("GET")
		if a.StatusCode != 101 || a.Header.Get("Upgrade") != "websocket" {
			t.Fatalf("%d %v", a.StatusCode, a.Header)
		}
		for _, want := range []string{"firsthello", "again"} {
			if want == "again" {
				time.Sleep(time.Hour) // no timeout of the route ends it
				c.send(want)
			}
			b := make([]byte, len(want))
			if _, err := io.ReadFull(c.r, b); err != nil || string(b) != want {
				t.Errorf("%q %v", b, err)
			}
		}
		_ = c.Close()
		if l := w.log(1)[0]; !strings.HasPrefix(l, "101 ") {
			t.Errorf("log %q", l)
		}
	})
}

func TestConnect(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.routes("a:443", `{"match":{"connectMatcher":{}},"route":{"cluster":"up","upgradeConfigs":[{"upgradeType":"CONNECT"}]}}`)
		w.cluster("up", nil, func(c net.Conn) {
			r := bufio.NewReader(c)
			line, _ := r.ReadString('\n')
			if line != "CONNECT a:443 HTTP/1.1\r\n" {
				t.Errorf("the host saw %q", line)
			}
			for line != "\r\n" && line != "" {
				line, _ = r.ReadString('\n')
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
			_, _ = io.Copy(c, r)
		})
		c := w.connect()
		c.send("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n")
		if line, _ := c.r.ReadString('\n'); line != "HTTP/1.1 200 OK\r\n" {
			t.Fatalf("%q", line)
		}
		for line := ""; line != "\r\n"; {
			line, _ = c.r.ReadString('\n')
			if strings.Contains(line, "length") || strings.Contains(line, "chunked") {
				t.Errorf("%q in the answer to CONNECT", line)
			}
		}
		c.send("hello")
		b := make([]byte, 5)
		if _, err := io.ReadFull(c.r, b); err != nil || string(b) != "hello" {
			t.Errorf("%q %v", b, err)
		}
		_ = c.Close()
		w.log(1)
	})
}

func TestContinue(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.cluster("up", nil, echo)
		c := w.connect()
		c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
		if a := c.read("POST"); a.StatusCode != 100 {
			t.Fatalf("%d", a.StatusCode)
		}
		c.send("abc")
		if a := c.read("POST"); a.StatusCode != 200 || !strings.HasSuffix(a.body, "abc") || strings.Contains(strings.ToLower(a.body), "\r\nexpect:") {
			t.Errorf("%d %q", a.StatusCode, a.body)
		}
	})
}

// TestEarlyAnswer: a host answers before the request is at its end; the client gets it, and the connection ends.
func TestEarlyAnswer(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.cluster("up", nil, func(c net.Conn) {
			_, _ = c.Read(make([]byte, 4096))
			_, _ = io.WriteString(c, "HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno")
		})
		c := w.connect()
		c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nabc")
		if a := c.read("POST"); a.StatusCode != 403 || a.body != "no" || !a.Close {
			t.Errorf("%d %q %v", a.StatusCode, a.body, a.Close)
		}
		if !c.over() {
			t.Error("the connection goes on")
		}
		if l := w.log(1)[0]; l != "403 - via_upstream" {
			t.Errorf("log %q", l)
		}
	})
}

// TestClientGone: a client that leaves while the host thinks is noticed, and so is it by the host.
func TestClientGone(t *testing.T) {
	for name, request := range map[string]string{"waiting": get, "uploading": "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc"} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, nil, func(t *testing.T, w *world) {
				ended := make(chan struct{})
				w.cluster("up", nil, func(c net.Conn) {
					silent(c)
					close(ended)
				})
				c := w.connect()
				c.send(request)
				time.Sleep(time.Second)
				_ = c.Close()
				<-ended
				if l := w.log(1)[0]; l != "0 DC downstream_remote_disconnect" {
					t.Errorf("log %q", l)
				}
			})
		})
	}
}

func TestDrain(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		answer := make(chan struct{})
		w.cluster("up", nil, func(c net.Conn) {
			r := bufio.NewReader(c)
			for {
				m, err := readMessage(r)
				if err != nil {
					return
				}
				if strings.HasPrefix(m, "GET /wait") {
					<-answer
				}
				_, _ = io.WriteString(c, ok)
			}
		})
		idle, busy, fresh := w.connect(), w.connect(), w.connect()
		if a := idle.get("GET / HTTP/1.1", "Host: a"); a.Close {
			t.Error("close is said too early")
		}
		busy.send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
		synctest.Wait()
		w.flow.Workload.Drain()
		if !idle.over() {
			t.Error("an idle connection goes on")
		}
		close(answer)
		if a := busy.read("GET"); a.StatusCode != 200 || !a.Close || !busy.over() {
			t.Errorf("%d, close %v", a.StatusCode, a.Close)
		}
		if a := fresh.get("GET / HTTP/1.1", "Host: a"); a.StatusCode != 200 || !a.Close || !fresh.over() {
			t.Errorf("%d, close %v", a.StatusCode, a.Close)
		}
	})
}

func TestPipelining(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.cluster("up", nil, echo)
		c := w.connect()
		c.send("GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET /3 HTTP/1.1\r\nHost: a\r\n\r\n")
		for _, want := range []string{"GET /1 ", "POST /2 ", "GET /3 "} {
			if a := c.read("GET"); !strings.HasPrefix(a.body, want) {
				t.Errorf("%q, want %q", a.body, want)
			}
		}
	})
}

func TestTenantLimits(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.flow.Workload = NewTenant(TenantLimits{Connections: 2, Requests: 1})
		w.cluster("up", nil, silent)
		first, second := w.connect(), w.connect()
		first.send(get)
		synctest.Wait()
		if a := second.get("GET / HTTP/1.1", "Host: a"); a.StatusCode != 503 {
			t.Errorf("%d", a.StatusCode)
		}
		if !w.connect().over() {
			t.Error("a third connection is served")
		}
		_ = first.Close()
		w.log(2)
		synctest.Wait() // the count goes down after the line
		if a := second.get("GET / HTTP/1.1", "Host: b"); a.StatusCode != 404 {
			t.Errorf("%d", a.StatusCode)
		}
		synctest.Wait()
		if s := w.flow.Workload.Stats(); s.RequestsRefused != 1 || s.ConnectionsRefused != 1 || s.ActiveRequests != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// panics is Upstreams that panic for one authority.
type panics struct{ *world }

func (p panics) Routes(r *head.Request) *route.VirtualHost {
	if string(r.Authority) == "panic" {
		panic("as it was told")
	}
	return p.world.Routes(r)
}

func TestPanicEndsOneConnection(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.cluster("up", nil, echo)
		w.flow.Upstreams = panics{w}
		other, c := w.connect(), w.connect()
		c.send("GET / HTTP/1.1\r\nHost: panic\r\n\r\n")
		if !c.over() {
			t.Error("the connection goes on")
		}
		if err := <-c.end; err == nil || !strings.Contains(err.Error(), "as it was told") {
			t.Errorf("error %v", err)
		}
		if a := other.get("GET / HTTP/1.1", "Host: a"); a.StatusCode != 200 {
			t.Errorf("%d", a.StatusCode)
		}
		synctest.Wait()
		if s := w.flow.Workload.Stats(); s.Panics != 1 || s.ActiveRequests != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// TestStale: connections that the host has closed meanwhile are not a client's business.
func TestStale(t *testing.T) {
	for _, loopback := range []bool{false, true} {
		w := newWorld(t)
		w.loopback = loopback
		w.routes("a", toUp)
		w.cluster("up", nil, answers(ok))
		c := w.connect()
		for range 4 {
			if a := c.get("GET / HTTP/1.1", "Host: a"); a.StatusCode != 200 {
				t.Errorf("%d %q", a.StatusCode, a.body)
			}
		}
		if w.dials != 4 {
			t.Errorf("%d connections", w.dials)
		}
		w.close()
	}
}

// telling is a connection that tells whether it can be used.
type telling struct {
	net.Conn
	dead *atomic.Bool
}

func (c telling) Quiet() bool { return !c.dead.Load() }

// quietly is Upstreams whose connections tell.
type quietly struct {
	*world
	dead *atomic.Bool
}

func (q quietly) Dial(ctx context.Context, c *cluster.Cluster, h *cluster.Host) (*Conn, error) {
	conn, err := q.world.Dial(ctx, c, h)
	if err == nil {
		conn.Net = telling{conn.Net, q.dead}
	}
	return conn, err
}

// TestDeadConnections: an idle connection that its host has ended is closed soon, and is not used again for what may not be done
// twice.
func TestDeadConnections(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		var dead atomic.Bool
		w.flow.Upstreams = quietly{w, &dead}
		up := w.cluster("up", nil, echo)
		c := w.connect()
		post := func() {
			t.Helper()
			if a := c.get("POST / HTTP/1.1", "Host: a", "Content-Length: 0"); a.StatusCode != 200 {
				t.Errorf("%d %q", a.StatusCode, a.body)
			}
			synctest.Wait()
		}
		post()
		post()
		if w.dials != 1 {
			t.Errorf("%d connections", w.dials)
		}
		time.Sleep(time.Minute)
		if n := up.Get(cluster.CxActive); n != 1 {
			t.Errorf("%d connections are open", n)
		}
		dead.Store(true)
		time.Sleep(2 * weeding)
		if n := up.Get(cluster.CxActive); n != 0 {
			t.Errorf("%d dead connections are open", n)
		}
		dead.Store(false)
		post()
		time.Sleep(2 * time.Hour)
		if n := up.Get(cluster.CxActive); n != 0 {
			t.Errorf("%d idle connections are open after two hours", n)
		}
	})
}

func TestTimeoutInBody(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.routes("a", `{"match":{"prefix":"/"},"route":{"cluster":"up","timeout":"1s"}}`)
		w.cluster("up", nil, func(c net.Conn) {
			_, _ = readMessage(bufio.NewReader(c))
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf")
			silent(c)
		})
		a := w.connect().get("GET / HTTP/1.1", "Host: a")
		if a.body != "half <unexpected EOF>" || w.log(1)[0] != "200 UT response_timeout" {
			t.Errorf("%q %q", a.body, w.log(1))
		}
	})
}

func TestFaultAndCORS(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		const fault = `"typedPerFilterConfig":{"envoy.filters.http.fault":{"@type":"type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",`
		w.routes("delay", `{"match":{"prefix":"/"},"route":{"cluster":"up"},`+fault+`"delay":{"fixedDelay":"7s","percentage":{"numerator":100}}}}}`)
		w.routes("abort", `{"match":{"prefix":"/"},"route":{"cluster":"up"},`+fault+`"abort":{"httpStatus":500,"percentage":{"numerator":100}}}}}`)
		w.routes("cors", `{"match":{"prefix":"/"},"route":{"cluster":"up"},"typedPerFilterConfig":{"envoy.filters.http.cors":{
			"@type":"type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy","allowOriginStringMatch":[{"exact":"http://o"}],"allowMethods":"GET"}}}`)
		w.cluster("up", nil, echo)
		c := w.connect()
		begin := time.Now()
		if a := c.get("GET / HTTP/1.1", "Host: delay"); a.StatusCode != 200 || time.Since(begin) < 7*time.Second {
			t.Errorf("%d after %v", a.StatusCode, time.Since(begin))
		}
		if a := c.get("GET / HTTP/1.1", "Host: abort"); a.StatusCode != 500 || a.body != "fault filter abort" {
			t.Errorf("%d %q", a.StatusCode, a.body)
		}
		a := c.get("OPTIONS / HTTP/1.1", "Host: cors", "Origin: http://o", "Access-Control-Request-Method: GET")
		if a.StatusCode != 200 || a.Header.Get("Access-Control-Allow-Origin") != "http://o" || a.Header.Get("Access-Control-Allow-Methods") != "GET" || a.body != "" {
			t.Errorf("%d %v %q", a.StatusCode, a.Header, a.body)
		}
		if a := c.get("GET / HTTP/1.1", "Host: cors", "Origin: http://o"); a.Header.Get("Access-Control-Allow-Origin") != "http://o" {
			t.Errorf("%v", a.Header)
		}
		want := []string{"200 DI via_upstream", "500 FI fault_filter_abort", "200 - cors_response", "200 - via_upstream"}
		for i, l := range w.log(4) {
			if l != want[i] {
				t.Errorf("log %q, want %q", l, want[i])
			}
		}
	})
}

// TestIdentityOfTheCaller: MT-01 and MT-02 as far as the engine does them.
func TestIdentityOfTheCaller(t *testing.T) {
	peer := &Peer{URI: "spiffe://cluster.local/ns/foo/sa/sleep", By: "spiffe://cluster.local/ns/foo/sa/httpbin", Hash: strings.Repeat("0f", 32)}
	const want = "x-forwarded-client-cert: By=spiffe://cluster.local/ns/foo/sa/httpbin;Hash=0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f;Subject=\"\";URI=spiffe://cluster.local/ns/foo/sa/sleep\r\n"
	for name, c := range map[string]struct {
		direction Direction
		peer, leg *Peer
		told      bool
	}{
		"inbound":                {Inbound, peer, nil, true},
		"inbound, nobody proved": {Inbound, nil, nil, false},
		"outbound":               {Outbound, nil, nil, false},
		"leg on this node":       {Outbound, nil, peer, true},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, nil, func(t *testing.T, w *world) {
				w.flow.Direction, w.flow.Peer, w.leg = c.direction, c.peer, c.leg
				w.cluster("up", nil, echo)
				a := w.connect().get("GET / HTTP/1.1", "Host: a", "X-Forwarded-Client-Cert: By=forged", "x-forwarded-client-cert: By=forged2")
				if got := strings.Count(strings.ToLower(a.body), "client-cert"); c.told != strings.Contains(a.body, want) || got > 1 || got == 1 && !c.told {
					t.Errorf("the host saw %q", a.body)
				}
				if server := a.Header.Get("Server"); (server == "istio-envoy") != (c.direction == Inbound) {
					t.Errorf("server %q", server)
				}
			})
		})
	}
}

// TestPoolLimits: with two connections and one place to wait, the fourth request at a time of a worker is refused; a
// client of the other one gets the connection that each worker may have.
func TestPoolLimits(t *testing.T) {
	var worker atomic.Uint64
	inBubble(t, func(c *Config) { c.Random = worker.Load }, func(t *testing.T, w *world) {
		go1 := make(chan struct{})
		two := func(c *clusterv3.Cluster) {
			c.CircuitBreakers = &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{
				{MaxConnections: wrapperspb.UInt32(2), MaxPendingRequests: wrapperspb.UInt32(1)}}}
		}
		w.cluster("up", two, func(c net.Conn) {
			r := bufio.NewReader(c)
			for {
				if _, err := readMessage(r); err != nil {
					return
				}
				<-go1
				_, _ = io.WriteString(c, ok)
			}
		})
		var waiting []*testClient
		for _, of := range []uint64{0, 0, 1, 0} {
			worker.Store(of)
			c := w.connect()
			synctest.Wait()
			c.send(get)
			synctest.Wait()
			waiting = append(waiting, c)
		}
		c := w.connect()
		if r := c.get("GET / HTTP/1.1", "Host: a"); r.StatusCode != 503 || r.Header.Get("X-Envoy-Overloaded") != "true" {
			t.Errorf("%d", r.StatusCode)
		}
		close(go1)
		for _, c := range waiting {
			if r := c.read("GET"); r.StatusCode != 200 {
				t.Errorf("%d", r.StatusCode)
			}
		}
		if w.dials != 3 {
			t.Errorf("%d connections", w.dials)
		}
	})
}

// TestRetryWithBody: what was read of a body goes to the next host, whatever pieces it came in.
func TestRetryWithBody(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.routes("a", `{"match":{"prefix":"/"},"route":{"cluster":"up","retryPolicy":{"retryOn":"5xx","numRetries":3}}}`)
		tries := 0
		w.cluster("up", nil, func(c net.Conn) {
			m, _ := readMessage(bufio.NewReader(c))
			if tries++; tries < 3 {
				_, _ = io.WriteString(c, "HTTP/1.1 503 S\r\nContent-Length: 0\r\n\r\n")
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: "+itoa(len(m))+"\r\n\r\n"+m)
		})
		c := w.connect()
		c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nab")
		time.Sleep(time.Second)
		c.send("cd")
		time.Sleep(time.Second)
		c.send("ef")
		if a := c.read("POST"); a.StatusCode != 200 || !strings.HasSuffix(a.body, "\r\n\r\nabcdef") || tries != 3 {
			t.Errorf("%d %q after %d tries", a.StatusCode, a.body, tries)
		}
		synctest.Wait()
		if s := w.flow.Workload.Stats(); s.HeldBytes != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestSlowClients(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.cluster("up", nil, echo)
		slow, idle := w.connect(), w.connect()
		slow.send("GET / HTTP/1.1\r\nHost:")
		if a := slow.read("GET"); a.StatusCode != 408 || a.body != "request header timeout" {
			t.Errorf("%d %q", a.StatusCode, a.body)
		}
		if l := w.log(1)[0]; l != "408 - request_header_timeout" {
			t.Errorf("log %q", l)
		}
		begin := time.Now()
		if _, err := idle.r.ReadByte(); err == nil || time.Since(begin) < 58*time.Minute {
			t.Errorf("an idle connection ended after %v: %v", time.Since(begin), err)
		}
	})
}
