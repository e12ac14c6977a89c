package sim

import (
	"context"
	"math"
	"net/netip"
	"time"

	"github.com/undermesh/undermesh/controller/model"
)

// pair is a connection that is tried until it ends as the policies say.
type pair struct {
	from, to *pod
	port     uint16
	want     bool
	last     *stream
}

// settle ends every fault and waits until the mesh does what its objects say.
func (w *world) settle(ctx context.Context) error {
	for _, k := range []model.Kind{model.KindPod, model.KindAuthorizationPolicy, model.KindPeerAuthentication, model.KindVirtualService,
		model.KindDestinationRule} {
		w.objects.setLag(k, 0)
	}
	for len(w.tasks) > 0 {
		if !w.opt.Calm {
			w.tasks[0].at = time.Now()
		}
		if err := w.runTask(ctx); err != nil {
			return err
		}
	}
	w.note("all faults are over")
	deadline := time.Now().Add(Recovery)
	for !w.objects.quiet() && time.Now().Before(deadline) {
		if !pause(ctx, 10*time.Millisecond) {
			return context.Cause(ctx)
		}
	}
	if w.opt.Requests {
		return w.settleRequests(ctx, deadline)
	}
	left := w.pairs(24)
	for len(left) > 0 && time.Now().Before(deadline) {
		left = w.try(ctx, left)
		if len(left) > 0 && !pause(ctx, 400*time.Millisecond) {
			return context.Cause(ctx)
		}
	}
	for _, p := range left {
		w.violate("recovery", "%s to %s port %d: allowed %t, and %s after the last fault %v ended with %v, %d bytes", p.from, p.to, p.port, p.want,
			Recovery, p.last, p.last.err, p.last.echoed)
	}
	return awaitEnds(ctx, w, "connections", w.streams, &w.open)
}

// pairs draws pairs of living pods.
func (w *world) pairs(n int) []*pair {
	pods := w.living()
	w.mu.Lock()
	now := w.versions[len(w.versions)-1].facts
	w.mu.Unlock()
	var list []*pair
	for range n {
		p := &pair{from: pick(w, pods), to: pick(w, pods), port: pick(w, appPorts)}
		who := p.from.who
		if !p.from.outbound.Load() {
			who = account{}
		}
		p.want = !p.to.inbound.Load() || now.allows(p.to, p.port, who)
		list = append(list, p)
	}
	return list
}

// try makes one connection for each pair and returns those that did not end as they should.
func (w *world) try(ctx context.Context, list []*pair) (left []*pair) {
	for _, p := range list {
		p.last = w.newStream(p.from, netip.AddrPortFrom(p.to.ip, p.port))
		p.last.chunks = []int{100, 100}
		w.launch(p.last)
	}
	for _, p := range list {
		for !w.isDone(p.last) && time.Since(p.last.begin) < 15*time.Second {
			if !pause(ctx, 20*time.Millisecond) {
				return list
			}
		}
		w.mu.Lock()
		ok := p.last.done && (p.last.err == nil) == p.want
		w.mu.Unlock()
		if !ok {
			left = append(left, p)
		}
	}
	return left
}

func (w *world) isDone(s *stream) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return s.done
}

// ender is something that a world waits for.
type ender interface {
	doneLocked() bool
	// stateLocked says how far it got.
	stateLocked() string
}

// awaitEnds waits until all of a kind have ended, of which open counts the others, and reports the first of those that hang.
func awaitEnds[T ender](ctx context.Context, w *world, what string, all map[uint64]T, open *int) error {
	deadline := time.Now().Add(hangLimit)
	for {
		w.mu.Lock()
		left, late, first := *open, time.Now().After(deadline), ""
		if left > 0 && late {
			id := uint64(math.MaxUint64)
			for i, x := range all {
				if !x.doneLocked() && i < id {
					id, first = i, x.stateLocked()
				}
			}
		}
		w.mu.Unlock()
		switch {
		case left == 0:
			return nil
		case late:
			w.violate("recovery", "%d %s hang, the first is %s", left, what, first)
			return nil
		}
		if !pause(ctx, 100*time.Millisecond) {
			return context.Cause(ctx)
		}
	}
}

// quiet reports whether the controller's informers have seen everything.
func (a *apiServer) quiet() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.pending) == 0
}
