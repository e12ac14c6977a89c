package route_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/undermesh/undermesh/ztunnel/http/head"
	"github.com/undermesh/undermesh/ztunnel/http/route"
)

// sent is what goes upstream of a request under an action: path, authority and fields.
func sent(t *testing.T, more string, req *head.Request) string {
	t.Helper()
	v := host(t, more)
	in := &route.Input{Source: netip.MustParseAddrPort("10.0.0.1:1234"), Start: time.Unix(1, 5e6)}
	r := v.Match(req, in)
	if r == nil {
		t.Fatal("no match")
	}
	r.Request(req, r.Pick(req, in), in)
	out := string(req.Authority) + " " + string(req.Path)
	if f := text(&req.Fields); f != "" {
		out += "\n" + f
	}
	return out
}

func TestRewrite(t *testing.T) {
	for _, c := range []struct{ match, action, authority, path, want string }{
		{`"prefix":"/a"`, `"prefixRewrite":"/b"`, "h", "/a/c?q", "h /b/c?q"},
		{`"prefix":"/a/"`, `"prefixRewrite":"/"`, "h", "/a/c", "h /c"},
		{`"path":"/a"`, `"prefixRewrite":"/b"`, "h", "/a?q", "h /b?q"},
		{`"safeRegex":{"regex":"/a.*"}`, `"prefixRewrite":"/b"`, "h", "/abc?q", "h /b?q"},
		{`"prefix":"/"`, `"regexRewrite":{"pattern":{"regex":"^/service/([^/]+)(/.*)$"},"substitution":"\\2/instance/\\1"}`, "h", "/service/foo/v1/api?x", "h /v1/api/instance/foo?x"},
		{`"prefix":"/"`, `"regexRewrite":{"pattern":{"regex":"one"},"substitution":"two\\\\"}`, "h", "/xxx/one/yyy/one/zzz", `h /xxx/two\/yyy/two\/zzz`},
		{`"prefix":"/"`, `"hostRewriteLiteral":"new"`, "h:80", "/", "new /"},
		{`"prefix":"/"`, `"hostRewriteHeader":"x-h"`, "h", "/", "h /"},
		{`"prefix":"/"`, `"hostRewritePathRegex":{"pattern":{"regex":"^/(.+)/.+$"},"substitution":"\\1"}`, "h", "/a/b?c", "a /a/b?c"},
	} {
		got := sent(t, `{"match":{`+c.match+`},"route":{"cluster":"c",`+c.action+`}}`, request("GET", c.authority, c.path))
		line, fields, _ := strings.Cut(got, "\n")
		var told []string
		if host, path, _ := strings.Cut(c.want, " "); host != c.authority {
			told = append(told, "x-envoy-original-host: "+c.authority)
		} else if path != c.path {
			told = append(told, "x-envoy-original-path: "+c.path)
		}
		if line != c.want || fields != strings.Join(told, "\n") {
			t.Errorf("%s: %q becomes %q, want %q and %q", c.action, c.path, got, c.want, told)
		}
	}
	got := sent(t, `{"match":{"prefix":"/"},"route":{"cluster":"c","hostRewriteLiteral":"new","appendXForwardedHost":true}}`,
		request("GET", "h", "/", "x-forwarded-host: a,b"))
	if want := "new /\nx-forwarded-host: a,b,h\nx-envoy-original-host: h"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestRewriteAmongParameters: where parameters count for nothing, a path is left that has some in the midst of what was matched.
func TestRewriteAmongParameters(t *testing.T) {
	for _, c := range []struct{ match, path, want string }{
		{`"prefix":"/a/"`, "/a/b?q", "/new/b?q"}, {`"prefix":"/a/"`, "/a/b;p=1/c", "/new/b;p=1/c"}, {`"prefix":"/a/"`, "/a;p=1/b?q", "/a;p=1/b?q"},
		{`"prefix":"/a"`, "/a;p=1/b", "/new/;p=1/b"}, {`"path":"/a/b"`, "/a;p=1/b", "/a;p=1/b"}, {`"path":"/a/b"`, "/a/b;p=1", "/new/;p=1"},
		{`"prefix":"/A/","caseSensitive":false`, "/a/b", "/new/b"}, {`"safeRegex":{"regex":"/a/b"}`, "/a;p=1/b?q", "/new/?q"},
	} {
		var m routev3.RouteConfiguration
		if err := protojson.Unmarshal([]byte(`{"ignorePathParametersInPathMatching":true,"virtualHosts":[{"name":"v","domains":["*"],"routes":[
			{"match":{`+c.match+`},"route":{"cluster":"c","prefixRewrite":"/new/"}}]}]}`), &m); err != nil {
			t.Fatal(err)
		}
		config, err := route.CompileConfig(&m)
		if err != nil {
			t.Fatal(err)
		}
		req, in := request("GET", "h", c.path), &route.Input{}
		r := config.Find(req.Authority, in).Match(req, in)
		if r == nil {
			t.Fatalf("%s does not match %s", c.match, c.path)
		}
		r.Request(req, route.Target{Cluster: "c"}, in)
		if told := req.Has(head.XEnvoyOriginalPath); string(req.Path) != c.want || told != (c.want != c.path) {
			t.Errorf("%s: %s becomes %s, want %s; the old one is told: %v", c.match, c.path, req.Path, c.want, told)
		}
	}
}

// TestOperations: fields go, are replaced, then added, the most specific level first; values are made before anything changes.
func TestOperations(t *testing.T) {
	ops := func(list ...string) string { return `"requestHeadersToAdd":[` + strings.Join(list, ",") + `]` }
	op := func(key, value, action string) string {
		return fmt.Sprintf(`{"header":{"key":%q,"value":%q},"appendAction":%q}`, key, value, action)
	}
	const add, absent, over, exists = "APPEND_IF_EXISTS_OR_ADD", "ADD_IF_ABSENT", "OVERWRITE_IF_EXISTS_OR_ADD", "OVERWRITE_IF_EXISTS"
	for _, c := range []struct{ ops, want string }{
		{ops(op("x", "2", add)), "x: 1\nX: y\nx: 2"},
		{ops(op("x", "2", absent), op("z", "3", absent)), "x: 1\nX: y\nz: 3"},
		{ops(op("x", "2", over)), "x: 2"},
		{ops(op("x", "2", exists), op("z", "3", exists)), "x: 2"},
		{ops(op("z", "%REQ(x)%", add), op("x", "n", over)), "x: n\nz: 1"},
		{ops(op("z", "%REQ(no)%", add), op("w", "%REQ(no?x)%-%REQ(x):1%", add)), "x: 1\nX: y\nw: 1-1"},
		{ops(op("z", "%%%DOWNSTREAM_REMOTE_ADDRESS%", add)), "x: 1\nX: y\nz: %10.0.0.1:1234"},
		{ops(op("z", "%START_TIME%|%START_TIME(%s)%|%PROTOCOL%", add)), "x: 1\nX: y\nz: 1970-01-01T00:00:01.005Z|1|HTTP/1.1"},
		{`"requestHeadersToRemove":["X"],` + ops(op("x", "3", absent)), "x: 3"},
		{`"requestHeadersToAdd":[{"header":{"key":"z"},"keepEmptyValue":true}]`, "x: 1\nX: y\nz: "},
		{`"requestHeadersToAdd":[{"header":{"key":"x","value":"2"},"append":false}]`, "x: 2"},
	} {
		got := sent(t, `{"match":{"prefix":"/"},"route":{"cluster":"c"},`+c.ops+`}`, request("GET", "h", "/", "x: 1", "X: y"))
		if want := "h /\n" + c.want; got != want {
			t.Errorf("%s:\n%s\nwant\n%s", c.ops, got, want)
		}
	}
}

func TestRedirect(t *testing.T) {
	for _, c := range []struct{ redirect, authority, path, want string }{
		{`"hostRedirect":"n"`, "h:80", "/a?q", "http://n/a?q"},
		{`"httpsRedirect":true`, "h:80", "/", "https://h/"},
		{`"httpsRedirect":true`, "h:8080", "/", "https://h:8080/"},
		{`"httpsRedirect":true,"portRedirect":8443`, "h:80", "/", "https://h:8443/"},
		{`"portRedirect":8080`, "[::1]:90", "/", "http://[::1]:8080/"},
		{`"pathRedirect":"/new"`, "h", "/a?q", "http://h/new?q"},
		{`"pathRedirect":"/new?x"`, "h", "/a?q", "http://h/new?x"},
		{`"pathRedirect":"/new","stripQuery":true`, "h", "/a?q", "http://h/new"},
		{`"prefixRewrite":"/b"`, "h", "/a?q", "http://h/ba?q"},
		{`"regexRewrite":{"pattern":{"regex":"a"},"substitution":"b"}`, "h", "/aa?a", "http://h/bb?a"},
	} {
		v := host(t, `{"match":{"prefix":"/"},"redirect":{`+c.redirect+`}}`)
		req := request("GET", c.authority, c.path, "x-forwarded-proto: http")
		if got := string(v.Match(req, &route.Input{}).Redirect.Location(nil, req, &route.Input{})); got != c.want {
			t.Errorf("%s: %s, want %s", c.redirect, got, c.want)
		}
	}
}

func TestTimeouts(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct {
		action string
		fields string // several divided by "; "
		want   route.Timeouts
		told   string
	}{
		{``, "", route.Timeouts{Global: 15 * time.Second, Stream: -1}, "x-envoy-expected-rq-timeout-ms: 15000"},
		{`,"timeout":"0s"`, "", route.Timeouts{Stream: -1}, ""},
		{`,"timeout":"3s"`, "x-envoy-upstream-rq-timeout-ms: 50", route.Timeouts{Global: 50 * ms, Stream: -1}, "x-envoy-expected-rq-timeout-ms: 50"},
		{`,"timeout":"3s"`, "x-envoy-upstream-rq-timeout-ms: x", route.Timeouts{Global: 3 * time.Second, Stream: -1}, "x-envoy-expected-rq-timeout-ms: 3000"},
		{`,"timeout":"3s","retryPolicy":{"perTryTimeout":"1s"}`, "", route.Timeouts{Global: 3 * time.Second, PerTry: time.Second, Stream: -1}, "x-envoy-expected-rq-timeout-ms: 1000"},
		{`,"timeout":"3s","retryPolicy":{"perTryTimeout":"4s"}`, "", route.Timeouts{Global: 3 * time.Second, Stream: -1}, "x-envoy-expected-rq-timeout-ms: 3000"},
		{`,"maxStreamDuration":{"maxStreamDuration":"2s"}`, "", route.Timeouts{Stream: 2 * time.Second}, ""},
		{`,"maxStreamDuration":{"maxStreamDuration":"2s"}`, "x-envoy-upstream-stream-duration-ms: 50", route.Timeouts{Stream: 2 * time.Second, TryStream: 50 * ms}, ""},
		{`,"timeout":"0s"`, "x-envoy-upstream-stream-duration-ms: 5x", route.Timeouts{Stream: -1}, ""},
		{`,"timeout":"0s"`, "x-envoy-upstream-stream-duration-ms: -5", route.Timeouts{Stream: -1}, ""},
		{`,"timeout":"0s"`, "x-envoy-upstream-rq-timeout-alt-response: x", route.Timeouts{Stream: -1, NoContent: true}, ""},
		{`,"timeout":"3s"`, "x-envoy-upstream-rq-timeout-ms: 50; x-envoy-upstream-rq-timeout-ms: 50", route.Timeouts{Global: 3 * time.Second, Stream: -1}, "x-envoy-expected-rq-timeout-ms: 3000"},
		{`,"timeout":"3s"`, "x-envoy-upstream-rq-per-try-timeout-ms: 50; x-envoy-upstream-rq-per-try-timeout-ms: 60", route.Timeouts{Global: 3 * time.Second, Stream: -1}, "x-envoy-expected-rq-timeout-ms: 3000"},
		{`,"timeout":"0s"`, "x-envoy-upstream-stream-duration-ms: 5; x-envoy-upstream-stream-duration-ms: 5", route.Timeouts{Stream: -1}, ""},
		{`,"timeout":"0s"`, "x-envoy-upstream-alt-stat-name: mine", route.Timeouts{Stream: -1}, ""},
	} {
		v := host(t, `{"match":{"prefix":"/"},"route":{"cluster":"c"`+c.action+`}}`)
		req := request("GET", "h", "/")
		if c.fields != "" {
			add(&req.Fields, strings.Split(c.fields, "; "))
		}
		if c.want.TryStream == 0 {
			c.want.TryStream = -1 // not said
		}
		if got := v.Match(req, &route.Input{}).Timeouts(req, false); got != c.want || text(&req.Fields) != c.told {
			t.Errorf("%s %s: %+v %q, want %+v %q", c.action, c.fields, got, text(&req.Fields), c.want, c.told)
		}
	}
}

func TestRetry(t *testing.T) {
	v := host(t, `{"match":{"prefix":"/"},"route":{"cluster":"c","retryPolicy":{"retryOn":"gateway-error,retriable-status-codes,unavailable,connect-failure","numRetries":3,
		"retriableStatusCodes":[418],"retryBackOff":{"baseInterval":"0.010s","maxInterval":"0.030s"}}}}`)
	in := &route.Input{}
	req := request("GET", "h", "/", "x-envoy-max-retries: 2", "x-envoy-retry-on: retriable-4xx")
	retry := v.Match(req, in).Retry(req, in)
	if retry.Left != 2 || text(&req.Fields) != "" {
		t.Errorf("%d left, fields %q", retry.Left, text(&req.Fields))
	}
	for status, want := range map[int]bool{200: false, 409: true, 418: true, 500: false, 502: true, 503: true, 504: true, 505: false} {
		var resp head.Response
		resp.Status = status
		if got := retry.Head(&resp, in); got != want {
			t.Errorf("%d: %v", status, got)
		}
	}
	var resp head.Response
	resp.Status = 200
	resp.AddString(head.GRPCStatus, "14")
	if !retry.Head(&resp, in) {
		t.Error("grpc-status 14 is not tried again")
	}
	if retry.Failed(route.FailedOverflow, false) || !retry.Failed(route.FailedConnect, false) || !retry.Failed(route.FailedReset, true) {
		t.Error("failures")
	}
	var waits []time.Duration
	for range 3 {
		waits = append(waits, retry.BackOff(1<<63-1)) // odd: one below a multiple of few
	}
	for i, most := range []time.Duration{10, 20, 30} {
		if waits[i] < 0 || waits[i] >= most*time.Millisecond {
			t.Errorf("wait %d is %s", i, waits[i])
		}
	}
	if retry := host(t, to("n", `"prefix":"/"`)).Routes[0].Retry(request("GET", "h", "/"), in); retry.Left != 0 || retry.Enabled() {
		t.Error("a route without a policy tries again")
	}
}

func TestHash(t *testing.T) {
	hash := func(policy string, fields ...string) route.Hash {
		v := host(t, `{"match":{"prefix":"/"},"route":{"cluster":"c","hashPolicy":[`+policy+`]}}`)
		in := &route.Input{Source: netip.MustParseAddrPort("10.0.0.1:1"), Destination: netip.MustParseAddrPort("10.0.0.2:80")}
		req := request("GET", "h", "/?q=1", fields...)
		return v.Match(req, in).Hash(req, in)
	}
	if h := hash(`{"header":{"headerName":"x"}}`); h.Set {
		t.Error("a header that is not there is hashed")
	}
	a, b := hash(`{"header":{"headerName":"x"}}`, "x: 1", "x: 2"), hash(`{"header":{"headerName":"X"}}`, "x: 2", "x: 1")
	if !a.Set || a.Value != b.Value || a.Value == hash(`{"header":{"headerName":"x"}}`, "x: 1").Value {
		t.Error("the order of values counts, or their number does not")
	}
	cookie := `{"cookie":{"name":"u","ttl":"0s","path":"/p"}}`
	if h := hash(cookie); !h.Set || len(h.Cookie) != 1 || !strings.HasPrefix(h.Cookie[0], `u="`) || !strings.HasSuffix(h.Cookie[0], `"; Path=/p; HttpOnly`) {
		t.Errorf("generated %+v", h)
	} else if again := hash(cookie, "cookie: a=b; u="+h.Cookie[0][3:19]); again.Value != h.Value || again.Cookie != nil {
		t.Errorf("the cookie leads to %+v", again)
	}
	with := `{"cookie":{"name":"u","ttl":"60s","path":"/","attributes":[{"name":"SameSite","value":"Strict"},{"name":"Secure"}]}}`
	if h := hash(with); len(h.Cookie) != 1 || !strings.HasSuffix(h.Cookie[0], `"; Max-Age=60; Path=/; SameSite=Strict; Secure; HttpOnly`) {
		t.Errorf("with attributes: %+v", h)
	}
	if h := hash(`{"cookie":{"name":"u"}}`); h.Set {
		t.Error("a cookie is made without a ttl")
	}
	if one, two := hash(`{"connectionProperties":{"sourceIp":true},"terminal":true},{"queryParameter":{"name":"q"}}`), hash(`{"connectionProperties":{"sourceIp":true}}`); one.Value != two.Value {
		t.Error("terminal does not end")
	}
}

func TestFault(t *testing.T) {
	fault := func(text string) *route.Fault {
		v := host(t, `{"match":{"prefix":"/"},"route":{"cluster":"c"},"typedPerFilterConfig":{"envoy.filters.http.fault":{"@type":"type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",`+text+`}}}`)
		return v.Routes[0].Fault
	}
	in := &route.Input{}
	f := fault(`"delay":{"fixedDelay":"5s","percentage":{"numerator":1000,"denominator":"MILLION"}},"abort":{"httpStatus":500,"percentage":{"numerator":50}},"headers":[{"name":"u","stringMatch":{"exact":"jason"}}]`)
	if f.Applies(request("GET", "h", "/"), route.Target{}, in) || !f.Applies(request("GET", "h", "/", "u: jason"), route.Target{}, in) {
		t.Error("the header is not asked for")
	}
	delays, aborts, r := 0, 0, rand.New(rand.NewPCG(1, 2))
	for range 1_000_000 {
		if f.Delay(r.Uint64()) == 5*time.Second {
			delays++
		}
		if a := f.Abort(r.Uint64()); a != nil && a.Status == 500 && a.GRPC == -1 {
			aborts++
		}
	}
	if delays < 850 || delays > 1150 || aborts < 497_000 || aborts > 503_000 {
		t.Errorf("%d delays, %d aborts of a million", delays, aborts)
	}
	var none *route.Fault
	if none.Applies(request("GET", "h", "/"), route.Target{}, in) || none.Delay(0) != 0 || none.Abort(0) != nil {
		t.Error("no fault does something")
	}
}

func TestCORS(t *testing.T) {
	v := host(t, `{"match":{"prefix":"/"},"route":{"cluster":"c"},"typedPerFilterConfig":{"envoy.filters.http.cors":{"@type":"type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy",
		"allowOriginStringMatch":[{"exact":"http://o"}],"allowMethods":"GET,PUT","allowHeaders":"*","maxAge":"60","exposeHeaders":"x-e","allowCredentials":true}}}`)
	c := v.Routes[0].CORS
	ask := func(fields ...string) (string, bool) {
		var resp head.Response
		origin, answered := c.Request(request("OPTIONS", "h", "/", fields...), 0, &route.Input{}, &resp)
		if !answered {
			c.Response(&resp, origin)
		}
		lines := strings.Split(text(&resp.Fields), "\n")
		slices.Sort(lines)
		return strings.Join(lines, "|"), answered
	}
	const whole = "access-control-allow-credentials: true|access-control-allow-headers: x-q|access-control-allow-methods: GET,PUT|access-control-allow-origin: http://o|access-control-expose-headers: x-e|access-control-max-age: 60"
	if got, answered := ask("origin: http://o", "access-control-request-method: PUT", "access-control-request-headers: x-q"); !answered || got != whole {
		t.Errorf("preflight: %v %s", answered, got)
	}
	if got, answered := ask("origin: http://o"); answered || got != "access-control-allow-credentials: true|access-control-allow-origin: http://o|access-control-expose-headers: x-e" {
		t.Errorf("simple: %v %s", answered, got)
	}
	if got, answered := ask("origin: http://x", "access-control-request-method: PUT"); answered || got != "" {
		t.Errorf("other origin: %v %s", answered, got)
	}
}

// TestWeights: shares are those of the weights, and none goes to a weight of 0.
func TestWeights(t *testing.T) {
	v := host(t, `{"match":{"prefix":"/"},"route":{"weightedClusters":{"clusters":[{"name":"a","weight":75},{"name":"z","weight":0},{"name":"b","weight":25}]}}}`)
	count, r := map[string]int{}, rand.New(rand.NewPCG(3, 4))
	req, in := request("GET", "h", "/"), &route.Input{}
	const n = 100_000
	for range n {
		in.Random = r.Uint64()
		count[v.Match(req, in).Pick(req, in).Cluster]++
	}
	if len(count) != 2 || count["a"] < 74*n/100 || count["a"] > 76*n/100 {
		t.Errorf("%v", count)
	}
}

func TestMirror(t *testing.T) {
	v := host(t, `{"match":{"prefix":"/"},"route":{"cluster":"c","requestMirrorPolicies":[{"cluster":"m","runtimeFraction":{"defaultValue":{"numerator":10}}},{"cluster":"n"}]}}`)
	m, req := v.Routes[0].Forward.Mirrors, request("GET", "h", "/")
	if m[0].Pick(req, 9) != "m" || m[0].Pick(req, 10) != "" || m[1].Pick(req, 99) != "n" || m[1].Pick(request("CONNECT", "h:1", ""), 0) != "" {
		t.Error("shares of mirrors")
	}
	for in, want := range map[string]string{"cluster-1": "cluster-1-shadow", "httpbin:8000": "httpbin-shadow:8000", "[::1]:80": "[::1]-shadow:80", "[::1]": "[::1]-shadow",
		"::1": "::1-shadow"} {
		if got := string(route.AppendShadow(nil, []byte(in))); got != want {
			t.Errorf("%s becomes %s, want %s", in, got, want)
		}
	}
}
