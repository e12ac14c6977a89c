package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/undermesh/undermesh/controller/api"
)

// snapPods are pods that no mesh has seen, so that what an earlier one left in a namespace cannot hide.
func snapPods() string {
	text := "apiVersion: v1\nkind: Namespace\nmetadata: {name: snap}\n"
	for _, n := range nodes {
		text += fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata: {name: fresh-%[1]s, namespace: snap, labels: {app: fresh}}
spec:
  terminationGracePeriodSeconds: 0
  nodeSelector: {kubernetes.io/hostname: %[1]s}
  containers: [{name: main, image: curlimages/curl, imagePullPolicy: IfNotPresent, command: [sleep, infinity]}]
`, n)
	}
	return text
}

// remove takes all pods out and uninstalls the mesh, and waits until its last pod is gone.
func (w *World) remove(ctx context.Context) error {
	if _, err := w.Undermesh(ctx, "uninstall", "--purge", "-y"); err != nil {
		return err
	}
	return Until(ctx, time.Minute, "the mesh's pods to be gone", func(ctx context.Context) error {
		pods, err := w.Pods(ctx, api.DefaultRootNamespace)
		if err == nil && len(pods) > 0 {
			err = fmt.Errorf("%s is there", pods[0].Metadata.Name)
		}
		return err
	})
}

// TestIN15Uninstall compares snapshots of the nodes and of their pods' namespaces before an installation and after it.
func TestIN15Uninstall(t *testing.T) {
	ctx, w := meshed(t)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		_, err := w.Undermesh(ctx, "install", "--set", "profile=demo", "-y")
		check(t, err)
		check(t, w.Enrol(ctx, Meshed...))
		_, err = w.Kubectl(ctx, "delete", "namespace", "snap", "--wait")
		check(t, err)
		check(t, w.ExpectPairs(ctx, time.Minute))
	})
	check(t, w.remove(ctx))
	check(t, w.Apply(ctx, snapPods()))
	check(t, w.AwaitReady(ctx, "snap"))
	before := map[string]Snapshot{}
	for _, n := range nodes {
		s, k, err := w.Settled(ctx, n)
		check(t, err)
		if len(k.Progs) > 0 {
			t.Errorf("%s: without a mesh there are %v", n, k.Progs)
		}
		before[n] = s
	}

	_, err := w.Undermesh(ctx, "install", "--set", "profile=demo", "-y")
	check(t, err)
	check(t, w.Enrol(ctx, append([]string{"snap"}, Meshed...)...))
	check(t, w.ExpectPairs(ctx, time.Minute))
	kernel := map[string]*Kernel{}
	t.Run("control: the snapshot sees an installed mesh", func(t *testing.T) {
		for _, n := range nodes {
			s, k, err := w.Snap(ctx, n)
			check(t, err)
			kernel[n] = k
			diff := strings.Join(before[n].Difference(s), "\n")
			for _, want := range []string{"bpf links: + cgroup cgroup_inet4_connect", "bpf links: + netns sk_lookup", "cgroup hooks: +", "pins: +", "cni: +",
				"unix sockets: +", " rules: + 100:", " routes: + local default dev lo table 100", " sysctls: + net.ipv4.tcp_fwmark_accept"} {
				if !strings.Contains(diff, want) {
					t.Errorf("%s: the difference has no %q:\n%s", n, want, diff)
				}
			}
			if len(k.Progs) == 0 || len(k.Maps) == 0 {
				t.Errorf("%s: no programs or maps were found", n)
			}
			t.Logf("%s: %d lines differ while the mesh is there, %d programs, %d maps", n, strings.Count(diff, "\n")+1, len(k.Progs), len(k.Maps))
		}
	})

	check(t, w.remove(ctx))
	for _, n := range nodes {
		var diff []string
		err := Until(ctx, 30*time.Second, "the node to be as before", func(ctx context.Context) error {
			s, _, err := w.Snap(ctx, n)
			if err != nil {
				return err
			}
			if diff = before[n].Difference(s); len(diff) > 0 {
				return fmt.Errorf("%d lines differ", len(diff))
			}
			return nil
		})
		if err != nil {
			t.Errorf("%s: %v:\n%s", n, err, strings.Join(diff, "\n"))
		}
		alive, err := w.Alive(ctx, n, kernel[n])
		check(t, err)
		if len(alive) > 0 {
			t.Errorf("%s: still in the kernel: %s", n, strings.Join(alive, ", "))
		}
	}
	check(t, w.awaitAnnotation(ctx, append([]string{"snap"}, Meshed...), ""))
}
