package sim

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/undermesh/undermesh/controller/model"
)

// key names an object of the API server.
type key struct {
	kind model.Kind
	name model.Name
}

// change is one change of an object on its way to the controller.
type change struct {
	event model.Event
	due   time.Time
	edit  func(*facts) // nil: the object is no policy
}

// apiServer is where objects are, and the informers that the controller watches it with: each kind in order, but each
// with a delay of its own. It implements watch.Source; it outlives controllers.
type apiServer struct {
	publish func([]change) // called before a batch is emitted

	mu      sync.Mutex // protects below
	objects map[key]model.Event
	pending []change // by due
	lag     map[model.Kind]time.Duration
	last    map[model.Kind]time.Time
	wake    chan struct{}
}

func newAPIServer(publish func([]change)) *apiServer {
	return &apiServer{
		publish: publish, objects: map[key]model.Event{}, lag: map[model.Kind]time.Duration{},
		last: map[model.Kind]time.Time{}, wake: make(chan struct{}, 1),
	}
}

// set changes an object; nil deletes it.
func (a *apiServer) set(kind model.Kind, n model.Name, object any, edit func(*facts)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	ev := model.Event{Kind: kind, Name: n, Object: object}
	if object == nil {
		delete(a.objects, key{kind, n})
	} else {
		a.objects[key{kind, n}] = ev
	}
	due := time.Now().Add(time.Millisecond + a.lag[kind])
	if due.Before(a.last[kind]) {
		due = a.last[kind]
	}
	a.last[kind] = due
	a.pending = append(a.pending, change{ev, due, edit})
	slices.SortStableFunc(a.pending, func(x, y change) int { return x.due.Compare(y.due) })
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// setLag delays what is changed from now on in objects of the kind.
func (a *apiServer) setLag(kind model.Kind, d time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lag[kind] = d
}

// Run implements watch.Source: a list, then what changes.
func (a *apiServer) Run(ctx context.Context, emit func([]model.Event)) error {
	a.mu.Lock()
	rest := a.pending
	a.pending = nil
	all := make([]model.Event, 0, len(a.objects))
	for _, ev := range a.objects {
		all = append(all, ev)
	}
	a.mu.Unlock()
	slices.SortFunc(all, func(x, y model.Event) int {
		return cmp.Or(cmp.Compare(x.Kind, y.Kind), cmp.Compare(x.Name.String(), y.Name.String()))
	})
	a.publish(rest)
	emit(all)
	for {
		batch, next := a.due()
		if len(batch) > 0 {
			a.publish(batch)
			events := make([]model.Event, len(batch))
			for i, c := range batch {
				events[i] = c.event
			}
			emit(events)
			continue
		}
		t := time.NewTimer(next)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-a.wake:
		case <-t.C:
		}
		t.Stop()
	}
}

// due takes what is due, and says how long until the next.
func (a *apiServer) due() (batch []change, next time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	n := 0
	for n < len(a.pending) && !a.pending[n].due.After(now) {
		n++
	}
	batch, a.pending = a.pending[:n:n], a.pending[n:]
	if len(a.pending) > 0 {
		return batch, a.pending[0].due.Sub(now)
	}
	return batch, time.Hour
}
