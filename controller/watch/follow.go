package watch

import (
	"context"
	"fmt"
	"strconv"
	"sync"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/undermesh/undermesh/controller/model"
)

// follow puts what happens to one kind into the batch that is gathered. It is the store of a client-go Reflector, which calls
// it in order from one goroutine; unlike an informer's handlers it knows up to which version of the API server it got.
type follow struct {
	k      *Kubernetes
	kind   model.Kind
	mark   model.Kind // by which its versions are known
	lw     cache.ListerWatcher
	like   any                             // of the type that is listed; nil: any
	slim   cache.TransformFunc             // what is kept of an object
	event  func(o any) (model.Event, bool) // of an object that is there
	listed chan struct{}                   // closed when the first list was taken in
	first  func()                          // closes it
	anew   chan struct{}                   // capacity 1: list again

	names map[model.Name]uint64 // what is there, by version; of the reflector's goroutine
}

// reader lists and watches one kind.
type reader struct {
	list  func(context.Context, metav1.ListOptions) (runtime.Object, error)
	watch func(context.Context, metav1.ListOptions) (apiwatch.Interface, error)
}

// newFollow takes the client that r uses, which says whether it can stream lists.
func (k *Kubernetes) newFollow(kind model.Kind, client any, r reader, like any, slim cache.TransformFunc, event func(o any) (model.Event, bool)) *follow {
	f := &follow{k: k, kind: kind, mark: kind, like: like, slim: slim, event: event, listed: make(chan struct{}), anew: make(chan struct{}, 1),
		names: map[model.Name]uint64{}}
	f.first = sync.OnceFunc(func() { close(f.listed) })
	f.lw = cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			if o.ResourceVersion == "0" { // "any version": a cache of the API server may be behind what nodes have seen
				o.ResourceVersion = ""
			}
			return r.list(ctx, o)
		},
		WatchFuncWithContext: r.watch,
	}, client)
	return f
}

// secures reports whether History is about this kind.
func (f *follow) secures() bool {
	_, ok := secures[f.mark]
	return ok
}

// run follows until ctx ends.
func (f *follow) run(ctx context.Context) {
	for ctx.Err() == nil {
		f.once(ctx)
	}
}

// once follows until ctx ends, or everything is to be listed again.
func (f *follow) once(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		cache.NewReflectorWithOptions(f.lw, f.like, f, cache.ReflectorOptions{Name: string(f.kind)}).RunWithContext(ctx)
	}()
	select {
	case <-ctx.Done():
	case <-f.anew:
	}
	cancel()
	<-done
}

// again asks for a new list.
func (f *follow) again() {
	select {
	case f.anew <- struct{}{}:
	default: // it is asked for already
	}
}

// newest is the version that the API server has now; it is read from its store.
func (f *follow) newest(ctx context.Context) (uint64, error) {
	list, err := f.lw.(cache.ListerWithContext).ListWithContext(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return 0, fmt.Errorf("ask API server for the version of %s: %w", f.kind, err)
	}
	m, err := meta.ListAccessor(list)
	if err != nil {
		return 0, fmt.Errorf("ask API server for the version of %s: %w", f.kind, err)
	}
	return version(m.GetResourceVersion()), nil
}

// version is 0 for what is no number, as of a fake API server.
func version(text string) uint64 {
	v, _ := strconv.ParseUint(text, 10, 64) //nolint:errcheck // 0 then
	return v
}

// Transformer implements cache.TransformingStore.
func (f *follow) Transformer() cache.TransformFunc { return f.slim }

// Add implements cache.ReflectorStore.
func (f *follow) Add(o any) error { return f.changed(o, false) }

// Update implements cache.ReflectorStore.
func (f *follow) Update(o any) error { return f.changed(o, false) }

// Delete implements cache.ReflectorStore.
func (f *follow) Delete(o any) error { return f.changed(o, true) }

// Resync implements cache.ReflectorStore.
func (f *follow) Resync() error { return nil }

// UpdateResourceVersion implements cache.ResourceVersionUpdater: everything up to here was passed on.
func (f *follow) UpdateResourceVersion(text string) {
	f.k.take(f.mark, nil, func(m mark) mark { return mark{m.changed, version(text)} })
}

func (f *follow) changed(o any, gone bool) error {
	e, v, err := f.read(o)
	if err != nil {
		return err
	}
	if gone {
		delete(f.names, e.Name)
		e = model.Event{Kind: e.Kind, Name: e.Name}
	} else {
		f.names[e.Name] = v
	}
	f.k.take(f.mark, []model.Event{e}, func(mark) mark { return mark{v, v} })
	return nil
}

// read makes the event of an object, and says of which version it is.
func (f *follow) read(o any) (model.Event, uint64, error) {
	o, err := f.slim(o)
	if err != nil {
		return model.Event{}, 0, fmt.Errorf("read %s: %w", f.kind, err)
	}
	m, err := meta.Accessor(o)
	e, ok := f.event(o)
	if err != nil || !ok {
		return model.Event{}, 0, fmt.Errorf("read %s: unknown type %s", f.kind, wrongType(o))
	}
	return e, version(m.GetResourceVersion()), nil
}

// Replace implements cache.ReflectorStore: the list is all that there is.
func (f *follow) Replace(list []any, text string) error {
	var events []model.Event
	names, newest, gone := make(map[model.Name]uint64, len(list)), uint64(0), false
	for _, o := range list {
		e, v, err := f.read(o)
		if err != nil {
			return err
		}
		if was, ok := f.names[e.Name]; !ok || was != v || v == 0 {
			events = append(events, e)
		}
		names[e.Name], newest = v, max(newest, v)
	}
	for n := range f.names {
		if _, ok := names[n]; !ok {
			events, gone = append(events, model.Event{Kind: f.kind, Name: n}), true
		}
	}
	f.names = names
	at, first := version(text), false
	select {
	case <-f.listed:
	default:
		first = true
	}
	f.k.take(f.mark, events, func(m mark) mark {
		// What was deleted, nobody knows when; and a list that is older than what was known is of a restored API server.
		if first || gone || at < m.current {
			return mark{at, at}
		}
		return mark{max(m.changed, newest), at}
	})
	f.first()
	return nil
}
