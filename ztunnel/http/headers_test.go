package http

import (
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
)

const (
	byHTTPBin = "By=spiffe://cluster.local/ns/foo/sa/httpbin;Hash=0f0f"
	bySleep   = ";URI=spiffe://cluster.local/ns/foo/sa/sleep"
)

// TestClientCertModes: what each mode lets a client say, by who it is and on which side of the mesh. The caller's side lets it say nothing.
func TestClientCertModes(t *testing.T) {
	peer := &Peer{URI: "spiffe://cluster.local/ns/foo/sa/sleep", By: "spiffe://cluster.local/ns/foo/sa/httpbin", Hash: "0f0f"}
	const whole = byHTTPBin + `;Subject=""` + bySleep
	const said = "By=forged,By=forged2"
	for name, c := range map[string]struct {
		how                 Headers
		proved, nobody, leg string
	}{
		"SANITIZE_SET, the default":  {proved: whole, leg: whole},
		"SANITIZE":                   {how: Headers{ClientCert: CertNone}},
		"FORWARD_ONLY":               {how: Headers{ClientCert: CertForward}, proved: said},
		"APPEND_FORWARD":             {how: Headers{ClientCert: CertAppend}, proved: said + "," + whole, leg: whole},
		"ALWAYS_FORWARD_ONLY":        {how: Headers{ClientCert: CertAlways}, proved: said, nobody: said},
		"without subject":            {how: Headers{Without: CertSubject}, proved: byHTTPBin + bySleep, leg: byHTTPBin + bySleep},
		"without subject and URI":    {how: Headers{Without: CertSubject | CertURI}, proved: byHTTPBin, leg: byHTTPBin},
		"APPEND_FORWARD without URI": {how: Headers{ClientCert: CertAppend, Without: CertURI}, proved: said + "," + byHTTPBin + `;Subject=""`, leg: byHTTPBin + `;Subject=""`},
	} {
		for _, side := range []struct {
			name      string
			direction Direction
			peer, leg *Peer
			want      string
		}{
			{"proved", Inbound, peer, nil, c.proved}, {"nobody", Inbound, nil, nil, c.nobody}, {"without a name", Inbound, &Peer{}, nil, c.nobody},
			{"leg", Outbound, nil, peer, c.leg}, {"leg of nobody", Outbound, nil, &Peer{}, ""}, {"outbound", Outbound, nil, nil, ""},
		} {
			t.Run(name+"/"+side.name, func(t *testing.T) {
				inBubble(t, nil, func(t *testing.T, w *world) {
					w.flow.Headers = func() *Headers { return &c.how }
					w.flow.Direction, w.flow.Peer, w.leg = side.direction, side.peer, side.leg
					w.cluster("up", nil, echo)
					a := w.connect().get("GET / HTTP/1.1", "Host: a", "X-Forwarded-Client-Cert: By=forged", "x-forwarded-client-cert: By=forged2")
					if got := strings.Join(valuesOf(a.body, "x-forwarded-client-cert"), ","); got != side.want {
						t.Errorf("the host was told %q, want %q", got, side.want)
					}
				})
			})
		}
	}
}

// valuesOf are those of a field in the text of a request.
func valuesOf(text, name string) (out []string) {
	for line := range strings.SplitSeq(text, "\r\n") {
		if n, v, ok := strings.Cut(line, ": "); ok && strings.EqualFold(n, name) {
			out = append(out, v)
		}
	}
	return out
}

// TestHeaders: the fields of the proxy's own that a mesh can have left out, changed or added, in requests and answers.
func TestHeaders(t *testing.T) {
	const toOther = `{"match":{"prefix":"/"},"route":{"cluster":"up","timeout":"5s","prefixRewrite":"/new","hostRewriteLiteral":"other"}}`
	mine := "HTTP/1.1 200 OK\r\nServer: mine\r\nx-envoy-upstream-service-time: of the host\r\nContent-Length: 0\r\n\r\n"
	for name, c := range map[string]struct {
		how      Headers
		request  map[string]string // that the host sees
		response map[string]string
		none     string // server of an answer of the engine's own
	}{
		"default": {Headers{}, map[string]string{"x-request-id": "*", "x-envoy-original-path": "/a", "x-envoy-original-host": "a", "x-envoy-expected-rq-timeout-ms": "5000", "x-forwarded-port": ""},
			map[string]string{"server": "istio-envoy", "x-envoy-upstream-service-time": "0"}, "istio-envoy"},
		"request id": {Headers{NoRequestID: true}, map[string]string{"x-request-id": ""}, nil, "istio-envoy"},
		"debug": {Headers{NoDebug: true}, map[string]string{"x-request-id": "*", "x-envoy-original-path": "", "x-envoy-original-host": "", "x-envoy-expected-rq-timeout-ms": ""},
			map[string]string{"server": "istio-envoy", "x-envoy-upstream-service-time": "of the host"}, "istio-envoy"},
		"no server": {Headers{NoServer: true}, nil, map[string]string{"server": "mine"}, ""},
		"server":    {Headers{Server: "other"}, nil, map[string]string{"server": "other"}, "other"},
		"port":      {Headers{ForwardedPort: true}, map[string]string{"x-forwarded-port": "80"}, nil, "istio-envoy"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, nil, func(t *testing.T, w *world) {
				w.flow.Direction = Inbound
				w.flow.Headers = func() *Headers { return &c.how }
				w.routes("a", toOther)
				saw := make(chan string, 1)
				w.cluster("up", nil, seen(saw, mine))
				a := w.connect().get("GET /a HTTP/1.1", "Host: a")
				text := <-saw
				for name, want := range c.request {
					if got := strings.Join(valuesOf(text, name), ","); got != want && (want != "*" || got == "") {
						t.Errorf("the host was told %s: %q, want %q", name, got, want)
					}
				}
				for name, want := range c.response {
					if got := strings.Join(a.Header.Values(name), ","); got != want {
						t.Errorf("the client was told %s: %q, want %q", name, got, want)
					}
				}
				if got := w.connect().get("GET /a HTTP/1.1", "Host: b").Header.Get("Server"); got != c.none {
					t.Errorf("an answer of the engine's own is from %q, want %q", got, c.none)
				}
			})
		})
	}
}

// TestDecoratorOperationOfHosts: what a host says of its operation is for the proxy that asked it; the client's does not pass it on.
func TestDecoratorOperationOfHosts(t *testing.T) {
	for direction, want := range map[Direction]string{Outbound: "", Inbound: "theirs"} {
		inBubble(t, nil, func(t *testing.T, w *world) {
			w.flow.Direction = direction
			w.routes("a", toUp)
			w.cluster("up", nil, answers("HTTP/1.1 200 OK\r\nx-envoy-decorator-operation: theirs\r\nContent-Length: 0\r\n\r\n"))
			if got := w.connect().get("GET / HTTP/1.1", "Host: a").Header.Get("x-envoy-decorator-operation"); got != want {
				t.Errorf("direction %d: %q, want %q", direction, got, want)
			}
		})
	}
}

// TestRulesBeforeTries: what rules make of a head is what tries and balancing go by; and a cookie is made only where hosts are picked by it.
func TestRulesBeforeTries(t *testing.T) {
	const hashed = `"hashPolicy":[{"header":{"headerName":"x-key"},"terminal":true},{"cookie":{"name":"c","ttl":"0s"}}]`
	add := func(name, value string) string {
		return `,"requestHeadersToAdd":[{"header":{"key":"` + name + `","value":"` + value + `"}}]`
	}
	ring := func(c *clusterv3.Cluster) { c.LbPolicy = clusterv3.Cluster_RING_HASH }
	const busy = "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
	for name, c := range map[string]struct {
		rule, answer string
		change       func(*clusterv3.Cluster)
		cookie       bool
		dials        int
	}{
		"a key": {add("x-key", "1"), ok, ring, false, 1}, "control: no key": {"", ok, ring, true, 1}, "another policy": {"", ok, nil, false, 1},
		"tries": {add("x-envoy-retry-on", "5xx"), busy, nil, false, 2}, "control: no tries": {"", busy, nil, false, 1},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, nil, func(t *testing.T, w *world) {
				w.routes("a", `{"match":{"prefix":"/"},"route":{"cluster":"up",`+hashed+`}`+c.rule+`}`)
				w.cluster("up", c.change, answers(c.answer))
				got := w.connect().get("GET / HTTP/1.1", "Host: a").Header.Get("set-cookie")
				if (got != "") != c.cookie {
					t.Errorf("set-cookie: %q", got)
				}
				if w.dials != c.dials {
					t.Errorf("%d connections, want %d", w.dials, c.dials)
				}
			})
		})
	}
}

// TestForceTrace: a workload may have its own request traced, which is told the id; who calls one may not.
func TestForceTrace(t *testing.T) {
	for name, c := range map[string]struct {
		direction Direction
		host      string
		fields    []string
		want      string
	}{
		"asked for": {Outbound, "a", []string{"x-envoy-force-trace: "}, "1"}, "control": {Outbound, "a", nil, "0"}, "of a caller": {Inbound, "a", []string{"x-envoy-force-trace: 1"}, "0"},
		"decided before": {Outbound, "a", []string{"x-envoy-force-trace: 1", "x-b3-traceid: " + traceID, "x-b3-spanid: " + someID, "x-b3-sampled: 0"}, "0"},
		"no route":       {Outbound, "b", []string{"x-envoy-force-trace: 1"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, nil, func(t *testing.T, w *world) {
				w.flow.Direction, w.flow.Trace = c.direction, func() Trace { return Trace{On: true} }
				w.routes("a", toUp)
				saw := make(chan string, 1)
				w.cluster("up", nil, seen(saw, ok))
				got := w.connect().get(append([]string{"GET / HTTP/1.1", "Host: " + c.host, "x-request-id: 7"}, c.fields...)...).Header.Get("x-request-id")
				if told := len(c.fields) > 0 && c.direction == Outbound; told != (got == "7") {
					t.Errorf("the client is told %q", got)
				}
				if c.want != "" {
					if text := <-saw; strings.Join(valuesOf(text, "x-b3-sampled"), ",") != c.want {
						t.Errorf("sampled: %q, want %q", valuesOf(text, "x-b3-sampled"), c.want)
					}
				}
			})
		})
	}
}

// TestHeadersOfClientsStay: what a client says of the fields that the engine leaves alone, it says.
func TestHeadersOfClientsStay(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.flow.Headers = func() *Headers { return &Headers{NoRequestID: true, NoDebug: true, ForwardedPort: true} }
		saw := make(chan string, 1)
		w.cluster("up", nil, seen(saw, ok))
		w.connect().get("GET / HTTP/1.1", "Host: a", "x-request-id: 7", "x-forwarded-port: 1234", "x-envoy-original-path: /o", "x-envoy-expected-rq-timeout-ms: 3")
		text := <-saw
		for name, want := range map[string]string{"x-request-id": "7", "x-forwarded-port": "1234", "x-envoy-original-path": "/o", "x-envoy-expected-rq-timeout-ms": "3"} {
			if got := strings.Join(valuesOf(text, name), ","); got != want {
				t.Errorf("the host was told %s: %q, want %q", name, got, want)
			}
		}
	})
}
