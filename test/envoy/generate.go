package envoy

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"

	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"  // of routes
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3" // of routes
	"google.golang.org/protobuf/encoding/protojson"
)

// Clusters are those that generated routes lead to; the last one balances by hash.
var clusterNames = []string{"one", "two", "three", "ring"}

// object is a message as JSON.
type object = map[string]any

// generator makes route configurations and requests that are likely to match them, from one seed.
type generator struct {
	*rand.Rand
	certain bool // chance takes no part in what is made: no shares but none and all; there are mirrors
	two     bool // what only HTTP/2 has: trailers of requests, gRPC
}

func newGenerator(seed uint64) *generator { return &generator{Rand: rand.New(rand.NewPCG(seed, 1))} }

func pick[T any](g *generator, list ...T) T { return list[g.IntN(len(list))] }

// chance is true once in n.
func (g *generator) chance(n int) bool { return g.IntN(n) == 0 }

var (
	paths    = []string{"/", "/a", "/a/", "/a/b", "/A/b", "/api", "/api/v1", "/api/v1/users", "/apix", "/API/v1", "/x.y", "/a%20b", "/a;p=1/b", "//a"}
	domainsG = []string{"a.test", "b.test", "*.test", "*.b.test", "*-x.test", "a.*", "a-*", "ab.*", "*", "c.test:8080", "C.test", "[::1]", "10.0.0.1"}
	hostsG   = []string{"a.test", "A.TEST", "a.test:8080", "b.test", "x.b.test", "y-x.test", ".test", "a.example", "ab.example:1", "a-b", "c.test:8080", "c.test",
		"c.test:80", "d.example:443", "[::1]", "[::1]:80", "10.0.0.1", "10.0.0.1:8080", "zzz"}
	names  = []string{"x-a", "x-b", "x-num", "user-agent", "cookie", "content-type"}
	values = map[string][]string{
		"x-a": {"1", "v1", "v1-beta", "V1", "", "a,b", "foo=bar"}, "x-b": {"red", "blue", "RED", "redblue"}, "x-num": {"0", "5", "-3", "10", "x", "9999999999999999999"},
		"user-agent": {"curl/8", "Mozilla", "curl"}, "cookie": {"user=jason", "a=1; user=jason; b=2", "user=tom", "session=abc"},
		"content-type": {"application/grpc", "application/grpc+proto", "application/grpc-web", "text/plain", "application/json"},
	}
)

// config makes one RouteConfiguration.
func (g *generator) config(name string) (*route.RouteConfiguration, error) {
	rc := object{"name": name, "validate_clusters": false}
	domains := slices.Clone(domainsG)
	g.Shuffle(len(domains), func(i, j int) { domains[i], domains[j] = domains[j], domains[i] })
	var hosts []any
	for i := range 1 + g.IntN(3) {
		n := 1 + g.IntN(3)
		hosts = append(hosts, g.host(fmt.Sprintf("h%d", i), domains[:n]))
		domains = domains[n:]
	}
	if g.chance(2) { // whatever comes is for this one
		rc["virtual_hosts"] = []any{g.host("all", []string{"*"})}
	} else {
		rc["virtual_hosts"] = hosts
	}
	rc["ignore_port_in_host_matching"] = g.chance(3)
	rc["most_specific_header_mutations_wins"] = g.chance(3)
	rc["ignore_path_parameters_in_path_matching"] = g.chance(5)
	g.headerOps(rc, 4)
	text, err := json.Marshal(rc)
	if err != nil {
		return nil, err
	}
	out := &route.RouteConfiguration{}
	if err := protojson.Unmarshal(text, out); err != nil {
		return nil, fmt.Errorf("%s: %w", text, err)
	}
	return out, nil
}

func (g *generator) host(name string, domains []string) object {
	h := object{"name": name, "domains": domains, "include_request_attempt_count": g.chance(2), "include_attempt_count_in_response": g.chance(4)}
	var routes []any
	n := 1 + g.IntN(8)
	if g.chance(4) {
		n = 30
	}
	for i := range n {
		routes = append(routes, g.route(fmt.Sprintf("%s-r%d", name, i)))
	}
	if g.chance(2) {
		all := g.route(name + "-last")
		all["match"] = object{"prefix": "/"}
		routes = append(routes, all)
	}
	h["routes"] = routes
	g.headerOps(h, 4)
	g.filters(h, 6)
	return h
}

func (g *generator) route(name string) object {
	match := g.match()
	r := object{"name": name, "match": match}
	if g.chance(3) {
		r["decorator"] = object{"operation": name + ".op/*"}
	}
	_, regex := match["safe_regex"]
	_, connect := match["connect_matcher"]
	switch g.IntN(6) {
	case 0:
		r["redirect"] = g.redirect(regex || connect)
	case 1:
		d := object{"status": pick(g, 200, 201, 204, 301, 404, 503)}
		if d["status"] != 204 {
			d["body"] = object{"inline_string": pick(g, "", "hello", "a longer body\n")}
		}
		r["direct_response"] = d
	default:
		r["route"] = g.action()
	}
	g.headerOps(r, 2)
	g.filters(r, 3)
	return r
}

func (g *generator) match() object {
	m := object{}
	path := pick(g, paths...)
	switch g.IntN(10) {
	case 0, 1, 2:
		m["prefix"] = path
	case 3, 4:
		m["path"] = path
	case 5:
		m["path_separated_prefix"] = pick(g, "/a", "/api", "/api/v1", "/A")
	case 6, 7:
		m["safe_regex"] = object{"regex": pick(g, "/a.*", "/[a-z]+", "/api/v[0-9]+/.*", ".*", "/(a|api)(/.*)?", "/x\\.y", "(?i)/API.*")}
	default:
		m["prefix"] = "/"
	}
	if _, ok := m["safe_regex"]; !ok && g.chance(5) {
		m["case_sensitive"] = false
	}
	if g.chance(12) {
		m["grpc"] = object{}
	}
	if g.chance(12) {
		m["runtime_fraction"] = object{"default_value": object{"numerator": g.share(100), "denominator": "HUNDRED"}, "runtime_key": "r"}
	}
	var headers, query []any
	for g.chance(3) && len(headers) < 3 {
		headers = append(headers, g.headerMatch())
	}
	for g.chance(5) && len(query) < 2 {
		q := object{"name": pick(g, "q", "Q", "page", "a b")}
		if g.chance(2) {
			q["present_match"] = !g.chance(4)
		} else {
			q["string_match"] = g.text(pick(g, "1", "a", "true", ""))
		}
		query = append(query, q)
	}
	m["headers"], m["query_parameters"] = headers, query
	return m
}

// share is none, half or all of n.
func (g *generator) share(n int) int {
	if g.certain {
		return pick(g, 0, n)
	}
	return pick(g, 0, n/2, n)
}

func (g *generator) headerMatch() object {
	name := pick(g, names...)
	value := pick(g, values[name]...)
	switch g.IntN(6) {
	case 0:
		name = pick(g, ":method", ":authority", ":path", ":scheme", "host", "X-A")
		value = pick(g, "GET", "POST", "a.test", "/a", "http", "https", "v1")
	case 1:
		name = "absent"
	}
	h := object{"name": name}
	if g.chance(4) {
		h["invert_match"] = true
	}
	if g.chance(4) {
		h["treat_missing_header_as_empty"] = true
	}
	switch g.IntN(5) {
	case 0:
		h["present_match"] = !g.chance(3)
	case 1:
		h["range_match"] = object{"start": pick(g, -5, 0, 5), "end": pick(g, 1, 6, 11)}
		h["name"] = "x-num"
	case 2:
	default:
		h["string_match"] = g.text(value)
	}
	return h
}

func (g *generator) text(v string) object {
	fold := g.chance(3)
	part := v
	if len(v) > 2 {
		part = v[:2]
	}
	if part == "" {
		part = "v"
	}
	switch g.IntN(5) {
	case 0:
		return object{"exact": v, "ignore_case": fold}
	case 1:
		return object{"prefix": part, "ignore_case": fold}
	case 2:
		return object{"suffix": part, "ignore_case": fold}
	case 3:
		return object{"contains": part, "ignore_case": fold}
	}
	return object{"safe_regex": object{"regex": pick(g, ".*", ".+", "[a-z0-9]*", "^(.*?;)?(user=jason)(;.*)?$", "v1|red", "(?i)RED")}}
}

func (g *generator) redirect(whole bool) object {
	r := object{"response_code": pick(g, "MOVED_PERMANENTLY", "FOUND", "SEE_OTHER", "TEMPORARY_REDIRECT", "PERMANENT_REDIRECT"), "strip_query": g.chance(4)}
	switch g.IntN(4) {
	case 0:
		r["https_redirect"] = true
	case 1:
		r["scheme_redirect"] = pick(g, "https", "http", "ftp")
	}
	if g.chance(2) {
		r["host_redirect"] = "new.test"
	}
	if g.chance(3) {
		r["port_redirect"] = pick(g, 80, 443, 8443)
	}
	switch g.IntN(5) {
	case 0:
		r["path_redirect"] = pick(g, "/new", "/new?x=1", "/new/")
	case 1:
		r["prefix_rewrite"] = pick(g, "/p", "/", "/p/")
	case 2:
		r["regex_rewrite"] = g.rewrite()
	}
	return r
}

func (g *generator) rewrite() object {
	switch g.IntN(4) {
	case 0:
		return object{"pattern": object{"regex": "^/([a-z]+)/(.*)$"}, "substitution": `/\2/\1`}
	case 1:
		return object{"pattern": object{"regex": "[aA]"}, "substitution": "zz"}
	case 2:
		return object{"pattern": object{"regex": "x*"}, "substitution": "/"}
	}
	return object{"pattern": object{"regex": "/(v1)?"}, "substitution": `\0\\\1`}
}

func (g *generator) action() object {
	a := object{}
	switch g.IntN(6) {
	case 0:
		a["cluster_header"] = "x-cluster"
	case 1, 2:
		a["weighted_clusters"] = g.weighted()
	case 3:
		a["cluster"] = pick(g, "ring", "unknown")
		a["cluster_not_found_response_code"] = pick(g, "SERVICE_UNAVAILABLE", "NOT_FOUND", "INTERNAL_SERVER_ERROR")
	default:
		a["cluster"] = pick(g, clusterNames...)
	}
	switch g.IntN(6) {
	case 0:
		a["prefix_rewrite"] = pick(g, "/", "/new", "/new/")
	case 1:
		a["regex_rewrite"] = g.rewrite()
	}
	switch g.IntN(8) {
	case 0:
		a["host_rewrite_literal"] = "rewritten.test"
	case 1:
		a["host_rewrite_header"] = "x-b"
	case 2:
		a["host_rewrite_path_regex"] = object{"pattern": object{"regex": "^/(.+)/.+$"}, "substitution": `\1`}
	case 3:
		a["auto_host_rewrite"] = true
	}
	a["append_x_forwarded_host"] = g.chance(3)
	switch g.IntN(6) {
	case 0:
		a["timeout"] = pick(g, "0s", "3s", "7.5s")
	case 1:
		a["max_stream_duration"] = object{"max_stream_duration": pick(g, "0s", "20s"), "grpc_timeout_header_max": "10s"}
	case 2:
		a["max_grpc_timeout"] = pick(g, "0s", "5s")
	}
	if g.chance(4) {
		a["hash_policy"] = g.hashPolicy()
		a["cluster"] = "ring"
		delete(a, "weighted_clusters")
		delete(a, "cluster_header")
	}
	if g.chance(4) {
		on := []string{"5xx", "gateway-error,retriable-4xx", "retriable-status-codes", "connect-failure"}
		if g.two {
			on = append(on, "unavailable,cancelled", "internal,reset")
		}
		a["retry_policy"] = object{"retry_on": pick(g, on...), "num_retries": 1,
			"per_try_timeout": pick(g, "0s", "2s"), "retriable_status_codes": []int{503}, "retry_back_off": object{"base_interval": "0.001s"}}
	}
	if g.certain && g.chance(3) {
		a["request_mirror_policies"] = g.mirrors()
	}
	return a
}

func (g *generator) mirrors() []any {
	var list []any
	for range 1 + g.IntN(2) {
		m := object{"cluster": pick(g, append(slices.Clone(clusterNames), "unknown")...), "disable_shadow_host_suffix_append": g.chance(4)}
		if g.chance(2) {
			m["runtime_fraction"] = object{"default_value": object{"numerator": g.share(1_000_000), "denominator": "MILLION"}}
		}
		list = append(list, m)
	}
	return list
}

func (g *generator) weighted() object {
	var list []any
	for i := range 1 + g.IntN(3) {
		c := object{"name": clusterNames[i], "weight": pick(g, 0, 1, 10, 50)}
		if g.certain {
			c["weight"] = 0
		}
		if i == 0 {
			c["weight"] = pick(g, 1, 100)
		}
		if g.chance(3) {
			c["host_rewrite_literal"] = "weighted.test"
		}
		g.headerOps(c, 2)
		list = append(list, c)
	}
	return object{"clusters": list}
}

func (g *generator) hashPolicy() []any {
	var list []any
	for range 1 + g.IntN(2) {
		p := object{"terminal": g.chance(2)}
		switch g.IntN(4) {
		case 0:
			p["header"] = object{"header_name": "x-a"}
		case 1:
			c := object{"name": pick(g, "user", "sticky")}
			if !g.chance(3) {
				c["ttl"] = pick(g, "0s", "10s")
			}
			if g.chance(2) {
				c["path"] = "/p"
			}
			p["cookie"] = c
		case 2:
			p["connection_properties"] = object{"source_ip": true}
		default:
			p["query_parameter"] = object{"name": "q"}
		}
		list = append(list, p)
	}
	return list
}

// headerOps adds operations to each kind once in n.
func (g *generator) headerOps(to object, n int) {
	for _, direction := range []string{"request", "response"} {
		if !g.chance(n) {
			continue
		}
		var add []any
		for range 1 + g.IntN(2) {
			add = append(add, object{"header": object{"key": pick(g, "x-a", "x-new", "X-Mixed", "x-b", "user-agent"), "value": g.value(direction)},
				"append_action":    pick(g, "APPEND_IF_EXISTS_OR_ADD", "ADD_IF_ABSENT", "OVERWRITE_IF_EXISTS_OR_ADD", "OVERWRITE_IF_EXISTS"),
				"keep_empty_value": g.chance(5)})
		}
		to[direction+"_headers_to_add"] = add
		if g.chance(2) {
			to[direction+"_headers_to_remove"] = []string{pick(g, "x-a", "x-b", "X-New", "x-up")}
		}
	}
}

func (g *generator) value(direction string) string {
	list := []string{"plain", "with %% sign", "%REQ(x-a)%", "[%REQ(x-missing?x-b)%]", "%REQ(:path):3%", "%PROTOCOL%", "%REQ(:authority)%-%REQ(:method)%",
		"%ROUTE_NAME%", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%", "%DOWNSTREAM_REMOTE_ADDRESS%", g.port(),
		"%REQUESTED_SERVER_NAME%", "%REQ(x-none)%", "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%", "%REQ(user-agent?x-a):4%"}
	if direction == "response" {
		list = append(list, "%RESP(x-up)%", "%RESPONSE_CODE%", "%UPSTREAM_CLUSTER%", "%RESP(content-type?x-up)%", "%RESPONSE_FLAGS%")
	}
	return pick(g, list...)
}

// port is an operator whose value depends on the listener.
func (g *generator) port() string {
	if g.certain {
		return "no port"
	}
	return "%DOWNSTREAM_LOCAL_PORT%"
}

func (g *generator) filters(to object, n int) {
	typed := object{}
	if g.chance(n) {
		c := object{"@type": "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy",
			"allow_origin_string_match": []any{g.text(pick(g, "http://o.test", "*", "http://x"))}}
		for _, f := range []string{"allow_methods", "allow_headers"} {
			if g.chance(2) {
				c[f] = pick(g, "GET,POST", "*", "x-a,x-b")
			}
		}
		if g.chance(2) {
			c["expose_headers"] = "x-up"
		}
		if g.chance(2) {
			c["max_age"] = "86400"
		}
		for _, f := range []string{"allow_credentials", "forward_not_matching_preflights", "allow_private_network_access"} {
			if g.chance(3) {
				c[f] = g.chance(2)
			}
		}
		if g.chance(3) {
			c["filter_enabled"] = object{"default_value": object{"numerator": pick(g, 0, 100)}}
		}
		typed["envoy.filters.http.cors"] = c
	}
	if g.chance(2 * n) {
		f := object{"@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"}
		a := object{"percentage": object{"numerator": g.share(1_000_000), "denominator": "MILLION"}}
		if g.chance(3) {
			a["grpc_status"] = pick(g, 14, 5, 0, 7, 1)
		} else {
			a["http_status"] = pick(g, 500, 418, 200, 503)
		}
		f["abort"] = a
		if g.chance(2) {
			f["headers"] = []any{g.headerMatch()}
		}
		if g.chance(4) {
			f["upstream_cluster"] = pick(g, clusterNames...)
		}
		if g.chance(4) {
			f["delay"] = object{"fixed_delay": "0.001s", "percentage": object{"numerator": 100}}
		}
		typed["envoy.filters.http.fault"] = f
	}
	if len(typed) > 0 {
		to["typed_per_filter_config"] = typed
	}
}
