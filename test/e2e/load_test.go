package e2e

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/undermesh/undermesh/controller/api"
)

// underLoad gives a world in which the load runs, enrolled when wanted.
func underLoad(t *testing.T, enrolled bool) (context.Context, *World) {
	t.Helper()
	ctx, w := meshed(t)
	t.Cleanup(func() { check(t, w.StopLoad(context.Background())) })
	if !enrolled {
		check(t, w.StartLoad(ctx))
		return ctx, w
	}
	check(t, w.StopLoad(ctx))
	check(t, w.StartLoadServer(ctx))
	check(t, w.Enrol(ctx, loadNamespace))
	check(t, w.StartClients(ctx))
	check(t, Hold(ctx, 2*time.Second))
	return ctx, w
}

// TestLoadEnrolment takes both ends of a load into the mesh and out again: no connection breaks, none fails to open.
func TestLoadEnrolment(t *testing.T) {
	ctx, w := underLoad(t, false)
	check(t, Hold(ctx, 2*time.Second))
	check(t, w.Enrol(ctx, loadNamespace))
	check(t, Hold(ctx, 4*time.Second))
	check(t, w.Unenrol(ctx, loadNamespace))
	check(t, Hold(ctx, 8*time.Second))
	reports, err := w.Reports(ctx)
	check(t, err)
	check(t, Unharmed(reports))
	t.Run("control: the clients report a server that dies", func(t *testing.T) {
		check(t, w.StartClients(ctx))
		check(t, Hold(ctx, 2*time.Second))
		_, _, err := w.KillAndAwait(ctx, "node1", "tcp-echo.* 9000 hello$")
		check(t, err)
		check(t, Hold(ctx, 2*time.Second))
		reports, err := w.Reports(ctx)
		check(t, err)
		for _, r := range reports {
			if r.Long.Failed == 0 {
				t.Errorf("the client on %s noticed nothing", r.Node)
			}
		}
	})
}

// TestLoadKillController: the data plane goes on with what it has.
func TestLoadKillController(t *testing.T) {
	ctx, w := underLoad(t, true)
	pods, err := w.Pods(ctx, api.DefaultRootNamespace, "app="+api.ControllerName)
	check(t, err)
	if len(pods) != 1 {
		t.Fatalf("there are %d controllers", len(pods))
	}
	_, _, err = w.KillAndAwait(ctx, pods[0].Spec.NodeName, "^/controller ")
	check(t, err)
	check(t, w.AwaitReady(ctx, api.DefaultRootNamespace))
	check(t, Hold(ctx, 5*time.Second))
	reports, err := w.Reports(ctx)
	check(t, err)
	check(t, Unharmed(reports))
}

// TestLoadKillAgent: what is attached stays attached, on the server's node and on the other.
func TestLoadKillAgent(t *testing.T) {
	ctx, w := underLoad(t, true)
	for _, n := range nodes {
		_, _, err := w.KillAndAwait(ctx, n, "^/nodeagent ")
		check(t, err)
	}
	check(t, w.AwaitReady(ctx, api.DefaultRootNamespace))
	check(t, Hold(ctx, 5*time.Second))
	reports, err := w.Reports(ctx)
	check(t, err)
	check(t, Unharmed(reports))
}

// TestLoadKillZtunnel kills the proxy of the server's node under STRICT: only its live connections break, clients outside the
// mesh get nothing, and what connects meanwhile waits in the backlog.
func TestLoadKillZtunnel(t *testing.T) {
	ctx, w := underLoad(t, true)
	policy := StrictNamespace(loadNamespace)
	t.Run("control: without STRICT outsiders are answered", func(t *testing.T) {
		check(t, w.StartOutsiders(ctx))
		check(t, Until(ctx, 20*time.Second, "an answer to an outsider", func(ctx context.Context) error {
			_, answered, err := w.Tries(ctx)
			if err == nil && answered == 0 {
				err = errors.New("there is none")
			}
			return err
		}))
		_, err := w.Kubectl(ctx, "delete", "namespace", outsiders, "--wait")
		check(t, err)
	})
	check(t, w.Apply(ctx, policy))
	check(t, w.awaitStrict(ctx))
	_, err := w.Reports(ctx)
	check(t, err)
	for _, victim := range []struct {
		title, node, pattern string
		through              []string // the clients whose connections pass it: the server is on node1
		byKubelet            bool     // who looks at containers once a second: its delay comes on top
	}{
		{"worker", "node1", "^/ztunnel worker ", nodes, false},
		{"worker of a client's node", "node2", "^/ztunnel worker ", nodes[1:], false},
		{"supervisor", "node1", "^/ztunnel --", nodes, true},
	} {
		t.Run(victim.title, func(t *testing.T) {
			check(t, w.renewZtunnel(ctx, victim.node)) // kubelet starts a container at once that did not crash of late
			check(t, w.StartClients(ctx))
			check(t, w.StartOutsiders(ctx))
			check(t, Hold(ctx, 3*time.Second))
			died, gap, err := w.KillAndAwait(ctx, victim.node, victim.pattern)
			check(t, err)
			limit := time.Second
			if victim.byKubelet {
				limit += gap
			}
			check(t, Hold(ctx, 5*time.Second))
			reports, err := w.Reports(ctx)
			check(t, err)
			_, answered, err := w.Tries(ctx)
			check(t, err)
			if answered != 0 {
				t.Errorf("%d tries of clients outside the mesh were answered", answered)
			}
			check(t, BrokenOnce(reports, victim.through, died, limit))
			_, err = w.Kubectl(ctx, "delete", "namespace", outsiders, "--wait")
			check(t, err)
		})
	}
}

// awaitStrict waits until outsiders on both nodes are refused.
func (w *World) awaitStrict(ctx context.Context) error {
	pod, err := w.OnePod(ctx, loadNamespace, "echo")
	if err != nil {
		return err
	}
	return Until(ctx, 20*time.Second, "STRICT in force", func(ctx context.Context) error {
		got, err := w.TCPEcho(ctx, "legacy", pod.Status.PodIP, loadPort)
		if err == nil && got != "rejected" {
			err = errors.New(got)
		}
		return err
	})
}

// renewZtunnel replaces a node's ztunnel pod.
func (w *World) renewZtunnel(ctx context.Context, node string) error {
	if _, err := w.Kubectl(ctx, "delete", "pod", "-n", api.DefaultRootNamespace, "-l", "app=ztunnel", "--field-selector", "spec.nodeName="+node, "--wait"); err != nil {
		return err
	}
	if _, err := w.Kubectl(ctx, "rollout", "status", "-n", api.DefaultRootNamespace, "daemonset/ztunnel", "--timeout=60s"); err != nil {
		return err
	}
	return w.AwaitReady(ctx, api.DefaultRootNamespace)
}
