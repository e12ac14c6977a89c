package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/undermesh/undermesh/controller/api"
)

const staleMetric = "undermesh_controller_api_server_stale_seconds"

// withoutAPIServer pauses the API server while do runs. kubectl does not work meanwhile.
func (w *World) withoutAPIServer(ctx context.Context, t *testing.T, do func()) {
	t.Helper()
	_, err := w.Cluster(ctx, "pause", "apiserver/0")
	check(t, err)
	begin := time.Now()
	resume := func() {
		_, err := w.Cluster(context.Background(), "resume", "apiserver/0")
		check(t, err)
	}
	t.Cleanup(resume) // goes on too when do fails the test
	t.Run("control: the API server answers nobody", func(t *testing.T) {
		r, err := w.kubectl(ctx, nil, "get", "namespaces", "--request-timeout=2s")
		check(t, err)
		if r.Code == 0 {
			t.Error("it does")
		}
	})
	do()
	resume()
	w.Say("  the API server was away for %s", time.Since(begin).Round(time.Second))
	check(t, Until(ctx, time.Minute, "the API server", func(ctx context.Context) error {
		_, err := w.Kubectl(ctx, "get", "namespaces", "--request-timeout=5s")
		return err
	}))
}

// awaitStale waits until the controller's metric of staleness is as wanted, and wants the pod ready, with words that agree.
func (w *World) awaitStale(ctx context.Context, p *Pod, want bool) error {
	return Until(ctx, 30*time.Second, fmt.Sprintf("a stale controller: %t", want), func(ctx context.Context) error {
		m, err := w.ControllerMetrics(ctx, p)
		if err != nil {
			return err
		}
		age, found := m.Sum(staleMetric)
		status, body, err := w.Page(ctx, p.Spec.NodeName, p.Status.PodIP+":8080/ready")
		if err != nil {
			return err
		}
		if !found || status != 200 || age > 0 != want || strings.Contains(body, "the API server does not answer") != want {
			return fmt.Errorf("%s is %v, ready says %d %s", staleMetric, age, status, body)
		}
		w.Say("  %s is %v, ready says: %s", staleMetric, age, strings.TrimSpace(body))
		return nil
	})
}

// underStrictLoad is underLoad with a policy that refuses the clients outside the mesh, which try all the time.
func underStrictLoad(t *testing.T) (context.Context, *World, *Pod) {
	t.Helper()
	ctx, w := underLoad(t, true)
	policy := StrictNamespace(loadNamespace)
	check(t, w.Apply(ctx, policy))
	check(t, w.awaitStrict(ctx))
	check(t, w.StartOutsiders(ctx))
	p, err := w.Controller(ctx)
	check(t, err)
	check(t, w.awaitStale(ctx, p, false))
	return ctx, w, p
}

// changesArrive takes the policy away, and wants the outsiders, of whom none was answered before, to be answered.
func (w *World) changesArrive(ctx context.Context, t *testing.T) {
	t.Helper()
	_, answered, err := w.Tries(ctx)
	check(t, err)
	if answered != 0 {
		t.Errorf("%d tries of clients outside the mesh were answered", answered)
	}
	check(t, w.Delete(ctx, StrictNamespace(loadNamespace)))
	t.Run("control: when the API server is back a change arrives, and outsiders are answered", func(t *testing.T) {
		check(t, Until(ctx, 20*time.Second, "an answer to an outsider", func(ctx context.Context) error {
			_, answered, err := w.Tries(ctx)
			if err == nil && answered == 0 {
				err = errors.New("there is none")
			}
			return err
		}))
	})
}

// TestAPIServerAway: with the API server gone traffic and policies stay, the controller says how old what it serves is, and
// serves it: to a ztunnel too that starts anew, whose pods get new certificates.
func TestAPIServerAway(t *testing.T) {
	ctx, w, p := underStrictLoad(t)
	check(t, Hold(ctx, 32*time.Second)) // what the API server said of tokens is forgotten by now
	var died time.Time
	w.withoutAPIServer(ctx, t, func() {
		check(t, w.awaitStale(ctx, p, true))
		before, err := w.ControllerMetrics(ctx, p)
		check(t, err)
		died, _, err = w.KillAndAwait(ctx, "node2", "^/ztunnel worker ")
		check(t, err)
		check(t, Until(ctx, 20*time.Second, "the new ztunnel to be served and to get certificates", func(ctx context.Context) error {
			now, err := w.ControllerMetrics(ctx, p)
			if err != nil {
				return err
			}
			for _, name := range []string{"pilot_xds_pushes", "citadel_server_success_cert_issuance_count"} {
				was, _ := before.Sum(name)
				is, _ := now.Sum(name)
				if is <= was {
					return fmt.Errorf("%s was %v and is %v", name, was, is)
				}
				w.Say("  %s rose from %v to %v", name, was, is)
			}
			return nil
		}))
		check(t, Hold(ctx, 3*time.Second))
	})
	check(t, w.awaitStale(ctx, p, false))
	reports, err := w.Reports(ctx)
	check(t, err)
	check(t, BrokenOnce(reports, nodes[1:], died, 3*time.Second))
	w.changesArrive(ctx, t)
}

// TestControllerStartsWithoutAPIServer: a controller that starts while the API server is away knows nothing, says so, and
// serves nobody; the nodes go on with what they have.
func TestControllerStartsWithoutAPIServer(t *testing.T) {
	ctx, w, p := underStrictLoad(t)
	w.withoutAPIServer(ctx, t, func() {
		_, _, err := w.KillAndAwait(ctx, p.Spec.NodeName, "^/controller ")
		check(t, err)
		check(t, Until(ctx, 20*time.Second, "the new controller to say that it is not ready", func(ctx context.Context) error {
			status, body, err := w.Page(ctx, p.Spec.NodeName, p.Status.PodIP+":8080/ready")
			if err == nil && (status != 503 || !strings.Contains(body, "objects are not synchronised yet")) {
				err = fmt.Errorf("ready says %d %s", status, body)
			}
			return err
		}))
		m, err := w.ControllerMetrics(ctx, p)
		check(t, err)
		if n, _ := m.Sum("pilot_xds"); n != 0 {
			t.Errorf("it serves %v clients", n)
		}
		check(t, Hold(ctx, 5*time.Second))
	})
	check(t, w.AwaitReady(ctx, api.DefaultRootNamespace))
	check(t, w.awaitStale(ctx, p, false))
	reports, err := w.Reports(ctx)
	check(t, err)
	check(t, Unharmed(reports))
	w.changesArrive(ctx, t)
}
