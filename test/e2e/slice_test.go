package e2e

import (
	"context"
	"testing"
	"time"
)

func TestMT16Certificates(t *testing.T) {
	ctx, w := meshed(t)
	check(t, w.Certificates(ctx)) // the refused certificates are its controls
}

// TestServiceSemantics runs the same checks outside and inside the mesh: nothing may change.
func TestServiceSemantics(t *testing.T) {
	ctx, w := meshed(t)
	check(t, w.DeploySemantics(ctx))
	t.Cleanup(func() {
		_, _ = w.Kubectl(context.Background(), "delete", "namespace", "semantics", "--wait=false")
	})
	t.Run("outside", func(t *testing.T) { check(t, w.ServiceSemantics(ctx)) })
	check(t, w.Enrol(ctx, "semantics"))
	t.Run("enrolled", func(t *testing.T) { check(t, w.ServiceSemantics(ctx)) })
}

func TestClientAddress(t *testing.T) {
	ctx, w := meshed(t)
	check(t, w.ClientAddress(ctx))
}

// TestCN08FirstPacket needs STRICT at the server: only a request that is in the mesh from its first packet is answered.
func TestCN08FirstPacket(t *testing.T) {
	ctx, w := meshed(t)
	policy := StrictNamespace("bar")
	check(t, w.Apply(ctx, policy))
	t.Cleanup(func() { check(t, w.Delete(context.Background(), policy)) })
	check(t, w.ExpectPairs(ctx, time.Minute, "legacy→bar"))
	code, err := w.FirstPacket(ctx, "foo")
	check(t, err)
	if code != 0 {
		t.Errorf("curl of the init container in foo ended with %d", code)
	}
	t.Run("control: outside the mesh", func(t *testing.T) {
		code, err := w.FirstPacket(ctx, "legacy")
		check(t, err)
		if code != 56 {
			t.Errorf("curl of the init container in legacy ended with %d, want 56", code)
		}
	})
}
