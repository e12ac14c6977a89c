package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/undermesh/undermesh/controller/api/reason"
)

// Refusal says why a connection was refused, or ended by the mesh. It is an error, and the cause of the context of a
// connection that was ended.
type Refusal struct {
	Reason reason.Reason
	Policy string // namespace/name; "" when no policy decided
	Rule   int    // index in Policy; -1: none
	Err    error  // what lies below; may be nil
}

// Error names the reason and what lies below.
func (r *Refusal) Error() string {
	text := r.Reason.String()
	if r.Policy != "" {
		text += " by " + r.Policy
	}
	if r.Err != nil {
		text += ": " + r.Err.Error()
	}
	return text
}

// Unwrap returns what lies below.
func (r *Refusal) Unwrap() error { return r.Err }

func refused(why reason.Reason, err error) *Refusal { return &Refusal{Reason: why, Rule: -1, Err: err} }

func refusedf(why reason.Reason, format string, args ...any) *Refusal {
	return refused(why, fmt.Errorf(format, args...))
}

// refusalOf returns the Refusal in err, nil when there is none.
func refusalOf(err error) *Refusal {
	r := &Refusal{}
	if errors.As(err, &r) {
		return r
	}
	return nil
}

// ended returns the Refusal that ctx was ended with, or else one for why and err.
func ended(ctx context.Context, why reason.Reason, err error) *Refusal {
	if r := refusalOf(context.Cause(ctx)); r != nil {
		return r
	}
	return refused(why, err)
}

// refuse ends an accepted client so that it sees a reset after the accept: never as a connect error. It waits for the
// client's first bytes or Config.RefuseDelay, whichever comes first, and resets at once when too many wait or ctx ends.
func (p *Proxy) refuse(ctx context.Context, c net.Conn) {
	defer reset(c)
	if p.refusals.Add(1) > int64(p.cfg.MaxRefusals) {
		p.refusals.Add(-1)
		return
	}
	defer p.refusals.Add(-1)
	stop := context.AfterFunc(ctx, func() { reset(c) })
	defer stop()
	if err := c.SetReadDeadline(p.cfg.Clock.Now().Add(p.cfg.RefuseDelay)); err != nil {
		return
	}
	var first [1]byte
	_, _ = c.Read(first[:]) // bytes, end, error or time-out: each ends the wait
}

// reset closes c so that the peer sees a reset, where c can do that.
func reset(c net.Conn) {
	if l, ok := c.(interface{ SetLinger(int) error }); ok {
		_ = l.SetLinger(0) // of a closed connection: nothing is left to reset
	}
	_ = c.Close()
}
