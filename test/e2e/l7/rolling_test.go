package l7

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/undermesh/undermesh/test/e2e"
)

// What a rolling update is looked at with.
const (
	rolling      = "rolling" // namespace of the servers and of the mesh's clients
	outside      = "legacy"  // of the others
	rollingRate  = 210       // requests a second and client of the mesh that are asked for: the first come late
	rollingLeast = 200       // that must have been made
	controlRate  = 50
	rolls        = 3
	rollingPods  = 3
)

// rollingServer is a Deployment as most are: a readiness probe, no preStop hook, everything else left to Kubernetes. onTerm is what
// its program does at SIGTERM.
func rollingServer(onTerm string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Namespace
metadata: {name: %[1]s}
---
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: %[1]s}
spec: {selector: {app: echo}, ports: [{name: http, port: 8080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: echo, namespace: %[1]s}
spec:
  replicas: %[2]d
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo, version: v1}}
    spec:
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: echo}}}
      containers:
      - name: echo
        image: localhost/undermesh/samples
        imagePullPolicy: Never
        args: [echo, "8080"]
        env:
        - {name: ON_TERM, value: "%[3]s"}
        - {name: SERVICE_VERSION, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
`, rolling, rollingPods, onTerm)
}

// rollingRules lead the requests through a VirtualService to a subset, and say so in the answers.
const rollingRules = `apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: echo}
spec: {host: echo, subsets: [{name: v1, labels: {version: v1}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: echo}
spec:
  hosts: [echo]
  http:
  - route: [{destination: {host: echo, subset: v1}}]
    headers: {response: {set: {x-routed: "yes"}}}
`

// caller is a client of a rolling update.
type caller struct {
	name, namespace, node string
	keep                  bool // uses its connections again
	rate                  int  // requests a second
}

func (c caller) pattern() string { return "^/usr/bin/samples load .*client=" + c.name + "&" }

// start has a client make requests until it is asked for its report.
func (c caller) start(ctx context.Context, w *e2e.World, host string) error {
	if err := w.Apply(ctx, fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: client-%[1]s, namespace: %[2]s, labels: {app: client}}
spec:
  terminationGracePeriodSeconds: 0
  restartPolicy: Never
  nodeSelector: {kubernetes.io/hostname: %[3]s}
  containers: [{name: main, image: localhost/undermesh/samples, imagePullPolicy: Never, args: [load, -keep=%[4]t, -rate=%[5]d, -url, "http://%[6]s:8080/?client=%[1]s&delay=10ms"]}]
`, c.name, c.namespace, c.node, c.keep, c.rate, host)); err != nil {
		return err
	}
	_, err := w.Kubectl(ctx, "wait", "-n", c.namespace, "pod/client-"+c.name, "--for=condition=Ready", "--timeout=30s")
	return err
}

func (c caller) remove(ctx context.Context, w *e2e.World) error {
	_, err := w.Kubectl(ctx, "delete", "pod", "-n", c.namespace, "client-"+c.name, "--ignore-not-found", "--wait")
	return err
}

// end returns what the client counted.
func (c caller) end(ctx context.Context, w *e2e.World) (e2e.LoadReport, error) {
	r, err := w.Report(ctx, c.node, c.namespace, "client-"+c.name, c.pattern())
	if err != nil {
		return r, err
	}
	seconds := float64(r.EndMS-r.StartMS) / 1000
	w.Say("  %-7s on %s: %.1f s, %d requests, %d failed, answers of %d pods, p50 %.1f p99 %.1f max %.1f ms", c.name, c.node, seconds,
		r.New.Started, r.New.Failed, len(r.New.From), r.New.P50MS, r.New.P99MS, r.New.MaxMS)
	for _, f := range r.New.Failures[:min(3, len(r.New.Failures))] {
		w.Say("    %s: %s", f.Op, f.Err)
	}
	return r, nil
}

// roll replaces all pods, several times, while clients call them, and returns what the clients counted.
func roll(ctx context.Context, t *testing.T, w *e2e.World, callers ...caller) []e2e.LoadReport {
	t.Helper()
	ip, err := w.Kubectl(ctx, "get", "service", "-n", rolling, "echo", "-o", "jsonpath={.spec.clusterIP}")
	check(t, err)
	for _, c := range callers {
		host := ip
		if c.keep { // one question for the name is enough
			host = "echo." + rolling
		}
		check(t, c.start(ctx, w, host))
	}
	check(t, e2e.Hold(ctx, 2*time.Second))
	for range rolls {
		_, err := w.Kubectl(ctx, "rollout", "restart", "-n", rolling, "deployment/echo")
		check(t, err)
		_, err = w.Kubectl(ctx, "rollout", "status", "-n", rolling, "deployment/echo", "--timeout=90s")
		check(t, err)
	}
	check(t, e2e.Hold(ctx, 2*time.Second))
	var out []e2e.LoadReport
	for _, c := range callers {
		r, err := c.end(ctx, w)
		check(t, err)
		out = append(out, r)
		check(t, c.remove(ctx, w))
	}
	return out
}

// routes applies rules, if there are any, and waits until the answers to the mesh have the header that they set.
func routes(ctx context.Context, w *e2e.World, rules, routed string) error {
	do := []string{"apply"}
	if rules == "" {
		rules, do = rollingRules, []string{"delete", "--ignore-not-found"}
	}
	if _, err := w.KubectlIn(ctx, []byte(rules), append(do, "-n", rolling, "-f", "-")...); err != nil {
		return err
	}
	return e2e.Until(ctx, 20*time.Second, "the route", func(ctx context.Context) error {
		answers, err := w.Ask(ctx, rolling, "sleep", e2e.Question{URL: "http://echo.rolling:8080/"})
		if err != nil {
			return err
		}
		if a := answers[0][0]; a.Status != 200 || a.Headers["x-routed"] != routed {
			return fmt.Errorf("%d %s, routed: %q", a.Status, a.Error, a.Headers["x-routed"])
		}
		return nil
	})
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestRollingUpdate: while all pods of a Deployment are replaced three times under load, no request of the mesh fails, whether its
// program ends its work at SIGTERM or drops it, with no preStop hook to hide that endpoints are told later than pods are stopped.
// The control is a client outside the mesh, in the same rolls.
func TestRollingUpdate(t *testing.T) {
	w := meshed(t)
	inMesh := []caller{{"fresh", rolling, "node1", false, rollingRate}, {"kept", rolling, "node2", true, rollingRate}}
	control := caller{"outside", outside, "node1", false, controlRate}
	t.Cleanup(func() {
		check(t, control.remove(context.Background(), w))
		_, err := w.Kubectl(context.Background(), "delete", "namespace", rolling, "--ignore-not-found")
		check(t, err)
	})
	for _, c := range []struct{ title, onTerm string }{
		{"of a program that exits at SIGTERM", "exit"},
		{"of a program that ends its work first", ""},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		check(t, w.Apply(ctx, rollingServer(c.onTerm)))
		check(t, w.Deploy(ctx, rolling, "node1", "sleep"))
		check(t, w.Enrol(ctx, rolling))
		for _, rules := range []string{"", rollingRules} {
			title, routed := "a rolling update "+c.title, ""
			if rules != "" {
				title, routed = title+", through a VirtualService and a subset", "yes"
			}
			check(t, routes(ctx, w, rules, routed))
			reports := roll(ctx, t, w, append(slices.Clone(inMesh), control)...)
			t.Run(title, func(t *testing.T) {
				for i, in := range inMesh {
					r := reports[i]
					if seconds := float64(r.EndMS-r.StartMS) / 1000; float64(r.New.Started) < rollingLeast*seconds {
						t.Errorf("client %s made %d requests in %.1f s, want %d a second", in.name, r.New.Started, seconds, rollingLeast)
					}
					if r.New.Failed > 0 {
						t.Errorf("%d of %d requests of client %s failed, the first: %+v", r.New.Failed, r.New.Started, in.name, r.New.Failures[0])
					}
					if n := len(r.New.From); n != rollingPods*(rolls+1) {
						t.Errorf("client %s heard of %d pods, want %d: %v", in.name, n, rollingPods*(rolls+1), r.New.From)
					}
				}
			})
			if c.onTerm == "exit" { // else it depends on how fast kube-proxy is
				t.Run("control: outside the mesh "+title, func(t *testing.T) {
					if reports[len(inMesh)].New.Failed == 0 {
						t.Error("no request failed")
					}
				})
			}
		}
		cancel()
	}
}
