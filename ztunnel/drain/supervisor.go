package drain

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"syscall"
	"time"

	"github.com/undermesh/undermesh/ztunnel/clock"
)

// ExitConfig is the exit status of a worker that must not be started again: what it was told to do cannot work.
const ExitConfig = 78 // EX_CONFIG of sysexits.h; a panic of Go ends with 2

// Exit is how a worker ended.
type Exit struct {
	PID    int
	Code   int            // -1 when a signal ended it
	Signal syscall.Signal // 0 when none did
}

// Error makes Exit usable as an error.
func (e *Exit) Error() string {
	if e.Signal != 0 {
		return fmt.Sprintf("worker %d ended by signal %d (%s)", e.PID, int(e.Signal), e.Signal)
	}
	return fmt.Sprintf("worker %d ended with status %d", e.PID, e.Code)
}

// Process is a running worker.
type Process interface {
	PID() int
	Signal(sig os.Signal) error
	// Wait returns once the process ended; called once.
	Wait() (Exit, error)
}

// Config is what a Supervisor needs. Start, Signals and Clock are required.
type Config struct {
	// Start starts a worker.
	Start func() (Process, error)
	// Signals are what the supervisor was sent: SIGTERM and SIGINT end the worker and then the supervisor, and another of
	// them more than a second later kills it; everything else is forwarded.
	Signals <-chan os.Signal
	Clock   clock.Clock
	Log     *slog.Logger // default: discard

	// StopTimeout is how long the worker may take to end when told to, then it is killed; default 35 s.
	StopTimeout time.Duration
	// The first crash is answered at once. A worker that crashes again within HealthyAfter (default 10 s) of its start is
	// started after BackoffMin (default 10 ms), doubled by each further one up to BackoffMax (default 5 s).
	HealthyAfter, BackoffMin, BackoffMax time.Duration
}

func (c Config) withDefaults() Config {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&c.StopTimeout, 35 * time.Second}, {&c.HealthyAfter, 10 * time.Second},
		{&c.BackoffMin, 10 * time.Millisecond}, {&c.BackoffMax, 5 * time.Second},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	return c
}

// Validate names the first field that is missing or out of range.
func (c Config) Validate() error {
	switch {
	case c.Start == nil:
		return errors.New("supervisor config: Start is not set")
	case c.Signals == nil:
		return errors.New("supervisor config: Signals is not set")
	case c.Clock == nil:
		return errors.New("supervisor config: Clock is not set")
	case c.StopTimeout < 0, c.HealthyAfter < 0, c.BackoffMin < 0, c.BackoffMax < 0:
		return errors.New("supervisor config: a duration is negative")
	}
	return nil
}

// Supervisor keeps one worker running.
type Supervisor struct {
	cfg     Config
	crashes int // since the last healthy worker
}

// New makes a Supervisor; Run starts the worker.
func New(cfg Config) (*Supervisor, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Supervisor{cfg: cfg.withDefaults()}, nil
}

// insist is how long after the first a second signal counts as impatience: process groups get one signal twice.
const insist = time.Second

// Run keeps a worker running until a signal or ctx ends both. It returns nil when the worker ended as it was told to, or of
// its own will with status 0; *Exit when it ended otherwise after it was told to, or with ExitConfig; and the error of
// Start if not even the first worker could be started.
func (s *Supervisor) Run(ctx context.Context) error {
	for first := true; ; first = false {
		p, err := s.cfg.Start()
		if err != nil && first {
			return fmt.Errorf("start worker: %w", err)
		}
		began := s.cfg.Clock.Now()
		if err != nil {
			s.cfg.Log.Error("worker not started", "err", err)
		} else {
			s.cfg.Log.Info("worker started", "pid", p.PID())
			exit, told, err := s.follow(ctx, p)
			if err != nil {
				return err
			}
			if done, err := s.judge(exit, told); done {
				return err
			}
		}
		delay := s.delay(s.cfg.Clock.Now().Sub(began))
		s.cfg.Log.Info("worker will be started again", "dur", delay, "crashes", s.crashes)
		if s.interrupted(ctx, delay) {
			return nil
		}
	}
}

// judge decides what an exit means; done ends the supervisor.
func (s *Supervisor) judge(e Exit, told bool) (done bool, err error) {
	switch {
	case e.Code == 0:
		s.cfg.Log.Info("worker ended", "pid", e.PID, "told", told)
		return true, nil
	case told, e.Code == ExitConfig:
		return true, &e
	default:
		s.cfg.Log.Error("worker crashed", "pid", e.PID, "status", e.Code, "signal", int(e.Signal))
		return false, nil
	}
}

// follow waits for the worker's end and passes signals to it. told reports that it was told to end.
func (s *Supervisor) follow(ctx context.Context, p Process) (exit Exit, told bool, err error) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		exit, err = p.Wait()
	}()
	overdue := make(chan struct{})
	late := overdue
	var limit clock.Timer
	var since time.Time
	defer func() {
		if limit != nil {
			limit.Stop()
		}
	}()
	stop := func(sig os.Signal) {
		if told {
			if s.cfg.Clock.Now().Sub(since) < insist {
				return
			}
			s.cfg.Log.Warn("told twice, worker is killed", "pid", p.PID())
			s.signal(p, syscall.SIGKILL)
			return
		}
		told, since = true, s.cfg.Clock.Now()
		s.cfg.Log.Info("worker is told to end", "pid", p.PID(), "signal", sig.String())
		s.signal(p, sig)
		limit = s.cfg.Clock.AfterFunc(s.cfg.StopTimeout, func() { close(overdue) })
	}
	over := ctx.Done()
	for {
		select {
		case <-ended:
			if err != nil {
				err = fmt.Errorf("wait for worker %d: %w", p.PID(), err)
			}
			return exit, told, err
		case <-over:
			over = nil
			stop(syscall.SIGTERM)
		case <-late:
			late = nil
			s.cfg.Log.Warn("worker did not end in time and is killed", "pid", p.PID(), "dur", s.cfg.StopTimeout)
			s.signal(p, syscall.SIGKILL)
		case sig := <-s.cfg.Signals:
			if sig == syscall.SIGTERM || sig == syscall.SIGINT {
				stop(sig)
			} else {
				s.signal(p, sig)
			}
		}
	}
}

func (s *Supervisor) signal(p Process, sig os.Signal) {
	if err := p.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		s.cfg.Log.Error("signal not delivered", "pid", p.PID(), "signal", sig.String(), "err", err)
	}
}

// delay counts a crash and returns how long to wait; lived is how long the worker ran.
func (s *Supervisor) delay(lived time.Duration) time.Duration {
	if lived >= s.cfg.HealthyAfter {
		s.crashes = 0
	}
	s.crashes++
	if s.crashes == 1 {
		return 0
	}
	d := s.cfg.BackoffMin
	for i := 2; i < s.crashes && d < s.cfg.BackoffMax; i++ {
		d *= 2
	}
	return min(d, s.cfg.BackoffMax)
}

// interrupted waits for d between two workers; true means that the supervisor was told to end meanwhile.
func (s *Supervisor) interrupted(ctx context.Context, d time.Duration) bool {
	over := make(chan struct{})
	t := s.cfg.Clock.AfterFunc(d, func() { close(over) })
	defer t.Stop()
	for {
		select {
		case <-over:
			return ctx.Err() != nil
		case <-ctx.Done():
			return true
		case sig := <-s.cfg.Signals:
			if sig == syscall.SIGTERM || sig == syscall.SIGINT {
				return true
			}
		}
	}
}
