package rows

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/undermesh/undermesh/test/e2e"
)

// What a caller may bring.
const (
	someTrace = "86a929a0e76cda378fc453fb1dec2c22"
	someSpan  = "071d7f06bc94943c"
)

// traced asks httpbin for the fields of the request that it gets: of a caller in the mesh that of its node, where the mesh does both
// sides' work in one, and that of the other node; of another caller that outside the mesh.
func traced(want func(fields map[string]string) error, headers ...string) func(context.Context, place) error {
	seen := every(func(a e2e.Answer) error {
		var got struct{ Headers map[string]string }
		if err := json.Unmarshal([]byte(a.Body), &got); err != nil || a.Status != 200 {
			return fmt.Errorf("%d, %w: %.200q", a.Status, err, a.Body)
		}
		return want(got.Headers)
	})
	return func(ctx context.Context, p place) error {
		servers := []string{"foo", "bar"}
		if p.namespace == outside {
			servers = []string{outside}
		}
		var questions []expect
		for _, namespace := range servers {
			questions = append(questions, expect{e2e.Question{URL: "http://httpbin." + namespace + ":8000/headers", N: 20, Keep: true, Headers: fields(headers)}, seen})
		}
		return asks(questions...)(ctx, p)
	}
}

// matches wants fields to be as regular expressions say, "" for one that is not there, and nothing to name the caller's span, for two
// further ones lie between it and the server.
func matches(want map[string]string) func(map[string]string) error {
	return func(fields map[string]string) error {
		for name, pattern := range want {
			if got, there := fields[name]; there != (pattern != "") || !regexp.MustCompile("^("+pattern+")$").MatchString(got) {
				return fmt.Errorf("%s is %q, want %q: %v", name, got, pattern, fields)
			}
		}
		for name, value := range fields {
			if strings.Contains(value, someSpan) {
				return fmt.Errorf("%s is the caller's: %s", name, value)
			}
		}
		return nil
	}
}

// TraceRows: every request is a step of a trace, which the mesh begins where the caller has none, and goes on with in the form that it
// has; whether to sample is decided once.
func TraceRows(t *testing.T, w World) {
	const span = "[0-9a-f]{16}"
	ctx := within(t)
	expects := func(title string, holds bool, namespace string, looks ...func(context.Context, place) error) {
		t.Run(title, func(t *testing.T) {
			for _, look := range looks {
				check(t, (&row{title: title, look: look}).expects(ctx, place{w, namespace, "sleep"}, holds))
			}
		})
	}
	fields := matches(map[string]string{"X-B3-Traceid": "[0-9a-f]{32}", "X-B3-Spanid": span, "X-B3-Parentspanid": span, "X-B3-Sampled": "[01]",
		"X-Request-Id": "[-0-9a-f]{36}"})
	own := matches(map[string]string{"X-B3-Traceid": someTrace, "X-B3-Spanid": span, "X-B3-Parentspanid": span, "X-B3-Sampled": "1"})
	one := matches(map[string]string{"B3": someTrace + "-" + span + "-1-" + span, "X-B3-Traceid": ""})
	w3c := matches(map[string]string{"Traceparent": "00-" + someTrace + "-" + span + "-01", "X-B3-Traceid": ""})
	parent := "traceparent: 00-" + someTrace + "-" + someSpan + "-01"

	expects("TT-02 a trace is begun", true, "foo", traced(fields))
	expects("TT-02 control: with a trace of the caller's none is begun", false, "foo", traced(fields, parent))
	onward := []func(context.Context, place) error{
		traced(own, "x-b3-traceid: "+someTrace, "x-b3-spanid: "+someSpan, "x-b3-sampled: 1"),
		traced(one, "b3: "+someTrace+"-"+someSpan+"-1"),
		traced(w3c, parent),
	}
	expects("TT-02 a trace goes on in the form that it has", true, "foo", onward...)
	expects("TT-02 control: without a trace none goes on", false, "foo", traced(own), traced(one), traced(w3c))
	expects("TT-02 control: outside the mesh", false, outside, append(onward, traced(fields))...)

	sampled := func(decision string) func(map[string]string) error {
		return matches(map[string]string{"X-B3-Traceid": "[0-9a-f]{32}", "X-B3-Sampled": decision})
	}
	kept := all(traced(sampled("1"), "x-b3-sampled: 1"), traced(sampled("0"), "x-b3-sampled: 0"))
	expects("TT-05 a decision is kept", true, "foo", kept)
	expects("TT-05 control: without a decision chance decides, and not both ways", false, "foo", all(traced(sampled("1")), traced(sampled("0"))))
	expects("TT-05 control: outside the mesh", false, outside, kept)
}
