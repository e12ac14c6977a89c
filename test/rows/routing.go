package rows

import (
	"fmt"
	"strings"
	"testing"

	"github.com/undermesh/undermesh/test/e2e"
)

// base is a service of the fixture, by a name that callers of all namespaces use alike.
const base = "http://recommendation.tutorial:8080"

// subsets are those of the documents' cheat sheet.
const subsets = `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: recommendation, namespace: tutorial}
spec:
  host: recommendation
  subsets:
  - {name: version-v1, labels: {version: v1}}
  - {name: version-v2, labels: {version: v2}}
  - {name: version-v3, labels: {version: v3}}
---
`

// routes is a VirtualService with the given http section, and the subsets.
func routes(http string) string { return subsets + rule("recommendation", "recommendation", http) }

// rule is a VirtualService for one host; http is a YAML list, indented by two.
func rule(name, host, http string) string {
	return "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: " + name + ", namespace: tutorial}\nspec:\n  hosts: [\"" + host + "\"]\n  http:\n" + http
}

// to is a route to a version.
func to(version string) string {
	return "route: [{destination: {host: recommendation, subset: version-" + version + "}}]"
}

// get asks a path of the recommendation service, with "Name: value" headers.
func get(path string, want want, headers ...string) expect {
	return expect{e2e.Question{URL: base + path, N: 5, Headers: fields(headers)}, want}
}

func fields(headers []string) map[string]string {
	out := map[string]string{}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		out[name] = value
	}
	return out
}

// many asks n times.
func (e expect) many(n int) expect { e.N = n; return e }

func (e expect) method(m string) expect { e.Method = m; return e }

// on asks another port.
func (e expect) on(port string) expect {
	e.URL = strings.Replace(e.URL, ":8080", ":"+port, 1)
	return e
}

func v(version string) want { return status(200, version) }

// gone is the mesh's own answer where no route matches.
var gone = both(status(404, "-"), body("!instance"))

// matchRows are conditions: a rule for those who fulfil them leads to v2, another one to v1.
func matchRows() []row {
	match := func(ids, title, conditions string, all ...expect) row {
		return row{ids: ids, title: title, resource: routes("  - match: [" + conditions + "]\n    " + to("v2") + "\n  - " + to("v1") + "\n"), look: asks(all...)}
	}
	return []row{
		match("TR-03", "headers by prefix and regular expression", `{headers: {kind: {prefix: pre}}}, {headers: {kind: {regex: "^(.*?;)?(user=jason)(;.*)?"}}}`,
			get("/", v("v2"), "kind: prefix"), get("/", v("v1"), "kind: apre"), get("/", v("v2"), "kind: a;user=jason;b"), get("/", v("v1"), "kind: a;user=jasons"), get("/", v("v1"))),
		match("TR-04", "paths exactly, by prefix and regular expression", `{uri: {exact: /exact}}, {uri: {prefix: /prefix}}, {uri: {regex: "/r[0-9]+"}}`,
			get("/exact", v("v2")), get("/exact?q=1", v("v2")), get("/exact/", v("v1")), get("/prefix/a", v("v2")), get("/pre", v("v1")),
			get("/r12", v("v2")), get("/r12/x", v("v1")), get("/R1", v("v1"))),
		match("TR-04", "paths in any case", `{uri: {prefix: /Path}, ignoreUriCase: true}`, get("/pATH/x", v("v2")), get("/pat", v("v1"))),
		match("TR-05", "methods", `{method: {exact: POST}}, {method: {regex: "P[UA]T.*"}}, {method: {prefix: DEL}}`,
			get("/", v("v2")).method("POST"), get("/", v("v2")).method("PUT"), get("/", v("v2")).method("PATCH"), get("/", v("v2")).method("DELETE"), get("/", v("v1"))),
		match("TR-05", "schemes", `{scheme: {exact: http}, uri: {prefix: /s}}, {scheme: {exact: https}}`, get("/s", v("v2")), get("/", v("v1"))),
		match("TR-05", "authorities", `{authority: {prefix: recommendation.tutorial.}}, {authority: {regex: ".*:8081"}}`,
			get("/", v("v2"), "Host: recommendation.tutorial.svc.cluster.local:8080"), get("/", v("v2"), "Host: recommendation.tutorial.svc:8080"),
			get("/", v("v1")), get("/", v("v2")).on("8081")),
		match("TR-06", "ports", `{port: 8081}`, get("/", v("v2")).on("8081"), get("/", v("v1"))),
		match("TR-09", "all conditions of an item, any item", `{headers: {a: {exact: "1"}, b: {exact: "2"}}, uri: {prefix: /p}}, {method: {exact: PUT}}`,
			get("/p", v("v2"), "a: 1", "b: 2"), get("/p", v("v1"), "a: 1"), get("/", v("v1"), "a: 1", "b: 2"), get("/", v("v2")).method("PUT")),
		match("TR-09", "headers that are there and that are not, and the query", `{headers: {there: {}}, withoutHeaders: {absent: {}}}, {queryParams: {q: {exact: x}}}`,
			get("/", v("v2"), "there: y"), get("/", v("v1"), "there: y", "absent: z"), get("/", v("v1")), get("/?q=x", v("v2")), get("/?a=b&q=x", v("v2")), get("/?q=y", v("v1"))),
		match("TR-08", "rules for gateways are not for calls within the mesh", `{gateways: [some-gateway]}, {gateways: [mesh], uri: {prefix: /m}}`,
			get("/", v("v1")), get("/m", v("v2"))),
		match("TR-07", "callers of a namespace", `{sourceNamespace: tutorial, uri: {prefix: /n}}, {sourceNamespace: other}`, get("/n", v("v2")), get("/", v("v1"))),
	}
}

func MatchRows(t *testing.T, w World) { observeAll(t, w, matchRows()) }

// SeedRoutes are the documents' own rules for a service, unchanged.
func SeedRoutes(t *testing.T, w World) {
	dr, n := seed(t, "019")+"---\n", 240
	shares := func(first, second int) func(want) expect {
		return func(want) expect { return get("/", split(map[string]int{"v1": first, "v2": second})).many(n) }
	}
	ratings := func(path, cookie string, w want) expect {
		e := get(path, w, "Cookie: "+cookie)
		e.URL = strings.Replace(e.URL, "recommendation", "ratings", 1)
		return e
	}
	observeAll(t, w, []row{
		{ids: "TR-10", title: "only pods of the subset answer", resource: routes("  - " + to("v3") + "\n"), look: asks(get("/", v("v3")).many(40))},
		{ids: "TR-11", title: "90 to 10", resource: dr + seed(t, "020"), look: asks(shares(90, 10)(nil))},
		{ids: "TR-11", title: "75 to 25", resource: dr + seed(t, "023"), look: asks(shares(75, 25)(nil))},
		{ids: "TR-11", title: "0 to 100, exactly", resource: routes("  - route:\n    - {destination: {host: recommendation, subset: version-v1}, weight: 0}\n    - {destination: {host: recommendation, subset: version-v2}, weight: 100}\n"),
			look: asks(get("/", split(map[string]int{"v1": 0, "v2": 100})).many(n))},
		{ids: "TR-03", title: "the documents' cookie, within a prefix of the path", resource: strings.ReplaceAll(dr, "recommendation", "ratings") + seed(t, "024"),
			look: asks(ratings("/ratings/v2/1", "a=b;user=jason;c=d", v("v2")), ratings("/ratings/v2/1", "user=jason", v("v2")),
				ratings("/ratings/v2/1", "user=john", gone), ratings("/ratings/v1/", "user=jason", gone))},
		{ids: "TR-07", title: "callers with labels", resource: dr + seed(t, "025"), from: "preference-v2", look: asks(get("/", v("v2")))},
		{ids: "TR-07", title: "other callers", resource: dr + seed(t, "025"), look: asks(get("/", v("v1")))},
		{ids: "TR-01", title: "the first rule that matches counts, one without conditions always", resource: routes(
			"  - match: [{uri: {prefix: /a/b}}]\n    " + to("v3") + "\n  - match: [{uri: {prefix: /a}}]\n    " + to("v2") + "\n  - match: [{uri: {prefix: /a/b/c}}]\n    " + to("v1") + "\n  - " + to("v1") + "\n"),
			look: asks(get("/a/b/c", v("v3")), get("/a/x", v("v2")), get("/x", v("v1")))},
	})
}

// RouteRows: where requests go.
func RouteRows(t *testing.T, w World) {
	observeAll(t, w, []row{
		{ids: "TR-12", title: "one host spreads over services and ports", resource: rule("recommendation", "recommendation",
			"  - match: [{uri: {prefix: /other}}]\n    route: [{destination: {host: my-svc, port: {number: 8081}}}]\n"+
				"  - match: [{uri: {prefix: /httpbin}}]\n    rewrite: {uri: /status/418}\n    route: [{destination: {host: httpbin.foo.svc.cluster.local, port: {number: 8000}}}]\n"+
				"  - route: [{destination: {host: recommendation}}]\n"),
			look: asks(get("/other", body(`"port":"8081"`)), get("/httpbin", both(status(418, "-"), body("teapot"))), get("/", body(`"port":"8080"`)))},
		{ids: "TR-18", title: "404 where no rule matches", resource: routes("  - match: [{uri: {prefix: /known}}]\n    " + to("v1") + "\n"),
			look: asks(get("/known/x", v("v1")), get("/unknown", gone), get("/unknown", header("x-envoy-upstream-service-time", "")))},
		{ids: "TR-19", title: "503 where the destination is unknown", resource: routes("  - route: [{destination: {host: nowhere.tutorial.svc.cluster.local}}]\n"),
			look: asks(get("/", status(503, "-")))},
		{ids: "TR-20", title: "503 where the subset has no pods", resource: rule("recommendation", "recommendation", "  - route: [{destination: {host: recommendation, subset: none}}]\n") + `---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: recommendation, namespace: tutorial}
spec: {host: recommendation, subsets: [{name: none, labels: {version: v9}}]}
`, look: asks(get("/", both(status(503, "-"), body("no healthy upstream"))))},
		{ids: "TR-21", title: "503 until the subset is declared", resource: rule("recommendation", "recommendation", "  - "+to("v2")+"\n"), look: asks(get("/", status(503, "-"))),
			changed: routes("  - " + to("v2") + "\n")},
		{ids: "TR-17", title: "HTTP/1.1, HTTP/2, gRPC and WebSocket alike", resource: routes("  - match: [{headers: {end-user: {exact: jason}}}]\n    " + to("v2") + "\n  - " + to("v1") + "\n"), look: asks(
			expect{e2e.Question{URL: base, Headers: map[string]string{"end-user": "jason"}, N: 5}, both(v("v2"), body(`"proto":"HTTP/1.1"`))},
			expect{e2e.Question{URL: base, HTTP2: true, Keep: true, Headers: map[string]string{"end-user": "jason"}, N: 5}, v("v2")},
			expect{e2e.Question{URL: base, HTTP2: true, Keep: true, N: 5}, v("v1")},
			expect{e2e.Question{URL: "grpc://recommendation.tutorial:9090/echo.Echo/Say", Body: "hi", Keep: true, Headers: map[string]string{"end-user": "jason"}, N: 5},
				both(v("v2"), body("v2 hi"), every(func(a e2e.Answer) error { return equal("grpc-status", a.Trailers["grpc-status"], "0") }))},
			expect{e2e.Question{URL: "grpc://recommendation.tutorial:9090/echo.Echo/Say", Body: "hi", N: 5}, body("v1 hi")},
			expect{e2e.Question{URL: "ws://recommendation.tutorial:8080/chat", Body: "hi", Headers: map[string]string{"end-user": "jason"}, N: 3}, both(status(101, "v2"), body("v2 hi"))},
			expect{e2e.Question{URL: "ws://recommendation.tutorial:8080/chat", Body: "hi", N: 3}, body("v1 hi")})},
	})
}

func equal(what, got, want string) error {
	if got != want {
		return fmt.Errorf("%s is %q, want %q", what, got, want)
	}
	return nil
}

// FilterRows: what is done to requests and responses on the way.
func FilterRows(t *testing.T, w World) {
	const route = "    route: [{destination: {host: recommendation}}]\n"
	one := func(ids, title, action string, all ...expect) row {
		return row{ids: ids, title: title, resource: routes("  - match: [{uri: {prefix: /x}}]\n" + action + "  -" + route[3:]), look: asks(all...)}
	}
	preflight := expect{e2e.Question{URL: base + "/x", Method: "OPTIONS", Headers: map[string]string{"Origin": "https://a.example.com", "Access-Control-Request-Method": "PUT"}},
		both(status(200, "-"), header("access-control-allow-origin", "https://a.example.com"), header("access-control-allow-methods", "GET,PUT"),
			header("access-control-allow-headers", "x-mine"), header("access-control-max-age", "60"), header("access-control-allow-credentials", "true"))}
	stranger := preflight
	stranger.Headers, stranger.want = map[string]string{"Origin": "https://b.example.org", "Access-Control-Request-Method": "PUT"}, header("access-control-allow-origin", "")
	observeAll(t, w, []row{
		one("TR-13", "the prefix that matched is replaced", "    rewrite: {uri: /new}\n"+route, get("/x/a?b=c", both(status(200, ""), body(`"path":"/new/a?b=c"`))), get("/y", body(`"path":"/y"`))),
		one("TR-13", "the authority is replaced", "    rewrite: {authority: other.example.org}\n"+route, get("/x", body(`"host":"other.example.org"`)), get("/y", body(`"host":"recommendation.tutorial:8080"`))),
		one("TR-13", "a regular expression", "    rewrite: {uriRegexRewrite: {match: \"/x/([a-z]+)/([0-9]+)\", rewrite: \"/y/\\\\2/\\\\1\"}}\n"+route, get("/x/abc/12", body(`"path":"/y/12/abc"`))),
		one("TR-14", "a redirect to a path", "    redirect: {uri: /new}\n", get("/x/a", both(status(301, "-"), header("location", "http://recommendation.tutorial:8080/new")))),
		one("TR-14", "a redirect to an authority with a code", "    redirect: {authority: other.example.org, redirectCode: 307}\n", get("/x/a?b=c", both(status(307, "-"), header("location", "http://other.example.org/x/a?b=c")))),
		one("TR-14", "a redirect to another scheme", "    redirect: {scheme: https, authority: other.example.org}\n", get("/x", both(status(301, "-"), header("location", "https://other.example.org/x")))),
		one("TR-14", "an answer without a server", "    directResponse: {status: 418, body: {string: short and stout}}\n", get("/x", both(status(418, "-"), body("short and stout")))),
		one("TR-15", "request headers are added, set and removed",
			"    headers: {request: {add: {x-added: one}, set: {x-set: two}, remove: [x-gone]}}\n"+route,
			get("/x", body(`"X-Added":"zero,one"`, `"X-Set":"two"`, `!"X-Gone"`), "x-added: zero", "x-set: one", "x-gone: here")),
		one("TR-15", "response headers are added, set and removed",
			"    headers: {response: {add: {x-added: one}, set: {content-type: text/plain}, remove: [x-version]}}\n"+route,
			get("/x", both(header("x-added", "one"), header("content-type", "text/plain"), header("x-version", "")))),
		one("TR-15", "headers of one of several destinations", "    route:\n    - {destination: {host: recommendation, subset: version-v1}, weight: 100, headers: {response: {set: {x-where: first}}}}\n"+
			"    - {destination: {host: recommendation, subset: version-v2}, weight: 0, headers: {response: {set: {x-where: second}}}}\n", get("/x", both(v("v1"), header("x-where", "first")))),
		one("TR-16", "preflight requests are answered by the mesh", "    corsPolicy: {allowOrigins: [{exact: \"https://a.example.com\"}], allowMethods: [GET, PUT], allowHeaders: [x-mine], exposeHeaders: [x-shown], maxAge: 1m, allowCredentials: true}\n"+route,
			preflight, stranger, get("/x", both(status(200, ""), header("access-control-allow-origin", "https://a.example.com"), header("access-control-expose-headers", "x-shown")), "Origin: https://a.example.com")),
	})
}

// HostRows: whose calls a rule is for.
func HostRows(t *testing.T, w World) {
	const ip = "192.0.2.77" // which is nobody's
	const said = "  - route: [{destination: {host: recommendation.tutorial.svc.cluster.local}}]\n    headers: {response: {set: {x-rule: seen}}}\n"
	seen := get("/", both(status(200, ""), header("x-rule", "seen")))
	unseen := get("/", both(status(200, ""), header("x-rule", "")))
	byIP := seen
	byIP.URL, byIP.Dial = "http://"+ip+":8080/", "recommendation.tutorial:8080"
	at := func(title, host string) row {
		return row{ids: "SR-03", title: title, resource: rule("host", host, said), look: asks(seen)}
	}
	gateways := func(list string) string {
		return strings.Replace(rule("host", "recommendation", said), "  http:", "  gateways: ["+list+"]\n  http:", 1)
	}
	odd := func(path string, w want) expect {
		return expect{e2e.Question{URL: "http://bookshop.example.com" + path, Dial: "recommendation.tutorial:8080", N: 3}, w}
	}
	observeAll(t, w, []row{
		at("a short name is of the rule's namespace", "recommendation"),
		at("a full name", "recommendation.tutorial.svc.cluster.local"),
		at("a wildcard before a domain", "*.tutorial.svc.cluster.local"),
		{ids: "SR-03", title: "an address", resource: rule("host", ip, said), look: asks(byIP)},
		{ids: "SR-03", title: "a short name is not completed with the caller's namespace", namespace: "foo", resource: strings.ReplaceAll(rule("host", "recommendation", said), "namespace: tutorial", "namespace: foo"),
			look: asks(unseen), changed: strings.ReplaceAll(rule("host", "recommendation.tutorial.svc.cluster.local", said), "namespace: tutorial", "namespace: foo"), unmeshed: "no rule counts there"},
		{ids: "SR-15", title: "a rule of a gateway and of the mesh counts in the mesh", resource: gateways("some-gateway, mesh"), look: asks(seen), changed: gateways("some-gateway")},
		{ids: "SR-04 TR-04", title: "a host that is nowhere, by path", resource: rule("shop", "bookshop.example.com",
			"  - match: [{uri: {prefix: /reviews}}]\n    route: [{destination: {host: my-svc, port: {number: 8080}}}]\n    headers: {response: {set: {x-rule: reviews}}}\n"+
				"  - match: [{uri: {prefix: /ratings}}]\n    route: [{destination: {host: ratings, port: {number: 8081}}}]\n    headers: {response: {set: {x-rule: ratings}}}\n"),
			look: asks(odd("/reviews/0", both(header("x-rule", "reviews"), body(`"port":"8080"`))), odd("/ratings/0", both(header("x-rule", "ratings"), body(`"port":"8081"`))), odd("/other", gone))},
	})
}

// SR17LookupPath: subsets come from a DestinationRule of the caller's namespace, the service's or the root's, and of no other.
func SR17LookupPath(t *testing.T, w World) {
	const host = "host: recommendation.tutorial.svc.cluster.local"
	full := func(text string) string { return strings.ReplaceAll(text, "host: recommendation", host) }
	defer with(t.Context(), t, w, "", full(rule("recommendation", "recommendation", "  - "+to("v2")+"\n")))()
	in := func(namespace string) string {
		return full(strings.Replace(subsets, "namespace: tutorial", "namespace: "+namespace, 1))
	}
	at := func(title, namespace string, w want, changed string) row {
		return row{ids: "SR-17", title: title, namespace: "bar", apart: true, resource: in(namespace), look: asks(get("/", w)), changed: changed}
	}
	observeAll(t, w, []row{
		at("a rule of the service's namespace is found", "tutorial", v("v2"), ""),
		at("a rule of the caller's namespace is found", "bar", v("v2"), ""),
		at("a rule of the root namespace is found", "istio-system", v("v2"), ""),
		at("a rule of a third namespace is not, and calls fail", "foo", status(503, "-"), in("tutorial")),
	})
}
