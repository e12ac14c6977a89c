// Command demo is "make demo": it takes a bare cluster into the mesh and back out of doubt, step by step, shows the evidence
// that it observed, and ends with a non-zero status when an observation is missing. The cluster stays up. Its argument is the
// compiled tests of test/e2e; without it the demo ends before the steps that take load, outages and a removal.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/undermesh/undermesh/test/e2e"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	say := func(format string, args ...any) { fmt.Printf(format+"\n", args...) }
	w, err := e2e.Find(say)
	if err == nil {
		err = run(ctx, w)
	}
	if err != nil {
		say("\n✗ %v", err)
		os.Exit(1)
	}
}

type step struct {
	title string
	do    func(context.Context, *e2e.World) error
}

func run(ctx context.Context, w *e2e.World) error {
	start := time.Now()
	steps := []step{
		{"Two nodes of a real Kubernetes, without a mesh", cluster},
		{"httpbin, sleep, helloworld and tcp-echo in foo, bar and legacy", func(ctx context.Context, w *e2e.World) error { return w.Fixture(ctx) }},
		{"Before the mesh all nine pairs answer", func(ctx context.Context, w *e2e.World) error { return w.ExpectPairs(ctx, time.Minute) }},
		{"Before the mesh a request crosses the link in clear", func(ctx context.Context, w *e2e.World) error { return w.Encrypted(ctx, "foo", "bar", false) }},
		{"undermesh install", install},
		{"kubectl label namespace foo bar istio-injection=enabled", enrol},
		{"All nine pairs still answer", func(ctx context.Context, w *e2e.World) error { return w.ExpectPairs(ctx, time.Minute) }},
		{"Between nodes the mesh speaks mutual TLS, and the server knows its client", wire},
		{"Only a certificate of the mesh opens a tunnel; the server proves its SPIFFE identity", credentials},
		{"The server sees the client pod's own address", func(ctx context.Context, w *e2e.World) error { return w.ClientAddress(ctx) }},
		{"PeerAuthentication STRICT: clear text is refused, the mesh goes on", strict},
		{"AuthorizationPolicy on TCP: by principal and by port", authorization},
		{"Bookinfo: VirtualServices lead each request at its source, by user, by share, into faults", func(ctx context.Context, w *e2e.World) error { return w.Bookinfo(ctx) }},
		{"Out of the mesh and in again, with the same pods", roundTrip},
	}
	if len(os.Args) > 1 {
		steps = append(steps, proofs(os.Args[1])...)
	}
	for i, s := range steps {
		w.Say("\n[%d/%d] %s", i+1, len(steps), s.title)
		if err := s.do(ctx, w); err != nil {
			return fmt.Errorf("step %d, %s: %w", i+1, s.title, err)
		}
	}
	w.Say("\n✓ Everything was observed, in %s. The cluster stays up. Try:", time.Since(start).Round(time.Second))
	w.Say("  export KUBECONFIG=%s", w.Kubeconfig())
	w.Say("  bin/cluster kubectl get pods -A -o wide")
	w.Say("  bin/undermesh pods")
	w.Say("  bin/cluster kubectl logs -n istio-system ds/ztunnel | grep '\"scope\":\"access\"' | tail -5")
	w.Say("  make demo-down      # remove every trace")
	return nil
}

func cluster(ctx context.Context, w *e2e.World) error {
	images, err := filepath.Glob(filepath.Join(w.Root, ".cache/images/*.tar"))
	if err != nil || len(images) == 0 {
		return fmt.Errorf("no images in .cache/images: run make images")
	}
	if _, err := w.Cluster(ctx, append([]string{"load"}, images...)...); err != nil {
		return err
	}
	if err := w.Bare(ctx); err != nil {
		return err
	}
	out, err := w.Kubectl(ctx, "get", "nodes", "-o", "wide")
	w.Say("%s", indent(out))
	return err
}

func install(ctx context.Context, w *e2e.World) error {
	out, err := w.Undermesh(ctx, "install", "--set", "profile=demo", "-y")
	w.Say("%s", indent(out))
	return err
}

func enrol(ctx context.Context, w *e2e.World) error {
	before, err := w.PodFacts(ctx, e2e.All)
	if err != nil {
		return err
	}
	if err := w.Enrol(ctx, e2e.Meshed...); err != nil {
		return err
	}
	after, err := w.PodFacts(ctx, e2e.All)
	if err != nil {
		return err
	}
	if err := e2e.Same(before, after); err != nil {
		return err
	}
	for name, fact := range after {
		w.Say("  %-40s %s", name, fact)
	}
	out, err := w.Undermesh(ctx, "pods")
	w.Say("  the same pods, now enrolled:\n%s", indent(out))
	return err
}

// roundTrip leaves the namespaces enrolled, for whoever looks further.
func roundTrip(ctx context.Context, w *e2e.World) error {
	before, err := w.PodFacts(ctx, e2e.All)
	if err != nil {
		return err
	}
	if err := w.Unenrol(ctx, e2e.Meshed...); err != nil {
		return err
	}
	w.Say("  un-enrolled:")
	if err := w.ExpectPairs(ctx, time.Minute); err != nil {
		return err
	}
	if err := w.Encrypted(ctx, "foo", "bar", false); err != nil {
		return err
	}
	if err := w.Enrol(ctx, e2e.Meshed...); err != nil {
		return err
	}
	w.Say("  enrolled again:")
	if err := w.ExpectPairs(ctx, time.Minute); err != nil {
		return err
	}
	if err := w.Encrypted(ctx, "foo", "bar", true); err != nil {
		return err
	}
	after, err := w.PodFacts(ctx, e2e.All)
	if err != nil {
		return err
	}
	w.Say("  %d pods: same uids, same restarts, same addresses", len(after))
	return e2e.Same(before, after)
}

func wire(ctx context.Context, w *e2e.World) error {
	if err := w.Encrypted(ctx, "foo", "bar", true); err != nil {
		return err
	}
	if err := w.Encrypted(ctx, "legacy", "bar", false); err != nil {
		return err
	}
	return w.ClientNamed(ctx)
}

func strict(ctx context.Context, w *e2e.World) error {
	if err := w.Apply(ctx, e2e.StrictMesh); err != nil {
		return err
	}
	if err := w.ExpectPairs(ctx, time.Minute, "legacy→foo", "legacy→bar"); err != nil {
		return err
	}
	for _, to := range e2e.Meshed {
		if err := w.RefusedAlways(ctx, "legacy", to, 50); err != nil {
			return err
		}
	}
	if err := w.Delete(ctx, e2e.StrictMesh); err != nil {
		return err
	}
	w.Say("  the policy is deleted:")
	return w.ExpectPairs(ctx, time.Minute)
}

func credentials(ctx context.Context, w *e2e.World) error {
	all, err := w.Credentials(ctx)
	if err != nil {
		return err
	}
	for _, c := range all {
		if err := w.Show(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

func authorization(ctx context.Context, w *e2e.World) error {
	bar, err := w.OnePod(ctx, "bar", "sleep")
	if err != nil {
		return err
	}
	for _, a := range e2e.EchoPolicies(bar.Status.PodIP) {
		w.Say("  %s (%s)", a.Title, a.ID)
		if err := w.ExpectEcho(ctx, a.Policy, a.Cases...); err != nil {
			return fmt.Errorf("%s: %w", a.Title, err)
		}
	}
	return nil
}

func indent(s string) string {
	return "  " + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n  ")
}
