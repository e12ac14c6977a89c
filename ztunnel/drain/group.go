package drain

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/undermesh/undermesh/ztunnel/clock"
)

// Group runs the parts of a worker and ends them in order: first those that take connections, which then drain, and once
// they returned those that the connections need. Add parts, then Run.
type Group struct {
	Clock clock.Clock
	Log   *slog.Logger
	// Timeout is how long the serving parts may take to return after they were told to; what has not returned then is
	// left behind with a warning and the supporting parts end too. It should be longer than the parts' own limits.
	Timeout time.Duration

	serving, supporting []part
}

type part struct {
	name string
	run  func(ctx context.Context) error
}

// Serve adds a part that takes connections.
func (g *Group) Serve(name string, run func(ctx context.Context) error) {
	g.serving = append(g.serving, part{name, run})
}

// Support adds a part that connections need until the last is closed.
func (g *Group) Support(name string, run func(ctx context.Context) error) {
	g.supporting = append(g.supporting, part{name, run})
}

// Run runs all parts until ctx ends or one of them returns. A part that returns before it was told to is an error that names
// it, also when it returned nil: then everything ends.
func (g *Group) Run(ctx context.Context) error {
	told, tell := context.WithCancelCause(ctx)
	defer tell(nil)
	base, endBase := context.WithCancel(context.WithoutCancel(ctx))
	defer endBase()
	serving := g.start(told, told, tell, g.serving)
	supporting := g.start(base, told, tell, g.supporting)
	<-told.Done()
	var err error
	if ctx.Err() == nil {
		err = context.Cause(told)
	}
	g.Log.Info("draining", "dur", g.Timeout)
	if !g.wait(serving) {
		g.Log.Warn("connections cut, the time to drain is over", "dur", g.Timeout)
	}
	endBase()
	if !g.wait(supporting) {
		err = errors.Join(err, errors.New("end worker: a part did not return"))
	}
	return err
}

// start runs parts; the channel is closed when all returned.
func (g *Group) start(ctx, told context.Context, tell context.CancelCauseFunc, parts []part) <-chan struct{} {
	var wg sync.WaitGroup
	for _, p := range parts {
		wg.Go(func() {
			err := p.run(ctx)
			switch {
			case told.Err() == nil && err == nil:
				tell(fmt.Errorf("run %s: it ended by itself", p.name))
			case told.Err() == nil:
				tell(fmt.Errorf("run %s: %w", p.name, err))
			case err != nil && !errors.Is(err, context.Canceled):
				g.Log.Warn("part ended with an error", "part", p.name, "err", err)
			}
		})
	}
	all := make(chan struct{})
	go func() {
		defer close(all)
		wg.Wait()
	}()
	return all
}

func (g *Group) wait(done <-chan struct{}) bool {
	late := make(chan struct{})
	t := g.Clock.AfterFunc(g.Timeout, func() { close(late) })
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-late:
		return false
	}
}
