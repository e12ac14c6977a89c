package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/policy"
	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/hbone"
	"github.com/undermesh/undermesh/ztunnel/http"
	"github.com/undermesh/undermesh/ztunnel/proxy/calls"
)

// Kind is what a listener of a pod is for.
type Kind int

// The listeners of a pod.
const (
	Outbound Kind = iota // connections of the pod's own processes to anywhere
	Inbound              // plain text to the pod
	Tunnel               // HBONE to the pod
	Probes               // kubelet's, attested by the kernel, to a port with a declared HTTP probe
)

// String names the kind as log lines do.
func (k Kind) String() string {
	switch k {
	case Outbound:
		return "outbound"
	case Inbound:
		return "inbound"
	case Tunnel:
		return "tunnel"
	case Probes:
		return "probe"
	}
	return "unknown"
}

// Probe is one HTTP request that kubelet may make to the pod.
type Probe struct {
	Port   uint16
	Method string // "" means GET
	Path   string // with the query, as the pod spec declares it
}

// PodConfig says who a pod is, by the word of the node agent.
type PodConfig struct {
	UID             string
	Name, Namespace string
	ServiceAccount  string // "" means default
	// Addrs are the pod's addresses; empty when the agent does not tell (ZDS version 1).
	Addrs   []netip.Addr
	Probes  []Probe
	Sockets Sockets
}

// Pod proxies one pod's connections. Safe for concurrent use.
type Pod struct {
	p      *Proxy
	cfg    PodConfig
	conns  atomic.Int64
	probes atomic.Pointer[[]Probe]

	redirects redirects

	tunnels *tunnels
	live    liveSet
	loops   loops
	turns   turns
	removed chan struct{}
	once    sync.Once
	deleted atomic.Bool                          // removed for good, and its network with it
	gone    bool                                 // no longer stands for its name and addresses; protected by Proxy.mu
	legs    map[*session]context.CancelCauseFunc // being dialled to it; protected by Proxy.mu

	gate *gate // of the tunnel listener

	drained atomic.Bool // no new connections are let in

	calls   *calls.Table
	calling atomic.Pointer[policy.Caller] // that its requests go by
	tenant  *http.Tenant

	mu        sync.Mutex // protects below
	running   *run       // nil before Run and after it
	ended     bool       // Run takes no more listeners
	listeners map[net.Listener]*listener
	upstreams map[*upstream]struct{} // open ones
	servers   map[*hbone.Server]struct{}
}

// run is the state of one Pod.Run.
type run struct {
	accepting context.Context // ends when no new connections are taken
	conns     context.Context // ends with a *Refusal as cause when those that are left are reset
	wg        sync.WaitGroup
}

type listener struct {
	net.Listener
	kind    Kind
	port    uint16 // that it is bound to; 0 when it has none
	retired atomic.Bool
}

// NewPod makes a pod known to the Proxy. From now on connections to it from this node are judged here. It takes the place
// of another pod of the same name or with one of its addresses. The caller must call Run.
func (p *Proxy) NewPod(cfg PodConfig) *Pod {
	if cfg.ServiceAccount == "" {
		cfg.ServiceAccount = "default"
	}
	cfg.Addrs = slices.Clone(cfg.Addrs)
	for i, a := range cfg.Addrs {
		cfg.Addrs[i] = a.Unmap()
	}
	pod := &Pod{p: p, cfg: cfg, removed: make(chan struct{}), listeners: map[net.Listener]*listener{}, gate: newGate(p.cfg.Clock, p.cfg.MaxHandshakes, &p.unproved)}
	pod.SetProbes(cfg.Probes)
	pod.tunnels, pod.calls, pod.tenant = newTunnels(pod), p.calls.NewTable(pod.pin), http.NewTenant(http.TenantLimits{Connections: p.cfg.MaxConnsPerPod})
	p.affinity.add(pod)
	p.mu.Lock()
	defer p.mu.Unlock()
	if old := p.pods[podName{cfg.Namespace, cfg.Name}]; old != nil {
		old.forgetLocked()
	}
	for _, a := range cfg.Addrs {
		if old := p.addrs[a]; old != nil {
			old.forgetLocked()
		}
	}
	p.comesLocked(pod)
	p.pods[podName{cfg.Namespace, cfg.Name}] = pod
	p.all[pod] = struct{}{}
	for _, a := range cfg.Addrs {
		p.addrs[a] = pod
	}
	return pod
}

// SetProbes replaces the declared probes.
func (pod *Pod) SetProbes(probes []Probe) {
	probes = slices.Clone(probes)
	pod.probes.Store(&probes)
}

// Listen serves l until it is retired or Run ends, and closes it then.
func (pod *Pod) Listen(kind Kind, l net.Listener) {
	pod.mu.Lock()
	defer pod.mu.Unlock()
	if pod.ended {
		_ = l.Close() // the caller gave it away
		return
	}
	ln := &listener{Listener: l, kind: kind, port: addrPort(l.Addr()).Port()}
	pod.listeners[l] = ln
	if r := pod.running; r != nil {
		r.wg.Go(func() { pod.accept(r, ln) })
	}
}

// Retire accepts what waits in the backlog of l and closes it then.
func (pod *Pod) Retire(l net.Listener) {
	pod.mu.Lock()
	defer pod.mu.Unlock()
	ln := pod.listeners[l]
	if ln == nil {
		return
	}
	ln.retired.Store(true)
	d, ok := l.(interface{ SetDeadline(time.Time) error })
	if !ok || pod.running == nil || d.SetDeadline(pod.p.cfg.Clock.Now().Add(retireGrace)) != nil {
		_ = l.Close()
	}
}

// retireGrace is how long a listener is emptied whose successor is there already.
const retireGrace = 50 * time.Millisecond

// Remove takes the pod out of the mesh: nothing new is accepted, live connections go on for Config.RemovedGrace, and Run
// returns when the last one ended.
func (pod *Pod) Remove() {
	pod.forget()
	pod.once.Do(func() { close(pod.removed) })
}

func (pod *Pod) forget() {
	pod.p.mu.Lock()
	defer pod.p.mu.Unlock()
	pod.forgetLocked()
}

// forgetLocked ends the pod's place. Legs on their way to it end too: their SYN is repeated for seconds, and what answers at
// the address by then may be a pod with other policies.
func (pod *Pod) forgetLocked() {
	p := pod.p
	pod.gone = true
	for _, kill := range pod.legs {
		kill(pod.errGone())
	}
	if name := (podName{pod.cfg.Namespace, pod.cfg.Name}); p.pods[name] == pod {
		delete(p.pods, name)
	}
	for _, a := range pod.cfg.Addrs {
		if p.addrs[a] == pod {
			delete(p.addrs, a)
		}
	}
}

func (pod *Pod) errGone() *Refusal {
	return refusedf(reason.PodRemoved, "pod %s/%s is no longer at this address", pod.cfg.Namespace, pod.cfg.Name)
}

// Run serves the pod until ctx ends or Remove or Delete is called, then lets connections go on (Config.DrainTimeout, RemovedGrace,
// DeletedGrace), resets what is left, and returns when every goroutine ended. Call it once.
func (pod *Pod) Run(ctx context.Context) error {
	accepting, stopAccepting := context.WithCancel(ctx)
	defer stopAccepting()
	conns, end := context.WithCancelCause(context.WithoutCancel(ctx))
	r := &run{accepting: accepting, conns: conns}
	pod.mu.Lock()
	pod.running = r
	for _, ln := range pod.listeners {
		r.wg.Go(func() { pod.accept(r, ln) })
	}
	pod.mu.Unlock()

	why, grace := reason.Draining, pod.p.cfg.DrainTimeout
	select {
	case <-ctx.Done():
	case <-pod.removed:
		why, grace = reason.PodRemoved, pod.p.cfg.RemovedGrace
		if pod.deleted.Load() {
			grace = pod.p.cfg.DeletedGrace / 2
		}
	}
	if pod.deleted.Load() {
		pod.depart()
	}
	stopAccepting()
	if pod.deleted.Load() {
		pod.awaitPeers(ctx, grace)
	}
	pod.tenant.Drain()
	pod.mu.Lock()
	pod.running, pod.ended = nil, true
	for l := range pod.listeners {
		_ = l.Close()
	}
	pod.mu.Unlock()

	done := make(chan struct{})
	go func() { r.wg.Wait(); close(done) }()
	waited, cancel := clock.WithTimeout(context.WithoutCancel(ctx), pod.p.cfg.Clock, grace, nil)
	defer cancel()
	if why == reason.PodRemoved {
		stop := context.AfterFunc(ctx, cancel) // the whole proxy ends: no grace of an hour
		defer stop()
	}
	select {
	case <-done:
	case <-waited.Done():
	}
	pod.calls.Close()
	end(refused(why, nil))
	pod.tunnels.close()
	<-done
	pod.p.affinity.remove(pod)
	pod.forget()
	pod.p.mu.Lock()
	delete(pod.p.all, pod)
	pod.p.mu.Unlock()
	return nil
}

// accept hands each connection of ln to a goroutine of its own.
func (pod *Pod) accept(r *run, ln *listener) {
	defer func() {
		_ = ln.Close()
		pod.mu.Lock()
		delete(pod.listeners, ln.Listener)
		pod.mu.Unlock()
	}()
	var pause time.Duration
	for {
		c, err := ln.Accept()
		if err == nil {
			pause = 0
			r.wg.Go(func() { pod.serve(r, ln.kind, c) })
			continue
		}
		if errors.Is(err, net.ErrClosed) || ln.retired.Load() || r.accepting.Err() != nil {
			return
		}
		// out of descriptors or memory: the backlog holds what comes meanwhile
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		pod.p.cfg.Log.Warn("accept failed", "pod", pod.cfg.Namespace+"/"+pod.cfg.Name, "listener", ln.kind.String(), "err", err, "dur", pause)
		_ = clock.Pause(r.accepting, pod.p.cfg.Clock, pause)
	}
}

// is reports whether w is this pod: a workload of the same name may still be its predecessor.
func (pod *Pod) is(w *client.Workload) bool {
	if w.GetNamespace() != pod.cfg.Namespace || w.GetName() != pod.cfg.Name ||
		w.Identity.Namespace != pod.cfg.Namespace || w.Identity.ServiceAccount != pod.cfg.ServiceAccount {
		return false
	}
	return len(pod.cfg.Addrs) == 0 || slices.ContainsFunc(w.Addrs, pod.hasAddr)
}

func (pod *Pod) hasAddr(a netip.Addr) bool { return slices.Contains(pod.cfg.Addrs, a) }

// workload returns what s knows of the pod, nil when that is nothing.
func (pod *Pod) workload(s *client.Snapshot) *client.Workload {
	if w := s.WorkloadByName(pod.cfg.Namespace, pod.cfg.Name); w != nil && pod.is(w) {
		return w
	}
	return nil
}

// owns reports whether a is an address of the pod, by the agent's word or, without it, the control plane's.
func (pod *Pod) owns(w *client.Workload, a netip.Addr) bool {
	if len(pod.cfg.Addrs) > 0 {
		return pod.hasAddr(a)
	}
	return slices.Contains(w.Addrs, a)
}

// meshPort reports whether port is one of the mesh's own in the pod. w is what the mesh knows of it and may be nil.
func (pod *Pod) meshPort(w *client.Workload, port uint16) bool {
	switch port {
	case api.PortOutbound, api.PortInbound, api.PortTunnel:
		return true
	}
	if w != nil && port != 0 && w.Settings.GetTunnelPort() == uint32(port) {
		return true
	}
	pod.mu.Lock()
	defer pod.mu.Unlock()
	for _, ln := range pod.listeners {
		if ln.port == port {
			return true
		}
	}
	return false
}
