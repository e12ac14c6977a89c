// Package e2e holds what is observed of the mesh on a real cluster. Each observation is a function that looks, says what it
// saw, and fails when the evidence is missing: the tests run them one by one, the demo narrates them in order.
//
// It drives the cluster as a user does: bin/cluster, kubectl, bin/undermesh.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// World is one running cluster and the binaries of this checkout.
type World struct {
	// Root is the repository.
	Root string
	// Name of the cluster, as in bin/cluster --name.
	Name string
	// Say narrates what was seen; never nil.
	Say func(format string, args ...any)
}

// Find locates the repository and names the cluster by the environment variable NAME (default "undermesh").
func Find(say func(string, ...any)) (*World, error) {
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		return nil, fmt.Errorf("find repository: %w", err)
	}
	name := os.Getenv("NAME")
	if name == "" {
		name = "undermesh"
	}
	return &World{Root: filepath.Dir(strings.TrimSpace(string(out))), Name: name, Say: say}, nil
}

// Result is how a command ended. Code is its exit status.
type Result struct {
	Out, Err string
	Code     int
}

// run starts a command and waits for it. Only a command that could not be run, or was cut off by ctx, is an error.
func run(ctx context.Context, stdin []byte, env []string, name string, args ...string) (Result, error) {
	var out, errb bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &errb
	cmd.Env = append(os.Environ(), env...)
	cmd.WaitDelay = 5 * time.Second
	if stdin != nil {
		cmd.Stdin = bytes.NewReader(stdin)
	}
	err := cmd.Run()
	r := Result{Out: out.String(), Err: errb.String(), Code: cmd.ProcessState.ExitCode()}
	if ctx.Err() != nil {
		return r, fmt.Errorf("run %s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), context.Cause(ctx), strings.TrimSpace(r.Err))
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return r, fmt.Errorf("run %s: %w", name, err)
	}
	return r, nil
}

// must turns a non-zero exit into an error.
func must(what string, r Result, err error) (string, error) {
	if err != nil {
		return "", err
	}
	if r.Code != 0 {
		return r.Out, fmt.Errorf("%s: exit code %d: %s%s", what, r.Code, strings.TrimSpace(r.Err), strings.TrimSpace(r.Out))
	}
	return r.Out, nil
}

func (w *World) tool(args ...string) []string {
	return append(args[:1:1], append([]string{"--name", w.Name}, args[1:]...)...)
}

// Cluster runs bin/cluster.
func (w *World) Cluster(ctx context.Context, args ...string) (string, error) {
	r, err := run(ctx, nil, nil, filepath.Join(w.Root, "bin/cluster"), w.tool(args...)...)
	return must("cluster "+strings.Join(args, " "), r, err)
}

// Kubeconfig is the path of the cluster's kubeconfig.
func (w *World) Kubeconfig() string {
	if w.Name == "undermesh" {
		return filepath.Join(w.Root, ".cache/cluster/kubeconfig")
	}
	return filepath.Join(w.Root, ".cache/cluster", w.Name, "kubeconfig")
}

// Kubectl runs kubectl and fails on a non-zero exit.
func (w *World) Kubectl(ctx context.Context, args ...string) (string, error) {
	return w.KubectlIn(ctx, nil, args...)
}

// KubectlIn is Kubectl with standard input.
func (w *World) KubectlIn(ctx context.Context, stdin []byte, args ...string) (string, error) {
	r, err := w.kubectl(ctx, stdin, args...)
	return must("kubectl "+strings.Join(args, " "), r, err)
}

func (w *World) kubectl(ctx context.Context, stdin []byte, args ...string) (Result, error) {
	return run(ctx, stdin, []string{"KUBECONFIG=" + w.Kubeconfig()}, filepath.Join(w.Root, "bin/cluster"), w.tool(append([]string{"kubectl"}, args...)...)...)
}

// Undermesh runs bin/undermesh against the cluster.
func (w *World) Undermesh(ctx context.Context, args ...string) (string, error) {
	r, err := run(ctx, nil, []string{"KUBECONFIG=" + w.Kubeconfig()}, filepath.Join(w.Root, "bin/undermesh"), args...)
	return must("undermesh "+strings.Join(args, " "), r, err)
}

// Exec runs a shell line in a pod of a deployment; a non-zero exit is not an error.
func (w *World) Exec(ctx context.Context, namespace, deployment, line string) (Result, error) {
	return w.kubectl(ctx, nil, "exec", "-n", namespace, "deploy/"+deployment, "--", "sh", "-c", line)
}

// ExecDirect runs a program in a pod of a deployment that may have no shell; a non-zero exit is not an error.
func (w *World) ExecDirect(ctx context.Context, namespace, deployment string, args ...string) (Result, error) {
	return w.kubectl(ctx, nil, append([]string{"exec", "-n", namespace, "deploy/" + deployment, "--"}, args...)...)
}

// ExecIn is Exec with standard input.
func (w *World) ExecIn(ctx context.Context, stdin []byte, namespace, deployment, line string) (Result, error) {
	return w.kubectl(ctx, stdin, "exec", "-i", "-n", namespace, "deploy/"+deployment, "--", "sh", "-c", line)
}

// Apply applies YAML.
func (w *World) Apply(ctx context.Context, yaml string) error {
	_, err := w.KubectlIn(ctx, []byte(yaml), "apply", "-f", "-")
	return err
}

// Delete deletes what YAML names, if it is there, and waits for it.
func (w *World) Delete(ctx context.Context, yaml string) error {
	_, err := w.KubectlIn(ctx, []byte(yaml), "delete", "--ignore-not-found", "--wait", "-f", "-")
	return err
}

// Until is Poll, four times a second.
func Until(ctx context.Context, limit time.Duration, what string, look func(context.Context) error) error {
	return Poll(ctx, 250*time.Millisecond, limit, what, look)
}

// Poll calls look until it returns nil, with pauses. Past the limit the last error is returned with what was waited for.
func Poll(ctx context.Context, every, limit time.Duration, what string, look func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(every)
	defer tick.Stop()
	var last error
	for {
		err := look(ctx)
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: gave up after %s: %w", what, limit, last)
		case <-tick.C:
		}
	}
}

// Pod is what observations need to know of a pod.
type Pod struct {
	Metadata struct {
		Name, Namespace, UID string
		Labels, Annotations  map[string]string
	}
	Spec   struct{ NodeName, ServiceAccountName string }
	Status struct {
		Phase, PodIP      string
		ContainerStatuses []struct {
			Name         string
			Ready        bool
			RestartCount int
			State        struct{ Terminated struct{ ExitCode int } }
		}
	}
}

// Ready reports whether the pod has an address and all its containers are ready.
func (p *Pod) Ready() bool {
	for _, c := range p.Status.ContainerStatuses {
		if !c.Ready {
			return false
		}
	}
	return p.Status.PodIP != "" && len(p.Status.ContainerStatuses) > 0
}

// Pods lists the pods of a namespace, those being deleted included.
func (w *World) Pods(ctx context.Context, namespace string, selector ...string) ([]Pod, error) {
	args := []string{"get", "pods", "-n", namespace, "-o", "json"}
	if len(selector) > 0 {
		args = append(args, "-l", strings.Join(selector, ","))
	}
	out, err := w.Kubectl(ctx, args...)
	if err != nil {
		return nil, err
	}
	var list struct{ Items []Pod }
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, fmt.Errorf("parse pods: %w", err)
	}
	return list.Items, nil
}

// OnePod is the only pod of an app.
func (w *World) OnePod(ctx context.Context, namespace, app string) (*Pod, error) {
	pods, err := w.Pods(ctx, namespace, "app="+app)
	if err != nil {
		return nil, err
	}
	if len(pods) != 1 {
		return nil, fmt.Errorf("pods of %s/%s: want one, have %d", namespace, app, len(pods))
	}
	return &pods[0], nil
}
