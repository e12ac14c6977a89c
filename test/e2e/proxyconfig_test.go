package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// seenLimit is how long a change of what is seen may take to be served.
const seenLimit = 20 * time.Second

// awaitSeen waits until the clusters of a namespace's sleep list, or list no more, httpbin of another namespace.
func (w *World) awaitSeen(ctx context.Context, from, of string, want bool) error {
	host := "httpbin." + of + ".svc.cluster.local"
	return Until(ctx, seenLimit, fmt.Sprintf("%s to see %s: %t", from, host, want), func(ctx context.Context) error {
		out, err := w.Undermesh(ctx, "proxy-config", "cluster", "deployment/sleep", "-n", from)
		if err != nil {
			return err
		}
		if strings.Contains(out, host) != want {
			return fmt.Errorf("clusters are\n%s", out)
		}
		return nil
	})
}

const ownNamespaceOnly = `
apiVersion: networking.istio.io/v1alpha3
kind: Sidecar
metadata: {name: default, namespace: foo}
spec:
  egress:
  - hosts: ["./*", "istio-system/*"]
`

// TestProxyConfigShowsWhatIsSeen: a Sidecar and exportTo change what is served to a namespace, and to no other.
func TestProxyConfigShowsWhatIsSeen(t *testing.T) {
	ctx, w := meshed(t)
	check(t, w.awaitSeen(ctx, "foo", "bar", true)) // without anything
	t.Run("Sidecar", func(t *testing.T) {
		check(t, w.Apply(ctx, ownNamespaceOnly))
		gone := func(ctx context.Context) error { return w.Delete(ctx, ownNamespaceOnly) }
		defer func() { check(t, gone(ctx)) }()
		check(t, w.awaitSeen(ctx, "foo", "bar", false))
		check(t, w.awaitSeen(ctx, "foo", "foo", true))
		check(t, w.awaitSeen(ctx, "bar", "foo", true)) // another namespace sees what it saw
		out, err := w.Undermesh(ctx, "pc", "scope", "deployment/sleep", "-n", "foo")
		check(t, err)
		if !strings.Contains(out, "./*, istio-system/*") {
			t.Errorf("scope is\n%s", out)
		}
	})
	check(t, w.awaitSeen(ctx, "foo", "bar", true))
	t.Run("exportTo", func(t *testing.T) {
		annotate := func(value string) error {
			_, err := w.Kubectl(ctx, "annotate", "--overwrite", "service", "httpbin", "-n", "bar", value)
			return err
		}
		check(t, annotate("networking.istio.io/exportTo=."))
		defer func() { check(t, annotate("networking.istio.io/exportTo-")) }()
		check(t, w.awaitSeen(ctx, "foo", "bar", false))
		check(t, w.awaitSeen(ctx, "bar", "bar", true))
	})
	check(t, w.awaitSeen(ctx, "foo", "bar", true))
}

// TestProxyConfigInTheFormOfEnvoy: routes are RouteConfigurations with the domains that a namespace calls a service by, and
// the node of a pod holds the workloads that the control plane serves.
func TestProxyConfigInTheFormOfEnvoy(t *testing.T) {
	ctx, w := meshed(t)
	type routeConfig struct {
		Name         string
		VirtualHosts []struct {
			Name    string
			Domains []string
			Routes  []struct{ Route struct{ Cluster string } }
		}
	}
	out, err := w.Undermesh(ctx, "proxy-config", "route", "deployment/sleep.foo", "--name", "8000", "-o", "json")
	check(t, err)
	var all []routeConfig
	check(t, json.Unmarshal([]byte(out), &all))
	if len(all) != 1 {
		t.Fatalf("routes are %s", out)
	}
	domains := map[string][]string{}
	for _, vh := range all[0].VirtualHosts {
		domains[vh.Name] = vh.Domains
	}
	own, other := domains["httpbin.foo.svc.cluster.local:8000"], domains["httpbin.bar.svc.cluster.local:8000"]
	if !slices.Contains(own, "httpbin") || !slices.Contains(own, "httpbin.foo") || slices.Contains(other, "httpbin") || !slices.Contains(other, "httpbin.bar.svc") {
		t.Errorf("domains are %v and %v", own, other)
	}
	pod, err := w.OnePod(ctx, "foo", "sleep")
	check(t, err)
	served, err := w.Undermesh(ctx, "pc", "workload", "-n", "foo")
	check(t, err)
	held, err := w.Undermesh(ctx, "pc", "workload", "deployment/sleep.foo")
	check(t, err)
	for _, text := range []string{served, held} {
		if !strings.Contains(text, pod.Metadata.Name) {
			t.Errorf("%s is not in\n%s", pod.Metadata.Name, text)
		}
	}
	if _, err := w.Undermesh(ctx, "pc", "cluster", "nosuch.foo"); err == nil || !strings.Contains(err.Error(), `pods "nosuch" not found`) {
		t.Errorf("of a pod that is none: %v", err)
	}
}

// TestProxyConfigLog: the level of one node's ztunnel is set and read, and the other node's stays.
func TestProxyConfigLog(t *testing.T) {
	ctx, w := meshed(t)
	levels := func(args ...string) map[string]string {
		t.Helper()
		out, err := w.Undermesh(ctx, append([]string{"proxy-config", "log", "-o", "json"}, args...)...)
		check(t, err)
		var all []struct{ Pod, Level string }
		check(t, json.Unmarshal([]byte(out), &all))
		got := map[string]string{}
		for _, l := range all {
			got[l.Pod] = l.Level
		}
		return got
	}
	before := levels()
	t.Cleanup(func() { levels("--reset") })
	set := levels("deployment/sleep.foo", "--level", "debug")
	now := levels()
	if len(set) != 1 || len(before) < 2 || len(now) != len(before) {
		t.Fatalf("levels were %v, then %v, then %v", before, set, now)
	}
	for pod, level := range now {
		if want := map[bool]string{true: "debug", false: before[pod]}[set[pod] != ""]; level != want {
			t.Errorf("%s logs at %s, not %s", pod, level, want)
		}
	}
}
