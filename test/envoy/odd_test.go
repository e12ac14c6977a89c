package envoy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// oddPlans are the plans for what is odd rather than a failure, and may leave a request without an end.
var oddPlans = []plan{
	{"odd", `{"timeout": "15s"}`, false},
	{"odd-any", `{"timeout": "15s", "retryPolicy": {"retryOn": "5xx", "numRetries": 2}}`, false},
	{"odd-reset", `{"timeout": "15s", "retryPolicy": {"retryOn": "reset", "numRetries": 1}}`, false},
	{"odd-refused", `{"timeout": "15s", "retryPolicy": {"retryOn": "connect-failure,refused-stream", "numRetries": 1}}`, false},
}

// oddCalls are requests whose answers are odd, and those that are answered before they are there.
func oddCalls(v versions) (out []call) {
	whole := []call{{Method: "GET", Alone: true}, {Method: "POST", Body: "some body", Alone: true}}
	held := []call{{Method: "POST", Body: "some body", Held: true}}
	list, early := slices.Sorted(maps.Keys(texts1)), mishaps2(true)[:0]
	if v.up {
		list, early = mishaps2(false), mishaps2(true)
	} else {
		early = slices.DeleteFunc(slices.Clone(list), func(m mishap) bool { return !m.early() })
		list = slices.DeleteFunc(list, mishap.early)
	}
	for _, m := range list {
		for _, p := range oddPlans {
			out = append(out, toFailing(whole, "up", p.name, string(m)+";;")...)
		}
		if !strings.HasPrefix(string(m), "half") { // which a HEAD has none of
			out = append(out, toFailing([]call{{Method: "HEAD", Alone: true}}, "up", "odd", string(m))...)
		}
		out = append(out, toFailing(whole[:1], "up", "odd-any", fmt.Sprintf("%s;%s;%s", m, m, m))...)
	}
	for _, m := range early {
		for _, p := range oddPlans {
			out = append(out, toFailing(whole[1:], "up", p.name, string(m)+";;")...)
			out = append(out, toFailing(held, "up", p.name, fmt.Sprintf("%s;%s;%s", m, m, m))...)
		}
	}
	if v.up {
		for name := range manners {
			for _, p := range oddPlans {
				out = append(out, toFailing(whole, name, p.name, "")...)
			}
		}
	}
	return out
}

// listedMishaps are those that docs/envoy.md lists, by the number there.
var listedMishaps = map[mishap]int{"folded": 1, "bare LF": 1, "bare CR": 1, "100 with length": 1, "status 2000": 1, "status 099": 1, "blanks": 1,
	"connection names": 3, "trailer": 3, "101": 15, "101 bare": 15}

// listedOdd is the difference that docs/envoy.md lists for a call, 0 for none.
func listedOdd(q call) int {
	do := ""
	for _, f := range q.Fields {
		if n, v, _ := strings.Cut(f, ": "); n == "x-echo-do" {
			do, _, _ = strings.Cut(v, ";")
		}
	}
	cut := slices.Contains([]string{"/end/odd-refused", "/settings-end/odd-refused"}, q.Target) || strings.HasSuffix(q.Target, "/odd-refused") && strings.HasPrefix(do, "GOAWAY with")
	if cut && q.Method == "GET" || strings.Contains(do, "GOAWAY without") || do == atHead+"GOAWAY" {
		return 10
	}
	return listedMishaps[mishap(do)]
}

// meetsManner reports that a call goes to an upstream that may end the connection before it has read the request.
func meetsManner(q call) bool {
	name, _, _ := strings.Cut(strings.TrimPrefix(q.Target, "/"), "/")
	_, ok := manners[name]
	return ok
}

// TestEnvoyAgreesOnOddAnswers: Envoy and our engine do the same about answers that are out of the ordinary or against the protocol,
// and about those that come before the request's end.
func TestEnvoyAgreesOnOddAnswers(t *testing.T) {
	t.Parallel()
	for _, v := range []versions{{false, false}, {true, false}, {false, true}, {true, true}} {
		t.Run(v.name(), func(t *testing.T) {
			many := `{"circuitBreakers": {"thresholds": [{"maxRetries": 1000}]}}`
			list := []failingCluster{{"up", many, []string{"up"}, false}}
			for name := range manners {
				list = append(list, failingCluster{name, many, []string{"up"}, strings.HasSuffix(name, "-stream")})
			}
			agreeOnFailures(t, v, list, oddPlans, oddCalls(v), listedOdd)
		})
	}
}
