package watch

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"

	"github.com/undermesh/undermesh/controller/configdir"
	"github.com/undermesh/undermesh/controller/model"
)

// Directory is the Source of a directory of YAML.
type Directory struct{ dir *configdir.Dir }

// NewDirectory returns the Source of dir, which it runs itself.
func NewDirectory(dir *configdir.Dir) *Directory { return &Directory{dir: dir} }

// Run implements Source. It fails when the directory cannot be read or holds, at the start, a file that is not
// understood: there is no last good state to serve instead, and a policy in that file would be missing.
func (d *Directory) Run(ctx context.Context, emit func([]model.Event)) error {
	changed, stop := d.dir.Watch()
	defer stop()
	view, err := d.dir.Load()
	if err != nil {
		return err
	}
	var bad []error
	for _, p := range view.Problems {
		if !p.Carried {
			bad = append(bad, p)
		}
	}
	if len(bad) > 0 {
		return fmt.Errorf("load directory: %w", errors.Join(bad...))
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.dir.Run(ctx) })
	g.Go(func() error {
		emit(Events(nil, view))
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-changed:
			}
			now := d.dir.View()
			if events := Events(view, now); len(events) > 0 {
				emit(events)
			}
			view = now
		}
	})
	return g.Wait()
}

// Events returns what changed between two views of a directory; old may be nil.
func Events(old, now *configdir.View) []model.Event {
	var events []model.Event
	for _, k := range configdir.Diff(old, now) {
		e := now.Get(k)
		was := e
		if e == nil {
			was = old.Get(k)
		}
		kind, ok := kindOf(was.Object)
		if !ok {
			continue
		}
		ev := model.Event{Kind: kind, Name: nameOf(k.Namespace, k.Name)}
		if e != nil {
			ev.Object, ev.Issues = e.Object, fieldsOf(e.Issues)
			if p, isPod := e.Object.(*corev1.Pod); isPod {
				ev.Object = withKubelet(p)
			}
		}
		events = append(events, ev)
	}
	return events
}

// withKubelet says what a kubelet would: a pod whose file tells nothing of its state runs and is ready.
func withKubelet(p *corev1.Pod) *corev1.Pod {
	if p.Status.Phase != "" || len(p.Status.Conditions) > 0 {
		return p
	}
	p = p.DeepCopy()
	p.Status.Phase = corev1.PodRunning
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	return p
}
