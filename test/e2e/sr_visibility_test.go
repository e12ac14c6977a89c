package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// sidecarIn is a Sidecar of a namespace.
func sidecarIn(namespace, spec string) string {
	return "apiVersion: networking.istio.io/v1alpha3\nkind: Sidecar\nmetadata: {name: default, namespace: " + namespace + "}\nspec:\n" + spec
}

// documented is the documents' Sidecar: the namespace itself and the control plane.
const documented = "  egress:\n    - hosts:\n      - \"./*\"\n      - \"istio-system/*\"\n"

const blocking = "  outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n"

// web are the answers to requests from a namespace's sleep, "HOST:PORT" → "status exit" as curl has them.
func (w *World) web(ctx context.Context, from string, urls []string) (map[string]string, error) {
	r, err := w.Exec(ctx, from, "sleep", `for to in `+strings.Join(urls, " ")+
		`; do code=$(curl -s -o /dev/null -m 10 -w '%{http_code}' http://$to); echo $to $code $?; done`)
	if err != nil {
		return nil, err
	}
	got := map[string]string{}
	for _, l := range strings.Split(strings.TrimSpace(r.Out), "\n") {
		f := strings.Fields(l)
		if len(f) != 3 {
			return nil, fmt.Errorf("%s → %q: %q", from, l, r.Err)
		}
		got[f[0]] = f[1] + " " + f[2]
	}
	return got, nil
}

// The servers of the three namespaces, as foo's sleep calls them.
const (
	inFoo    = "httpbin.foo:8000/ip"
	inBar    = "httpbin.bar:8000/ip"
	helloBar = "helloworld.bar:5000/hello"
	inLegacy = "httpbin.legacy:8000/ip"
)

// reachesOnly wants those to answer, and all others of the four to be answered by the mesh that they are nowhere.
func reachesOnly(urls ...string) func(context.Context, *World, string) error {
	return func(ctx context.Context, w *World, from string) error {
		got, err := w.web(ctx, from, []string{inFoo, inBar, helloBar, inLegacy})
		if err != nil {
			return err
		}
		for url, answer := range got {
			want := "502 0"
			for _, u := range urls {
				if u == url {
					want = "200 0"
				}
			}
			if answer != want {
				return fmt.Errorf("%w: %s → %s: got %q, want %q", ErrOther, from, url, answer, want)
			}
		}
		return nil
	}
}

// nameless wants an answer of bar's httpbin to a connection that the mesh passes on: without the client's identity.
func nameless(ctx context.Context, w *World, from string) error {
	since := time.Now().UTC().Truncate(time.Second).Format(time.RFC3339)
	got, err := w.web(ctx, from, []string{inBar})
	if err != nil {
		return err
	}
	if got[inBar] != "200 0" {
		return fmt.Errorf("%s → bar: %q", from, got[inBar])
	}
	brief, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := w.ExpectLog(brief, since, `"direction":"outbound"`, `"src.namespace":"`+from+`"`, `"path":"passthrough"`, `:8000"`); err != nil {
		return fmt.Errorf("%w: %w", ErrOther, err)
	}
	return nil
}

// TestSidecars observes what the workloads of foo reach with a Sidecar, and that those of legacy, which has the same one, reach
// everything: outside the mesh a Sidecar is nothing.
func TestSidecars(t *testing.T) {
	ctx, w := meshed(t)
	elsewhere := strings.NewReplacer("namespace: foo", "namespace: legacy")
	for _, r := range []externalRow{
		{"SR-16", "a Sidecar leaves its namespace only the hosts that it lists", sidecarIn("foo", documented+blocking), reachesOnly(inFoo), ""},
		{"SR-16", "a host of another namespace", sidecarIn("foo", "  egress:\n  - hosts: [\"./*\", \"*/helloworld.bar.svc.cluster.local\"]\n"+blocking), reachesOnly(inFoo, helloBar), ""},
		{"SR-16", "all but one host", sidecarIn("foo", "  egress:\n  - hosts: [\"*/*\", \"~bar/httpbin.bar.svc.cluster.local\"]\n"+blocking), reachesOnly(inFoo, helloBar, inLegacy), ""},
		{"SR-16", "one port", sidecarIn("foo", "  egress:\n  - {port: {number: 5000, protocol: HTTP, name: http}, hosts: [\"*/*\"]}\n"+blocking), reachesOnly(helloBar), ""},
		{"SR-16", "the selected workloads", sidecarIn("foo", "  workloadSelector: {labels: {app: sleep}}\n"+documented+blocking), reachesOnly(inFoo), ""},
		{"SR-16", "what is not listed is unknown traffic, which is passed on where that is allowed", sidecarIn("foo", documented), nameless, ""},
	} {
		t.Run(r.id+" control: without the resource, "+r.title, func(t *testing.T) { check(t, r.expects(ctx, w, "foo", false)) })
		check(t, w.Apply(ctx, r.resource))
		t.Run(r.id+" "+r.title, func(t *testing.T) { check(t, r.expects(ctx, w, "foo", true)) })
		check(t, w.Delete(ctx, r.resource))
		r.resource = elsewhere.Replace(r.resource)
		check(t, w.Apply(ctx, r.resource))
		t.Run(r.id+" control: outside the mesh, "+r.title, func(t *testing.T) { check(t, r.expects(ctx, w, "legacy", false)) })
		check(t, w.Delete(ctx, r.resource))
	}
	t.Run("SR-16 control: a Sidecar that selects others", func(t *testing.T) {
		others := sidecarIn("foo", "  workloadSelector: {labels: {app: tcp-echo}}\n"+documented+blocking)
		check(t, w.Apply(ctx, others))
		t.Cleanup(func() { check(t, w.Delete(context.Background(), others)) })
		all := externalRow{title: "everything is reached", holds: reachesOnly(inFoo, inBar, helloBar, inLegacy)}
		check(t, all.expects(ctx, w, "foo", true))
	})
}

// TestIN36EveryWorkloadIsReached: without a Sidecar each workload reaches each other one; one of the root namespace changes it
// for all that have none of their own.
func TestIN36EveryWorkloadIsReached(t *testing.T) {
	ctx, w := meshed(t)
	all := externalRow{title: "everything is reached", holds: reachesOnly(inFoo, inBar, helloBar, inLegacy)}
	t.Run("IN-36 every workload is reached", func(t *testing.T) {
		for _, from := range Meshed {
			check(t, all.expects(ctx, w, from, true))
		}
	})
	root := sidecarIn("istio-system", documented+blocking)
	check(t, w.Apply(ctx, root))
	t.Cleanup(func() { check(t, w.Delete(context.Background(), root)) })
	t.Run("IN-36 control: with a Sidecar of the root namespace", func(t *testing.T) {
		for _, from := range Meshed {
			check(t, all.expects(ctx, w, from, false))
		}
	})
	t.Run("SR-16 IN-36 a Sidecar of the root namespace means each namespace's own hosts", func(t *testing.T) {
		check(t, (&externalRow{title: "foo reaches foo", holds: reachesOnly(inFoo)}).expects(ctx, w, "foo", true))
		check(t, (&externalRow{title: "bar reaches bar", holds: reachesOnly(inBar, helloBar)}).expects(ctx, w, "bar", true))
	})
	own := sidecarIn("foo", "  egress: [{hosts: [\"*/*\"]}]\n")
	check(t, w.Apply(ctx, own))
	t.Cleanup(func() { check(t, w.Delete(context.Background(), own)) })
	t.Run("SR-16 IN-36 a namespace's own Sidecar comes before it", func(t *testing.T) { check(t, all.expects(ctx, w, "foo", true)) })
}
