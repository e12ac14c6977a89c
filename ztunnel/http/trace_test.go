package http

import (
	"regexp"
	"strings"
	"testing"

	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// traced returns the fields of a request's trace contexts after the exchange has taken its step, and those of a leg.
func traced(t *testing.T, direction Direction, how *Trace, fields ...string) (own, leg map[string]string) {
	t.Helper()
	e, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	x := &exchange{e: e, f: &Flow{Direction: direction}, req: &head.Request{}}
	x.req.Reset(nil)
	if how != nil {
		x.f.Trace = func() Trace { return *how }
	}
	for i := 0; i < len(fields); i += 2 {
		x.req.Add(head.IDOf([]byte(fields[i])), fields[i], []byte(fields[i+1]))
	}
	all := func() map[string]string {
		out := map[string]string{}
		for i := range x.req.Len() {
			if _, name, value, ok := x.req.At(i); ok {
				if out[string(name)] != "" {
					t.Errorf("%s twice", name)
				}
				out[string(name)] = string(value)
			}
		}
		return out
	}
	x.trace()
	own = all()
	x.leg(true)
	leg = all()
	x.leg(true) // another try on this node
	if again := all(); len(leg) > 0 && how != nil && how.On && again["x-b3-parentspanid"] != leg["x-b3-parentspanid"] {
		t.Errorf("another try is a step of the first: %v after %v", again, leg)
	}
	x.leg(false)
	if again := all(); len(again) != len(own) || again["x-b3-spanid"] != own["x-b3-spanid"] || again["traceparent"] != own["traceparent"] || again["b3"] != own["b3"] {
		t.Errorf("a try without a leg after one with it has %v, want %v", again, own)
	}
	return own, leg
}

const (
	traceID = "86a929a0e76cda378fc453fb1dec2c22"
	someID  = "8fc453fb1dec2c22"
)

func TestTT02TraceIsBegun(t *testing.T) {
	id := regexp.MustCompile("^[0-9a-f]{16}$")
	own, leg := traced(t, Outbound, &Trace{On: true, Sample: 10_000}, "x-b3-traceid", "garbage", "x-b3-spanid", someID, "x-b3-parentspanid", someID)
	if s := own["x-b3-spanid"]; !id.MatchString(s) || !regexp.MustCompile("^[0-9a-f]{16}"+s+"$").MatchString(own["x-b3-traceid"]) {
		t.Errorf("trace %q, span %q: want 16 digits and the span, 16 digits", own["x-b3-traceid"], s)
	}
	if own["x-b3-sampled"] != "1" || own["x-b3-parentspanid"] != "" || len(own) != 3 {
		t.Errorf("%v: want it sampled, and no parent", own)
	}
	if leg["x-b3-parentspanid"] != own["x-b3-spanid"] || leg["x-b3-spanid"] == own["x-b3-spanid"] || leg["x-b3-traceid"] != own["x-b3-traceid"] {
		t.Errorf("the workload that is called gets %v, want a child of %v", leg, own)
	}
	for _, none := range []*Trace{nil, {}} {
		if own, _ := traced(t, Outbound, none, "accept", "*/*"); len(own) != 1 {
			t.Errorf("control: without tracing it carries %v", own)
		}
		if own, _ := traced(t, Outbound, none, "x-b3-traceid", "garbage"); own["x-b3-traceid"] != "garbage" {
			t.Errorf("control: without tracing %v is changed", own)
		}
	}
}

func TestTT02TraceGoesOn(t *testing.T) {
	how := &Trace{On: true, Sample: 10_000}
	own, _ := traced(t, Inbound, how, "X-B3-TraceId", traceID, "X-B3-SpanId", "071d7f06bc94943c", "X-B3-ParentSpanId", someID, "X-B3-Sampled", "0")
	if own["X-B3-TraceId"] != traceID || own["x-b3-parentspanid"] != "071d7f06bc94943c" || own["x-b3-spanid"] == "071d7f06bc94943c" || own["X-B3-Sampled"] != "0" {
		t.Errorf("%v: want the trace and its decision, and a child of the span", own)
	}
	own, leg := traced(t, Outbound, how, "b3", traceID+"-"+someID+"-0-071d7f06bc94943c")
	if s := own["b3"]; !regexp.MustCompile("^"+traceID+"-[0-9a-f]{16}-0-"+someID+"$").MatchString(s) || len(own) != 1 {
		t.Errorf("%v: want a child in the one field", own)
	}
	if s := leg["b3"]; !strings.HasSuffix(s, "-0-"+own["b3"][33:49]) {
		t.Errorf("%v: want a child of %v", leg, own)
	}
	own, _ = traced(t, Outbound, how, "traceparent", "00-"+traceID+"-"+someID+"-00", "tracestate", "a=b")
	if s := own["traceparent"]; !regexp.MustCompile("^00-"+traceID+"-[0-9a-f]{16}-00$").MatchString(s) || strings.Contains(s, "-"+someID+"-") || own["tracestate"] != "a=b" || len(own) != 2 {
		t.Errorf("%v: want a child, and nothing else changed", own)
	}
	for field, value := range map[string]string{"b3": "0", "x-b3-sampled": "0"} {
		if own, _ := traced(t, Outbound, how, field, value); own["x-b3-sampled"] != "0" || own["x-b3-traceid"] == "" {
			t.Errorf("%s: %s alone: %v, want a trace that is not sampled", field, value, own)
		}
	}
	if own, _ := traced(t, Outbound, &Trace{On: true}, "x-b3-flags", "1"); own["x-b3-sampled"] != "1" {
		t.Errorf("%v: want a trace that is debugged sampled", own)
	}
}

// TestTT05Sampling: of requests without a decision the share that is asked for.
func TestTT05Sampling(t *testing.T) {
	const n = 4000
	sampled := 0
	for range n {
		if own, _ := traced(t, Outbound, &Trace{On: true, Sample: 2500}); own["x-b3-sampled"] == "1" {
			sampled++
		}
	}
	if sampled < n/4-150 || sampled > n/4+150 { // more than five standard deviations
		t.Errorf("%d of %d, want a quarter", sampled, n)
	}
}

// TestTT05OneDecision: all forms of one request say the same, what one of them says or what is drawn.
func TestTT05OneDecision(t *testing.T) {
	said := func(fields ...string) string {
		own, _ := traced(t, Outbound, &Trace{On: true, Sample: 5000}, append(fields, "x-b3-traceid", traceID, "x-b3-spanid", someID)...)
		out := own["x-b3-sampled"]
		if one := own["b3"]; one != "" {
			out += one[49:52]
		}
		return out
	}
	seen := map[string]int{}
	for range 200 {
		seen[said("b3", traceID+"-"+someID)]++
	}
	if len(seen) != 2 || seen["1-1-"]+seen["0-0-"] != 200 {
		t.Errorf("without a decision: %v, want both 0 or both 1, by chance", seen)
	}
	for _, c := range []struct {
		want   string
		fields []string
	}{
		{"1-1-", []string{"b3", traceID + "-" + someID + "-1"}},
		{"0-0-", []string{"b3", traceID + "-" + someID + "-0"}},
		{"1-d-", []string{"b3", traceID + "-" + someID + "-d"}},
		{"1-1-", []string{"b3", traceID + "-" + someID, "x-b3-sampled", "1"}},
		{"0-0-", []string{"b3", traceID + "-" + someID, "x-b3-sampled", "0"}},
		{"1-1-", []string{"b3", traceID + "-" + someID, "x-b3-flags", "1"}},
		{"1-1-", []string{"b3", traceID + "-" + someID, "traceparent", "00-" + traceID + "-" + someID + "-01"}},
		{"0-0-", []string{"b3", traceID + "-" + someID, "traceparent", "00-" + traceID + "-" + someID + "-00"}},
		{"1", []string{"traceparent", "00-" + traceID + "-" + someID + "-03"}},
		{"0", []string{"traceparent", "00-" + traceID + "-" + someID + "-02"}},
	} {
		for range 10 {
			if got := said(c.fields...); got != c.want {
				t.Errorf("%q: %s, want %s", c.fields, got, c.want)
			}
		}
	}
}

func TestContextsThatAreNone(t *testing.T) {
	for _, v := range []string{"", "x", "00-" + traceID + "-" + someID + "-0", "ff-" + traceID + "-" + someID + "-00", "00-" + strings.Repeat("0", 32) + "-" + someID + "-00",
		"00-" + traceID + "-" + strings.Repeat("0", 16) + "-00", "00-" + traceID + "-" + someID + "-00-x", "00-" + traceID + "_" + someID + "-00", "00-" + traceID + "-" + someID + "-0g"} {
		if isTraceparent([]byte(v)) {
			t.Errorf("traceparent %q is taken", v)
		}
	}
	for _, v := range []string{"", "2", traceID, traceID + "-" + someID[1:], traceID + "-" + someID + "-", traceID + "-" + someID + "-2", traceID + "-" + someID + "-1-",
		traceID + "-" + someID + "-1-" + someID + "0", someID[1:] + "-" + someID, strings.Repeat("0", 16) + "-" + someID} {
		if got := parseB3([]byte(v)); got.trace != nil {
			t.Errorf("b3 %q is taken", v)
		}
	}
}

func FuzzTraceContexts(f *testing.F) {
	f.Add("00-"+traceID+"-"+someID+"-01", traceID+"-"+someID+"-d-"+someID, traceID, someID)
	f.Add("", someID+"-"+someID, "", "")
	f.Fuzz(func(t *testing.T, parent, one, trace, id string) {
		own, _ := traced(t, Outbound, &Trace{On: true, Sample: 5000}, "traceparent", parent, "b3", one, "x-b3-traceid", trace, "x-b3-spanid", id)
		if v := []byte(own["traceparent"]); !isTraceparent(v) && parseB3([]byte(own["b3"])).trace == nil && (!isTraceID([]byte(own["x-b3-traceid"])) || !isSpanID([]byte(own["x-b3-spanid"]))) {
			t.Fatalf("%v: no context", own)
		}
	})
}
