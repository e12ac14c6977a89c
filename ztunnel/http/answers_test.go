package http

import (
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const resetBefore = "upstream connect error or disconnect/reset before headers. "

// silent reads a request and answers nothing.
func silent(c net.Conn) { _, _ = io.Copy(io.Discard, c) }

// TestAnswers is what a client and the log get where a host does not simply answer.
func TestAnswers(t *testing.T) {
	route := func(more string) string {
		return `{"name":"r","match":{"prefix":"/"},"route":{"cluster":"up"` + more + `}}`
	}
	retry := func(on string, n string) string {
		return route(`,"retryPolicy":{"retryOn":"` + on + `","numRetries":` + n + `}`)
	}
	for name, c := range map[string]struct {
		route, request string
		hosts          []func(net.Conn)
		change         func(*clusterv3.Cluster)
		status         int
		body, log      string
		header         string // name: value that the answer must have
		end            bool   // the connection ends
		dials          int
	}{
		"no route":            {route: `{"match":{"prefix":"/other"},"route":{"cluster":"up"}}`, status: 404, log: "404 NR route_not_found"},
		"no route post":       {route: `{"match":{"prefix":"/other"},"route":{"cluster":"up"}}`, request: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", status: 404, log: "404 NR route_not_found", end: true},
		"no virtual host":     {request: "GET / HTTP/1.1\r\nHost: b\r\n\r\n", status: 404, log: "404 NR route_not_found"},
		"no cluster":          {route: `{"match":{"prefix":"/"},"route":{"cluster":"missing"}}`, status: 503, log: "503 NC cluster_not_found"},
		"no hosts":            {status: 503, body: "no healthy upstream", log: "503 UH no_healthy_upstream", header: "content-type: text/plain"},
		"refused":             {hosts: []func(net.Conn){nil}, status: 503, body: resetBefore + "reset reason: remote connection failure", log: "503 UF upstream_reset_before_response_started{remote_connection_failure|nobody_is_there}", dials: 1},
		"refused retried":     {route: retry("connect-failure", "2"), hosts: []func(net.Conn){nil}, status: 503, body: resetBefore + "retried and the latest reset reason: remote connection failure", log: "503 URX,UF upstream_reset_before_response_started{remote_connection_failure|nobody_is_there}", dials: 3},
		"ends":                {hosts: []func(net.Conn){answers()}, status: 503, body: resetBefore + "reset reason: connection termination", log: "503 UC upstream_reset_before_response_started{connection_termination}"},
		"cut off":             {route: retry("connect-failure", "2"), hosts: []func(net.Conn){answers()}, status: 503, body: resetBefore + "retried and the latest reset reason: connection termination", log: "503 URX,UC upstream_reset_before_response_started{connection_termination}", dials: 3},
		"cut off then good":   {route: retry("connect-failure", "2"), hosts: []func(net.Conn){answers(), answers(ok)}, status: 200, body: "ok", log: "200 - via_upstream"},
		"cut off post":        {route: retry("connect-failure", "2"), request: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\na", hosts: []func(net.Conn){answers()}, status: 503, body: resetBefore + "reset reason: connection termination", log: "503 UC upstream_reset_before_response_started{connection_termination}", dials: 1},
		"garbage":             {hosts: []func(net.Conn){answers("SSH-2.0-x\r\n\r\n")}, status: 502, body: resetBefore + "reset reason: protocol error", log: "502 UPE upstream_reset_before_response_started{protocol_error}"},
		"204 with body":       {hosts: []func(net.Conn){answers("HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\nabc")}, status: 502, log: "502 UPE upstream_reset_before_response_started{protocol_error}", body: resetBefore + "reset reason: protocol error"},
		"101 unasked":         {hosts: []func(net.Conn){answers("HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")}, status: 502, log: "502 UPE upstream_reset_before_response_started{protocol_error}", body: resetBefore + "reset reason: protocol error"},
		"100 and 103":         {hosts: []func(net.Conn){answers("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" + ok)}, status: 200, body: "ok", log: "200 - via_upstream"},
		"until close":         {hosts: []func(net.Conn){answers("HTTP/1.0 200 OK\r\nX-A: b\r\n\r\nuntil-close")}, status: 200, body: "until-close", log: "200 - via_upstream", header: "x-a: b"},
		"chunked":             {hosts: []func(net.Conn){answers("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nT: u\r\n\r\n")}, status: 200, body: "abcde", log: "200 - via_upstream"},
		"mid body":            {hosts: []func(net.Conn){answers("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")}, status: 200, body: "half <unexpected EOF>", log: "200 UPE upstream_reset_after_response_started{protocol_error}", end: true},
		"mid chunk":           {hosts: []func(net.Conn){answers("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")}, status: 200, body: "half <unexpected EOF>", log: "200 UPE upstream_reset_after_response_started{protocol_error}", end: true},
		"retried 503":         {route: retry("5xx", "2"), hosts: []func(net.Conn){answers("HTTP/1.1 503 S\r\nContent-Length: 4\r\n\r\nbusy")}, status: 503, body: "busy", log: "503 URX via_upstream", dials: 3},
		"retried then good":   {route: retry("5xx", "2"), hosts: []func(net.Conn){answers("HTTP/1.1 503 S\r\nContent-Length: 4\r\n\r\nbusy"), answers(ok)}, status: 200, body: "ok", log: "200 - via_upstream"},
		"timeout":             {route: route(`,"timeout":"0.3s"`), hosts: []func(net.Conn){silent}, status: 504, body: "upstream request timeout", log: "504 UT response_timeout"},
		"per try timeout":     {route: route(`,"retryPolicy":{"retryOn":"5xx,reset","numRetries":1,"perTryTimeout":"0.2s"}`), hosts: []func(net.Conn){silent}, status: 504, body: "upstream request timeout", log: "504 URX,UT upstream_per_try_timeout", dials: 2},
		"idle timeout":        {route: route(`,"idleTimeout":"0.3s"`), hosts: []func(net.Conn){silent}, status: 504, body: "stream timeout", log: "504 SI stream_idle_timeout"},
		"max duration":        {route: route(`,"maxStreamDuration":{"maxStreamDuration":"0.3s"}`), hosts: []func(net.Conn){silent}, status: 504, body: "downstream duration timeout", log: "504 - max_duration_timeout"},
		"204 for 504":         {request: "GET / HTTP/1.1\r\nHost: a\r\nx-envoy-upstream-rq-timeout-alt-response: x\r\nx-envoy-upstream-rq-timeout-ms: 50\r\n\r\n", hosts: []func(net.Conn){silent}, status: 204, log: "204 UT response_timeout"},
		"204 for a try":       {route: route(`,"retryPolicy":{"retryOn":"reset","numRetries":1,"perTryTimeout":"0.2s"}`), request: "GET / HTTP/1.1\r\nHost: a\r\nx-envoy-upstream-rq-timeout-alt-response: x\r\n\r\n", hosts: []func(net.Conn){silent}, status: 204, log: "204 URX,UT upstream_per_try_timeout", dials: 2},
		"204 for an idle try": {route: route(`,"retryPolicy":{"retryOn":"reset","numRetries":1,"perTryIdleTimeout":"0.2s"}`), request: "GET / HTTP/1.1\r\nHost: a\r\nx-envoy-upstream-rq-timeout-alt-response: x\r\n\r\n", hosts: []func(net.Conn){silent}, status: 204, log: "204 URX,UT upstream_per_try_idle_timeout", dials: 2},
		"no 204 for idleness": {route: route(`,"idleTimeout":"0.3s"`), request: "GET / HTTP/1.1\r\nHost: a\r\nx-envoy-upstream-rq-timeout-alt-response: x\r\n\r\n", hosts: []func(net.Conn){silent}, status: 504, body: "stream timeout", log: "504 SI stream_idle_timeout"},
		"one try's duration":  {request: "GET / HTTP/1.1\r\nHost: a\r\nx-envoy-upstream-stream-duration-ms: 50\r\n\r\n", hosts: []func(net.Conn){silent}, status: 504, body: "upstream max stream duration reached", log: "504 UMSDR upstream_max_stream_duration_reached", dials: 1},
		"duration retried":    {route: retry("reset", "1"), request: "GET / HTTP/1.1\r\nHost: a\r\nx-envoy-upstream-stream-duration-ms: 50\r\n\r\n", hosts: []func(net.Conn){silent}, status: 504, body: "upstream max stream duration reached", log: "504 URX,UMSDR upstream_max_stream_duration_reached", dials: 2},
		"duration, then good": {route: retry("5xx", "1"), request: "GET / HTTP/1.1\r\nHost: a\r\nx-envoy-upstream-stream-duration-ms: 50\r\n\r\n", hosts: []func(net.Conn){silent, answers(ok)}, status: 200, body: "ok", log: "200 - via_upstream"},
		"the cluster's":       {hosts: []func(net.Conn){silent}, change: streams(50 * time.Millisecond), status: 504, body: "upstream max stream duration reached", log: "504 UMSDR upstream_max_stream_duration_reached"},
		"duration mid body":   {hosts: []func(net.Conn){answersAndStays("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")}, change: streams(50 * time.Millisecond), status: 200, body: "half <unexpected EOF>", log: "200 UMSDR upstream_max_stream_duration_reached", end: true},
		"duration none":       {route: route(`,"timeout":"0.3s"`), request: "GET / HTTP/1.1\r\nHost: a\r\nx-envoy-upstream-stream-duration-ms: 0\r\n\r\n", hosts: []func(net.Conn){silent}, change: streams(50 * time.Millisecond), status: 504, body: "upstream request timeout", log: "504 UT response_timeout"},
		"duration, body open": {request: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nx-envoy-upstream-stream-duration-ms: 50\r\n\r\na", hosts: []func(net.Conn){silent}, status: 408, body: "upstream max stream duration reached", log: "408 UMSDR upstream_max_stream_duration_reached", end: true},
		"own timeout":         {request: "GET / HTTP/1.1\r\nHost: a\r\nx-envoy-upstream-rq-timeout-ms: 50\r\n\r\n", hosts: []func(net.Conn){silent}, status: 504, body: "upstream request timeout", log: "504 UT response_timeout"},
		"overflow":            {hosts: []func(net.Conn){answers(ok)}, change: noRequests, status: 503, body: resetBefore + "reset reason: overflow", log: "503 UO upstream_reset_before_response_started{overflow}", header: "x-envoy-overloaded: true"},
		"redirect":            {route: `{"match":{"prefix":"/"},"redirect":{"pathRedirect":"/new","responseCode":"FOUND"}}`, status: 302, log: "302 - direct_response", header: "location: http://a/new"},
		"direct":              {route: `{"match":{"prefix":"/"},"directResponse":{"status":418,"body":{"inlineString":"teapot"}}}`, status: 418, body: "teapot", log: "418 - direct_response", header: "content-type: text/plain"},
		"direct 204":          {route: `{"match":{"prefix":"/"},"directResponse":{"status":204,"body":{"inlineString":"no body"}}}`, status: 204, log: "204 - direct_response"},
		"direct 304":          {route: `{"match":{"prefix":"/"},"directResponse":{"status":304,"body":{"inlineString":"no body"}}}`, status: 304, log: "304 - direct_response"},
		"direct without":      {route: `{"match":{"prefix":"/"},"directResponse":{"status":404}}`, status: 404, log: "404 - direct_response"},
		"no host":             {request: "GET / HTTP/1.1\r\n\r\n", status: 400, log: "400 - missing_host_header", end: true},
		"fragment":            {request: "GET /#a HTTP/1.1\r\nHost: a\r\n\r\n", status: 400, log: "400 - path_normalization_failed", end: true},
		"star":                {request: "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", status: 404, log: "404 - absolute_path_rejected"},
		"bad":                 {request: "GET / HTTP/1.1\r\nHost : a\r\n\r\n", status: 400, body: "Bad Request", log: "400 DPE http1.codec_error", header: "content-type: text/plain", end: true},
		"large":               {request: "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("h", 61<<10) + "\r\n\r\n", status: 431, body: "Request Header Fields Too Large", log: "431 DPE http1.headers_too_large", end: true},
		"large enough":        {request: "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("h", 59<<10) + "\r\n\r\n", hosts: []func(net.Conn){answers(ok)}, status: 200, body: "ok", log: "200 - via_upstream"},
		"version":             {request: "GET / HTTP/1.0\r\nHost: a\r\n\r\n", status: 426, body: "Upgrade Required", log: "426 DPE low_version", end: true},
		"upgrade to other":    {request: "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\n", status: 403, log: "403 - upgrade_failed", end: true},
		"upgrade with a body": {request: "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n\r\nhello", status: 400, log: "400 - upgrade_with_body", end: true},
		"connect with a body": {request: "CONNECT a:80 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello", status: 400, log: "400 - upgrade_with_body", end: true},
		"connect":             {request: "CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", status: 404, log: "404 NR route_not_found", end: true},
		"chunk of the body":   {request: "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", hosts: []func(net.Conn){silent}, status: 400, body: "Bad Request", log: "400 DPE http1.codec_error", end: true},
		"stale for a post":    {request: "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\na", hosts: []func(net.Conn){answers()}, status: 503, body: resetBefore + "reset reason: connection termination", log: "503 UC upstream_reset_before_response_started{connection_termination}"},
		"head":                {request: "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", hosts: []func(net.Conn){answers("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n")}, status: 200, log: "200 - via_upstream", header: "content-length: 7"},
		"head to no route":    {request: "HEAD / HTTP/1.1\r\nHost: b\r\n\r\n", status: 404, log: "404 NR route_not_found"},
		"304":                 {hosts: []func(net.Conn){answers("HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n")}, status: 304, log: "304 - via_upstream"},
		"close":               {request: "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", hosts: []func(net.Conn){answers(ok)}, status: 200, body: "ok", log: "200 - via_upstream", end: true},
		"the host's close":    {hosts: []func(net.Conn){answers("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")}, status: 200, body: "ok", log: "200 - via_upstream"},
		"unsolicited second":  {hosts: []func(net.Conn){answers(ok + ok)}, status: 200, body: "ok", log: "200 - via_upstream"},
		"path made canonical": {request: "GET /a/x/%2e%2e/b//%7Ec?/../ HTTP/1.1\r\nHost: a\r\n\r\n", hosts: []func(net.Conn){echo}, status: 200, log: "200 - via_upstream", body: "*GET /a/b//~c?/../ HTTP/1.1"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				text := c.route
				if text == "" {
					text = route("")
				}
				w.routes("a", text)
				w.cluster("up", c.change, c.hosts...)
				request := c.request
				if request == "" {
					request = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
				}
				client := w.connect()
				client.send(request)
				method, _, _ := strings.Cut(request, " ")
				a := client.read(method)
				if want, prefix := strings.CutPrefix(c.body, "*"); a.StatusCode != c.status || prefix && !strings.HasPrefix(a.body, want) || !prefix && a.body != c.body {
					t.Errorf("%d %q, want %d %q", a.StatusCode, a.body, c.status, c.body)
				}
				if name, value, ok := strings.Cut(c.header, ": "); ok && a.Header.Get(name) != value {
					t.Errorf("%s is not in %v", c.header, a.Header)
				}
				if c.end != (a.Close || strings.Contains(a.body, "EOF")) {
					t.Errorf("close is said: %v", a.Close)
				}
				if got := w.log(1)[0]; got != c.log {
					t.Errorf("log %q, want %q", got, c.log)
				}
				if c.dials != 0 && w.dials != c.dials {
					t.Errorf("%d connections to hosts, want %d", w.dials, c.dials)
				}
				if c.end {
					if !client.over() {
						t.Error("the connection goes on")
					}
				} else if strings.HasPrefix(request, "GET") { // the connection is good for more
					client.send("GET / HTTP/1.1\r\nHost: nobody\r\n\r\n")
					if a := client.read("GET"); a.StatusCode != 404 {
						t.Errorf("next: %d", a.StatusCode)
					}
				}
				_ = client.Close()
				synctest.Wait()
				w.close()
			})
		})
	}
}

// streams limits how long streams to hosts take.
func streams(most time.Duration) func(*clusterv3.Cluster) {
	return func(c *clusterv3.Cluster) {
		c.CommonHttpProtocolOptions = &corev3.HttpProtocolOptions{MaxStreamDuration: durationpb.New(most)} //nolint:staticcheck // the short form
	}
}

// answersAndStays answers, and leaves the connection open.
func answersAndStays(text string) func(net.Conn) {
	return func(c net.Conn) {
		answers(text)(c)
		silent(c)
	}
}

func noRequests(c *clusterv3.Cluster) {
	c.CircuitBreakers = &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{MaxRequests: wrapperspb.UInt32(0)}}}
}

// TestNoTryAfterHint: once a host has sent an informational answer, no other is asked, as with Envoy; and a head that is cut off is
// against the protocol.
func TestNoTryAfterHint(t *testing.T) {
	const hint, down = "HTTP/1.1 103 Early Hints\r\n\r\n", "HTTP/1.1 503 Down\r\nContent-Length: 0\r\n\r\n"
	for _, tc := range []struct{ name, first, log string }{
		{"control: no hint", down, "200 - via_upstream"},
		{"503", hint + down, "503 - via_upstream"},
		{"end", hint, "503 UC upstream_reset_after_response_started{connection_termination}"},
		{"garbage", hint + "garbage\r\n\r\n", "502 UPE upstream_reset_after_response_started{protocol_error}"},
		{"half a head", hint + "HTTP/1.1 200 OK\r\nx", "502 UPE upstream_reset_after_response_started{protocol_error}"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, nil, func(t *testing.T, w *world) {
				w.routes("a", `{"match":{"prefix":"/"},"route":{"cluster":"up","retryPolicy":{"retryOn":"5xx,reset","numRetries":1}}}`)
				tries := 0
				w.cluster("up", nil, func(c net.Conn) {
					if tries++; tries == 1 {
						answers(tc.first)(c)
					} else {
						answers(ok)(c)
					}
				})
				w.connect().get("GET / HTTP/1.1", "Host: a")
				if l := w.log(1)[0]; l != tc.log {
					t.Errorf("log %q, want %q", l, tc.log)
				}
			})
		})
	}
}
