package rows

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/undermesh/undermesh/test/e2e"
)

// cut is the answer of a proxy whose time ran out.
func cut(least, most float64) want {
	return both(status(504, "-"), body("upstream request timeout"), took(least, most))
}

// late asks once for an answer after a time.
func late(delay string, w want, headers ...string) expect {
	e := get("/?delay="+delay, w, headers...).many(1)
	e.Timeout = 19000
	return e
}

// timeout is a rule with a time.
const timeout = "  - route: [{destination: {host: recommendation}}]\n    timeout: 2s\n"

// PatienceRows are of a service of their own, for they take their time: longer than the 15 s of a proxy that nobody tells anything.
func PatienceRows(t *testing.T, w World) {
	patient := func(text string) string { return strings.ReplaceAll(text, "recommendation", "patient") }
	late := func(delay string, w want, headers ...string) expect {
		e := late(delay, w, headers...)
		e.URL = patient(e.URL)
		return e
	}
	const short = "x-envoy-upstream-rq-timeout-ms: 500"
	whole := patient(routes(timeout))
	own := func(w want, headers ...string) *row {
		return &row{title: "a request brings its time", look: asks(late("1500ms", w, headers...))}
	}
	t.Run("RS-03 a request brings its time, whatever the rule says", func(t *testing.T) {
		defer with(t.Context(), t, w, inside, whole)()
		check(t, own(cut(450, 1000), short).expects(t.Context(), place{w, inside, "sleep"}, true))
		check(t, (&row{look: asks(late("2500ms", status(200, ""), "x-envoy-upstream-rq-timeout-ms: 4000"))}).expects(t.Context(), place{w, inside, "sleep"}, true))
	})
	t.Run("RS-03 control: without the header", func(t *testing.T) {
		check(t, own(status(200, "")).expects(t.Context(), place{w, inside, "sleep"}, true))
	})
	t.Run("RS-03 control: outside the mesh", func(t *testing.T) {
		check(t, own(status(200, ""), short).expects(t.Context(), place{w, outside, "sleep"}, true))
	})
	observeAll(t, w, []row{
		{ids: "RS-04 RS-19", title: "the stricter time counts", resource: whole, look: asks(late("3s", cut(1900, 2600)), func() expect {
			e := late("3s", func(all []e2e.Answer) error {
				if err := refused(all); err != nil {
					return err
				}
				if all[0].MS > 1500 {
					return fmt.Errorf("took %.0f ms", all[0].MS)
				}
				return nil
			})
			e.Timeout = 1000
			return e
		}())},
		{ids: "RS-02", title: "no time by itself", resource: patient(routes("  - route: [{destination: {host: recommendation}}]\n")), look: asks(late("16s", both(status(200, ""), took(15900, 18000)))),
			changed: whole, unmeshed: "nobody cuts it short there"},
	})
}

// TimeoutRows are the documents' own.
func TimeoutRows(t *testing.T, w World) {
	observeAll(t, w, []row{{ids: "RS-01", title: "504 after the time", resource: seed(t, "029"), look: asks(late("2s", cut(950, 1500)), late("200ms", status(200, "")))}})
}

func RetryRows(t *testing.T, w World) {
	grpc := func(fail int, w want) expect {
		return expect{e2e.Question{URL: fmt.Sprintf("grpc://recommendation.tutorial:9090/echo.Echo/Say?fail=%d", fail), Body: "hi", N: 3}, w}
	}
	said := func(code string) want {
		return every(func(a e2e.Answer) error {
			return equal("grpc-status", a.Headers["grpc-status"]+a.Trailers["grpc-status"], code)
		})
	}
	retries := func(text string) string {
		return routes("  - route: [{destination: {host: recommendation}}]\n    retries: " + text + "\n")
	}
	tries := func(n string) want { return body(`"X-Envoy-Attempt-Count":"` + n + `"`) }
	observeAll(t, w, []row{
		{ids: "RS-05", title: "three retries and no more, as in the documents", resource: seed(t, "019") + "---\n" + seed(t, "028"), look: asks(grpc(3, said("0")), grpc(4, said("14")))},
		{ids: "RS-05", title: "retries on what is named", resource: retries("{attempts: 3, retryOn: 5xx}"),
			look: asks(get("/?fail=3", both(status(200, ""), tries("4"))), get("/?fail=4", both(status(503, ""), tries("4"))))},
		{ids: "RS-05", title: "each try has its time", resource: retries("{attempts: 2, perTryTimeout: 300ms, retryOn: \"5xx,reset\"}"), look: asks(get("/?delay=3s", both(status(504, "-"), took(850, 2500))).many(1))},
		{ids: "RS-06", title: "two retries when nothing is said", look: asks(grpc(2, said("0")), grpc(3, said("14"))), changed: retries("{attempts: 0}")},
	})
}

func FaultRows(t *testing.T, w World) {
	fault := func(text string) string {
		return routes("  - match: [{headers: {end-user: {exact: jason}}}]\n    fault: " + text + "\n    route: [{destination: {host: recommendation}}]\n  - route: [{destination: {host: recommendation}}]\n")
	}
	count := func(code, least, most int) want {
		return func(all []e2e.Answer) error {
			n := 0
			for _, a := range all {
				if a.Error != "" {
					return fmt.Errorf("no answer: %s", a.Error)
				}
				if a.Status == code {
					n++
				}
			}
			if n < least || n > most {
				return fmt.Errorf("%d of %d have %d, want %d to %d", n, len(all), code, least, most)
			}
			return nil
		}
	}
	thousandth := get("/?size=1", count(555, 1, 16), "end-user: jason").many(5000)
	thousandth.C, thousandth.Keep = 4, true
	observeAll(t, w, []row{
		{ids: "RS-14 RS-17", title: "a delay for some", resource: fault("{delay: {percentage: {value: 100}, fixedDelay: 2s}}"),
			look: asks(get("/", both(status(200, ""), took(1900, 3000)), "end-user: jason").many(1), get("/", both(status(200, ""), took(0, 1000)), "end-user: john").many(1))},
		{ids: "RS-15", title: "a delay by the deprecated field", resource: fault("{delay: {percent: 100, fixedDelay: 2s}}"), look: asks(get("/", both(status(200, ""), took(1900, 3000)), "end-user: jason").many(1))},
		{ids: "RS-16 RS-17", title: "an error for some, without the server", resource: fault("{abort: {percentage: {value: 100}, httpStatus: 555}}"),
			look: asks(get("/", both(status(555, "-"), body("fault filter abort")), "end-user: jason"), get("/", status(200, "")))},
		{ids: "RS-18", title: "one of a thousand", resource: fault("{abort: {percentage: {value: 0.1}, httpStatus: 555}}"), look: asks(thousandth), changed: fault("{abort: {percentage: {value: 10}, httpStatus: 555}}")},
	})
}

func PoolRows(t *testing.T, w World) {
	all := func(text string) string { return policy("{connectionPool: " + text + "}") }
	burst := func(path string, w want) expect {
		e := get(path, w).many(12)
		e.C = 12
		return e
	}
	overflow := func(all []e2e.Answer) error {
		n := 0
		for i, a := range all {
			switch {
			case a.Status == 200:
			case a.Status == 503 && strings.Contains(a.Body, "overflow") && a.Headers["x-envoy-overloaded"] == "true" && a.MS < 450:
				n++
			default:
				return fmt.Errorf("answer %d: %d after %.0f ms %s %.200q", i, a.Status, a.MS, a.Error, a.Body)
			}
		}
		if n == 0 {
			return fmt.Errorf("nothing overflowed")
		}
		return nil
	}
	many := get("/", status(200, "")).many(20)
	observeAll(t, w, []row{
		{ids: "RS-09", title: "503 at once instead of a wait", resource: all("{http: {http1MaxPendingRequests: 1}, tcp: {maxConnections: 1}}"), look: asks(burst("/?delay=500ms", overflow))},
		{ids: "RS-08", title: "overflows are counted", resource: all("{http: {http1MaxPendingRequests: 1}, tcp: {maxConnections: 1}}"),
			look: moves(echoCluster, "upstream_rq_pending_overflow", 1, 12, asks(burst("/?delay=300ms", overflow)))},
		{ids: "RS-10", title: "the limits of a subset are its own", resource: routes("  - match: [{headers: {want: {exact: v1}}}]\n    "+to("v1")+"\n  - "+to("v2")+"\n") + `---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: recommendation, namespace: tutorial}
spec:
  host: recommendation
  subsets:
  - {name: version-v1, labels: {version: v1}, trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}}}
  - {name: version-v2, labels: {version: v2}}
`, look: func(ctx context.Context, p place) error {
			limited := burst("/?delay=500ms", overflow)
			limited.Headers = map[string]string{"want": "v1"}
			return asks(limited, burst("/?delay=500ms", v("v2")))(ctx, p)
		}},
		{ids: "RS-21", title: "a new connection a request", resource: all("{http: {maxRequestsPerConnection: 1}}"), look: moves(echoCluster, "upstream_cx_total", 20, 20, asks(many))},
		{ids: "RS-07", title: "requests at once over HTTP/2", resource: all("{http: {http2MaxRequests: 2, h2UpgradePolicy: UPGRADE}}"), look: asks(burst("/?delay=500ms", overflow))},
	})
}

// OutlierRows: a pod that failed gets nothing for a while. Each row has a time of ejection that ends with it.
func OutlierRows(t *testing.T, w World) {
	ctx := within(t)
	pods, err := w.Pods(ctx, inside, "app=echo")
	check(t, err)
	bad := pods[0].Metadata.Name
	detect := func(text string) string { return policy("{outlierDetection: " + text + "}") }
	const ever = "{consecutive5xxErrors: 1, interval: 1s, baseEjectionTime: 20s, maxEjectionPercent: 100}"
	// Each pod is asked often enough to fail once; then the one that did is not asked again.
	out := func(ctx context.Context, p place) error {
		path := "/?status=503&only=" + bad
		if _, err := p.Ask(ctx, p.namespace, p.deployment, get(path, nil).many(20).Question); err != nil {
			return err
		}
		return asks(get(path, both(status(200, ""), body(`!"instance":"`+bad+`"`))).many(30))(ctx, p)
	}
	none := func(ctx context.Context, p place) error {
		if _, err := p.Ask(ctx, p.namespace, p.deployment, get("/?status=503", nil).many(30).Question); err != nil {
			return err
		}
		return asks(get("/", both(status(503, "-"), body("no healthy upstream"))).many(5))(ctx, p)
	}
	old := strings.ReplaceAll(seed(t, "030"), "consecutiveErrors: 5", "consecutiveErrors: 1")
	observeAll(t, w, []row{
		{ids: "RS-11", title: "one error is enough to be out", resource: detect(ever), look: out},
		{ids: "RS-13", title: "503 when all are out", resource: detect(ever), look: none},
		{ids: "RS-12", title: "the deprecated field counts", resource: old, look: out},
	})
	t.Run("RS-12 the deprecated field is told", func(t *testing.T) {
		said, err := w.Undermesh(ctx, "validate", "-f", seedFile(t, "030"))
		check(t, err)
		if !strings.Contains(said, "consecutiveErrors") || !strings.Contains(said, "deprecated") {
			t.Errorf("validate says %q", said)
		}
	})
	t.Run("RS-11 an ejection ends", func(t *testing.T) {
		short := strings.Replace(ever, "20s", "2s", 1)
		defer with(ctx, t, w, inside, detect(short))()
		p := place{w, inside, "sleep"}
		check(t, (&row{title: "out", look: out}).expects(ctx, p, true))
		check(t, until(ctx, w, 20*time.Second, "the pod to be back", func(ctx context.Context) error {
			return asks(get("/", both(status(200, ""), spread(echoPods))).many(20))(ctx, p)
		}))
	})
}
