package proxy

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/hbone"
	"github.com/undermesh/undermesh/ztunnel/http"
	"github.com/undermesh/undermesh/ztunnel/http/route"
	"github.com/undermesh/undermesh/ztunnel/proxy/calls"
)

// Proxy is what the pods of one node share: limits, the pods by name, and the watch on the mesh's configuration.
// Safe for concurrent use.
type Proxy struct {
	cfg       Config
	conns     atomic.Int64
	refusals  atomic.Int64
	unproved  atomic.Int64 // connections at the gates of all pods
	buffers   buffers
	pipes     pipes
	affinity  *affinity
	serving   hbone.Config // of tunnel servers: their streams end with the pod's connections, not earlier
	engine    *http.Engine
	calls     *calls.Shared
	spoken    atomic.Pointer[spoken]
	forbidden *route.VirtualHost // answers those that a policy does not let in

	mu       sync.Mutex // protects below
	pods     map[podName]*Pod
	addrs    map[netip.Addr]*Pod
	all      map[*Pod]struct{}        // also pods that were removed and still have connections
	deleted  map[podName]*Pod         // whom the mesh does not know to be gone yet: what they were, and nothing else
	departed map[netip.Addr]departure // pods of other nodes that said so, of whom the mesh does not know it yet
	changed  chan struct{}            // closed at the next change
}

type podName struct{ namespace, name string }

// New returns a Proxy; it does nothing until Run. It panics on a Config that Validate refuses, since that is a fault of the
// program.
func New(cfg Config) *Proxy {
	if err := cfg.Validate(); err != nil {
		panic(err)
	}
	cfg = cfg.withDefaults()
	if cfg.Tunnel.Budget == nil {
		cfg.Tunnel.Budget = hbone.NewBudget(0)
	}
	serving := cfg.Tunnel
	serving.DrainTimeout = max(cfg.DrainTimeout, cfg.RemovedGrace)
	if serving.IdleTimeout == 0 {
		serving.IdleTimeout = tunnelIdle
	}
	engine, err := http.New(http.Config{Clock: cfg.Clock, Random: cfg.Random, Log: cfg.Log})
	if err != nil {
		panic(err)
	}
	shared := calls.NewShared(calls.Config{Clock: cfg.Clock, Rand: cfg.Random, Log: cfg.Log})
	return &Proxy{
		cfg: cfg, serving: serving, engine: engine, calls: shared, forbidden: shared.Answer("forbidden", 403, denied),
		affinity: newAffinity(cfg.Clock, affinityLimits{cfg.MaxAffinity, cfg.MaxAffinityPerPod, cfg.MaxAffinityPerService}),
		pods:     map[podName]*Pod{}, addrs: map[netip.Addr]*Pod{}, all: map[*Pod]struct{}{}, deleted: map[podName]*Pod{}, departed: map[netip.Addr]departure{}, changed: make(chan struct{}),
	}
}

// Run wakes connections that wait for the configuration and judges the live ones again, whenever it changes, until ctx
// ends. Pods are run by their owner.
func (p *Proxy) Run(ctx context.Context) error {
	defer p.pipes.drop()
	changed, stop := p.cfg.Changed()
	defer stop()
	due := make(chan struct{}, 1)
	timer := p.cfg.Clock.AfterFunc(sweepSoon, func() { due <- struct{}{} })
	defer func() { timer.Stop() }()
	soon := true // the timer's time is that after a change
	for {
		p.announce()
		p.judgeAgain()
		p.forgetDeleted()
		p.suspect()
	wait:
		select {
		case <-ctx.Done():
			return nil
		case <-due:
			p.sweep()
			timer, soon = p.cfg.Clock.AfterFunc(sweepIdle, func() { due <- struct{}{} }), false
			goto wait
		case <-changed:
			if !soon && timer.Stop() {
				timer, soon = p.cfg.Clock.AfterFunc(sweepSoon, func() { due <- struct{}{} }), true
			}
		}
	}
}

const (
	sweepSoon = time.Second // after a change clusters in use learn of it, used or not
	sweepIdle = 10 * time.Minute
)

// sweep brings the clusters of all pods up to date: connections to endpoints that are gone end.
func (p *Proxy) sweep() {
	old := p.cfg.Clock.Now().Add(-calls.Idle)
	for _, pod := range p.everyPod() {
		pod.tenant.Forget(old)
		if c, ok := pod.caller(); ok {
			pod.calls.Sweep(c)
			pod.repath(c)
		}
	}
}

// everyPod lists the pods, with those that were removed and still have connections.
func (p *Proxy) everyPod() []*Pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	pods := make([]*Pod, 0, len(p.all))
	for pod := range p.all {
		pods = append(pods, pod)
	}
	return pods
}

func (p *Proxy) announce() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *Proxy) nextChange() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed
}

// await calls ready with each snapshot until it reports true, for at most Config.HoldTimeout. It returns false when the
// time is up or ctx ended. ready is not called with nil.
func (p *Proxy) await(ctx context.Context, ready func(*client.Snapshot) bool) bool {
	try := func() bool { s := p.cfg.Snapshot(); return s != nil && ready(s) }
	if try() {
		return true
	}
	ctx, cancel := clock.WithTimeout(ctx, p.cfg.Clock, p.cfg.HoldTimeout, nil)
	defer cancel()
	for {
		next := p.nextChange()
		if try() {
			return true
		}
		select {
		case <-next:
		case <-ctx.Done():
			return false
		}
	}
}

// pod returns the pod of this node that is the workload, nil when it is not served here.
func (p *Proxy) pod(w *client.Workload) *Pod {
	if w == nil {
		return nil
	}
	p.mu.Lock()
	pod := p.pods[podName{w.GetNamespace(), w.GetName()}]
	p.mu.Unlock()
	if pod == nil || !pod.is(w) {
		return nil
	}
	return pod
}

// take counts one more connection of the node and of pod; false when a limit is reached.
func (p *Proxy) take(pod *Pod) bool {
	if p.conns.Add(1) > int64(p.cfg.MaxConns) {
		p.conns.Add(-1)
		return false
	}
	if pod.conns.Add(1) > int64(p.cfg.MaxConnsPerPod) {
		pod.conns.Add(-1)
		p.conns.Add(-1)
		return false
	}
	return true
}

func (p *Proxy) give(pod *Pod) {
	pod.conns.Add(-1)
	p.conns.Add(-1)
}
