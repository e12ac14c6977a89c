package drain

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/undermesh/undermesh/ztunnel/clock"
)

// fakeWorker ends when it is told to, or crashes when the test wants.
type fakeWorker struct {
	pid      int
	stubborn bool // ignores SIGTERM
	end      chan Exit

	mu   sync.Mutex
	sent []os.Signal
}

func (w *fakeWorker) PID() int { return w.pid }

func (w *fakeWorker) signals() []os.Signal {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.sent)
}

func (w *fakeWorker) Wait() (Exit, error) { return <-w.end, nil }

func (w *fakeWorker) Signal(s os.Signal) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent = append(w.sent, s)
	switch {
	case s == syscall.SIGKILL:
		w.end <- Exit{PID: w.pid, Code: -1, Signal: syscall.SIGKILL}
	case s == syscall.SIGTERM && !w.stubborn:
		w.end <- Exit{PID: w.pid}
	}
	return nil
}

type fixture struct {
	signals chan os.Signal
	done    chan error

	mu      sync.Mutex // protects below
	starts  []time.Time
	workers []*fakeWorker
	fail    error
}

func (f *fixture) last() *fakeWorker {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.workers[len(f.workers)-1]
}

// started is when workers were started, or were tried to.
func (f *fixture) started() []time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.starts)
}

func (f *fixture) setFail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = err
}

func (f *fixture) start() (Process, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.starts = append(f.starts, time.Now())
	if f.fail != nil {
		return nil, f.fail
	}
	w := &fakeWorker{pid: len(f.starts), end: make(chan Exit, 4)}
	f.workers = append(f.workers, w)
	return w, nil
}

func (f *fixture) crash() {
	w := f.last()
	w.end <- Exit{PID: w.pid, Code: -1, Signal: syscall.SIGSEGV}
	synctest.Wait()
}

func supervise(ctx context.Context, t *testing.T) *fixture {
	f := &fixture{signals: make(chan os.Signal, 2), done: make(chan error, 1)}
	s, err := New(Config{
		Clock: clock.System(), Signals: f.signals, StopTimeout: 30 * time.Second,
		Start: f.start,
	})
	if err != nil {
		t.Fatal(err)
	}
	go func() { f.done <- s.Run(ctx) }()
	synctest.Wait()
	return f
}

func TestFirstCrashIsAnsweredAtOnceLaterOnesBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := supervise(t.Context(), t)
		time.Sleep(time.Hour)
		crashed := time.Now()
		f.crash()
		if len(f.started()) != 2 || f.started()[1] != crashed {
			t.Fatalf("started at %v, crashed at %v", f.started(), crashed)
		}
		var waits []time.Duration
		for range 12 {
			n := len(f.started())
			crashed = time.Now()
			f.crash()
			for len(f.started()) == n {
				time.Sleep(time.Millisecond)
				synctest.Wait()
			}
			waits = append(waits, f.started()[n].Sub(crashed))
		}
		if waits[0] != 10*time.Millisecond || waits[1] != 20*time.Millisecond || waits[11] != 5*time.Second {
			t.Errorf("waits are %v", waits)
		}
		time.Sleep(11 * time.Second) // healthy: counted anew
		crashed = time.Now()
		f.crash()
		if got := f.started()[len(f.started())-1]; got != crashed {
			t.Errorf("waited %s after a healthy worker", got.Sub(crashed))
		}
		f.signals <- syscall.SIGTERM
		if err := <-f.done; err != nil {
			t.Error(err)
		}
	})
}

func TestSignalsReachTheWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := supervise(t.Context(), t)
		f.signals <- syscall.SIGHUP
		synctest.Wait()
		f.signals <- syscall.SIGTERM
		if err := <-f.done; err != nil {
			t.Error(err)
		}
		if s := f.last().signals(); len(s) != 2 || s[0] != syscall.SIGHUP || s[1] != syscall.SIGTERM {
			t.Errorf("sent %v", s)
		}
		if len(f.started()) != 1 {
			t.Error("a worker was started after SIGTERM")
		}
	})
}

func TestWorkerThatDoesNotEndIsKilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := supervise(t.Context(), t)
		f.last().stubborn = true
		told := time.Now()
		f.signals <- syscall.SIGTERM
		err := <-f.done
		if exit := (*Exit)(nil); !errors.As(err, &exit) || exit.Signal != syscall.SIGKILL {
			t.Errorf("Run returned %v", err)
		}
		if took := time.Since(told); took != 30*time.Second {
			t.Errorf("killed after %s", took)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		f := supervise(t.Context(), t)
		f.last().stubborn = true
		told := time.Now()
		f.signals <- syscall.SIGTERM
		f.signals <- syscall.SIGTERM // one signal sent to the process and to its group
		time.Sleep(2 * time.Second)
		f.signals <- syscall.SIGINT
		if err := <-f.done; err == nil || time.Since(told) != 2*time.Second {
			t.Errorf("after %s: %v", time.Since(told), err)
		}
	})
}

func TestEndsThatAreNotCrashes(t *testing.T) {
	for name, c := range map[string]struct {
		exit Exit
		ok   bool
	}{"quit": {Exit{PID: 1}, true}, "bad configuration": {Exit{PID: 1, Code: ExitConfig}, false}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := supervise(t.Context(), t)
				f.last().end <- c.exit
				if err := <-f.done; (err == nil) != c.ok {
					t.Errorf("Run returned %v", err)
				}
				if len(f.started()) != 1 {
					t.Error("it was started again")
				}
			})
		})
	}
}

func TestEndOfContextEndsTheWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		f := supervise(ctx, t)
		cancel()
		if err := <-f.done; err != nil || len(f.last().signals()) != 1 {
			t.Errorf("%v, sent %v", err, f.last().signals())
		}
	})
}

func TestWorkerThatCannotStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := supervise(t.Context(), t)
		f.setFail(errors.New("no memory"))
		f.crash()
		time.Sleep(time.Second)
		if len(f.started()) < 4 {
			t.Errorf("tried %d times", len(f.started()))
		}
		f.signals <- syscall.SIGTERM // between two workers
		if err := <-f.done; err != nil {
			t.Error(err)
		}
	})
}

func TestGroupEndsServingBeforeSupporting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var order []string
		note := func(s string) { mu.Lock(); order = append(order, s); mu.Unlock() }
		g := &Group{Clock: clock.System(), Log: slog.New(slog.DiscardHandler), Timeout: time.Minute}
		g.Support("identity", func(ctx context.Context) error { <-ctx.Done(); note("identity"); return nil })
		g.Serve("pods", func(ctx context.Context) error {
			<-ctx.Done()
			time.Sleep(20 * time.Second) // drains
			note("pods")
			return nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- g.Run(ctx) }()
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if len(order) != 2 || order[0] != "pods" {
			t.Errorf("order %v", order)
		}
	})
}

func TestGroupEndsWithItsFirstPart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &Group{Clock: clock.System(), Log: slog.New(slog.DiscardHandler), Timeout: time.Second}
		g.Serve("pods", func(ctx context.Context) error { <-ctx.Done(); return nil })
		g.Support("xds", func(context.Context) error { return errors.New("bad config") })
		if err := g.Run(t.Context()); err == nil || err.Error() != "run xds: bad config" {
			t.Errorf("Run returned %v", err)
		}
	})
}

func TestGroupDoesNotWaitForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &Group{Clock: clock.System(), Log: slog.New(slog.DiscardHandler), Timeout: 5 * time.Second}
		hang := make(chan struct{})
		g.Serve("pods", func(context.Context) error { <-hang; return nil })
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		began := time.Now()
		if err := g.Run(ctx); err != nil || time.Since(began) != 5*time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		close(hang)
	})
}
