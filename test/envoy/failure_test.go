package envoy

import (
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"
)

// failingCluster is a cluster by what its message says beside the endpoints.
type failingCluster struct {
	name, spec string
	endpoints  []string // "up", "refused", "full"; with "down " before it one that is unhealthy; "up 2" one that says so of itself
	many       bool     // requests share connections
}

var failing = []failingCluster{
	{"up", `{"circuitBreakers": {"thresholds": [{"maxRetries": 1000}]}}`, []string{"up"}, false},
	{"refused", `{"circuitBreakers": {"thresholds": [{"maxRetries": 1000}]}}`, []string{"refused"}, false},
	{"some", `{"circuitBreakers": {"thresholds": [{"maxRetries": 1000}]}}`, []string{"refused", "up"}, false},
	{"late", `{"connectTimeout": "0.1s", "circuitBreakers": {"thresholds": [{"maxRetries": 1000}]}}`, []string{"full"}, false},
	{"empty", `{}`, nil, false},
	{"unhealthy", `{"commonLbConfig": {"healthyPanicThreshold": {"value": 0}}}`, []string{"down up"}, false},
	{"panic", `{}`, []string{"down up"}, false},
	{"requests", `{"circuitBreakers": {"thresholds": [{"maxRequests": 0}]}}`, []string{"up"}, false},
	{"pending", `{"circuitBreakers": {"thresholds": [{"maxPendingRequests": 0}]}}`, []string{"up"}, false},
	{"retries", `{"circuitBreakers": {"thresholds": [{"maxRetries": 0}]}}`, []string{"up"}, false},
}

// plan is what a route says of tries and times.
type plan struct {
	name, action string
	patient      bool // a host that says nothing is waited for
}

var plans = []plan{
	{"plain", `{"timeout": "15s"}`, true},
	{"any", `{"timeout": "15s", "retryPolicy": {"retryOn": "5xx", "numRetries": 2}}`, true},
	{"connect", `{"timeout": "15s", "retryPolicy": {"retryOn": "connect-failure,refused-stream", "numRetries": 2}}`, true},
	{"reset", `{"timeout": "15s", "retryPolicy": {"retryOn": "reset", "numRetries": 2}}`, true},
	{"before", `{"timeout": "15s", "retryPolicy": {"retryOn": "reset-before-request,retriable-status-codes", "retriableStatusCodes": [503], "numRetries": 1}}`, true},
	{"gateway", `{"timeout": "15s", "retryPolicy": {"retryOn": "gateway-error", "numRetries": 1}}`, true},
	{"grpc", `{"timeout": "15s", "retryPolicy": {"retryOn": "unavailable", "numRetries": 1}}`, true},
	{"short", `{"timeout": "1s"}`, false},
	{"try", `{"timeout": "15s", "retryPolicy": {"retryOn": "5xx", "numRetries": 1, "perTryTimeout": "1s"}}`, false},
	{"once", `{"timeout": "15s", "retryPolicy": {"retryOn": "connect-failure", "numRetries": 1, "perTryTimeout": "1s"}}`, false},
	{"both", `{"timeout": "3s", "retryPolicy": {"retryOn": "5xx", "numRetries": 5, "perTryTimeout": "1.8s"}}`, false},
	{"idle", `{"timeout": "15s", "idleTimeout": "1s"}`, false},
}

// failures is the configuration: a route for each cluster and plan.
func failures(t *testing.T, clusters []failingCluster, plans []plan) *routev3.RouteConfiguration {
	t.Helper()
	var routes []any
	for _, c := range clusters {
		for _, p := range plans {
			var action object
			if err := json.Unmarshal([]byte(p.action), &action); err != nil {
				t.Fatal(err)
			}
			action["cluster"] = c.name
			if r, ok := action["retryPolicy"].(object); ok {
				if _, said := r["retryBackOff"]; !said {
					r["retryBackOff"] = object{"baseInterval": "0.001s", "maxInterval": "0.002s"}
				}
				if c.name == "some" {
					r["retryHostPredicate"] = []any{object{"name": "envoy.retry_host_predicates.previous_hosts", "typedConfig": object{
						"@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"}}}
					r["hostSelectionRetryMaxAttempts"] = 20
				}
			}
			routes = append(routes, object{"name": c.name + " " + p.name, "match": object{"path": "/" + c.name + "/" + p.name}, "route": action})
		}
	}
	text, err := json.Marshal(object{"name": "f", "virtualHosts": []any{object{"name": "all", "domains": []string{"*"}, "routes": routes,
		"includeRequestAttemptCount": true, "includeAttemptCountInResponse": true}}})
	if err != nil {
		t.Fatal(err)
	}
	rc := &routev3.RouteConfiguration{}
	if err := protojson.Unmarshal(text, rc); err != nil {
		t.Fatal(err)
	}
	return rc
}

// failingClusters makes the clusters, each with upstreams of its own. Every request has a connection of its own: what a connection
// that was used before does is another matter (docs/envoy.md).
func failingClusters(t *testing.T, list []failingCluster, two bool, places map[string]int) (*Echoes, []*clusterv3.Cluster) {
	t.Helper()
	e := newEchoes(t)
	var out []*clusterv3.Cluster
	for _, f := range list {
		c := &clusterv3.Cluster{}
		if err := protojson.Unmarshal([]byte(f.spec), c); err != nil {
			t.Fatal(err)
		}
		endpoints := []any{}
		for _, at := range f.endpoints {
			at, down := strings.CutPrefix(at, "down ")
			port := places[at]
			if name, up := strings.CutPrefix(at, "up"); up {
				port = e.listen(t, "tcp", "127.0.0.1:0", f.name+name).(*net.TCPAddr).Port
			}
			endpoints = append(endpoints, object{"healthStatus": map[bool]string{true: "UNHEALTHY", false: "HEALTHY"}[down],
				"endpoint": object{"address": object{"socketAddress": object{"address": "127.0.0.1", "portValue": port}}}})
		}
		requests := 1
		if f.many {
			requests = 0
		}
		text, err := json.Marshal(object{"name": f.name, "maxRequestsPerConnection": requests,
			"loadAssignment": object{"clusterName": f.name, "endpoints": []any{object{"lbEndpoints": endpoints}}}})
		if err != nil {
			t.Fatal(err)
		}
		rest := &clusterv3.Cluster{}
		if err := protojson.Unmarshal(text, rest); err != nil {
			t.Fatal(err)
		}
		c.Name, c.LoadAssignment, c.MaxRequestsPerConnection = rest.Name, rest.LoadAssignment, rest.MaxRequestsPerConnection //nolint:staticcheck // the short form
		if two {
			c = overHTTP2(c)
		}
		out = append(out, c)
	}
	return e, out
}

// badPlaces are ports where nobody takes a connection: "refused" refuses it, "full" says nothing.
func badPlaces(t *testing.T) map[string]int {
	t.Helper()
	socket := func(listens bool) int {
		fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = syscall.Close(fd) })
		if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			t.Fatal(err)
		}
		if listens {
			if err := syscall.Listen(fd, 0); err != nil {
				t.Fatal(err)
			}
		}
		at, err := syscall.Getsockname(fd)
		if err != nil {
			t.Fatal(err)
		}
		return at.(*syscall.SockaddrInet4).Port
	}
	full := socket(true)
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", full)) // the one that is let wait
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return map[string]int{"refused": socket(false), "full": full}
}

// failingCalls are the requests of one run.
func failingCalls(v versions) []call {
	var out []call
	kinds := []call{{Method: "GET"}, {Method: "POST", Body: "some body"}}
	if v.down {
		kinds = append(kinds, call{Method: "POST", Body: "\x00\x00\x00\x00\x03abc", Fields: []string{"content-type: application/grpc", "te: trailers", "x-echo-trailer: grpc-status: 0"}})
	}
	add := func(cluster, plan, do string) { out = append(out, toFailing(kinds, cluster, plan, do)...) }
	for _, p := range plans {
		for _, c := range failing {
			switch {
			case c.name == "some":
				if p.name == "any" || p.name == "connect" {
					add(c.name, p.name, "")
				}
			case c.name == "late" && p.name == "both": // the last try ends when the time of all does: either may be first
			case c.name != "up" && c.name != "retries":
				add(c.name, p.name, "")
			default:
				for _, m := range mishaps {
					if m.unanswered(v.up) && slices.Contains([]string{"connect", "once", "grpc", "before"}, p.name) { // docs/envoy.md, 10
						continue
					}
					if m.silent() && p.patient || m == headOnly && strings.Contains(p.action, "15s") && p.name != "idle" { // nothing ends it soon
						continue
					}
					add(c.name, p.name, string(m))
					if m != none && c.name == "up" {
						add(c.name, p.name, fmt.Sprintf("%s;;", m))
						add(c.name, p.name, fmt.Sprintf("%s;%s;%s;%s;%s;%s", m, m, m, m, m, m))
					}
				}
			}
		}
	}
	return out
}

// toFailing are requests of these kinds.
func toFailing(kinds []call, cluster, plan, do string) (out []call) {
	for _, q := range kinds {
		q.Target, q.Authority, q.Fields = "/"+cluster+"/"+plan, "a.test", slices.Clone(q.Fields)
		if do != "" {
			q.Fields = append(q.Fields, "x-echo-do: "+do)
		}
		out = append(out, q)
	}
	return out
}

// listedFailure are the differences that docs/envoy.md lists.
func listedFailure(v versions) func(call) int {
	return func(q call) int {
		if v.up && slices.ContainsFunc(q.Fields, func(f string) bool { return strings.HasPrefix(f, "x-echo-do: goaway") }) {
			return 10
		}
		return 0
	}
}

// TestEnvoyAgreesOnFailures: Envoy and our engine do the same when upstreams fail: refuse connections or do not take them, end
// them before, in or after an answer, say nothing, talk nonsense, are unhealthy, too busy or not there; with other tries, without,
// and with timeouts. What upstreams see of it is the same, too.
func TestEnvoyAgreesOnFailures(t *testing.T) {
	t.Parallel()
	for _, v := range []versions{{false, false}, {true, false}, {false, true}, {true, true}} {
		t.Run(v.name(), func(t *testing.T) { agreeOnFailures(t, v, failing, plans, failingCalls(v), listedFailure(v)) })
	}
}

// agreeOnFailures sends calls that go by plans to clusters that fail.
func agreeOnFailures(t *testing.T, v versions, list []failingCluster, plans []plan, calls []call, listed func(call) int) {
	t.Helper()
	Require(t)
	t.Parallel()
	places := badPlaces(t)
	theirEchoes, theirClusters := failingClusters(t, list, v.up, places)
	ourEchoes, ourClusters := failingClusters(t, list, v.up, places)
	configs := []*routev3.RouteConfiguration{failures(t, list, plans)}
	d := &differential{envoy: StartProxy(t, 1, configs, theirClusters), we: startOurs(t, configs, ourClusters), envoys: theirEchoes, ours: ourEchoes,
		chance: func(q call) bool { return strings.HasPrefix(q.Target, "/some/") }, races: meetsManner, listed: listed}
	const atOnce = 16
	var wait sync.WaitGroup
	for i := range atOnce {
		var own []call
		for j := i; j < len(calls); j += atOnce {
			own = append(own, calls[j])
		}
		wait.Go(func() { d.through(t, v.down, "f", fmt.Sprintf("f%d", i), own) })
	}
	wait.Wait()
	d.compare(t)
	flags := map[string]int{}
	for _, x := range d.pairs {
		flags[x.envoy.Flags]++
	}
	t.Logf("%d requests, flags %v", len(d.pairs), flags)
}
