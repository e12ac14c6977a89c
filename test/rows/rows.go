// Package rows holds what users see of HTTP, TCP and TLS rules: tables of rows, each with its resource, the calls that are made, and
// what must come back, written from the catalogue of capabilities and not from what our compiler makes of a resource.
//
// A row is observed four times: without its resource, with it, with it from outside the mesh, and gone again. Each function takes a
// World: a cluster (test/e2e/l7) or nodes that are network namespaces (test/netnstest/lab). The rows share one fixture, which Prepare
// makes, and run one after the other.
package rows

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/undermesh/undermesh/test/corpus"
	"github.com/undermesh/undermesh/test/e2e"
)

// World is where rows are observed. Objects that name no namespace are of the given one; a caller is a pod of a deployment.
type World interface {
	// Pace is how often a world is looked at, and how long what belongs to a call may come after it.
	Pace() (tick, late time.Duration)
	// ApplyIn creates and changes objects, DeleteIn removes them if they are there.
	ApplyIn(ctx context.Context, namespace, yaml string) error
	DeleteIn(ctx context.Context, namespace, yaml string) error
	DeleteNamespace(ctx context.Context, namespace string) error
	// Deploy applies samples by name to a namespace, which it makes, and waits until all pods of it are ready. node "" is any.
	Deploy(ctx context.Context, namespace, node string, samples ...string) error
	AwaitReady(ctx context.Context, namespace string) error
	Enrol(ctx context.Context, namespaces ...string) error
	Unenrol(ctx context.Context, namespaces ...string) error
	Pods(ctx context.Context, namespace string, selector ...string) ([]e2e.Pod, error)
	Ask(ctx context.Context, namespace, deployment string, questions ...e2e.Question) ([][]e2e.Answer, error)
	// Exec runs a shell line in a caller.
	Exec(ctx context.Context, namespace, deployment, line string) (e2e.Result, error)
	// Log is what the pods that a selector finds wrote.
	Log(ctx context.Context, namespace, selector string) (string, error)
	// Mark returns a function that waits for a line of the access log since now that has all texts.
	Mark() func(ctx context.Context, texts ...string) error
	// Stats are the statistics of a pod whose names contain the regular expression; without any, as outside the mesh, an error.
	Stats(ctx context.Context, pod e2e.Pod, filter string) (string, error)
	// Drain has a pod refuse connections, until it is undone.
	Drain(ctx context.Context, pod e2e.Pod, undo bool) error
	// DryRun is what is said of resources where they are written, and whether they are refused.
	DryRun(ctx context.Context, yaml string) (says string, refused bool, err error)
	// Undermesh runs a command that needs no more than files.
	Undermesh(ctx context.Context, args ...string) (string, error)
	// SetHosts makes DNS answer for hosts outside, host → address.
	SetHosts(ctx context.Context, records map[string]string) error
	// RegistryOnly blocks what is in no registry, or lets it pass again.
	RegistryOnly(ctx context.Context, on bool) error
}

// within bounds a test that makes more than one row.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// until polls look until it returns nil. Past the limit the last error is returned with what was waited for.
func until(ctx context.Context, w World, limit time.Duration, what string, look func(context.Context) error) error {
	every, _ := w.Pace()
	return e2e.Poll(ctx, every, limit, what, look)
}

// soon polls for what a call leaves behind; that it does not come is another answer.
func soon(ctx context.Context, w World, what string, look func(context.Context) error) error {
	_, late := w.Pace()
	if err := until(ctx, w, late, what, look); err != nil {
		return fmt.Errorf("%w: %w", e2e.ErrOther, err)
	}
	return nil
}

// podOf is the only pod of an app.
func podOf(ctx context.Context, w World, namespace, app string) (e2e.Pod, error) {
	pods, err := w.Pods(ctx, namespace, "app="+app)
	if err != nil {
		return e2e.Pod{}, err
	}
	if len(pods) != 1 {
		return e2e.Pod{}, fmt.Errorf("pods of %s/%s: want one, have %d", namespace, app, len(pods))
	}
	return pods[0], nil
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// seedFile finds a document of the corpus by its number.
func seedFile(t *testing.T, number string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(corpus.Dir(t), number+"-*.yaml"))
	if err != nil || len(files) != 1 {
		t.Fatalf("document %s of the corpus: %v, %v", number, files, err)
	}
	return files[0]
}

// seed reads a document of the corpus.
func seed(t *testing.T, number string) string {
	t.Helper()
	b, err := os.ReadFile(seedFile(t, number))
	check(t, err)
	return string(b)
}

// place is where calls come from.
type place struct {
	World
	namespace, deployment string
}

// expect is a question and what is wanted of the answers.
type expect struct {
	e2e.Question
	want want
}

// asks wants all questions to be answered as they must.
func asks(all ...expect) func(context.Context, place) error {
	return func(ctx context.Context, p place) error {
		questions := make([]e2e.Question, len(all))
		for i, e := range all {
			questions[i] = e.Question
		}
		answers, err := p.Ask(ctx, p.namespace, p.deployment, questions...)
		if err != nil {
			return err
		}
		for i, e := range all {
			if err := e.want(answers[i]); err != nil {
				return fmt.Errorf("%w: %s %s %v from %s/%s: %w", e2e.ErrOther, e.Method, e.URL, e.Headers, p.namespace, p.deployment, err)
			}
		}
		return nil
	}
}

// row is a capability that a resource switches on.
type row struct {
	ids, title string
	resource   string // applied to the namespace
	namespace  string // of the resource and the caller; "": inside
	from       string // who calls; "": sleep
	look       func(context.Context, place) error
	// changed is another resource under which the row must not hold, where it does without any; nothing: it does not.
	changed  string
	unmeshed string // why the same is seen outside the mesh; "": it is not
	apart    bool   // the resource names its namespaces itself
}

// into is the namespace of objects that name none.
func (r *row) into(p place) string {
	if r.apart {
		return ""
	}
	return p.namespace
}

func (r *row) place(w World) place {
	p := place{w, inside, "sleep"}
	if r.namespace != "" {
		p.namespace = r.namespace
	}
	if r.from != "" {
		p.deployment = r.from
	}
	return p
}

// expects waits until the row is seen, or its opposite.
func (r *row) expects(ctx context.Context, p place, holds bool) error {
	return until(ctx, p, 20*time.Second, fmt.Sprintf("%s from %s to be %t", r.title, p.namespace, holds), func(ctx context.Context) error {
		err := r.look(ctx, p)
		switch {
		case holds:
			return err
		case errors.Is(err, e2e.ErrOther):
			return nil
		case err == nil:
			return errors.New("it holds")
		}
		return err
	})
}

// with applies a resource to a namespace until the returned function is called, or the test ends.
func with(ctx context.Context, t *testing.T, w World, namespace, resource string) (remove func()) {
	t.Helper()
	if resource == "" {
		return func() {}
	}
	check(t, w.ApplyIn(ctx, namespace, resource))
	done := false
	remove = func() {
		if done {
			return
		}
		done = true
		check(t, w.DeleteIn(context.WithoutCancel(ctx), namespace, resource))
	}
	t.Cleanup(remove)
	return remove
}

// observe looks at a row with its resource, and at its controls.
func observe(ctx context.Context, t *testing.T, w World, r *row) {
	t.Helper()
	p := r.place(w)
	control := "without the resource"
	if r.changed != "" {
		control = "with another resource"
	}
	t.Run(r.ids+" control: "+control, func(t *testing.T) {
		defer with(ctx, t, w, r.into(p), r.changed)()
		check(t, r.expects(ctx, p, false))
	})
	remove := with(ctx, t, w, r.into(p), r.resource)
	defer remove()
	t.Run(r.ids+" "+r.title, func(t *testing.T) { check(t, r.expects(ctx, p, true)) })
	t.Run(r.ids+" control: outside the mesh", func(t *testing.T) {
		check(t, r.expects(ctx, place{w, outside, p.deployment}, r.unmeshed != ""))
	})
}

// observeAll looks at rows one after the other, each with a time of its own.
func observeAll(t *testing.T, w World, rows []row) {
	for i := range rows {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		observe(ctx, t, w, &rows[i])
		cancel()
	}
}
