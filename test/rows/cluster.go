package rows

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/test/e2e"
)

// What needs the API server or the documents' own commands is observed on a cluster only.

// fortioRun is what fortio says of a run.
type fortioRun struct{ ok, unavailable, sockets int }

var (
	fortioCode    = regexp.MustCompile(`(?m)^Code +(-?\d+) : (\d+) \(`)
	fortioSockets = regexp.MustCompile(`(?m)^Sockets used: (\d+) \(for perfect keepalive, would be \d+\)$`)
)

// runFortio calls httpbin of foo as the documents do.
func runFortio(ctx context.Context, w *e2e.World, p place, threads, calls int) (fortioRun, error) {
	var r fortioRun
	said, err := w.ExecDirect(ctx, p.namespace, "fortio-deploy", "/usr/bin/fortio", "load", "-c", strconv.Itoa(threads), "-qps", "0",
		"-n", strconv.Itoa(calls), "-loglevel", "Warning", "http://httpbin.foo:8000/get")
	if err != nil {
		return r, err
	}
	out := said.Err
	for _, m := range fortioCode.FindAllStringSubmatch(out, -1) {
		n, err := strconv.Atoi(m[2])
		if err != nil {
			return r, err
		}
		switch m[1] {
		case "200":
			r.ok = n
		case "503":
			r.unavailable = n
		default:
			return r, fmt.Errorf("code %s, %d times", m[1], n)
		}
	}
	m := fortioSockets.FindStringSubmatch(out)
	if m == nil || r.ok+r.unavailable != calls {
		return r, fmt.Errorf("fortio says %q", out)
	}
	r.sockets, err = strconv.Atoi(m[1])
	return r, err
}

// trips wants a share of the calls to fail, and each failure to cost fortio a connection.
func trips(w *e2e.World, threads, calls, least, most int) func(context.Context, place) error {
	return func(ctx context.Context, p place) error {
		r, err := runFortio(ctx, w, p, threads, calls)
		if err != nil {
			return err
		}
		w.Say("  -c %d -n %d: %d×200, %d×503, %d sockets", threads, calls, r.ok, r.unavailable, r.sockets)
		if r.unavailable < least || r.unavailable > most || r.sockets < threads || r.sockets > threads+r.unavailable {
			return fmt.Errorf("%w: %+v, want %d to %d times 503", e2e.ErrOther, r, least, most)
		}
		return nil
	}
}

// CircuitBreaking is the documents' task: httpbin with one connection and one pending request, fortio with two and three.
func CircuitBreaking(t *testing.T, w *e2e.World) {
	ctx := within(t)
	for _, ns := range []string{"foo", outside} {
		check(t, w.Deploy(ctx, ns, "", "httpbin/sample-client/fortio-deploy"))
		t.Cleanup(func() {
			_, err := w.Kubectl(context.Background(), "delete", "-n", ns, "service/fortio", "deployment/fortio-deploy")
			check(t, err)
		})
	}
	check(t, w.Enrol(ctx, "foo"))
	breaker := seed(t, "109")
	// The documents saw 3 of 20 and 19 of 30 fail. When calls meet is up to chance and to how fast httpbin is, so the rows make ten
	// times as many calls: 2 to 55 %, and 20 to 88 %. The same commands as the documents' are in RS-08.
	observeAll(t, w, []row{
		{ids: "RS-07", title: "two at once: some of 200 fail", namespace: "foo", resource: breaker, look: trips(w, 2, 200, 4, 110)},
		{ids: "RS-07", title: "three at once: more of 300 fail", namespace: "foo", resource: breaker, look: trips(w, 3, 300, 60, 264)},
		{ids: "RS-08", title: "the overflow is counted", namespace: "foo", from: "fortio", resource: breaker, look: func(ctx context.Context, p place) error {
			before, err := statistics(ctx, p, httpbinCluster)
			if err != nil {
				return err
			}
			r, err := runFortio(ctx, w, p, 3, 30)
			if err != nil {
				return err
			}
			after, err := pendingOf(ctx, w, "deployment/fortio-deploy", p.namespace)
			if err != nil {
				return err
			}
			if n := after["upstream_rq_pending_overflow"] - before["upstream_rq_pending_overflow"]; r.unavailable == 0 || n != r.unavailable {
				return fmt.Errorf("%w: overflows grew by %d, and %d calls failed", e2e.ErrOther, n, r.unavailable)
			}
			return nil
		}},
	})
}

// Pending are the statistics that the documents' last command of the task shows, without the cluster's name and in its order.
var Pending = []string{"circuit_breakers.default.remaining_pending", "circuit_breakers.default.rq_pending_open", "circuit_breakers.high.rq_pending_open",
	"upstream_rq_pending_active", "upstream_rq_pending_failure_eject", "upstream_rq_pending_overflow", "upstream_rq_pending_total"}

// pendingOf is what that command prints, in our form, and nothing else.
func pendingOf(ctx context.Context, w *e2e.World, pod, namespace string) (map[string]int, error) {
	out, err := w.Undermesh(ctx, "stats", pod, "-n", namespace, "--filter", "httpbin.*pending")
	if err != nil {
		return nil, err
	}
	got, rest := map[string]int{}, out
	for _, name := range Pending {
		line, after, _ := strings.Cut(rest, "\n")
		value, ok := strings.CutPrefix(line, "cluster."+httpbinCluster+"."+name+": ")
		if got[name], err = strconv.Atoi(value); !ok || err != nil {
			return nil, fmt.Errorf("stats: want a line of %s, have %q of %q", name, line, out)
		}
		rest = after
	}
	if rest != "" {
		return nil, fmt.Errorf("stats: further lines: %q", rest)
	}
	return got, nil
}

// SI14Views: what a sidecar would tell of itself is told of each pod.
func SI14Views(t *testing.T, w *e2e.World) {
	ctx := within(t)
	pod, err := w.OnePod(ctx, inside, "sleep")
	check(t, err)
	stranger, err := w.OnePod(ctx, outside, "sleep")
	check(t, err)
	name := pod.Metadata.Name + "." + inside
	check(t, asks(get("/", status(200, "")))(ctx, place{w, inside, "sleep"}))
	for _, c := range []struct {
		title string
		args  []string
		want  string
	}{
		{"stats", []string{"stats", name}, "cluster." + echoCluster + ".upstream_rq_total: "},
		{"stats for Prometheus", []string{"stats", name, "--prometheus"}, "envoy_cluster_upstream_rq_total{"},
		{"clusters", []string{"clusters", name}, echoCluster + "::"},
		{"listeners", []string{"proxy-config", "listeners", name}, "8080"},
		{"routes", []string{"proxy-config", "routes", name}, "recommendation"},
		{"clusters by configuration", []string{"proxy-config", "clusters", name}, "recommendation.tutorial.svc.cluster.local"},
		{"endpoints", []string{"proxy-config", "endpoints", name}, echoCluster},
	} {
		t.Run("SI-14 "+c.title, func(t *testing.T) {
			check(t, until(ctx, w, 10*time.Second, c.title, func(ctx context.Context) error {
				out, err := w.Undermesh(ctx, c.args...)
				if err == nil && !strings.Contains(out, c.want) {
					err = fmt.Errorf("no %q in %.500q", c.want, out)
				}
				return err
			}))
		})
	}
	t.Run("SI-14 control: outside the mesh", func(t *testing.T) {
		if out, err := w.Undermesh(ctx, "stats", stranger.Metadata.Name+"."+outside); err == nil {
			t.Errorf("a stranger has statistics: %.300q", out)
		}
	})
	t.Run("SI-14 control: without calls nothing is counted", func(t *testing.T) {
		idle, err := w.OnePod(ctx, inside, "preference")
		check(t, err)
		out, err := w.Undermesh(ctx, "stats", idle.Metadata.Name+"."+inside, "--filter", "my-svc.*upstream_rq_total")
		check(t, err)
		for l := range strings.Lines(out) {
			if !strings.HasSuffix(strings.TrimSpace(l), ": 0") {
				t.Errorf("it has %s", l)
			}
		}
	})
}

// InstalledMode reads the outbound mode back as the documents do.
func InstalledMode(t *testing.T, w *e2e.World) {
	ctx := within(t)
	install := func(set ...string) {
		_, err := w.Undermesh(ctx, append([]string{"install", "--set", "profile=demo", "-y"}, set...)...)
		check(t, err)
	}
	mode := func() string {
		got, err := w.Kubectl(ctx, "get", "istiooperator", "installed-state", "-n", api.DefaultRootNamespace, "-o", "jsonpath={.spec.meshConfig.outboundTrafficPolicy.mode}")
		check(t, err)
		return got
	}
	t.Run("EG-08 ALLOW_ANY or empty", func(t *testing.T) {
		check(t, equal("mode", mode(), ""))
		install("--set", "meshConfig.outboundTrafficPolicy.mode=ALLOW_ANY")
		check(t, equal("mode", mode(), "ALLOW_ANY"))
	})
	t.Run("EG-08 control: installed with REGISTRY_ONLY", func(t *testing.T) {
		defer install()
		install("--set", "meshConfig.outboundTrafficPolicy.mode=REGISTRY_ONLY")
		check(t, equal("mode", mode(), "REGISTRY_ONLY"))
	})
}
