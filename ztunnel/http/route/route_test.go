package route_test

import (
	"fmt"
	"strings"
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/undermesh/undermesh/ztunnel/http/head"
	"github.com/undermesh/undermesh/ztunnel/http/route"
)

// request makes the head of one: method, authority, path, then "name: value" each.
func request(method, authority, path string, fields ...string) *head.Request {
	var r head.Request
	r.Reset(nil)
	r.Method, r.Scheme, r.Major, r.Minor = []byte(method), []byte("http"), 1, 1
	if authority != "" {
		r.Authority = []byte(authority)
	}
	if path != "" {
		r.Path = []byte(path)
	}
	add(&r.Fields, fields)
	return &r
}

func add(to *head.Fields, fields []string) {
	for _, f := range fields {
		n, v, _ := strings.Cut(f, ": ")
		to.Add(head.IDOf([]byte(n)), n, []byte(v))
	}
}

// text is fields as "name: value" lines.
func text(f *head.Fields) string {
	return strings.TrimSuffix(strings.ReplaceAll(string(f.AppendLines(nil)), "\r\n", "\n"), "\n")
}

// host compiles routes, given as the JSON of route.v3.Route each.
func host(t testing.TB, routes ...string) *route.VirtualHost {
	t.Helper()
	v, err := compile(routes...)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func compile(routes ...string) (*route.VirtualHost, error) {
	var vh routev3.VirtualHost
	if err := protojson.Unmarshal(fmt.Appendf(nil, `{"name":"h","domains":["*"],"routes":[%s]}`, strings.Join(routes, ",")), &vh); err != nil {
		return nil, err
	}
	return route.Compile(&vh)
}

// to is a route to a cluster of its own name.
func to(name, match string) string {
	return fmt.Sprintf(`{"name":%q,"match":{%s},"route":{"cluster":%q}}`, name, match, name)
}

func TestFirstMatchWins(t *testing.T) {
	v := host(t, to("a", `"path":"/x"`), to("b", `"prefix":"/x"`), to("c", `"prefix":"/"`))
	for path, want := range map[string]string{"/x": "a", "/x?q": "a", "/x#f": "a", "/xy": "b", "/x/": "b", "/y": "c"} {
		if r := v.Match(request("GET", "h", path), &route.Input{}); r == nil || r.Name != want {
			t.Errorf("%s matched %v, want %s", path, r, want)
		}
	}
}

// TestMatch: a condition, and for "METHOD authority path | field | field…" whether it holds. What Envoy 1.40 does.
func TestMatch(t *testing.T) {
	for _, c := range []struct{ match, yes, no string }{
		{`"prefix":"/a/"`, "GET h /a/;GET h /a/b?c", "GET h /a;GET h /A/"},
		{`"prefix":"/a","caseSensitive":false`, "GET h /A;GET h /aB", "GET h /b"},
		{`"path":"/a","caseSensitive":false`, "GET h /A?x", "GET h /a/"},
		{`"pathSeparatedPrefix":"/a"`, "GET h /a;GET h /a/;GET h /a?b", "GET h /ab;GET h /"},
		{`"safeRegex":{"regex":"/a[0-9]+"}`, "GET h /a1;GET h /a12?x=/", "GET h /a1b;GET h x/a1"},
		{`"connectMatcher":{}`, "CONNECT h:80 ", "GET h /"},
		{`"prefix":"/","headers":[{"name":"x","stringMatch":{"exact":"v"}}]`, "GET h / | x: v;GET h / | X: v;GET h / | x: w | x: v", "GET h /;GET h / | x: V;GET h / | x: v,w"},
		{`"prefix":"/","headers":[{"name":"x","stringMatch":{"exact":"V","ignoreCase":true}}]`, "GET h / | x: v;GET h / | x: V", "GET h / | x: vv"},
		{`"prefix":"/","headers":[{"name":"x","stringMatch":{"exact":"v"},"invertMatch":true}]`, "GET h / | x: w", "GET h /;GET h / | x: v;GET h / | x: w | x: v"},
		{`"prefix":"/","headers":[{"name":"x","stringMatch":{"exact":"v"},"invertMatch":true,"treatMissingHeaderAsEmpty":true}]`, "GET h /;GET h / | x: w", "GET h / | x: v"},
		{`"prefix":"/","headers":[{"name":"user-agent","stringMatch":{"exact":"a,b"}}]`, "GET h / | user-agent: a | user-agent: b;GET h / | user-agent:  | user-agent: a | user-agent:  | user-agent: b | user-agent: ", "GET h / | user-agent: a"},
		{`"prefix":"/","headers":[{"name":"x","exactMatch":""}]`, "GET h / | x: v;GET h / | x: ", "GET h /"},
		{`"prefix":"/","headers":[{"name":"x","prefixMatch":"ab"}]`, "GET h / | x: abc", "GET h / | x: a"},
		{`"prefix":"/","headers":[{"name":"x","suffixMatch":"bc"}]`, "GET h / | x: abc", "GET h / | x: c"},
		{`"prefix":"/","headers":[{"name":"x","containsMatch":"b"}]`, "GET h / | x: abc", "GET h / | x: ac"},
		{`"prefix":"/","headers":[{"name":"x","stringMatch":{"contains":"BC","ignoreCase":true}}]`, "GET h / | x: abcd", "GET h / | x: ac"},
		{`"prefix":"/","headers":[{"name":"x","safeRegexMatch":{"regex":"a.c"}}]`, "GET h / | x: abc", "GET h / | x: abcd"},
		{`"prefix":"/","headers":[{"name":"x","rangeMatch":{"start":"-5","end":"5"}}]`, "GET h / | x: -5;GET h / | x: +4", "GET h / | x: 5;GET h / | x: a;GET h / | x: ;GET h / | x: 99999999999999999999"},
		{`"prefix":"/","headers":[{"name":"x"}]`, "GET h / | x: ", "GET h /"},
		{`"prefix":"/","headers":[{"name":"x","presentMatch":false}]`, "GET h /", "GET h / | x: a"},
		{`"prefix":"/","headers":[{"name":":method","stringMatch":{"exact":"PUT"}}]`, "PUT h /", "GET h /"},
		{`"prefix":"/","headers":[{"name":":authority","stringMatch":{"prefix":"a."}}]`, "GET a.b /", "GET b /"},
		{`"prefix":"/","headers":[{"name":"Host","stringMatch":{"exact":"a"}}]`, "GET a /", "GET b /"},
		{`"prefix":"/","headers":[{"name":":scheme","stringMatch":{"exact":"http"}}]`, "GET a /", ""},
		{`"prefix":"/","headers":[{"name":":path","stringMatch":{"suffix":"?b"}}]`, "GET a /a?b", "GET a /a"},
		{`"prefix":"/","queryParameters":[{"name":"q","stringMatch":{"exact":"1"}}]`, "GET h /?q=1;GET h /?a&q=1&q=2", "GET h /;GET h /?q=2&q=1;GET h /?q;GET h /q=1"},
		{`"prefix":"/","queryParameters":[{"name":"q"}]`, "GET h /?q;GET h /?q=;GET h /?a=b&q", "GET h /?Q;GET h /"},
		{`"prefix":"/","queryParameters":[{"name":"q","presentMatch":false}]`, "GET h /", "GET h /?q=1"},
		{`"prefix":"/","grpc":{}`, "POST h / | content-type: application/grpc;POST h / | content-type: application/grpc+proto", "POST h /;POST h / | content-type: application/grpc-web"},
		{`"prefix":"/","runtimeFraction":{"defaultValue":{"numerator":100}}`, "GET h /", ""},
		{`"prefix":"/","runtimeFraction":{"defaultValue":{"numerator":0}}`, "", "GET h /"},
	} {
		v := host(t, to("it", c.match))
		for want, list := range map[bool]string{true: c.yes, false: c.no} {
			for one := range strings.SplitSeq(list, ";") {
				if one == "" {
					continue
				}
				parts := strings.Split(one, " | ")
				line := strings.Split(parts[0], " ")
				if got := v.Match(request(line[0], line[1], line[2], parts[1:]...), &route.Input{}) != nil; got != want {
					t.Errorf("{%s} matches %q: %v, want %v", c.match, one, got, want)
				}
			}
		}
	}
}

func TestFind(t *testing.T) {
	var hosts []string
	for _, d := range []string{"a.test", "*.test", "*.b.test", "a.*", "a.b*", "*", "c.test:8080"} {
		hosts = append(hosts, fmt.Sprintf(`{"name":%q,"domains":[%q]}`, d, d))
	}
	find := func(ignorePort string) func(authority string) string {
		var rc routev3.RouteConfiguration
		if err := protojson.Unmarshal([]byte(`{"ignorePortInHostMatching":`+ignorePort+`,"virtualHosts":[`+strings.Join(hosts, ",")+`]}`), &rc); err != nil {
			t.Fatal(err)
		}
		c, err := route.CompileConfig(&rc)
		if err != nil {
			t.Fatal(err)
		}
		return func(authority string) string { return c.Find([]byte(authority), &route.Input{}).Name }
	}
	exact, portless := find("false"), find("true")
	for authority, want := range map[string][2]string{
		"A.test": {"a.test", "a.test"}, "x.test": {"*.test", "*.test"}, "x.b.test": {"*.b.test", "*.b.test"}, ".test": {"*", "*"},
		"a.x": {"a.*", "a.*"}, "a.bx": {"a.b*", "a.b*"}, "a.": {"*", "*"}, "c.test:8080": {"c.test:8080", "*.test"}, "a.test:80": {"a.*", "a.test"}, "[::1]:80": {"*", "*"},
	} {
		if got := [2]string{exact(authority), portless(authority)}; got != want {
			t.Errorf("%s is of %q, want %q", authority, got, want)
		}
	}
}

// TestRefused: what is not supported, or cannot be, is an error that names route and field.
func TestRefused(t *testing.T) {
	action := func(more string) string {
		return `{"name":"r","match":{"prefix":"/"},"route":{"cluster":"c",` + more + `}}`
	}
	for _, c := range [][2]string{
		{`{"name":"r","match":{"prefix":"/"}}`, `routes[0] "r": action: must be`},
		{`{"name":"r","match":{},"route":{"cluster":"c"}}`, "match: path_specifier: must be set"},
		{`{"name":"r","match":{"safeRegex":{"regex":"("}},"route":{"cluster":"c"}}`, "match: safe_regex: regex: error parsing"},
		{`{"name":"r","match":{"safeRegex":{"regex":"` + strings.Repeat("a", 5000) + `"}},"route":{"cluster":"c"}}`, "longer than 4096 bytes"},
		{`{"name":"r","match":{"safeRegex":{"regex":"((a{100}){10}){10}"}},"route":{"cluster":"c"}}`, "match: safe_regex: regex: "},
		{`{"name":"r","match":{"prefix":"/","tlsContext":{}},"route":{"cluster":"c"}}`, "match: tls_context: not supported"},
		{`{"name":"r","match":{"prefix":"/","headers":[{"name":":protocol"}]},"route":{"cluster":"c"}}`, `match: headers[0]: name: pseudo-header field ":protocol"`},
		{`{"name":"r","match":{"prefix":"/"},"route":{}}`, "route: cluster_specifier: must be"},
		{`{"name":"r","match":{"prefix":"/"},"route":{"weightedClusters":{"clusters":[{"name":"a","weight":0}]}}}`, "route: weighted_clusters: clusters: the sum"},
		{action(`"internalRedirectPolicy":{}`), "route: internal_redirect_policy: not supported"},
		{action(`"rateLimits":[{"actions":[{"remoteAddress":{}}]}]`), "route: rate_limits: not supported"},
		{action(`"hedgePolicy":{}`), "route: hedge_policy: not supported"},
		{action(`"retryPolicy":{"retryOn":"sometimes"}`), `route: retry_policy: retry_on: "sometimes" is not known`},
		{action(`"retryPolicy":{"retryHostPredicate":[{"name":"x"}]}`), `retry_host_predicate[0]: "x": not supported`},
		{action(`"retryPolicy":{"retryBackOff":{"baseInterval":"2s","maxInterval":"1s"}}`), "retry_back_off: max_interval: must not be less"},
		{action(`"prefixRewrite":"/a","regexRewrite":{"pattern":{"regex":"a"}}`), "prefix_rewrite and regex_rewrite are both set"},
		{action(`"regexRewrite":{"pattern":{"regex":"a"},"substitution":"\\1"}`), "regex_rewrite: substitution: group 1"},
		{action(`"regexRewrite":{"pattern":{"regex":"a"},"substitution":"/ HTTP/1.1\r\n"}`), "regex_rewrite: substitution: has a blank or a control"},
		{`{"name":"r","match":{"prefix":"/"},"decorator":{"operation":"a\r\nb"},"route":{"cluster":"c"}}`, "decorator: operation: has a control"},
		{`{"name":"r","match":{"prefix":"/"},"requestHeadersToAdd":[{"header":{"key":"Content-Length","value":"0"}}],"route":{"cluster":"c"}}`, "content-length says how the message is carried"},
		{`{"name":"r","match":{"prefix":"/"},"responseHeadersToRemove":["transfer-encoding"],"route":{"cluster":"c"}}`, "transfer-encoding says how the message is carried"},
		{action(`"prefixRewrite":"/a b"`), "prefix_rewrite: has a blank"},
		{action(`"hostRewriteLiteral":"a\r\nb"`), "host_rewrite_literal: has a blank"},
		{action(`"timeout":"-1s"`), "route: timeout: must not be negative"},
		{`{"name":"r","match":{"prefix":"/"},"directResponse":{"status":99}}`, "direct_response: status: 99"},
		{`{"name":"r","match":{"prefix":"/"},"directResponse":{"status":200,"body":{"filename":"/etc/passwd"}}}`, "direct_response: body: filename: not supported"},
		{`{"name":"r","match":{"prefix":"/"},"directResponse":{"status":200,"body":{"inlineString":"` + strings.Repeat("a", 1<<20+1) + `"}}}`, "direct_response: body: 1048577 bytes"},
		{`{"name":"r","match":{"prefix":"/"},"redirect":{"hostRedirect":"a\nb"}}`, "redirect: "},
		{strings.TrimSuffix(action(`"timeout":"1s"`), "}") + `,"requestHeadersToAdd":[{"header":{"key":"x","value":"%HOSTNAME%"}}]}`, "request_headers_to_add[0]: header.value: operator %HOSTNAME%: not supported"},
		{strings.TrimSuffix(action(`"timeout":"1s"`), "}") + `,"requestHeadersToAdd":[{"header":{"key":"x","value":"50%"}}]}`, "request_headers_to_add[0]: header.value: "},
		{strings.TrimSuffix(action(`"timeout":"1s"`), "}") + `,"requestHeadersToAdd":[{"header":{"key":"x","value":"a\r\nb: c"}}]}`, "header.value: has a control character"},
		{strings.TrimSuffix(action(`"timeout":"1s"`), "}") + `,"requestHeadersToAdd":[{"header":{"key":"x y","value":"a"}}]}`, "header.key: "},
		{strings.TrimSuffix(action(`"timeout":"1s"`), "}") + `,"responseHeadersToRemove":[":status"]}`, "response_headers_to_remove[0]: pseudo-header"},
		{strings.TrimSuffix(action(`"timeout":"1s"`), "}") + `,"requestHeadersToRemove":["Host"]}`, "request_headers_to_remove[0]: host cannot"},
	} {
		if _, err := compile(c[0]); err == nil || !strings.Contains(err.Error(), c[1]) || !strings.Contains(err.Error(), `virtual host "h"`) {
			t.Errorf("%.200s: error %v, want one with %q", c[0], err, c[1])
		}
	}
}

// operation compiles a route that adds a field y.
func operation(value string) (*route.VirtualHost, error) {
	return route.Compile(&routev3.VirtualHost{Name: "h", Routes: []*routev3.Route{{
		Match:               &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		Action:              &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: "c"}}},
		RequestHeadersToAdd: []*core.HeaderValueOption{{Header: &core.HeaderValue{Key: "y", Value: value}}},
	}}})
}
