package watch

import (
	"context"
	"sync"

	"github.com/undermesh/undermesh/controller/model"
)

// Injected is a Source to which this process adds events of its own.
type Injected struct {
	source Source

	mu      sync.Mutex          // protects below, and orders the calls of emit
	emit    func([]model.Event) // nil before the first batch
	waiting []model.Event
}

// Inject returns a Source with the events of source and those that are Put.
func Inject(source Source) *Injected { return &Injected{source: source} }

// Run implements Source.
func (i *Injected) Run(ctx context.Context, emit func([]model.Event)) error {
	return i.source.Run(ctx, func(events []model.Event) {
		i.mu.Lock()
		defer i.mu.Unlock()
		if i.emit == nil {
			events, i.waiting = append(events, i.waiting...), nil
			i.emit = emit
		}
		emit(events)
	})
}

// Put passes an event on before it returns, or with the first batch. It must not be called from emit.
func (i *Injected) Put(e model.Event) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.emit == nil {
		i.waiting = append(i.waiting, e)
		return
	}
	i.emit([]model.Event{e})
}
