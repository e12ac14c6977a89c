package e2e

import (
	"context"
	"fmt"
	"maps"
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
apiVersion: apps/v1
kind: Deployment
metadata: {name: alone}
spec:
  selector: {matchLabels: {app: alone}}
  template:
    metadata: {labels: {app: alone}}
    spec:
      terminationGracePeriodSeconds: 0
      nodeSelector: {kubernetes.io/hostname: node1}
      containers:
      - {name: client, image: curlimages/curl, imagePullPolicy: IfNotPresent, command: [sleep, infinity]}
      - {name: hello, image: "docker.io/istio/examples-helloworld-v1", imagePullPolicy: IfNotPresent}
---
apiVersion: v1
kind: Service
metadata: {name: itself}
spec: {selector: {app: alone}, ports: [{name: http, port: 80, targetPort: 5000}]}
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

// instances runs a script of curls to helloworld in a pod and counts the answers by pod.
func (w *World) instances(ctx context.Context, from, script string) (map[string]int, error) {
	r, err := w.Exec(ctx, "semantics", from, script)
	if err != nil {
		return nil, err
	}
	got := map[string]int{}
	for _, line := range strings.Split(strings.TrimSpace(r.Out), "\n") {
		_, instance, ok := strings.Cut(line, "instance: ")
		if !ok {
			return nil, fmt.Errorf("%s: got %q", script, line)
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
	alone, err := w.OnePod(ctx, "semantics", "alone")
	if err != nil {
		return err
	}
	each := func(url string) string { return "for i in $(seq 20); do curl -s -m 5 " + url + "; done" }
	for _, c := range []struct {
		what, from, script string
		wanted             []string // the pods that answer, every one; when nil any one of them, always the same
	}{
		{"named target port, both pods answer", "sleep", each("http://plain/hello"), []string{one, two}},
		{"headless, each address of the name is a pod", "sleep",
			"for a in $(getent ahostsv4 headless | cut -d' ' -f1 | sort -u); do curl -s -m 5 --connect-to ::$a: http://headless:5000/hello; done", []string{one, two}},
		{"internalTrafficPolicy Local keeps to the node", "sleep", each("http://local/hello"), []string{one}},
		{"sessionAffinity ClientIP keeps to one pod", "sleep", each("http://sticky/hello"), nil},
		{"hairpin, a pod reaches itself through its Service", "alone", each("http://itself/hello"), []string{alone.Metadata.Name}},
	} {
		err := Until(ctx, 20*time.Second, c.what, func(ctx context.Context) error {
			got, err := w.instances(ctx, c.from, c.script)
			if err != nil {
				return err
			}
			pods := slices.Sorted(maps.Keys(got))
			slices.Sort(c.wanted)
			if c.wanted == nil && len(pods) != 1 || c.wanted != nil && !slices.Equal(pods, c.wanted) {
				return fmt.Errorf("answers came from %v", got)
			}
			w.Say("  %s: %v", c.what, got)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
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
