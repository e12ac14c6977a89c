package route_test

import (
	"testing"

	"github.com/undermesh/undermesh/ztunnel/http/route"
)

// FuzzMatch: whatever a request holds, the tree finds what the list does, and applying the route ends.
func FuzzMatch(f *testing.F) {
	f.Add("GET", "a.test:80", "/api/v1?q=1", "x", "5", uint64(1))
	f.Add("CONNECT", "[::1", "", "content-type", "application/grpc", uint64(99))
	f.Add("OPTIONS", ":", "/;a/?&=&q", "origin", "http://o", uint64(0))
	v := host(f,
		to("path", `"path":"/api"`), to("fold", `"prefix":"/API","caseSensitive":false,"headers":[{"name":"x","rangeMatch":{"start":"0","end":"9"}}]`),
		to("separated", `"pathSeparatedPrefix":"/api/v1"`), to("regex", `"safeRegex":{"regex":"/a(b|c)*"}`), to("grpc", `"prefix":"/","grpc":{}`),
		to("query", `"prefix":"/","queryParameters":[{"name":"q","stringMatch":{"contains":"A","ignoreCase":true}}]`), to("connect", `"connectMatcher":{}`),
		to("invert", `"prefix":"/","headers":[{"name":"x","stringMatch":{"suffix":"z"},"invertMatch":true,"treatMissingHeaderAsEmpty":true},{"name":":authority","stringMatch":{"prefix":"a"}}]`),
		`{"match":{"prefix":"/x"},"redirect":{"httpsRedirect":true,"regexRewrite":{"pattern":{"regex":"[a-z]*"},"substitution":"\\0-"}}}`,
		`{"match":{"prefix":"/"},"route":{"clusterHeader":"x","prefixRewrite":"/n","hostRewriteHeader":"x","appendXForwardedHost":true,"retryPolicy":{"retryOn":"5xx"},
		  "hashPolicy":[{"cookie":{"name":"u","ttl":"0s"}},{"queryParameter":{"name":"q"}}]},"requestHeadersToAdd":[{"header":{"key":"y","value":"%REQ(x):2%%REQ(:path)%"}}]}`)
	f.Fuzz(func(t *testing.T, method, authority, path, name, value string, random uint64) {
		for i := range len(value) {
			if c := value[i]; c < ' ' || c == 0x7f {
				return
			}
		}
		if name == "" {
			name = "x"
		}
		req, in := request(method, authority, path, name+": "+value), &route.Input{Random: random}
		r := v.Match(req, in)
		all := &route.Input{Random: random}
		if taken, _ := v.Explain(req, all); taken != r && in.Excess == "" && all.Excess == "" {
			t.Fatalf("the tree finds %v, the list %v", r, taken)
		}
		if r == nil {
			return
		}
		if r.Redirect != nil {
			r.Redirect.Location(nil, req, in)
			return
		}
		target := r.Pick(req, in)
		r.Timeouts(req, false)
		r.Retry(req, in)
		r.Hash(req, in)
		r.Request(req, target, in)
	})
}

// FuzzFormat: a header's value is refused, or made without a control character that was not in the request.
func FuzzFormat(f *testing.F) {
	for _, s := range []string{"a", "%%", "%REQ(x?:path):3%", "%START_TIME(%s)%", "%", "%REQ(", "%PROTOCOL%%ROUTE_NAME%", "%REQ(x):0%", "%)(0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := operation(s)
		if err != nil {
			return
		}
		req, in := request("GET", "h", "/", "x: 1"), &route.Input{}
		r := v.Match(req, in)
		r.Request(req, r.Pick(req, in), in)
		value, _ := req.Find("y")
		for _, c := range value {
			if c < ' ' && c != '\t' || c == 0x7f {
				t.Fatalf("%q makes %q", s, value)
			}
		}
	})
}
