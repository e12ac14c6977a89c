package sim

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/undermesh/undermesh/ztunnel/cluster"
)

const (
	// trials is how many requests show that the weights of a rule hold, sigmas how far they may be off.
	trials = 120
	sigmas = 5
)

// trial is a request that is repeated until it ends as the rules say, and then often.
type trial struct {
	question
	to    netip.AddrPort
	shape expectation
	last  *request
}

// expectation is what may become of requests: parts of them for each destination, and the part that the mesh answers with a status.
type expectation struct {
	parts  []part
	status int
	abort  float64

	crowded bool // copies of its requests take places of a circuit breaker, which may be those of requests
}

type part struct {
	destination
	share float64
}

// settleRequests waits until requests end as the rules say, and looks whether the weights hold and nothing is left.
func (w *world) settleRequests(ctx context.Context, deadline time.Time) error {
	left := w.trials(10)
	all := slices.Clone(left)
	for len(left) > 0 && time.Now().Before(deadline) {
		left = w.tryRequests(ctx, left)
		if len(left) > 0 && !pause(ctx, 400*time.Millisecond) {
			return context.Cause(ctx)
		}
	}
	for _, t := range left {
		w.violate("recovery", "%v: %d (%v) by %q, %s after the last fault; the rules say %+v", t.last, t.last.status, t.last.err, t.last.pod, Recovery, t.shape)
	}
	if err := w.awaitRequests(ctx); err != nil {
		return err
	}
	if len(left) == 0 && pause(ctx, returned) {
		for _, t := range all {
			w.weigh(ctx, t)
		}
	}
	if err := w.awaitRequests(ctx); err != nil {
		return err
	}
	if w.opt.Hooks.Stay && len(all) > 0 {
		r := w.newRequest(all[0].question, all[0].to)
		r.act = "1h"
		w.apps.Go(func() { w.ask(w.traffic, []*request{r}, 0, false) })
		pause(ctx, time.Second)
	}
	w.checkAccounts()
	return nil
}

// trials draws questions whose answer the rules settle: each destination has pods, which let the caller in.
func (w *world) trials(n int) []*trial {
	pods := slices.DeleteFunc(w.living(), func(p *pod) bool { return !p.outbound.Load() })
	w.mu.Lock()
	now := w.versions[len(w.versions)-1].facts
	w.mu.Unlock()
	var list []*trial
	for range 8 * n {
		if len(list) == n || len(pods) == 0 {
			break
		}
		q, to := w.randomQuestion(pick(w, pods), pick(w, w.living()))
		q.path, q.user = pick(w, []string{"/", "/a", "/c"}), pick(w, []string{"", "jason"})
		if shape, ok := w.expect(now, q); ok {
			list = append(list, &trial{question: q, to: to, shape: shape})
		}
	}
	return list
}

// expect is what the rules say of requests; ok is false when that depends on more than they.
func (w *world) expect(f *facts, q question) (e expectation, ok bool) {
	v := f.decide(q)
	if v.through {
		return e, false // what answers there may have gone
	}
	if v.status != 0 {
		return expectation{status: v.status}, true
	}
	if m := v.rule.mirror; m != nil {
		e.crowded = f.rules[m.called].policy.GetConnectionPool() != nil
	}
	sum := 0
	for _, d := range v.rule.to {
		sum += d.weight
	}
	e.abort, e.status = float64(v.rule.abort)/100, abortStatus
	for _, d := range v.rule.to {
		if d.weight == 0 {
			continue
		}
		some := false
		for _, p := range w.living() {
			if !d.holds(p, f.rules) {
				continue
			}
			if some = true; p.inbound.Load() && !f.allows(p, q.port, q.from.who) {
				return e, false
			}
		}
		if !some {
			return e, false
		}
		share := float64(d.weight) / float64(sum) * (1 - e.abort)
		if i := slices.IndexFunc(e.parts, func(p part) bool { return p.called == d.called && p.subset == d.subset }); i >= 0 {
			e.parts[i].share += share
			continue
		}
		e.parts = append(e.parts, part{d, share})
	}
	return e, true
}

// tryRequests makes one request for each trial and returns those that did not end as they should.
func (w *world) tryRequests(ctx context.Context, list []*trial) (left []*trial) {
	for _, t := range list {
		t.last = w.newRequest(t.question, t.to)
		w.apps.Go(func() { w.ask(w.traffic, []*request{t.last}, 0, false) })
	}
	for _, t := range list {
		for !w.requestDone(t.last) && time.Since(t.last.begin) < 15*time.Second {
			if !pause(ctx, 20*time.Millisecond) {
				return list
			}
		}
		if _, ok := w.fits(t, t.last); !ok {
			left = append(left, t)
		}
	}
	return left
}

func (w *world) requestDone(r *request) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return r.done
}

// fits reports whether a request ended as its trial says, and where it went: the pod, nil for an answer of the mesh.
func (w *world) fits(t *trial, r *request) (*pod, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case !r.done || r.err != nil:
		return nil, false
	case r.pod == "":
		return nil, r.status == t.shape.status && (len(t.shape.parts) == 0 || t.shape.abort > 0)
	}
	i := slices.IndexFunc(w.pods, func(p *pod) bool { return p.uid == r.pod })
	return w.pods[i], r.status == 200 && len(t.shape.parts) > 0
}

// weigh repeats a trial and counts where its requests go.
func (w *world) weigh(ctx context.Context, t *trial) {
	if len(t.shape.parts) < 2 && t.shape.abort == 0 {
		return
	}
	// Nodes that did not need certificates of each other get them, which may take longer than a rule allows; who failed meanwhile returns.
	w.repeat(ctx, t, trials/4)
	if !pause(ctx, returned/3) {
		return
	}
	list := w.repeat(ctx, t, trials)
	aborted, went := 0, map[called]map[string]int{} // by version
	for _, r := range list {
		p, ok := w.fits(t, r)
		switch {
		case !ok && t.shape.crowded && r.pod == "" && r.status == 503:
			return
		case !ok:
			w.violate("unserved", "%v: %d (%v) by %q after all faults; the rules say %+v", r, r.status, r.err, r.pod, t.shape)
			return
		case p == nil:
			aborted++
		default:
			if went[called{p.ns, p.app}] == nil {
				went[called{p.ns, p.app}] = map[string]int{}
			}
			went[called{p.ns, p.app}][p.version]++
		}
	}
	w.within(t, "answered by the mesh", aborted, t.shape.abort)
	for _, d := range t.shape.parts {
		n := 0
		for _, v := range podVersions {
			if d.subset == "" || d.subset == v {
				n += went[d.called][v]
			}
		}
		low, high := t.shape.bounds(d.destination)
		w.amounts(t, fmt.Sprintf("to %s %s", d.host(), d.subset), n, low, high)
	}
}

// repeat sends n requests of a trial, on two connections one after the other.
func (w *world) repeat(ctx context.Context, t *trial, n int) []*request {
	var list []*request
	for range n {
		list = append(list, w.newRequest(t.question, t.to))
	}
	w.ask(ctx, list[:n/2], 0, false)
	w.ask(ctx, list[n/2:], 0, false)
	return list
}

// bounds returns the least and the most that may come to a destination's pods: what goes to the service without a subset may come to
// any of its pods.
func (e expectation) bounds(d destination) (low, high float64) {
	for _, o := range e.parts {
		switch {
		case o.called != d.called:
		case d.subset == "" || o.subset == d.subset:
			low, high = low+o.share, high+o.share
		case o.subset == "":
			high += o.share
		}
	}
	return low, high
}

func (w *world) within(t *trial, what string, n int, share float64) {
	w.amounts(t, what, n, share, share)
}

// amounts compares a count with the parts of all that it may be.
func (w *world) amounts(t *trial, what string, n int, low, high float64) {
	slack := func(p float64) float64 { return sigmas*math.Sqrt(trials*p*(1-p)) + 0.5 }
	if x := float64(n); x < low*trials-slack(low) || x > high*trials+slack(high) {
		w.violate("weights", "%s%s from %s: %d of %d %s, want %.2f to %.2f of them: %+v", t.authority, t.path, t.from, n, trials, what, low, high, t.shape)
	}
}

// awaitRequests waits until every request has ended, and its copies.
func (w *world) awaitRequests(ctx context.Context) error {
	err := awaitEnds(ctx, w, "requests", w.requests, &w.openRequests)
	pause(ctx, settled)
	return err
}

// returned is how long after the last error hosts may be ejected.
const returned = 30 * time.Second

// settled is how long after the last answer copies of requests may be under way: the slowest application and the longest delay.
const settled = 10 * time.Second

// checkAccounts looks for what pods are still held to have under way, and for connections that nobody uses.
func (w *world) checkAccounts() {
	for _, n := range w.nodes {
		zt := n.running()
		if zt == nil {
			continue
		}
		for p, pp := range zt.pods {
			if s := pp.Tenant().Stats(); s.ActiveRequests != 0 || s.ActiveMirrors != 0 || s.HeldBytes != 0 {
				w.violate("accounting", "pod %s is left with %+v", p, s)
			}
			for _, c := range pp.Clusters() {
				for name, v := range c.Stats {
					if v != 0 && slices.Contains([]string{cluster.RqActive.String(), cluster.RqPendingActive.String()}, name) {
						w.violate("accounting", "pod %s is left with %s of %s: %d", p, name, c.Name(), v)
					}
				}
			}
		}
	}
	if left := w.net.Captured(); left > 0 {
		w.violate("leak", "%d connections of clients are left", left)
	}
}
