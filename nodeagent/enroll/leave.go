package enroll

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// unenrol goes through the steps of un-enrolment. Nothing of it is undone by a crash: each step can be seen.
func (p *machine) unenrol(ctx context.Context, want wish) (again time.Duration, err error) {
	p.mu.Lock()
	h, released, noted, step, since := p.handle, p.released, p.noted, p.status.Step, p.status.Since
	p.mu.Unlock()
	if noted {
		if err := p.annotate(ctx, want, false); err != nil {
			return 0, err
		}
		p.step(StepWithdrawn)
		return p.m.cfg.Propagation, nil
	}
	in, out, err := h.State()
	if err != nil {
		return 0, fmt.Errorf("read capture state: %w", err)
	}
	if out && step != StepWithdrawn { // an earlier run removed the annotation
		p.step(StepWithdrawn)
		return p.m.cfg.Propagation, nil
	}
	if left := p.m.cfg.Propagation - time.Since(since); out && left > 0 {
		return left, nil
	}
	if out {
		if err := h.Outbound(false); err != nil {
			return 0, fmt.Errorf("release outbound: %w", err)
		}
	}
	if in {
		if err := h.Inbound(false); err != nil {
			return 0, fmt.Errorf("release inbound: %w", err)
		}
	}
	if released.IsZero() {
		released = time.Now()
		p.mu.Lock()
		p.released = released
		p.mu.Unlock()
		p.step(StepReleased)
	}
	if left := p.m.cfg.Poll - time.Since(released); left > 0 {
		return left, nil // a handshake that the release came upon ends before the listeners go
	}
	live, err := h.Live()
	if err != nil {
		p.log.Warn("captured connections cannot be counted", "err", err)
		live = 1
	}
	if waited := time.Since(released); live > 0 && waited < p.m.cfg.Linger {
		return min(p.m.cfg.Poll, p.m.cfg.Linger-waited), nil
	}
	if live > 0 {
		p.log.Warn("captured connections are cut, their time is over", "connections", live)
	}
	if err := p.remove(ctx, false); err != nil {
		return 0, err
	}
	p.say(want.pod, corev1.EventTypeNormal, "MeshUnenrolled", "pod has left the mesh: "+want.decision.Why)
	return 0, nil
}

// remove takes the pod from ztunnel and everything of ours out of it. deleted: its sandbox is about to go, and nothing runs in it.
func (p *machine) remove(ctx context.Context, deleted bool) error {
	p.mu.Lock()
	h := p.handle
	p.mu.Unlock()
	if h != nil {
		var err error
		if deleted {
			err = p.sayFarewell(ctx, h)
		} else {
			err = p.m.cfg.Proxy.Del(ctx, p.uid, false)
		}
		if cerr := h.Cleanup(ctx); cerr != nil {
			return errors.Join(err, fmt.Errorf("clean up: %w", cerr))
		}
		if err != nil { // a ztunnel that did not hear it finds out by the next snapshot
			p.log.Warn("ztunnel did not acknowledge the removal", "err", err)
		}
	}
	p.forget()
	p.step(StepNone)
	return nil
}

// Bounds of the farewell. They are for peers and a ztunnel that do not answer: it takes a few milliseconds.
const (
	farewellTime = time.Second
	farewellPoll = 2 * time.Millisecond
)

// sayFarewell has ztunnel end the pod's connections, and waits until their peers know. The network goes after that: without it they
// would wait for answers that cannot come. What is tried from now on is refused by the pod itself.
func (p *machine) sayFarewell(ctx context.Context, h Handle) error {
	if err := h.Inbound(false); err != nil {
		p.log.Warn("inbound capture of a deleted pod cannot be ended yet", "err", err)
	}
	ctx, cancel := context.WithTimeout(ctx, farewellTime)
	defer cancel()
	err := p.m.cfg.Proxy.Del(ctx, p.uid, true)
	tick := time.NewTicker(farewellPoll)
	defer tick.Stop()
	for {
		n, lerr := h.Unended()
		if n == 0 || lerr != nil {
			return err // a namespace that is gone, or cannot be looked into, keeps nobody waiting
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			p.log.Warn("connections of a deleted pod are cut", "connections", n)
			return err
		}
	}
}

// forget closes what belonged to the sandbox.
func (p *machine) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ns != nil {
		_, _ = p.ns.Close(), p.nsFile.Close() // only descriptors
	}
	p.held.Close()
	p.container = ""
	p.ns, p.nsFile, p.handle, p.addrs, p.held, p.acked, p.released = nil, nil, nil, nil, nil, false, time.Time{}
}
