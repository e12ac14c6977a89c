package rows

import (
	"context"
	"fmt"

	"github.com/undermesh/undermesh/test/e2e"
)

// Namespaces of the fixture. The first is in the mesh and has servers that say which version they are, the second is not.
const (
	inside  = "tutorial"
	outside = "legacy"
)

// Prepare deploys what the rows are judged on: echo servers of three versions, callers, httpbin in the documents' three namespaces.
func Prepare(ctx context.Context, w World) error {
	for namespace, node := range map[string]string{"foo": "node1", "bar": "node2", outside: "node1"} {
		if err := w.Deploy(ctx, namespace, node, "httpbin", "sleep"); err != nil {
			return err
		}
	}
	if err := deploy(ctx, w, inside, servers, "sleep", "tcp-echo/tcp-echo-services"); err != nil {
		return err
	}
	if err := deploy(ctx, w, outside, ""); err != nil {
		return err
	}
	return w.Enrol(ctx, append([]string{inside}, e2e.Meshed...)...)
}

// deploy applies samples, text, and a caller that is a preference of version v2.
func deploy(ctx context.Context, w World, namespace, text string, samples ...string) error {
	if err := w.ApplyIn(ctx, "", "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+namespace+"}\n"); err != nil {
		return err
	}
	if err := w.ApplyIn(ctx, namespace, text+caller("preference-v2", "app: preference, version: v2")); err != nil {
		return err
	}
	return w.Deploy(ctx, namespace, "", samples...)
}

// caller is a pod that asks, with labels.
func caller(name, labels string) string {
	return `---
apiVersion: apps/v1
kind: Deployment
metadata: {name: ` + name + `}
spec:
  selector: {matchLabels: {` + labels + `}}
  template:
    metadata: {labels: {` + labels + `}}
    spec:
      terminationGracePeriodSeconds: 0
      nodeSelector: {kubernetes.io/hostname: node1}
      containers: [{name: sleep, image: curlimages/curl, imagePullPolicy: IfNotPresent, command: [sleep, infinity]}]
`
}

// echoes are servers of a version.
func echoes(version string, replicas int) string {
	return fmt.Sprintf(`---
apiVersion: apps/v1
kind: Deployment
metadata: {name: echo-%[1]s}
spec:
  replicas: %[2]d
  selector: {matchLabels: {app: echo, version: %[1]s}}
  template:
    metadata: {labels: {app: echo, version: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 0
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: echo, version: %[1]s}}}
      containers:
      - name: echo
        image: localhost/undermesh/samples
        imagePullPolicy: Never
        args: [echo, "8080", "8081", "tls:8443"]
        env: [{name: SERVICE_VERSION, value: %[1]s}]
`, version, replicas)
}

func echoService(name string) string {
	return `---
apiVersion: v1
kind: Service
metadata: {name: ` + name + `}
spec:
  selector: {app: echo}
  ports:
  - {name: http, port: 8080}
  - {name: http-other, port: 8081}
  - {name: grpc, port: 9090, targetPort: 8080}
  - {name: tls, port: 8443}
`
}

var servers = echoService("recommendation") + echoService("ratings") + echoService("my-svc") + echoService("patient") + echoes("v1", 2) + echoes("v2", 2) + echoes("v3", 1) + `---
apiVersion: v1
kind: Service
metadata: {name: postgresql}
spec: {selector: {app: postgresql}, ports: [{name: tcp, port: 5432}, {name: tcp-other, port: 5555}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: postgresql}
spec:
  selector: {matchLabels: {app: postgresql}}
  template:
    metadata: {labels: {app: postgresql}}
    spec:
      terminationGracePeriodSeconds: 0
      nodeSelector: {kubernetes.io/hostname: node2}
      containers:
      - {name: usual, image: "docker.io/istio/tcp-echo-server:1.2", imagePullPolicy: IfNotPresent, args: ["5432", usual]}
      - {name: moved, image: "docker.io/istio/tcp-echo-server:1.2", imagePullPolicy: IfNotPresent, args: ["5555", moved]}
`
