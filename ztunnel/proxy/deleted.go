package proxy

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/hbone"
)

// Delete ends the pod, whose processes have ended and whose network is about to go. What its peers do not hear of while it is there
// they would wait for: they are told that nothing more is taken (GOAWAY), requests on their way are answered, then its connections end,
// all within Config.DeletedGrace. From now on nothing of this node is sent to it, whatever the mesh says.
func (pod *Pod) Delete() {
	p := pod.p
	p.mu.Lock()
	p.deleted[podName{pod.cfg.Namespace, pod.cfg.Name}] = &Pod{p: p, cfg: PodConfig{
		Namespace: pod.cfg.Namespace, Name: pod.cfg.Name, ServiceAccount: pod.cfg.ServiceAccount, Addrs: pod.cfg.Addrs,
	}}
	pod.forgetLocked()
	p.mu.Unlock()
	pod.deleted.Store(true)
	pod.once.Do(func() { close(pod.removed) })
}

// serves notes a tunnel to the pod; the function returned ends that.
func (pod *Pod) serves(srv *hbone.Server) (ended func()) {
	pod.mu.Lock()
	defer pod.mu.Unlock()
	if pod.servers == nil {
		pod.servers = map[*hbone.Server]struct{}{}
	}
	pod.servers[srv] = struct{}{}
	return func() {
		pod.mu.Lock()
		defer pod.mu.Unlock()
		delete(pod.servers, srv)
	}
}

// depart tells the clients of all tunnels that the pod is being deleted.
func (pod *Pod) depart() {
	for _, srv := range pod.tunnelServers() {
		srv.Depart()
	}
}

func (pod *Pod) tunnelServers() []*hbone.Server {
	pod.mu.Lock()
	defer pod.mu.Unlock()
	return slices.Collect(maps.Keys(pod.servers))
}

// awaitPeers waits until the clients of all tunnels, which drain, know that they do: none begins a request on a stream that it has
// already, when the streams that are idle are closed after that.
func (pod *Pod) awaitPeers(ctx context.Context, limit time.Duration) {
	ctx, cancel := clock.WithTimeout(context.WithoutCancel(ctx), pod.p.cfg.Clock, limit, nil)
	defer cancel()
	for _, srv := range pod.tunnelServers() {
		select {
		case <-srv.Left():
		case <-ctx.Done():
			return
		}
	}
}

// comesLocked takes note of a new pod, which may have the name or an address of one that was deleted. Proxy.mu is held.
func (p *Proxy) comesLocked(pod *Pod) {
	for name, old := range p.deleted {
		if name == (podName{pod.cfg.Namespace, pod.cfg.Name}) || slices.ContainsFunc(pod.cfg.Addrs, old.hasAddr) {
			delete(p.deleted, name)
		}
	}
}

// departure is a pod of another node that is being deleted.
type departure struct {
	uid   string
	until time.Time // it may be believed
}

// believed is how long the word of a pod that it is being deleted holds, should the mesh not say so itself.
const believed = 30 * time.Second

// departs takes note of what the peer of a tunnel to addr says: nobody will answer there any more.
func (p *Proxy) departs(addr netip.Addr) {
	snap := p.cfg.Snapshot()
	if snap == nil || p.doubtful(snap, addr) { // it is known already
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.departed[addr] = departure{snap.WorkloadByIP(p.cfg.Network, addr).GetUid(), p.cfg.Clock.Now().Add(believed)}
}

// wasDeleted refuses w at addr when it was deleted, by the word of this node's agent or its own node's proxy, and nobody has come in its
// place; else it returns nil.
func (p *Proxy) wasDeleted(w *client.Workload, addr netip.Addr) error {
	if w == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if pod := p.deleted[podName{w.GetNamespace(), w.GetName()}]; pod != nil && pod.is(w) {
		return pod.errGone()
	}
	if d, ok := p.departed[addr]; ok && d.uid == w.GetUid() && p.cfg.Clock.Now().Before(d.until) {
		return refusedf(reason.PodRemoved, "%s is being deleted, its node says", d.uid)
	}
	return nil
}

// forgetDeleted forgets the deleted pods that the mesh knows to be gone.
func (p *Proxy) forgetDeleted() {
	snap := p.cfg.Snapshot()
	if snap == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, pod := range p.deleted {
		if pod.workload(snap) == nil {
			delete(p.deleted, name)
		}
	}
	now := p.cfg.Clock.Now()
	for addr, d := range p.departed {
		if !now.Before(d.until) || p.doubtful(snap, addr) || snap.WorkloadByIP(p.cfg.Network, addr).GetUid() != d.uid {
			delete(p.departed, addr)
		}
	}
}

// doubtful reports that the mesh does not say that somebody at addr is well.
func (p *Proxy) doubtful(snap *client.Snapshot, addr netip.Addr) bool {
	w := snap.WorkloadByIP(p.cfg.Network, addr)
	return w == nil || w.GetStatus() != workloadapi.WorkloadStatus_HEALTHY
}

// doubtfulDial bounds a dial to such a one: a lost SYN is repeated after a second.
const doubtfulDial = 3 * time.Second

// suspect has the tunnels to whom the mesh does not call healthy, or does not know any more, asked whether anybody still answers: the
// node, or the network of the pod, may have gone without a word. Slow requests to a pod that is terminating go on.
func (p *Proxy) suspect() {
	snap := p.cfg.Snapshot()
	if snap == nil {
		return
	}
	for _, pod := range p.everyPod() {
		pod.tunnels.pool.Suspect(func(k tunnelKey) bool {
			return p.doubtful(snap, k.addr.Addr())
		})
	}
}

// moved reports whether the workload has lost the address that was dialled for it: who answered there may be another.
func (r *way) moved(now *client.Snapshot) bool {
	if now == r.snap {
		return false
	}
	w := now.WorkloadByUID(r.path.Destination.GetUid())
	return w == nil || !slices.Contains(w.Addrs, r.addr.Addr())
}
