package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// semantics is a namespace with one helloworld on each node and a Service for each promise of Kubernetes that capture
// must not change.
const semantics = `apiVersion: v1
kind: ServiceAccount
metadata: {name: caller}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: hello-one}
spec:
  selector: {matchLabels: {app: hello, place: one}}
  template:
    metadata: {labels: {app: hello, place: one}}
    spec:
      nodeSelector: {kubernetes.io/hostname: node1}
      containers: [{name: hello, image: "docker.io/istio/examples-helloworld-v1", imagePullPolicy: IfNotPresent, ports: [{name: web, containerPort: 5000}]}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: hello-two}
spec:
  selector: {matchLabels: {app: hello, place: two}}
  template:
    metadata: {labels: {app: hello, place: two}}
    spec:
      nodeSelector: {kubernetes.io/hostname: node2}
      containers: [{name: hello, image: "docker.io/istio/examples-helloworld-v1", imagePullPolicy: IfNotPresent, ports: [{name: web, containerPort: 5000}]}]
---
apiVersion: v1
kind: Service
metadata: {name: plain}
spec: {selector: {app: hello}, ports: [{name: http, port: 80, targetPort: web}]}
---
apiVersion: v1
kind: Service
metadata: {name: sticky}
spec: {selector: {app: hello}, sessionAffinity: ClientIP, ports: [{name: http, port: 80, targetPort: 5000}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {selector: {app: hello}, clusterIP: None, ports: [{name: http, port: 5000}]}
---
apiVersion: v1
kind: Service
metadata: {name: local}
spec: {selector: {app: hello}, internalTrafficPolicy: Local, ports: [{name: http, port: 80, targetPort: 5000}]}
`

// DeploySemantics makes namespace "semantics" with its services and a sleep on the first node.
func (w *World) DeploySemantics(ctx context.Context) error {
	if err := w.Deploy(ctx, "semantics", "node1", "sleep"); err != nil {
		return err
	}
	if _, err := w.KubectlIn(ctx, []byte(semantics), "apply", "-n", "semantics", "-f", "-"); err != nil {
		return err
	}
	return w.AwaitReady(ctx, "semantics")
}

// instances asks a Service n times and counts the answers by pod.
func (w *World) instances(ctx context.Context, from, url string, n int) (map[string]int, error) {
	r, err := w.Exec(ctx, "semantics", from, fmt.Sprintf(`for i in $(seq %d); do curl -s -m 5 %s; done`, n, url))
	if err != nil {
		return nil, err
	}
	got := map[string]int{}
	for _, line := range strings.Split(strings.TrimSpace(r.Out), "\n") {
		_, instance, ok := strings.Cut(line, "instance: ")
		if !ok {
			return nil, fmt.Errorf("%s: got %q", url, line)
		}
		got[instance]++
	}
	return got, nil
}

// ServiceSemantics checks what Kubernetes promises of Services, from a client on the first node.
func (w *World) ServiceSemantics(ctx context.Context) error {
	one, two, err := w.helloPods(ctx)
	if err != nil {
		return err
	}
	check := func(what, url string, ok func(map[string]int) bool) error {
		return Until(ctx, 20*time.Second, what, func(ctx context.Context) error {
			got, err := w.instances(ctx, "sleep", url, 20)
			if err == nil && !ok(got) {
				err = fmt.Errorf("answers came from %v", got)
			}
			if err == nil {
				w.Say("  %s: %v", what, got)
			}
			return err
		})
	}
	only := func(pods ...string) func(map[string]int) bool {
		return func(got map[string]int) bool {
			n := 0
			for p := range got {
				if !slices.Contains(pods, p) {
					return false
				}
				n++
			}
			return n == len(pods)
		}
	}
	if err := check("named target port, both pods answer", "http://plain/hello", only(one, two)); err != nil {
		return err
	}
	if err := check("headless, both pods answer", "http://headless:5000/hello", func(got map[string]int) bool { return len(got) >= 1 }); err != nil {
		return err
	}
	if err := check("internalTrafficPolicy Local keeps to the node", "http://local/hello", only(one)); err != nil {
		return err
	}
	return check("sessionAffinity ClientIP keeps to one pod", "http://sticky/hello", func(got map[string]int) bool { return len(got) == 1 })
}

func (w *World) helloPods(ctx context.Context) (one, two string, err error) {
	pods, err := w.Pods(ctx, "semantics", "app=hello")
	if err != nil {
		return "", "", err
	}
	for _, p := range pods {
		switch p.Metadata.Labels["place"] {
		case "one":
			one = p.Metadata.Name
		case "two":
			two = p.Metadata.Name
		}
	}
	if one == "" || two == "" {
		return "", "", fmt.Errorf("helloworld is not on both nodes")
	}
	return one, two, nil
}

// ClientAddress checks that the server sees the client pod's own address, on the same and on the other node.
func (w *World) ClientAddress(ctx context.Context) error {
	for _, from := range Meshed {
		client, err := w.OnePod(ctx, from, "sleep")
		if err != nil {
			return err
		}
		for _, to := range Meshed {
			r, err := w.Exec(ctx, from, "sleep", "curl -s -m 5 http://httpbin."+to+":8000/ip")
			if err != nil {
				return err
			}
			if !strings.Contains(r.Out, `"`+client.Status.PodIP+`"`) {
				return fmt.Errorf("httpbin.%s sees %q, the client %s/sleep is %s", to, strings.TrimSpace(r.Out), from, client.Status.PodIP)
			}
			w.Say("  httpbin.%s sees sleep.%s as %s", to, from, client.Status.PodIP)
		}
	}
	return nil
}

// firstPacket is a pod whose init container asks once, at once, without a second try.
func firstPacket(namespace string) string {
	return `apiVersion: v1
kind: Pod
metadata: {name: first-packet, namespace: ` + namespace + `}
spec:
  restartPolicy: Never
  nodeSelector: {kubernetes.io/hostname: node1}
  initContainers:
  - {name: init, image: curlimages/curl, imagePullPolicy: IfNotPresent, command: [sh, -c, "curl -s -o /dev/null -m 10 http://httpbin.bar:8000/ip"]}
  containers:
  - {name: main, image: curlimages/curl, imagePullPolicy: IfNotPresent, command: [sh, -c, "true"]}
`
}

// FirstPacket runs that pod and returns the exit code of its init container's curl.
func (w *World) FirstPacket(ctx context.Context, namespace string) (int, error) {
	text := firstPacket(namespace)
	if err := w.Delete(ctx, text); err != nil {
		return 0, err
	}
	if err := w.Apply(ctx, text); err != nil {
		return 0, err
	}
	code := -1
	err := Until(ctx, time.Minute, "the init container to end", func(ctx context.Context) error {
		out, err := w.Kubectl(ctx, "get", "pod", "-n", namespace, "first-packet", "-o", "jsonpath={.status.initContainerStatuses[0].state.terminated.exitCode}")
		if err != nil {
			return err
		}
		if out == "" {
			return fmt.Errorf("it has not")
		}
		_, err = fmt.Sscan(out, &code)
		return err
	})
	if err != nil {
		return 0, err
	}
	return code, w.Delete(ctx, text)
}
