// Package clock is the door through which ztunnel and the controller see time. Everything that waits or stamps takes a
// Clock from its Config, so that a simulation can run the same code on a clock of its own. It is a leaf: it imports
// nothing of the module. System is the only place in these rooms that may name the real clock.
package clock

import (
	"context"
	"time"
)

// Clock tells the time and runs timers. All methods are safe for concurrent use.
type Clock interface {
	// Now returns the current time, with a monotonic reading when the clock has one.
	Now() time.Time
	// AfterFunc calls f in its own goroutine once d has passed, unless the timer is stopped before.
	AfterFunc(d time.Duration, f func()) Timer
}

// Timer is a pending call of Clock.AfterFunc.
type Timer interface {
	// Stop prevents the call and reports whether it did: false means that it already started.
	Stop() bool
	// Reset makes the call happen d from now and reports whether it was still pending.
	Reset(d time.Duration) bool
}

// Pause waits for d. It reports false when ctx ended first.
func Pause(ctx context.Context, c Clock, d time.Duration) bool {
	over := make(chan struct{})
	t := c.AfterFunc(d, func() { close(over) })
	defer t.Stop()
	select {
	case <-over:
		return true
	case <-ctx.Done():
		return false
	}
}

// WithTimeout is context.WithTimeoutCause on the clock; a nil cause is context.DeadlineExceeded. The context ends as canceled:
// context.Cause tells that it was the time. It has no deadline to ask for.
func WithTimeout(ctx context.Context, c Clock, d time.Duration, cause error) (context.Context, context.CancelFunc) {
	if cause == nil {
		cause = context.DeadlineExceeded
	}
	ctx, cancel := context.WithCancelCause(ctx)
	t := c.AfterFunc(d, func() { cancel(cause) })
	return ctx, func() { t.Stop(); cancel(nil) }
}

// System returns the clock of the machine; inside a testing/synctest bubble that is the clock of the bubble.
func System() Clock { return system{} }

type system struct{}

func (system) Now() time.Time { return time.Now() } //lint:allow time the one real clock

func (system) AfterFunc(d time.Duration, f func()) Timer {
	return time.AfterFunc(d, f) //lint:allow time the one real clock
}
