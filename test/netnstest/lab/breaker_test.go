package lab

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"testing"
	"time"
)

// breaker is the documents' DestinationRule: one connection, one pending request, one request a connection.
const breaker = `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: httpbin, namespace: foo}
spec:
  host: httpbin
  trafficPolicy:
    connectionPool:
      tcp: {maxConnections: 1}
      http: {http1MaxPendingRequests: 1, maxRequestsPerConnection: 1}
    outlierDetection: {consecutive5xxErrors: 1, interval: 1s, baseEjectionTime: 3m, maxEjectionPercent: 100}
`

const httpbinService = `apiVersion: v1
kind: Service
metadata: {name: httpbin, namespace: foo}
spec: {clusterIP: 10.97.0.20, clusterIPs: [10.97.0.20], selector: {app: httpbin}, ports: [{name: http, port: 8000, targetPort: 80}]}
`

var codeLine = regexp.MustCompile(`Code +(\d+) : (\d+)`)

// fortio calls a URL from so many connections, some times over, and returns the share of answers that were 503; all others are
// to be 200.
func (p *Pod) fortio(url string, threads, calls, times int) float64 {
	t := p.Node.lab.T
	t.Helper()
	refused := 0
	for range times {
		out, code := p.Run(30*time.Second, "samples", "fortio", "load", "-c", strconv.Itoa(threads), "-qps", "0", "-n", strconv.Itoa(calls),
			"-loglevel", "Warning", "-H", "Host: httpbin.foo:8000", url)
		seen := map[string]int{}
		for _, m := range codeLine.FindAllStringSubmatch(out, -1) {
			seen[m[1]], _ = strconv.Atoi(m[2])
		}
		if seen["200"]+seen["503"] != calls {
			t.Fatalf("fortio ended with %d: %s", code, out)
		}
		refused += seen["503"]
	}
	share := float64(refused) / float64(calls*times)
	t.Logf("-c %d -n %d, %d times: %.0f%% are 503", threads, calls, times, 100*share)
	return share
}

// TestCircuitBreaker is the documents' task: of 20 calls over two connections 3 failed there (15 %), of 30 over three 19 (63 %). When
// calls meet is up to chance and to how long a connection takes to be made: Envoy itself, with these commands on one machine, refuses
// 13 and 33 % without TLS and 32 and 56 % with it (docs/envoy.md). So what is summed up over rounds is held to the documents' shares
// within 40 points. The rule comes while connections are open.
func TestCircuitBreaker(t *testing.T) {
	const (
		rounds    = 24
		tolerance = 0.4
	)
	l := New(t, Config{})
	l.Namespace("foo", true)
	l.Namespace("legacy", false)
	one, two := l.Nodes[0], l.Nodes[1]
	near, far, outside := one.Pod("foo", "fortio"), two.Pod("foo", "fortio-far"), one.Pod("legacy", "fortio")
	server := one.Pod("foo", "httpbin")
	server.Start("samples", "httpbin", "-b", "0.0.0.0:80")
	l.Apply("svc-httpbin", httpbinService)
	const url = "http://10.97.0.20:8000/get"
	for _, p := range []*Pod{server, near, far} {
		p.Enrolled(true)
	}
	for _, p := range []*Pod{near, far} {
		l.Until(15*time.Second, "httpbin to answer", func() error {
			if got := p.Curl(url, "-H", "Host: httpbin.foo:8000", "-m", "1"); got != "200 0" {
				return fmt.Errorf("%s", got)
			}
			return nil
		})
	}
	t.Run("RS-07 control: without the DestinationRule", func(t *testing.T) {
		for _, p := range []*Pod{near, far} {
			if got := p.fortio(url, 3, 30, 2); got != 0 {
				t.Errorf("%s: %.2f of the calls fail", p.Name, got)
			}
		}
	})
	l.Apply("dr", breaker)
	l.Until(10*time.Second, "the DestinationRule to count", func() error {
		if near.fortio(url, 3, 30, 1) == 0 || far.fortio(url, 3, 30, 1) == 0 {
			return fmt.Errorf("nothing fails")
		}
		return nil
	})
	for _, p := range []*Pod{near, far} {
		t.Run("RS-07 limits "+p.Name, func(t *testing.T) {
			few, many := p.fortio(url, 2, 20, rounds), p.fortio(url, 3, 30, rounds)
			if few == 0 || math.Abs(few-0.15) > tolerance || math.Abs(many-0.63) > tolerance || many < few+0.05 {
				t.Errorf("%.2f of the calls of two and %.2f of those of three fail", few, many)
			}
		})
		t.Run("RS-08 counts "+p.Name, func(t *testing.T) {
			const name = "cluster.outbound|8000||httpbin.foo.svc.cluster.local.upstream_rq_"
			overflow, good := p.counted(name+"pending_overflow"), p.counted(name+"200")
			refused := int(math.Round(p.fortio(url, 3, 30, 4) * 120))
			if n := p.counted(name+"pending_overflow") - overflow; n != refused {
				t.Errorf("%d of the calls fail, and upstream_rq_pending_overflow grows by %d", refused, n)
			}
			if n := p.counted(name+"200") - good; n != 120-refused {
				t.Errorf("%d of the calls are answered, and upstream_rq_200 grows by %d", 120-refused, n)
			}
		})
	}
	t.Run("RS-07 control: outside the mesh", func(t *testing.T) {
		if got := outside.fortio("http://"+server.Addr.String()+"/get", 3, 30, 2); got != 0 {
			t.Errorf("%.2f of the calls fail", got)
		}
	})
}
