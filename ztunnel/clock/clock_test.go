package clock

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestWithTimeout(t *testing.T) {
	late, before := errors.New("late"), errors.New("before")
	synctest.Test(t, func(t *testing.T) {
		for name, c := range map[string]struct {
			cause, want error
		}{"no cause": {nil, context.DeadlineExceeded}, "a cause": {late, late}} {
			start := time.Now()
			ctx, cancel := WithTimeout(t.Context(), System(), time.Second, c.cause)
			<-ctx.Done()
			if got := context.Cause(ctx); !errors.Is(got, c.want) || time.Since(start) != time.Second {
				t.Errorf("%s: ended after %s by %v, want 1s and %v", name, time.Since(start), got, c.want)
			}
			cancel()
		}
		parent, end := context.WithCancelCause(t.Context())
		ctx, cancel := WithTimeout(parent, System(), time.Second, late)
		end(before)
		<-ctx.Done()
		if got := context.Cause(ctx); !errors.Is(got, before) {
			t.Errorf("the parent ended first and the cause is %v", got)
		}
		cancel()
	})
}
