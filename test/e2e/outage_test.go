package e2e

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/undermesh/undermesh/controller/api"
)

// late is a pod that starts during an outage, with an identity that its node has already, and asks httpbin.bar all the time.
func late(namespace, node string) string {
	return `apiVersion: v1
kind: Pod
metadata: {name: late, namespace: ` + namespace + `, labels: {app: late}}
spec:
  terminationGracePeriodSeconds: 0
  serviceAccountName: sleep
  nodeSelector: {kubernetes.io/hostname: ` + node + `}
  containers: [{name: main, image: curlimages/curl, imagePullPolicy: IfNotPresent, command: [sleep, infinity]}]
`
}

// askFromLate is curl's status and exit code from the late pod.
func (w *World) askFromLate(ctx context.Context, namespace, url string) (string, error) {
	r, err := w.kubectl(ctx, nil, "exec", "-n", namespace, "late", "--", "sh", "-c", "curl -s -o /dev/null -m 15 -w '%{http_code}' "+url+"; echo ' '$?")
	return strings.TrimSpace(r.Out), err
}

func (w *World) awaitPod(ctx context.Context, namespace, app string) error {
	return Until(ctx, 45*time.Second, "pod "+app+" of "+namespace, func(ctx context.Context) error {
		p, err := w.OnePod(ctx, namespace, app)
		if err == nil && !p.Ready() {
			err = errors.New("it is " + p.Status.Phase)
		}
		return err
	})
}

// TestControllerAway: pods start while the controller is down, outside and inside the mesh. A new pod of the mesh is nobody
// to its node's ztunnel until the controller has told of it: its connections wait and are refused, never sent in clear. Those
// of the pods that were there go on.
func TestControllerAway(t *testing.T) {
	ctx, w := meshed(t)
	policy := StrictNamespace("bar")
	check(t, w.Apply(ctx, policy))
	check(t, w.ExpectPairs(ctx, time.Minute, "legacy→bar"))
	scale := func(ctx context.Context, replicas int) {
		_, err := w.Kubectl(ctx, "scale", "deployment", "-n", api.DefaultRootNamespace, api.ControllerName, fmt.Sprintf("--replicas=%d", replicas))
		check(t, err)
	}
	t.Cleanup(func() {
		ctx := context.Background()
		scale(ctx, 1)
		check(t, w.Delete(ctx, late("foo", "node1")+"---\n"+late("legacy", "node1")+"---\n"+policy))
		check(t, w.AwaitReady(ctx, api.DefaultRootNamespace))
		check(t, w.ExpectPairs(ctx, time.Minute))
	})
	scale(ctx, 0)
	check(t, Until(ctx, time.Minute, "the controller to be gone", func(ctx context.Context) error {
		pods, err := w.Pods(ctx, api.DefaultRootNamespace, "app="+api.ControllerName)
		if err == nil && len(pods) > 0 {
			err = errors.New("it is there")
		}
		return err
	}))
	check(t, w.Apply(ctx, late("foo", "node1")+"---\n"+late("legacy", "node1")))
	check(t, w.awaitPod(ctx, "legacy", "late"))
	check(t, w.awaitPod(ctx, "foo", "late"))
	check(t, w.awaitAnnotation(ctx, []string{"foo"}, api.RedirectionEnabled))
	check(t, w.ExpectPairs(ctx, 30*time.Second, "legacy→bar"))
	got, err := w.askFromLate(ctx, "foo", "http://httpbin.bar:8000/ip")
	check(t, err)
	if got != "000 56" {
		t.Errorf("the new pod of the mesh, while the controller is away: %s", got)
	}
	t.Run("a pod outside the mesh is refused by STRICT as before", func(t *testing.T) {
		got, err := w.askFromLate(ctx, "legacy", "http://httpbin.bar:8000/ip")
		check(t, err)
		if got != "000 56" {
			t.Errorf("got %s", got)
		}
	})
	scale(ctx, 1)
	check(t, Until(ctx, time.Minute, "the new pod to be answered", func(ctx context.Context) error {
		got, err := w.askFromLate(ctx, "foo", "http://httpbin.bar:8000/ip")
		if err == nil && got != "200 0" {
			err = errors.New(got)
		}
		return err
	}))
}

// TestAgentAway: without an agent on any node pods outside the mesh start; those of the mesh wait, an event says for what,
// and they start when the agent is back.
func TestAgentAway(t *testing.T) {
	ctx, w := meshed(t)
	patch := func(ctx context.Context, value string) {
		_, err := w.Kubectl(ctx, "patch", "daemonset", "-n", api.DefaultRootNamespace, api.AgentName, "--type=merge", "-p",
			`{"spec":{"template":{"spec":{"nodeSelector":{"undermesh.io/nowhere":`+value+`}}}}}`)
		check(t, err)
	}
	t.Cleanup(func() {
		ctx := context.Background()
		patch(ctx, "null")
		check(t, w.Delete(ctx, late("foo", "node1")+"---\n"+late("legacy", "node1")))
		_, err := w.Kubectl(ctx, "rollout", "status", "-n", api.DefaultRootNamespace, "daemonset/"+api.AgentName, "--timeout=60s")
		check(t, err)
		check(t, w.ExpectPairs(ctx, time.Minute))
	})
	patch(ctx, `"true"`)
	check(t, Until(ctx, time.Minute, "the agents to be gone", func(ctx context.Context) error {
		pods, err := w.Pods(ctx, api.DefaultRootNamespace, "k8s-app="+api.AgentName)
		if err == nil && len(pods) > 0 {
			err = fmt.Errorf("there are %d", len(pods))
		}
		return err
	}))
	check(t, w.Apply(ctx, late("foo", "node1")+"---\n"+late("legacy", "node1")))
	t.Run("control: a pod outside the mesh starts", func(t *testing.T) { check(t, w.awaitPod(ctx, "legacy", "late")) })
	check(t, w.awaitEvent(ctx, "foo", "FailedCreatePodSandBox", "enrol pod foo/late: the node agent is away"))
	if p, err := w.OnePod(ctx, "foo", "late"); err != nil || p.Status.Phase != "Pending" {
		t.Errorf("the pod of the mesh does not wait: %v, %+v", err, p)
	}
	check(t, w.ExpectPairs(ctx, 30*time.Second)) // what is there goes on
	patch(ctx, "null")
	check(t, w.awaitPod(ctx, "foo", "late"))
	check(t, w.awaitAnnotation(ctx, []string{"foo"}, api.RedirectionEnabled))
	got, err := w.askFromLate(ctx, "foo", "http://httpbin.bar:8000/ip")
	check(t, err)
	if got != "200 0" {
		t.Errorf("the pod that waited: %s", got)
	}
}
