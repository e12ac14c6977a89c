package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// loadNamespace holds a server on the first node and a client on each node; outsiders are clients of no mesh on each node.
const (
	loadNamespace = "load"
	outsiders     = "outsiders"
	loadPort      = 9000
	loadLong      = 50 // connections a client holds open
	loadLeast     = 50 // new connections a second and client that are wanted
	loadRate      = 60 // that are asked for: a busy machine loses some
)

const loadServer = `apiVersion: v1
kind: Namespace
metadata: {name: load}
---
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: load}
spec: {selector: {app: echo}, ports: [{name: tcp, port: 9000}]}
---
apiVersion: v1
kind: Pod
metadata: {name: echo, namespace: load, labels: {app: echo}}
spec:
  terminationGracePeriodSeconds: 0
  nodeSelector: {kubernetes.io/hostname: node1}
  containers: [{name: main, image: "docker.io/istio/tcp-echo-server:1.2", imagePullPolicy: IfNotPresent, args: ["9000", "hello"], ports: [{containerPort: 9000}]}]
`

func loadClient(node, addr string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata: {name: client-%[1]s, namespace: %[2]s, labels: {app: client}}
spec:
  terminationGracePeriodSeconds: 0
  restartPolicy: Never
  nodeSelector: {kubernetes.io/hostname: %[1]s}
  containers: [{name: main, image: "localhost/undermesh/samples:latest", imagePullPolicy: IfNotPresent, args: [load, -addr=%[3]s, -long=%[4]d, -rate=%[5]d, -interval=500ms]}]
`, node, loadNamespace, addr, loadLong, loadRate)
}

// outsider tries without end, by Service and by pod address, and writes down each answer.
func outsider(node string, addrs ...string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata: {name: outsider-%[1]s, namespace: %[2]s, labels: {app: outsider}}
spec:
  terminationGracePeriodSeconds: 0
  nodeSelector: {kubernetes.io/hostname: %[1]s}
  containers:
  - name: main
    image: curlimages/curl
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "for i in 1 2; do for a in %[3]s; do (while :; do echo \"try [$(echo attack | nc -w 2 $a %[4]d 2>&1)]\"; sleep 0.05; done) & done; done; wait"]
`, node, outsiders, strings.Join(addrs, " "), loadPort)
}

// Failure is one failure that a client of the load counted; its time is in milliseconds since 1970.
type Failure struct {
	AtMS      int64
	Conn, Seq int
	Op, Err   string
}

// accepted reports whether a connect that failed had been accepted: the kernel says refused, or nothing until the time is up, of one
// that was not, and reset of one that was there and ended before the client's process could look. The proxy of the other node
// resets those that it had under way to the one that died.
func (f *Failure) accepted() bool {
	return f.Op == "connect" && strings.HasSuffix(f.Err, ": connection reset by peer")
}

// Tally is what a client counted of its long or of its new connections.
type Tally struct {
	Started, OK, Failed int
	Failures            []Failure
	P50MS, P99MS, MaxMS float64
	From                map[string]int // right answers by who gave them
}

// LoadReport is what one client of the load printed.
type LoadReport struct {
	Node           string `json:"-"`
	StartMS, EndMS int64
	Long, New      Tally
}

// nodes are the places of the load's clients: with the server, and on the other node.
var nodes = []string{"node1", "node2"}

// StartLoad deploys server and clients, outside the mesh until namespace "load" is enrolled.
func (w *World) StartLoad(ctx context.Context) error {
	if err := w.StopLoad(ctx); err != nil {
		return err
	}
	if err := w.StartLoadServer(ctx); err != nil {
		return err
	}
	return w.StartClients(ctx)
}

// StartLoadServer deploys the server alone.
func (w *World) StartLoadServer(ctx context.Context) error {
	if err := w.Apply(ctx, loadServer); err != nil {
		return err
	}
	return w.AwaitReady(ctx, loadNamespace)
}

// StartClients starts a client on each node, and waits until they run.
func (w *World) StartClients(ctx context.Context) error {
	addr, err := w.serviceIP(ctx, loadNamespace, "echo")
	if err != nil {
		return err
	}
	text := ""
	for _, n := range nodes {
		text += loadClient(n, fmt.Sprintf("%s:%d", addr, loadPort))
	}
	if err := w.Apply(ctx, text); err != nil {
		return err
	}
	return w.AwaitReady(ctx, loadNamespace)
}

// StopLoad removes what StartLoad and StartOutsiders made.
func (w *World) StopLoad(ctx context.Context) error {
	_, err := w.Kubectl(ctx, "delete", "namespace", loadNamespace, outsiders, "--ignore-not-found", "--wait")
	return err
}

func (w *World) serviceIP(ctx context.Context, namespace, name string) (string, error) {
	return w.Kubectl(ctx, "get", "service", "-n", namespace, name, "-o", "jsonpath={.spec.clusterIP}")
}

// Reports ends the clients and returns what they counted.
func (w *World) Reports(ctx context.Context) ([]LoadReport, error) {
	var all []LoadReport
	for _, n := range nodes {
		r, err := w.Report(ctx, n, loadNamespace, "client-"+n, "^/usr/bin/samples load ")
		if err != nil {
			return nil, err
		}
		if _, err := w.Kubectl(ctx, "delete", "pod", "-n", loadNamespace, "client-"+n, "--wait"); err != nil {
			return nil, err
		}
		w.Say("  client on %s, %.1f s: %d long connections, %d answers, %d failures; %d new ones, %d failures, p50 %.1f p99 %.1f max %.1f ms", n,
			float64(r.EndMS-r.StartMS)/1000, r.Long.Started, r.Long.OK, r.Long.Failed, r.New.Started, r.New.Failed, r.New.P50MS, r.New.P99MS, r.New.MaxMS)
		all = append(all, r)
	}
	return all, nil
}

// Report ends one client of a load, the one process of a node whose command line matches, and returns what its pod printed.
func (w *World) Report(ctx context.Context, node, namespace, pod, pattern string) (LoadReport, error) {
	r := LoadReport{Node: node}
	pid, err := w.PID(ctx, node, pattern)
	if err != nil {
		return r, err
	}
	if err := w.Signal(ctx, node, "TERM", pid); err != nil {
		return r, err
	}
	return r, Until(ctx, 20*time.Second, "the report of the client on "+node, func(ctx context.Context) error {
		out, err := w.Kubectl(ctx, "logs", "-n", namespace, pod)
		if err != nil {
			return err
		}
		// Standard error is among the lines, in any order.
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, "{") {
				return json.Unmarshal([]byte(line), &r)
			}
		}
		return errors.New("there is none")
	})
}

// Unharmed wants enough load in each report and no failure.
func Unharmed(reports []LoadReport) error {
	for i := range reports {
		r := &reports[i]
		if err := r.enough(); err != nil {
			return err
		}
		for _, t := range []struct {
			name  string
			tally Tally
		}{{"long", r.Long}, {"new", r.New}} {
			if t.tally.Failed > 0 {
				return fmt.Errorf("client on %s: %d failures on %s connections, the first: %+v", r.Node, t.tally.Failed, t.name, t.tally.Failures[0])
			}
		}
	}
	return nil
}

// enough reports whether a client did what it was asked to: 50 long connections that talked, and 50 new ones a second.
func (r *LoadReport) enough() error {
	seconds := float64(r.EndMS-r.StartMS) / 1000
	if r.Long.Started < loadLong || r.Long.OK < loadLong || float64(r.New.Started) < loadLeast*seconds {
		return fmt.Errorf("client on %s: too little load in %.1f s: %d long connections, %d answers on them, %d new ones", r.Node, seconds, r.Long.Started, r.Long.OK, r.New.Started)
	}
	return nil
}

// BrokenOnce wants the failures that the death of a proxy at a time explains, and no others: each long connection of the clients on
// these nodes, which passed it, breaks once, at that time, and none of the others; of the new ones only those that were
// in the proxy at that moment, and all others were answered within limit.
func BrokenOnce(reports []LoadReport, through []string, died time.Time, limit time.Duration) error {
	at := died.UnixMilli()
	for i := range reports {
		r := &reports[i]
		if err := r.enough(); err != nil {
			return err
		}
		if !slices.Contains(through, r.Node) {
			if err := Unharmed([]LoadReport{*r}); err != nil {
				return err
			}
			continue
		}
		if r.Long.Failed != loadLong || r.Long.Started != 2*loadLong {
			return fmt.Errorf("client on %s: %d failures of %d long connections", r.Node, r.Long.Failed, loadLong)
		}
		for _, f := range append(r.Long.Failures, r.New.Failures...) {
			if f.Op == "connect" && !f.accepted() || f.AtMS < at-50 || f.AtMS > at+limit.Milliseconds() {
				return fmt.Errorf("client on %s, %d ms after the death: %+v", r.Node, f.AtMS-at, f)
			}
		}
		// What was in the proxy when it died: a tenth of a second's connections at most.
		if r.New.Failed > loadRate/10 {
			return fmt.Errorf("client on %s: %d new connections failed", r.Node, r.New.Failed)
		}
		if max := time.Duration(r.New.MaxMS * float64(time.Millisecond)); max > limit {
			return fmt.Errorf("client on %s: a new connection took %s, the limit is %s", r.Node, max, limit)
		}
	}
	return nil
}

// StartOutsiders starts clients outside the mesh on each node that try the load's server without end.
func (w *World) StartOutsiders(ctx context.Context) error {
	service, err := w.serviceIP(ctx, loadNamespace, "echo")
	if err != nil {
		return err
	}
	pod, err := w.OnePod(ctx, loadNamespace, "echo")
	if err != nil {
		return err
	}
	text := "apiVersion: v1\nkind: Namespace\nmetadata: {name: " + outsiders + "}\n"
	for _, n := range nodes {
		text += outsider(n, service, pod.Status.PodIP)
	}
	if err := w.Apply(ctx, text); err != nil {
		return err
	}
	return w.AwaitReady(ctx, outsiders)
}

// Tries counts the outsiders' attempts on each node and returns how many there were and how many were answered.
func (w *World) Tries(ctx context.Context) (tried, answered int, err error) {
	for _, n := range nodes {
		out, err := w.Kubectl(ctx, "logs", "-n", outsiders, "outsider-"+n)
		if err != nil {
			return 0, 0, err
		}
		t, a := strings.Count(out, "try ["), strings.Count(out, "hello attack")
		w.Say("  outsider on %s: %d tries, %d answers", n, t, a)
		if t == 0 {
			return 0, 0, fmt.Errorf("outsider on %s has not tried", n)
		}
		tried, answered = tried+t, answered+a
	}
	return tried, answered, nil
}

// PID finds the one process of a node whose command line matches.
func (w *World) PID(ctx context.Context, node, pattern string) (int, error) {
	out, err := w.Cluster(ctx, "node", strings.TrimPrefix(node, "node"), "--", "pgrep", "-f", pattern)
	if err != nil {
		return 0, err
	}
	f := strings.Fields(out)
	if len(f) != 1 {
		return 0, fmt.Errorf("processes of %s like %q: want one, have %v", node, pattern, f)
	}
	return strconv.Atoi(f[0])
}

// Signal sends a signal to a process of a node.
func (w *World) Signal(ctx context.Context, node, signal string, pid int) error {
	_, err := w.Cluster(ctx, "node", strings.TrimPrefix(node, "node"), "--", "kill", "-"+signal, strconv.Itoa(pid))
	return err
}

// KillAndAwait kills the one process of a node whose command line matches with SIGKILL, and waits until another one has
// its place. It returns when it was killed, and how long the place was empty.
func (w *World) KillAndAwait(ctx context.Context, node, pattern string) (at time.Time, gap time.Duration, err error) {
	pid, err := w.PID(ctx, node, pattern)
	if err != nil {
		return at, 0, err
	}
	at = time.Now()
	if err := w.Signal(ctx, node, "KILL", pid); err != nil {
		return at, 0, err
	}
	err = Until(ctx, time.Minute, "a successor of process "+strconv.Itoa(pid)+" of "+node, func(ctx context.Context) error {
		next, err := w.PID(ctx, node, pattern)
		if err == nil && next == pid {
			err = errors.New("it is still there")
		}
		return err
	})
	gap = time.Since(at).Round(time.Millisecond)
	w.Say("  killed process %d of %s (%s), its successor was there after %s", pid, node, pattern, gap)
	return at, gap, err
}

// Hold lets the load run on for a while.
func Hold(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
