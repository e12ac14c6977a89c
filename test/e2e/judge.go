package e2e

import (
	"context"
	"time"
)

// Pace is how often a cluster is looked at, and how long what belongs to a call may come after it.
func (w *World) Pace() (tick, late time.Duration) { return 250 * time.Millisecond, 4 * time.Second }

// within adds a namespace, unless it is "", to the arguments of kubectl.
func within(namespace string, args ...string) []string {
	if namespace != "" {
		args = append(args, "-n", namespace)
	}
	return args
}

// ApplyIn applies YAML; objects that name no namespace are of the given one.
func (w *World) ApplyIn(ctx context.Context, namespace, yaml string) error {
	_, err := w.KubectlIn(ctx, []byte(yaml), within(namespace, "apply", "-f", "-")...)
	return err
}

// DeleteIn deletes what ApplyIn applied, if it is there, and waits for it.
func (w *World) DeleteIn(ctx context.Context, namespace, yaml string) error {
	_, err := w.KubectlIn(ctx, []byte(yaml), within(namespace, "delete", "--ignore-not-found", "--wait", "-f", "-")...)
	return err
}

// DeleteNamespace deletes a namespace and waits for it.
func (w *World) DeleteNamespace(ctx context.Context, namespace string) error {
	_, err := w.Kubectl(ctx, "delete", "namespace", namespace)
	return err
}

// Log is the end of what the pods that a selector finds wrote.
func (w *World) Log(ctx context.Context, namespace, selector string) (string, error) {
	return w.Kubectl(ctx, "logs", "-n", namespace, "-l", selector, "--tail=200")
}

// Mark returns a function that waits for a line of a ztunnel, written from now on, that has all texts.
func (w *World) Mark() func(ctx context.Context, texts ...string) error {
	since := time.Now().UTC().Truncate(time.Second).Format(time.RFC3339)
	return func(ctx context.Context, texts ...string) error { return w.ExpectLog(ctx, since, texts...) }
}

// Stats are the statistics of a pod whose names contain a regular expression.
func (w *World) Stats(ctx context.Context, p Pod, filter string) (string, error) {
	return w.Undermesh(ctx, "stats", p.Metadata.Name+"."+p.Metadata.Namespace, "--filter", filter)
}

// Drain has a pod refuse connections, until it is undone.
func (w *World) Drain(ctx context.Context, p Pod, undo bool) error {
	args := []string{"drain", p.Metadata.Name + "." + p.Metadata.Namespace}
	if undo {
		args = append(args, "--undo")
	}
	_, err := w.Undermesh(ctx, args...)
	return err
}
