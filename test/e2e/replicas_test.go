package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/undermesh/undermesh/controller/api"
)

// leaseHolder is the replica that writes.
func (w *World) leaseHolder(ctx context.Context) (string, error) {
	out, err := w.Kubectl(ctx, "get", "lease", "-n", api.DefaultRootNamespace, "istiod-leader", "-o", "jsonpath={.spec.holderIdentity}")
	return strings.TrimSpace(out), err
}

// awaitReplicas waits for as many ready controllers, none of them leaving, and a lease that one of them holds.
func (w *World) awaitReplicas(ctx context.Context, n int) (holder string, err error) {
	err = Until(ctx, 90*time.Second, fmt.Sprintf("%d controllers", n), func(ctx context.Context) error {
		pods, err := w.Pods(ctx, api.DefaultRootNamespace, "app="+api.ControllerName)
		if err != nil {
			return err
		}
		ready := map[string]bool{}
		for _, p := range pods {
			if p.Ready() {
				ready[p.Metadata.Name] = true
			}
		}
		if holder, err = w.leaseHolder(ctx); err != nil {
			return err
		}
		if len(ready) != n || len(pods) != n || !ready[holder] {
			return fmt.Errorf("%d pods, %d ready, the lease is held by %q", len(pods), len(ready), holder)
		}
		return nil
	})
	return holder, err
}

func probePolicy(name string) string {
	return `apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ` + name + `, namespace: ` + statusNamespace + `}
spec: {action: DENY, rules: [{to: [{operation: {ports: ["9"]}}]}]}
`
}

// churn applies one policy after the other until ctx ends, and returns how many.
func (w *World) churn(ctx context.Context) (n int) {
	for ctx.Err() == nil {
		if err := w.Apply(ctx, probePolicy(fmt.Sprintf("churn-%d", n%10))); err == nil {
			n++
		}
	}
	return n
}

// TestReplicasKilledInTurn: two controllers serve, one writes. Each in its turn is killed while policies change: traffic does
// not notice, the lease passes on within its term, and statuses are written by one field owner only.
func TestReplicasKilledInTurn(t *testing.T) {
	ctx, w := underLoad(t, true)
	check(t, w.Apply(ctx, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+statusNamespace+"}\n"))
	scale := func(ctx context.Context, n int) {
		_, err := w.Kubectl(ctx, "scale", "deployment", "-n", api.DefaultRootNamespace, api.ControllerName, fmt.Sprintf("--replicas=%d", n))
		check(t, err)
	}
	t.Cleanup(func() {
		ctx := context.Background()
		_, err := w.Kubectl(ctx, "delete", "namespace", statusNamespace, "--wait")
		check(t, err)
		scale(ctx, 1)
		_, err = w.awaitReplicas(ctx, 1)
		check(t, err)
	})
	scale(ctx, 2)
	holder, err := w.awaitReplicas(ctx, 2)
	check(t, err)
	busy, stop := context.WithCancel(ctx)
	churned := make(chan int, 1)
	go func() { churned <- w.churn(busy) }()
	defer func() { stop(); <-churned }()
	kill := func(pod string) {
		t.Helper()
		_, err := w.Kubectl(ctx, "delete", "pod", "-n", api.DefaultRootNamespace, pod, "--grace-period=0", "--force")
		check(t, err)
	}
	for turn := range 2 {
		name := fmt.Sprintf("turn-%d", turn)
		kill(holder)
		killed := time.Now()
		check(t, w.Apply(ctx, probePolicy(name)))
		check(t, Until(ctx, 30*time.Second, "the other replica to lead", func(ctx context.Context) error {
			now, err := w.leaseHolder(ctx)
			if err == nil && (now == holder || now == "") {
				err = errors.New("it is still " + now)
			}
			return err
		}))
		took := time.Since(killed).Round(time.Millisecond)
		t.Logf("killed %s, the lease passed on after %s", holder, took)
		check(t, w.awaitReason(ctx, "authorizationpolicies", statusNamespace, name, "Enforced", "True Enforced", ""))
		holder, err = w.awaitReplicas(ctx, 2)
		check(t, err)
	}
	t.Run("one owner writes statuses", func(t *testing.T) {
		for _, name := range []string{"turn-0", "turn-1"} {
			c, err := w.conditions(ctx, "authorizationpolicies", statusNamespace, name)
			check(t, err)
			if strings.Join(c.managers, ", ") != "istiod-status Apply" {
				t.Errorf("%s is written by %v", name, c.managers)
			}
		}
	})
	t.Run("control: without a leader nothing is written", func(t *testing.T) {
		stop()
		scale(ctx, 0)
		check(t, w.awaitNoController(ctx))
		check(t, w.Apply(ctx, probePolicy("nobody")))
		check(t, Hold(ctx, 5*time.Second))
		c, err := w.conditions(ctx, "authorizationpolicies", statusNamespace, "nobody")
		check(t, err)
		if len(c.state) > 0 {
			t.Errorf("its status is %v", c.state)
		}
		scale(ctx, 2)
		_, err = w.awaitReplicas(ctx, 2)
		check(t, err)
	})
	reports, err := w.Reports(ctx)
	check(t, err)
	check(t, Unharmed(reports))
	check(t, w.ExpectPairs(ctx, time.Minute))
	out, err := json.Marshal(reports)
	check(t, err)
	t.Logf("%s", out)
}
