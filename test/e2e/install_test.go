package e2e

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/undermesh/undermesh/controller/api"
)

// ticks are the lines with which undermesh says what it saw done.
func ticks(out string) []string {
	var lines []string
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "✓ ") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// TestIN01IN02Install: each profile prints the components that it installed, in order, and no line for what it did not see ready.
// Gateways have no line: there are none yet.
func TestIN01IN02Install(t *testing.T) {
	ctx, w := meshed(t)
	want := []string{"✓ Istio core installed", "✓ Istiod installed", "✓ CNI installed", "✓ Ztunnel installed", "✓ Installation complete"}
	again := func(ctx context.Context, profile string) {
		out, err := w.Undermesh(ctx, "install", "--set", "profile="+profile, "-y")
		check(t, err)
		if got := ticks(out); !slices.Equal(got, want) {
			t.Errorf("profile %s says %q, want %q", profile, got, want)
		}
	}
	t.Cleanup(func() {
		again(context.Background(), "demo")
		check(t, w.ExpectPairs(context.Background(), time.Minute))
	})
	for _, profile := range []string{"default", "demo"} {
		again(ctx, profile)
	}
	t.Run("IN-01 IN-02 control: an image that is not there", func(t *testing.T) {
		out, err := w.Undermesh(ctx, "install", "--set", "profile=demo", "--set", "values.global.tag=none", "--readiness-timeout=5s", "-y")
		if err == nil || !strings.Contains(err.Error(), api.ControllerName) {
			t.Errorf("install ended with %v, which does not name what is not ready", err)
		}
		if got := ticks(out); !slices.Equal(got, want[:1]) {
			t.Errorf("it says %q, want %q", got, want[:1])
		}
	})
	check(t, w.ExpectPairs(ctx, 30*time.Second)) // what was there goes on
}
