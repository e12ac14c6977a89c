package envoy

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// orderPlans are what routes say where a request gives orders of its own; those whose names begin with "short" wait a second for a host
// that says nothing.
var orderPlans = []plan{
	{"none", `{"timeout": "15s"}`, false},
	{"policy", `{"timeout": "15s", "retryPolicy": {"retryOn": "5xx", "numRetries": 2, "perTryTimeout": "6s"}}`, false},
	{"codes", `{"timeout": "15s", "retryPolicy": {"retryOn": "retriable-status-codes,retriable-headers,cancelled", "retriableStatusCodes": [409, 503],
		"retriableHeaders": [{"name": "x-again"}, {"name": "x-twice", "stringMatch": {"exact": "1"}}], "numRetries": 3}}`, false},
	{"only-get", `{"timeout": "15s", "retryPolicy": {"retryOn": "5xx", "numRetries": 1, "retriableRequestHeaders": [{"name": ":method", "stringMatch": {"exact": "GET"}}]}}`, false},
	{"no-tries", `{"timeout": "15s", "retryPolicy": {"retryOn": "5xx", "numRetries": 0}}`, false},
	{"endless", `{"timeout": "0s", "retryPolicy": {"retryOn": "5xx", "numRetries": 1, "perTryTimeout": "6s"}}`, false},
	{"stream", `{"maxStreamDuration": {"maxStreamDuration": "15s", "grpcTimeoutHeaderMax": "0s"}}`, false},
	{"short", `{"timeout": "1s"}`, false},
	{"short-try", `{"timeout": "15s", "retryPolicy": {"retryOn": "5xx", "numRetries": 1, "perTryTimeout": "1s"}}`, false},
	{"short-idle", `{"timeout": "15s", "retryPolicy": {"retryOn": "5xx", "numRetries": 1, "perTryIdleTimeout": "1s"}}`, false},
}

var (
	patient = []string{"none", "policy", "codes", "only-get", "no-tries", "endless", "stream"}
	few     = []string{"none", "policy", "codes"}
)

// numbers are values where a number of milliseconds is meant; counts where a few tries are.
var (
	numbers = []string{"3000", "9000", "0", "00", "0007000", "-1", "+9000", "", " 9000", "9000 ", "9000x", "x", "0x9000", "9000.0", "9e3", "9000,8000",
		"4294967295", "4294967296", "9223372036854775808", "18446744073709551615", "18446744073709551616", "99999999999999999999"}
	counts = []string{"1", "2", "4", "0", "00", "03", "-1", "+2", "", " 2", "2 ", "2x", "x", "0x2", "2.0", "2,3"}
)

// booleans are values where yes or no is meant.
var booleans = []string{"true", "false", "TRUE", "1", "0", "", "x", "true,true"}

// order is a field of requests, with values that are good or broken.
type order struct {
	name   string
	values []string
	with   []string // other fields that give it a meaning
	does   []string // what hosts do (mishap)
	plans  []string
}

var reasons = []string{"5xx", "gateway-error", "connect-failure", "retriable-4xx", "refused-stream", "retriable-status-codes", "retriable-headers", "reset",
	"reset-before-request", "envoy-ratelimited", "http3-post-connect-failure", "cancelled", "unavailable", "", "5XX", " 5xx ", "5xx,", ",,reset", "5xx;reset",
	"bogus", "bogus,retriable-4xx", "retriable-4xx,reset", "retriable-4xx, gateway-error", "-5xx", "5xx\treset"}

const (
	rqTimeout  = "x-envoy-upstream-rq-timeout-ms"
	tryTimeout = "x-envoy-upstream-rq-per-try-timeout-ms"
)

var orders = []order{
	{rqTimeout, numbers, nil, []string{"", "answer 503;"}, patient},
	{tryTimeout, numbers, nil, []string{"", "answer 503;"}, patient},
	{"x-envoy-max-retries", counts, nil, []string{everyTry("answer 503")}, patient},
	{"x-envoy-max-retries", counts, []string{"x-envoy-retry-on: 5xx"}, []string{everyTry("answer 503")}, patient},
	{"x-envoy-retry-on", reasons, nil, []string{"answer 500;", "answer 502;", "answer 503;", "answer 504;", "answer 409;", "answer 429;", "answer 599;", "answer 404;", "answer 200;",
		"answer 200 x-envoy-ratelimited;", "answer 503 x-envoy-ratelimited;", "answer 200 x-again;", "answer 200 grpc-status;", "unavailable;", "half;", "reset-half;",
		"refuse;", "garbage;"}, []string{"none", "policy"}},
	{"x-envoy-retry-on", reasons[:13], []string{"x-envoy-max-retries: 3"}, []string{"answer 503;answer 409;answer 502;answer 503", "answer 409;answer 503;"}, patient},
	{"x-envoy-retry-grpc-on", []string{"cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable", "5xx", "", "bogus", "CANCELLED",
		"cancelled,unavailable", "unavailable, bogus"}, nil, []string{"answer 200 grpc-status 1;", "answer 200 grpc-status 4;", "answer 200 grpc-status 8;",
		"answer 200 grpc-status 13;", "answer 200 grpc-status 14;", "answer 200 grpc-status 0;", "answer 200 grpc-status x;", "answer 503;", "unavailable;"}, few},
	{"x-envoy-retriable-status-codes", []string{"409", "404", "200", "404,409", " 404 , 409 ", "404;409", "x,409", "404 409", "-409", "0", "1000", "409,", "", "4090", "0409", "18446744073709552025"},
		[]string{"x-envoy-retry-on: retriable-status-codes"}, []string{"answer 409;", "answer 404;", "answer 200;", "answer 503;"}, few},
	{"x-envoy-retriable-status-codes", []string{"409", "200"}, nil, []string{"answer 409;", "answer 200;"}, few},
	{"x-envoy-retriable-header-names", []string{"x-again", "X-AGAIN", "x-other,x-again", "x-other , x-again ", "x-other;x-again", "", ",", "x-other", "x again", "content-type", "x-twice"},
		[]string{"x-envoy-retry-on: retriable-headers"}, []string{"answer 200 x-again;", "answer 503 x-twice 2;", "answer 200;", "answer 409 x-twice 1;"}, few},
	{"x-envoy-retriable-header-names", []string{"x-again"}, nil, []string{"answer 200 x-again;"}, few},
	{"x-envoy-hedge-on-per-try-timeout", booleans, nil, []string{"", "answer 503;"}, []string{"none", "codes"}},
	{"x-envoy-upstream-rq-timeout-alt-response", append([]string{"204", "200"}, booleans...), nil, []string{"", "answer 503;"}, []string{"none", "policy"}},
	{"x-envoy-upstream-stream-duration-ms", numbers, nil, []string{""}, []string{"none", "policy", "stream"}},
	{"x-envoy-expected-rq-timeout-ms", append([]string{"5000"}, numbers...), nil, []string{"", "answer 503;"}, patient},
}

// slowOrders are those that are seen by how long a host is waited for.
var slowOrders = []order{
	{rqTimeout, []string{"700"}, nil, []string{"hang", everyTry("hang"), "head"}, []string{"none", "policy", "stream", "short-idle"}},
	{rqTimeout, []string{"x", "-1", "0x700", "700, 800", "+700"}, nil, []string{everyTry("hang")}, []string{"short", "short-try", "short-idle"}},
	{tryTimeout, []string{"700"}, []string{"x-envoy-retry-on: 5xx"}, []string{"hang;", everyTry("hang")}, []string{"none", "policy", "only-get", "stream"}},
	{tryTimeout, []string{"x", "-1", "", "20000"}, []string{"x-envoy-retry-on: reset"}, []string{"hang;", everyTry("hang")}, []string{"short-try", "short"}},
	{tryTimeout, []string{"700", "1600", "2400"}, []string{rqTimeout + ": 2400", "x-envoy-retry-on: reset"}, []string{"", "hang;", everyTry("hang")}, []string{"none"}},
	{tryTimeout, []string{"900"}, []string{rqTimeout + ": 4000"}, []string{"hang;hang;", "hang;answer 503;hang;", everyTry("hang")}, []string{"policy", "short-idle"}},
	{"x-envoy-retry-on", reasons[:13], []string{tryTimeout + ": 700"}, []string{"hang;"}, []string{"none", "policy"}},
	{"x-envoy-upstream-rq-timeout-alt-response", []string{"1", "0", "", "x"}, nil, []string{everyTry("hang"), "head"}, []string{"short"}},
	{"x-envoy-upstream-rq-timeout-alt-response", []string{"1"}, nil, []string{everyTry("hang")}, []string{"short-try", "short-idle"}},
	{"x-envoy-upstream-stream-duration-ms", []string{"700"}, nil, []string{"hang"}, []string{"none", "stream", "policy"}},
	{"x-envoy-upstream-stream-duration-ms", []string{"x", "0"}, nil, []string{"hang"}, []string{"short"}},
	{"x-envoy-expected-rq-timeout-ms", []string{"300", "x"}, nil, []string{everyTry("hang")}, []string{"short", "short-try"}},
}

// told are fields that tell something, of the request or of who sends it; broken values are as good as any.
var told = []string{"x-envoy-attempt-count", "x-envoy-internal", "x-envoy-external-address", "x-envoy-peer-metadata", "x-envoy-peer-metadata-id", "x-envoy-decorator-operation",
	"x-envoy-upstream-alt-stat-name", "x-envoy-downstream-service-cluster", "x-envoy-downstream-service-node", "x-envoy-ip-tags", "x-envoy-force-trace", "x-envoy-original-path",
	"x-envoy-original-url", "x-envoy-original-host", "x-envoy-original-dst-host", "x-envoy-original-method", "x-envoy-is-timeout-retry", "x-envoy-upstream-service-time",
	"x-envoy-upstream-canary", "x-envoy-overloaded", "x-envoy-ratelimited", "x-envoy-degraded", "x-envoy-immediate-health-check-fail", "x-envoy-upstream-healthchecked-cluster",
	"x-envoy-local-overloaded", "x-envoy-cluster", "x-envoy-auth-partial-body", "x-envoy-unknown", "x-envoy", "x-envoy-", "x-client-trace-id", "x-forwarded-host", "x-forwarded-port",
	"x-forwarded-for", "x-real-ip", "via", "forwarded", "server", "date", "x-ot-span-context", "x-istio-attributes"}

// calls are the requests with an order, of kinds that take turns. Over HTTP/2 blanks around a value are refused (docs/envoy.md, 1).
func (o order) calls(kinds []call, two bool) (out []call) {
	turn := 0
	add := func(do, plan string, fields ...string) {
		q := kinds[turn%len(kinds)]
		turn++
		q.Fields = slices.Concat(q.Fields, o.with, fields)
		out = append(out, toFailing([]call{q}, "up", plan, do)...)
	}
	for _, do := range o.does {
		for _, plan := range o.plans {
			for _, value := range o.values {
				if !two || strings.TrimSpace(value) == value {
					add(do, plan, o.name+": "+value)
				}
			}
			turn++ // each value meets each kind
		}
	}
	return out
}

// orderCalls are the requests of one run.
func orderCalls(v versions) (out []call) {
	kinds := []call{{Method: "GET"}, {Method: "POST", Body: "some body"}}
	if v.down {
		kinds[1] = call{Method: "POST", Body: "\x00\x00\x00\x00\x03abc", Fields: []string{"content-type: application/grpc", "te: trailers"}}
	}
	for _, o := range slices.Concat(orders, slowOrders) {
		out = append(out, o.calls(kinds, v.down)...)
	}
	for _, o := range orders { // without it, and twice
		for _, fields := range [][]string{o.with, slices.Concat(o.with, []string{o.name + ": " + o.values[0], o.name + ": " + o.values[len(o.values)-1]})} {
			q := call{Method: "GET", Fields: fields}
			out = append(out, toFailing([]call{q}, "up", o.plans[0], o.does[0])...)
		}
	}
	for _, name := range told {
		for _, value := range []string{"true", "10.1.2.3", "", "x y", "{bad"} {
			ask, answer := call{Method: "GET", Fields: []string{name + ": " + value}}, call{Method: "GET", Fields: []string{fmt.Sprintf("x-echo-field: %s: %s", name, value)}}
			out = append(out, toFailing([]call{ask}, "up", "none", "answer 503;")...)
			if !v.down || value != "" {
				out = append(out, toFailing([]call{answer}, "up", "policy", "")...)
			}
		}
	}
	return out
}

// TestEnvoyAgreesOnOrders: both do the same with what a client inside the mesh asks for in x-envoy-* fields: timeouts, tries and their
// reasons, with good and with broken values; and with what requests and answers say in the others of them.
func TestEnvoyAgreesOnOrders(t *testing.T) {
	t.Parallel()
	list := []failingCluster{{"up", `{"circuitBreakers": {"thresholds": [{"maxRetries": 1000}]}}`, []string{"up"}, false}}
	for _, v := range []versions{{false, false}, {true, true}} {
		t.Run(v.name(), func(t *testing.T) {
			agreeOnFailures(t, v, list, orderPlans, orderCalls(v), func(q call) int {
				if slices.ContainsFunc(q.Fields, func(f string) bool { return strings.HasPrefix(f, "x-forwarded-for: ") }) {
					return 4
				}
				if !v.up && q.Method == "GET" && slices.Contains(q.Fields, "x-echo-do: refuse;") { // the connection ends without a byte of an answer
					return 10
				}
				return 0
			})
		})
	}
}
