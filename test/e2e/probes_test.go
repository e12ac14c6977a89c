package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

// probed is a pod with a readiness probe of each kind, one that is redirected twice, one whose path kubelet escapes, and a server on a port that no probe declares.
func probed(namespace string) string {
	return `apiVersion: v1
kind: Namespace
metadata: {name: ` + namespace + `}
---
apiVersion: v1
kind: Pod
metadata: {name: probed, namespace: ` + namespace + `, labels: {app: probed}}
spec:
  terminationGracePeriodSeconds: 0
  nodeSelector: {kubernetes.io/hostname: node1}
  containers:
  - name: http
    image: docker.io/kennethreitz/httpbin
    imagePullPolicy: IfNotPresent
    readinessProbe: {httpGet: {path: /redirect/2, port: 80}, periodSeconds: 1, failureThreshold: 2}
    livenessProbe: {tcpSocket: {port: 80}, periodSeconds: 1, failureThreshold: 5}
  - name: tcp
    image: docker.io/istio/tcp-echo-server:1.2
    imagePullPolicy: IfNotPresent
    args: ["9000", "hello"]
    readinessProbe: {tcpSocket: {port: 9000}, periodSeconds: 1, failureThreshold: 2}
  - name: exec
    image: curlimages/curl
    imagePullPolicy: IfNotPresent
    command: [sleep, infinity]
    readinessProbe: {exec: {command: ["true"]}, periodSeconds: 1, failureThreshold: 2}
    livenessProbe: {httpGet: {path: "/anything/a b|ö#x", port: 80}, periodSeconds: 1, failureThreshold: 2}
  - {name: undeclared, image: "docker.io/istio/examples-helloworld-v1", imagePullPolicy: IfNotPresent}
`
}

const denyAll = `apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-all, namespace: probed}
spec: {}
`

// messengers are pods outside the mesh, on both nodes, that name another pod as the host of their HTTP probe.
func messengers(host string, port int, path string) string {
	text := ""
	for _, n := range nodes {
		text += fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata: {name: messenger-%[1]s, namespace: legacy, labels: {app: messenger}}
spec:
  terminationGracePeriodSeconds: 0
  nodeSelector: {kubernetes.io/hostname: %[1]s}
  containers:
  - name: main
    image: curlimages/curl
    imagePullPolicy: IfNotPresent
    command: [sleep, infinity]
    readinessProbe: {httpGet: {host: %[2]q, port: %[3]d, path: %[4]q}, periodSeconds: 1, failureThreshold: 1, timeoutSeconds: 3}
`, n, host, port, path)
	}
	return text
}

// TestProbesStrict keeps a pod under STRICT and deny-all: kubelet's declared probes pass, and nothing else does.
func TestProbesStrict(t *testing.T) {
	ctx, w := meshed(t)
	check(t, w.Apply(ctx, probed("probed")))
	t.Cleanup(func() {
		ctx := context.Background()
		check(t, w.Delete(ctx, StrictMesh))
		_, err := w.Kubectl(ctx, "delete", "namespace", "probed", "probed-outside", "--ignore-not-found", "--wait")
		check(t, err)
	})
	check(t, w.AwaitReady(ctx, "probed"))
	check(t, w.Enrol(ctx, "probed"))
	check(t, w.Apply(ctx, StrictMesh+"---\n"+denyAll))
	t.Run("control: other clients are refused", func(t *testing.T) {
		pod, err := w.OnePod(ctx, "probed", "probed")
		check(t, err)
		for from, want := range map[string]string{"foo": "403 0", "bar": "403 0", "legacy": "000 56"} {
			check(t, w.awaitCurl(ctx, from, "http://"+pod.Status.PodIP+"/status/200", want))
		}
	})
	facts, err := w.PodFacts(ctx, []string{"probed"})
	check(t, err)
	for range 10 {
		check(t, Hold(ctx, time.Second))
		now, err := w.PodFacts(ctx, []string{"probed"})
		check(t, err)
		check(t, Same(facts, now))
		if pod, err := w.OnePod(ctx, "probed", "probed"); err != nil || !pod.Ready() {
			t.Fatalf("the pod is not ready: %v", err)
		}
	}
	t.Logf("ten probes long: %v", facts)
	for _, attack := range []struct {
		title, path string
		port        int
		reasons     map[string]string // of the proxy, by node of the messenger; what the kernel drops is none of its
	}{
		{"the port of a TCP probe", "/messenger", 9000, map[string]string{"node2": "strict_mtls"}},
		{"a path that is not declared", "/anything/messenger", 80, map[string]string{"node1": "probe_not_declared", "node2": "strict_mtls"}},
		{"a port that is not declared", "/hello?messenger", 5000, map[string]string{"node1": "strict_mtls", "node2": "strict_mtls"}},
	} {
		t.Run("attack: "+attack.title, func(t *testing.T) { w.attack(ctx, t, "probed", attack.port, attack.path, attack.reasons) })
	}
	t.Run("control: outside the mesh kubelet carries the message", func(t *testing.T) {
		check(t, w.Apply(ctx, probed("probed-outside")))
		check(t, w.AwaitReady(ctx, "probed-outside"))
		w.attack(ctx, t, "probed-outside", 80, "/anything/messenger", nil)
	})
}

// attack lets kubelet of each node ask the probed pod for what a messenger declares. With reasons the message must not
// arrive, and the proxy says why; without it must.
func (w *World) attack(ctx context.Context, t *testing.T, namespace string, port int, path string, reasons map[string]string) {
	t.Helper()
	pod, err := w.OnePod(ctx, namespace, "probed")
	check(t, err)
	since := time.Now().UTC().Format(time.RFC3339)
	text := messengers(pod.Status.PodIP, port, path)
	t.Cleanup(func() { check(t, w.Delete(context.Background(), text)) })
	check(t, w.Apply(ctx, text))
	if reasons == nil {
		check(t, w.AwaitReady(ctx, "legacy"))
	} else {
		check(t, Until(ctx, time.Minute, "a failed probe of each messenger", func(ctx context.Context) error {
			for _, n := range nodes {
				out, err := w.Kubectl(ctx, "get", "events", "-n", "legacy", "--field-selector", "reason=Unhealthy,involvedObject.name=messenger-"+n, "-o", "jsonpath={.items[*].message}")
				if err != nil {
					return err
				}
				if !strings.Contains(out, fmt.Sprintf("%s:%d", pod.Status.PodIP, port)) {
					return fmt.Errorf("%s: none that names %s: %q", n, pod.Status.PodIP, out)
				}
			}
			return nil
		}))
		check(t, Hold(ctx, 3*time.Second))
		all, err := w.Pods(ctx, "legacy", "app=messenger")
		check(t, err)
		for i := range all {
			if all[i].Ready() {
				t.Errorf("%s is ready: its message arrived", all[i].Metadata.Name)
			}
		}
		for n, reason := range reasons {
			check(t, w.ExpectLog(ctx, since, reason, fmt.Sprintf("%s:%d", pod.Status.PodIP, port)))
			t.Logf("kubelet of %s: %s", n, reason)
		}
	}
	out, err := w.Kubectl(ctx, "logs", "-n", namespace, "probed", "--all-containers")
	check(t, err)
	if arrived := strings.Contains(out, "messenger"); arrived != (reasons == nil) {
		t.Errorf("the application saw the message: %v", arrived)
	}
}

// awaitCurl waits until curl from a namespace's sleep ends with a status and an exit code.
func (w *World) awaitCurl(ctx context.Context, from, url, want string) error {
	return Until(ctx, 30*time.Second, fmt.Sprintf("%q of curl %s from %s", want, url, from), func(ctx context.Context) error {
		r, err := w.Exec(ctx, from, "sleep", "curl -s -o /dev/null -m 10 -w '%{http_code}' "+url+"; echo ' '$?")
		if got := strings.TrimSpace(r.Out); err == nil && got != want {
			err = fmt.Errorf("it is %q", got)
		}
		return err
	})
}
