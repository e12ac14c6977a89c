package e2e

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

func TestMT16Certificates(t *testing.T) {
	ctx, w := meshed(t)
	credentials, err := w.Credentials(ctx)
	check(t, err)
	for _, c := range credentials {
		title := "MT-16 " + c.Title
		if c.Refused {
			title = "MT-16 control: " + c.Title
		}
		t.Run(title, func(t *testing.T) { check(t, w.Show(ctx, c)) })
	}
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

// marks are what an application may set as SO_MARK: the mesh's own, those with its bits among others, foreign ones.
var marks = []uint32{0, 0x111, 0x539, 0x1000, 0x1111, 0x4000, 0xfffff000, 0xffffffff}

// marked is a pod with a client for each mark, each of which ends well if every connection of its was answered.
func marked(namespace, addr string) string {
	text := `apiVersion: v1
kind: Pod
metadata: {name: marked, namespace: ` + namespace + `, labels: {app: marked}}
spec:
  restartPolicy: Never
  nodeSelector: {kubernetes.io/hostname: node1}
  containers:
`
	for _, m := range marks {
		text += fmt.Sprintf("  - {name: m%x, image: \"localhost/undermesh/samples:latest\", imagePullPolicy: IfNotPresent, securityContext: {capabilities: {add: [NET_ADMIN]}},\n"+
			"     args: [load, -addr=%s, -rate=10, -for=1s, -mark=%d]}\n", m, addr, m)
	}
	return text
}

// TestForeignMark: a container that sets SO_MARK itself, to any value, is captured, so that STRICT lets it through; outside
// the mesh no mark helps.
func TestForeignMark(t *testing.T) {
	ctx, w := meshed(t)
	policy := StrictNamespace("foo")
	check(t, w.Apply(ctx, policy))
	t.Cleanup(func() { check(t, w.Delete(context.Background(), policy)) })
	check(t, w.ExpectPairs(ctx, time.Minute, "legacy→foo"))
	run := func(t *testing.T, namespace string, want int) {
		text := marked(namespace, "tcp-echo.foo:9000")
		check(t, w.Apply(ctx, text))
		t.Cleanup(func() { check(t, w.Delete(context.Background(), text)) })
		check(t, Until(ctx, time.Minute, "the clients of "+namespace+" to end", func(ctx context.Context) error {
			p, err := w.OnePod(ctx, namespace, "marked")
			if err == nil && p.Status.Phase != "Succeeded" && p.Status.Phase != "Failed" {
				err = errors.New("the pod is " + p.Status.Phase)
			}
			return err
		}))
		p, err := w.OnePod(ctx, namespace, "marked")
		check(t, err)
		if len(p.Status.ContainerStatuses) != len(marks) {
			t.Fatalf("there are %d clients", len(p.Status.ContainerStatuses))
		}
		for _, c := range p.Status.ContainerStatuses {
			if got := c.State.Terminated.ExitCode; got != want {
				log, _ := w.Kubectl(ctx, "logs", "-n", namespace, "marked", "-c", c.Name)
				t.Errorf("client with mark %s of %s ended with %d, want %d: %.400s", c.Name, namespace, got, want, log)
			}
		}
	}
	t.Run("enrolled", func(t *testing.T) { run(t, "bar", 0) })
	t.Run("control: outside the mesh", func(t *testing.T) { run(t, "legacy", 1) })
}
