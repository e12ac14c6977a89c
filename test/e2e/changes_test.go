package e2e

import (
	"context"
	"testing"
	"time"
)

// TestServiceChanges asks the same of Kubernetes alone and of the mesh, each time from clients in the namespace and from one
// outside the mesh: nothing may change.
func TestServiceChanges(t *testing.T) {
	ctx, w := meshed(t)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 8*time.Minute) // pods end slowly here
	t.Cleanup(cancel)
	check(t, w.DeployChanges(ctx))
	t.Cleanup(func() {
		_, _ = w.Kubectl(context.Background(), "delete", "namespace", changes, "--wait=false")
	})
	both := func(t *testing.T) {
		t.Run("sessionAffinity holds when pods are added", func(t *testing.T) { check(t, w.AffinityOutlivesGrowth(ctx)) })
		t.Run("the last pod serves while it terminates", func(t *testing.T) { check(t, w.TerminatingServes(ctx)) })
	}
	t.Run("outside", both)
	check(t, w.Enrol(ctx, changes))
	t.Run("enrolled", both)
}
