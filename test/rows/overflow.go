package rows

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/undermesh/undermesh/test/e2e"
)

const (
	echoCluster    = "outbound|8080||recommendation.tutorial.svc.cluster.local"
	httpbinCluster = "outbound|8000||httpbin.foo.svc.cluster.local"
)

// statistics reads those of a cluster that a pod of a deployment calls, by their names without its; none before the first call.
func statistics(ctx context.Context, p place, cluster string) (map[string]int, error) {
	pod, err := podOf(ctx, p, p.namespace, p.deployment)
	if err != nil {
		return nil, err
	}
	text, err := p.Stats(ctx, pod, "^cluster\\."+regexp.QuoteMeta(cluster)+`\.`)
	if err != nil {
		if p.namespace == outside {
			err = fmt.Errorf("%w: %w", e2e.ErrOther, err)
		}
		return nil, err
	}
	out := map[string]int{}
	for l := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(l), ": ")
		if out[strings.TrimPrefix(name, "cluster."+cluster+".")], err = strconv.Atoi(value); err != nil {
			return nil, fmt.Errorf("parse statistic %q: %w", l, err)
		}
	}
	return out, nil
}

// moves wants a counter of the caller's to grow, between two bounds, while a look is taken and what it makes has come.
func moves(cluster, name string, least, most int, look func(context.Context, place) error) func(context.Context, place) error {
	return func(ctx context.Context, p place) error {
		before, err := statistics(ctx, p, cluster)
		if err != nil {
			return err
		}
		if err := look(ctx, p); err != nil {
			return err
		}
		return soon(ctx, p, name, func(ctx context.Context) error {
			after, err := statistics(ctx, p, cluster)
			if n := after[name] - before[name]; err == nil && (n < least || n > most) {
				err = fmt.Errorf("%s grew by %d, want %d to %d", name, n, least, most)
			}
			return err
		})
	}
}

// shows wants statistics to be as given, soon.
func shows(cluster string, want map[string]int) func(context.Context, place) error {
	return reaches(cluster, func(got map[string]int) error {
		for name, n := range want {
			if v, there := got[name]; !there || v != n {
				return fmt.Errorf("%s is %d (there: %t), want %d", name, v, there, n)
			}
		}
		return nil
	})
}

// reaches wants statistics to be so in the end that an error is not returned of them.
func reaches(cluster string, want func(map[string]int) error) func(context.Context, place) error {
	return func(ctx context.Context, p place) error {
		var none error
		err := until(ctx, p, 5*time.Second, "statistics of "+cluster, func(ctx context.Context) error {
			got, err := statistics(ctx, p, cluster)
			if errors.Is(err, e2e.ErrOther) {
				none = err
				return nil
			}
			if err != nil {
				return err
			}
			return want(got)
		})
		if err != nil {
			err = fmt.Errorf("%w: %w", e2e.ErrOther, err)
		}
		return errors.Join(err, none)
	}
}

// beside looks while a pod asks what takes long; the asking ends then, whatever comes of it.
func beside(ask e2e.Question, look func(context.Context, place) error) func(context.Context, place) error {
	return func(ctx context.Context, p place) error {
		ctx, cancel := context.WithCancel(ctx)
		var asking sync.WaitGroup
		defer asking.Wait()
		defer cancel()
		asking.Go(func() { _, _ = p.Ask(ctx, p.namespace, p.deployment, ask) })
		return look(ctx, p)
	}
}

// occupies has calls made one after the other, each beside those before, until one has to wait for a connection, and looks then. There
// may be a connection for each worker, so the third call waits at the latest.
func occupies(slow e2e.Question, look func(context.Context, place) error) func(context.Context, place) error {
	for n := 3; n > 0; n-- {
		then := look
		look = beside(slow, all(reaches(httpbinCluster, func(got map[string]int) error {
			if got["upstream_rq_pending_active"] == 0 && got["upstream_rq_active"] < n {
				return fmt.Errorf("of %d calls %d are under way", n, got["upstream_rq_active"])
			}
			return nil
		}), then))
	}
	return look
}

// OverflowRows: what is under way, what waits and what is turned away is in the caller's statistics, by Envoy's names. The calls that are
// held end with their caller, which they do in a lab; a pod's go on when kubectl exec has ended, so a cluster has CircuitBreaking.
func OverflowRows(t *testing.T, w World) {
	bin := func(path string, w want) expect {
		return expect{e2e.Question{URL: "http://httpbin.foo:8000" + path, Timeout: 12000}, w}
	}
	refused := both(status(503, "-"), body("overflow"), header("x-envoy-overloaded", "true"))
	pool := func(text string) string { return policy("{connectionPool: " + text + "}") }
	const turned = "upstream_rq_pending_overflow"
	full := shows(httpbinCluster, map[string]int{
		"circuit_breakers.default.cx_open": 1, "circuit_breakers.default.remaining_cx": 0,
		"circuit_breakers.default.rq_pending_open": 1, "circuit_breakers.default.remaining_pending": 0, "upstream_rq_pending_active": 1,
		"circuit_breakers.high.cx_open": 0, "circuit_breakers.high.rq_pending_open": 0, "circuit_breakers.default.rq_open": 0,
	})
	free := shows(httpbinCluster, map[string]int{
		"circuit_breakers.default.cx_open": 0, "circuit_breakers.default.remaining_cx": 1, "circuit_breakers.default.rq_pending_open": 0,
		"circuit_breakers.default.remaining_pending": 1, "upstream_rq_pending_active": 0, "upstream_rq_active": 0,
	})
	again := get("/?delay=1500ms&fail=1", nil).many(3).Question
	again.C = 3
	observeAll(t, w, []row{
		{ids: "RS-08", title: "connections and who waits for one", namespace: "foo", resource: seed(t, "109"), look: all(
			moves(httpbinCluster, "upstream_cx_overflow", 1, 100, moves(httpbinCluster, "upstream_rq_pending_total", 2, 100,
				occupies(bin("/delay/10", nil).Question, all(full, moves(httpbinCluster, turned, 1, 1, asks(bin("/get", refused))))))),
			free)},
		{ids: "RS-08", title: "requests", resource: pool("{http: {http2MaxRequests: 1, h2UpgradePolicy: UPGRADE}}"), look: beside(get("/?delay=9s", nil).many(1).Question, all(
			shows(echoCluster, map[string]int{"circuit_breakers.default.rq_open": 1, "circuit_breakers.default.remaining_rq": 0, "upstream_rq_active": 1,
				"circuit_breakers.default.rq_pending_open": 0, "circuit_breakers.high.rq_open": 0}),
			moves(echoCluster, turned, 1, 1, asks(get("/", refused).many(1)))))},
		{ids: "RS-08", title: "tries", resource: pool("{http: {maxRetries: 1}}") + "---\n" + rule("recommendation", "recommendation", "  - route: [{destination: {host: recommendation}}]\n    retries: {attempts: 2, retryOn: 5xx}\n"),
			look: moves(echoCluster, "upstream_rq_retry_overflow", 2, 2, moves(echoCluster, "upstream_rq_retry", 1, 1, beside(again, all(
				shows(echoCluster, map[string]int{"circuit_breakers.default.rq_retry_open": 1, "circuit_breakers.default.remaining_retries": 0, "circuit_breakers.high.rq_retry_open": 0}),
				shows(echoCluster, map[string]int{"circuit_breakers.default.rq_retry_open": 0, "circuit_breakers.default.remaining_retries": 1})))))},
	})
}
