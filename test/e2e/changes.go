package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// changing is a namespace whose services change while clients on both nodes use them.
const changing = `apiVersion: apps/v1
kind: Deployment
metadata: {name: asker}
spec:
  replicas: 4
  selector: {matchLabels: {app: asker}}
  template:
    metadata: {labels: {app: asker}}
    spec:
      terminationGracePeriodSeconds: 0
      topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: asker}}}]
      containers: [{name: client, image: curlimages/curl, imagePullPolicy: IfNotPresent, command: [sleep, infinity]}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: growing}
spec:
  replicas: 1
  selector: {matchLabels: {app: growing}}
  template:
    metadata: {labels: {app: growing}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: hello, image: "docker.io/istio/examples-helloworld-v1", imagePullPolicy: IfNotPresent}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: leaving}
spec:
  replicas: 0
  selector: {matchLabels: {app: leaving}}
  template:
    metadata: {labels: {app: leaving}}
    spec:
      terminationGracePeriodSeconds: 50
      nodeSelector: {kubernetes.io/hostname: node1}
      containers:
      - name: hello
        image: "docker.io/istio/examples-helloworld-v1"
        imagePullPolicy: IfNotPresent
        lifecycle: {preStop: {sleep: {seconds: 40}}}
---
apiVersion: v1
kind: Service
metadata: {name: sticky}
spec: {selector: {app: growing}, sessionAffinity: ClientIP, ports: [{name: http, port: 80, targetPort: 5000}]}
---
apiVersion: v1
kind: Service
metadata: {name: loose}
spec: {selector: {app: growing}, ports: [{name: http, port: 80, targetPort: 5000}]}
---
apiVersion: v1
kind: Service
metadata: {name: leaving}
spec: {selector: {app: leaving}, ports: [{name: http, port: 80, targetPort: 5000}]}
---
apiVersion: v1
kind: Service
metadata: {name: leaving-local}
spec: {selector: {app: leaving}, internalTrafficPolicy: Local, ports: [{name: http, port: 80, targetPort: 5000}]}
`

const changes = "changes"

// DeployChanges makes namespace "changes".
func (w *World) DeployChanges(ctx context.Context) error {
	if err := w.Apply(ctx, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+changes+"}\n"); err != nil {
		return err
	}
	if _, err := w.KubectlIn(ctx, []byte(changing), "apply", "-n", changes, "-f", "-"); err != nil {
		return err
	}
	return w.AwaitReady(ctx, changes)
}

// scale waits until a Deployment has n ready pods beside those that are being deleted, and returns their names.
func (w *World) scale(ctx context.Context, app string, n int) ([]string, error) {
	if _, err := w.Kubectl(ctx, "scale", "-n", changes, "deployment/"+app, fmt.Sprint("--replicas=", n)); err != nil {
		return nil, err
	}
	var names []string
	err := Until(ctx, time.Minute, fmt.Sprintf("%d ready pods of %s", n, app), func(ctx context.Context) error {
		living, _, err := w.livingAndLeaving(ctx, app)
		names = living
		if err == nil && len(living) != n {
			err = fmt.Errorf("there are %v", living)
		}
		return err
	})
	return names, err
}

// restart replaces an app's pods by one and returns its name. None of the old ones is left, not even in the background.
func (w *World) restart(ctx context.Context, app string) (string, error) {
	if _, err := w.scale(ctx, app, 0); err != nil {
		return "", err
	}
	// a grace period of its own cuts what they do before they end
	if _, err := w.Kubectl(ctx, "delete", "pods", "-n", changes, "-l", "app="+app, "--grace-period=1", "--wait", "--timeout=60s"); err != nil {
		return "", err
	}
	names, err := w.scale(ctx, app, 1)
	if err != nil {
		return "", err
	}
	return names[0], nil
}

// livingAndLeaving names the pods of an app that are ready and not being deleted, and those that are being deleted.
func (w *World) livingAndLeaving(ctx context.Context, app string) (living, leaving []string, err error) {
	out, err := w.Kubectl(ctx, "get", "pods", "-n", changes, "-l", "app="+app, "-o", "json")
	if err != nil {
		return nil, nil, err
	}
	var list struct {
		Items []struct {
			Metadata struct{ Name, DeletionTimestamp string }
			Status   struct{ ContainerStatuses []struct{ Ready bool } }
		}
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, nil, fmt.Errorf("parse pods: %w", err)
	}
	for _, p := range list.Items {
		switch {
		case p.Metadata.DeletionTimestamp != "":
			leaving = append(leaving, p.Metadata.Name)
		case len(p.Status.ContainerStatuses) > 0 && p.Status.ContainerStatuses[0].Ready:
			living = append(living, p.Metadata.Name)
		}
	}
	return living, leaving, nil
}

// asker is a client: a pod of the namespace, or the one outside the mesh.
type asker struct{ namespace, pod, node string }

func (a asker) String() string { return a.namespace + "/" + a.pod + " on " + a.node }

func (w *World) askers(ctx context.Context) ([]asker, error) {
	all, err := w.Pods(ctx, changes, "app=asker")
	if err != nil {
		return nil, err
	}
	outside, err := w.OnePod(ctx, "legacy", "sleep")
	if err != nil {
		return nil, err
	}
	var out []asker
	for _, p := range append(all, *outside) {
		out = append(out, asker{p.Metadata.Namespace, p.Metadata.Name, p.Spec.NodeName})
	}
	return out, nil
}

// askAll lets every client ask a service n times, a pause after each, and returns how often each pod answered it; a
// request without an answer is counted under curl's exit code.
func (w *World) askAll(ctx context.Context, all []asker, service string, n int, pause string) (map[asker]map[string]int, error) {
	got := make([]map[string]int, len(all))
	g, ctx := errgroup.WithContext(ctx)
	for i, a := range all {
		g.Go(func() error {
			line := fmt.Sprintf("for i in $(seq %d); do curl -s -m 5 http://%s.%s/hello || echo instance: exit $?; sleep %s; done", n, service, changes, pause)
			r, err := w.kubectl(ctx, nil, "exec", "-n", a.namespace, a.pod, "--", "sh", "-c", line)
			if err != nil {
				return err
			}
			got[i] = map[string]int{}
			for l := range strings.Lines(r.Out) {
				if _, name, ok := strings.Cut(strings.TrimSpace(l), "instance: "); ok {
					got[i][name]++
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	out := map[asker]map[string]int{}
	for i, a := range all {
		out[a] = got[i]
	}
	return out, nil
}

// expectOnly fails unless every request of every client was answered, and by that pod.
func expectOnly(got map[asker]map[string]int, pod string, n int) error {
	for a, by := range got {
		if !maps.Equal(by, map[string]int{pod: n}) {
			return fmt.Errorf("%w: %v was answered by %v, want %d times %s", ErrOther, a, by, n, pod)
		}
	}
	return nil
}

// AffinityOutlivesGrowth checks that the clients of a service with ClientIP affinity stay when pods are added, and that
// those of the same pods without it do not.
func (w *World) AffinityOutlivesGrowth(ctx context.Context) error {
	first, err := w.restart(ctx, "growing")
	if err != nil {
		return err
	}
	all, err := w.askers(ctx)
	if err != nil {
		return err
	}
	ask := func(service string) func(context.Context) error {
		return func(ctx context.Context) error {
			got, err := w.askAll(ctx, all, service, 3, "0")
			if err != nil {
				return err
			}
			return expectOnly(got, first, 3)
		}
	}
	if err := Until(ctx, 30*time.Second, "the only pod to answer all clients", ask("sticky")); err != nil {
		return err
	}
	five, err := w.scale(ctx, "growing", 5)
	if err != nil {
		return err
	}
	err = Until(ctx, 30*time.Second, "control: without affinity each client comes to several pods", func(ctx context.Context) error {
		got, err := w.askAll(ctx, all, "loose", 25, "0")
		if err != nil {
			return err
		}
		seen := map[string]bool{}
		for a, by := range got {
			if len(by) < 2 {
				return fmt.Errorf("%v was answered by %v", a, by)
			}
			for name := range by {
				seen[name] = true
			}
		}
		if len(seen) != len(five) {
			return fmt.Errorf("%v answered, there are %v", slices.Sorted(maps.Keys(seen)), five)
		}
		w.Say("  without affinity %d clients come to %d pods", len(got), len(seen))
		return nil
	})
	if err != nil {
		return err
	}
	got, err := w.askAll(ctx, all, "sticky", 6, "0")
	if err != nil {
		return err
	}
	if err := expectOnly(got, first, 6); err != nil {
		return err
	}
	w.Say("  sessionAffinity ClientIP: %d clients stay at %s among %d pods", len(got), first, len(five))
	return nil
}

// TerminatingServes checks that the last pod answers while it is being deleted, to clients on both nodes and, with
// internalTrafficPolicy Local, on its own; and that a new one takes its place at once.
func (w *World) TerminatingServes(ctx context.Context) error {
	first, err := w.restart(ctx, "leaving")
	if err != nil {
		return err
	}
	all, err := w.askers(ctx)
	if err != nil {
		return err
	}
	near := slices.DeleteFunc(slices.Clone(all), func(a asker) bool { return a.node != "node1" })
	ask := func(ctx context.Context, who []asker, service, pod string, n int, pause string) error {
		got, err := w.askAll(ctx, who, service, n, pause)
		if err != nil {
			return err
		}
		return expectOnly(got, pod, n)
	}
	for service, who := range map[string][]asker{"leaving": all, "leaving-local": near} {
		err := Until(ctx, 30*time.Second, "the only pod to answer all clients", func(ctx context.Context) error {
			return ask(ctx, who, service, first, 2, "0")
		})
		if err != nil {
			return err
		}
	}
	if _, err := w.scale(ctx, "leaving", 0); err != nil {
		return err
	}
	if err := ask(ctx, all, "leaving", first, 6, "1"); err != nil {
		return err
	}
	if err := ask(ctx, near, "leaving-local", first, 3, "0"); err != nil {
		return err
	}
	if _, leaving, err := w.livingAndLeaving(ctx, "leaving"); err != nil || !slices.Contains(leaving, first) {
		return fmt.Errorf("%s is no longer there to have answered: %v, %w", first, leaving, err)
	}
	w.Say("  %s answers %d clients while it terminates", first, len(all))
	second, err := w.scale(ctx, "leaving", 1)
	if err != nil {
		return err
	}
	err = Until(ctx, 30*time.Second, "the new pod to answer all clients", func(ctx context.Context) error {
		return ask(ctx, all, "leaving", second[0], 6, "0")
	})
	if err != nil {
		return err
	}
	if _, leaving, err := w.livingAndLeaving(ctx, "leaving"); err != nil || !slices.Contains(leaving, first) {
		return fmt.Errorf("%s is no longer there to be passed over: %v, %w", first, leaving, err)
	}
	w.Say("  %s takes its place", second[0])
	return nil
}
