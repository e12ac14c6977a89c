package main

import (
	"context"
	"fmt"
	"iter"
	"sync"
	"sync/atomic"
	"time"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/nodeagent/zds"
	"github.com/undermesh/undermesh/ztunnel/drain"
	"github.com/undermesh/undermesh/ztunnel/inpod"
	"github.com/undermesh/undermesh/ztunnel/proxy"
)

// pods are the pods of the node, with what readiness asks about them.
type pods struct {
	*inpod.Manager
	proxy    *proxy.Proxy
	zds      *zds.Client
	prefetch *prefetch
	served   atomic.Bool // the agent's first snapshot is complete and every pod of it was added, or refused with a log line
	draining atomic.Bool
}

func newPods(w *worker) (*pods, error) {
	cfg := proxy.Config{
		Snapshot: w.mesh.Snapshot, Changed: w.mesh.Watch, Identity: w.ids, Credentials: w.secrets, Clock: w.clock, Telemetry: w.stats,
		Log: w.log.With("component", "proxy"), ClusterID: w.o.clusterID, Names: w.names.proxy(), DrainTimeout: w.o.drainTimeout,
		MaxConns: w.limits.conns, MaxConnsPerPod: w.limits.podConns,
		// Two thirds of it are for TLS, and must be longer than identity waits for a certificate (10 s): otherwise the log
		// says that the handshake was cancelled, and not why there is no certificate.
		HandshakeTimeout: 18 * time.Second,
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	p := &pods{
		proxy:    proxy.New(cfg),
		prefetch: &prefetch{snapshot: w.mesh.Snapshot, changed: w.mesh.Watch, watch: w.ids.Watch, held: map[*account]struct{}{}},
	}
	var err error
	p.Manager, err = inpod.New(inpod.Config{Proxy: p.proxy, Log: w.log.With("component", "inpod"), Watch: p.prefetch.hold})
	if err != nil {
		return nil, err
	}
	if err := w.registry.Register(p.Manager); err != nil {
		return nil, fmt.Errorf("register metrics of pods: %w", err)
	}
	p.zds = zds.NewClient(zds.ClientConfig{Path: w.o.zdsPath, Log: w.log.With("component", "zds"), Clock: w.clock, Handler: p})
	return p, nil
}

// add puts the parts into the order of their end.
func (p *pods) add(g *drain.Group) {
	g.Support("proxy", p.proxy.Run)
	g.Support("prefetch", p.prefetch.run)
	g.Serve("pods", p.Manager.Run)
	g.Serve("zds", func(ctx context.Context) error {
		defer p.draining.Store(true)
		return p.zds.Run(ctx)
	})
}

// SnapshotSent implements zds.Handler.
func (p *pods) SnapshotSent(ctx context.Context) error {
	if err := p.Manager.SnapshotSent(ctx); err != nil {
		return err
	}
	p.served.Store(true)
	return nil
}

func (p *pods) list() iter.Seq[any] { return each(p.Pods(), asAny) }

// prefetch asks for the certificates of the pods' accounts ahead of their use. The agent names accounts; their trust domain is
// the mesh's, which arrives with the first snapshot and may change.
type prefetch struct {
	snapshot func() *client.Snapshot
	changed  func() (<-chan struct{}, func())
	watch    func(...api.Identity) (release func())

	mu     sync.Mutex // protects below
	domain string     // "" before the first snapshot
	held   map[*account]struct{}
}

type account struct {
	namespace, name string
	release         func() // nil while the trust domain is unknown
}

// hold is called for each pod; release once it is gone.
func (p *prefetch) hold(namespace, serviceAccount string) (release func()) {
	if serviceAccount == "" {
		serviceAccount = "default"
	}
	a := &account{namespace: namespace, name: serviceAccount}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held[a] = struct{}{}
	p.askLocked(a)
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.held, a)
		if a.release != nil {
			a.release()
		}
	}
}

func (p *prefetch) askLocked(a *account) {
	if p.domain != "" {
		a.release = p.watch(api.Identity{TrustDomain: p.domain, Namespace: a.namespace, ServiceAccount: a.name})
	}
}

// run follows the mesh's trust domain until ctx ends.
func (p *prefetch) run(ctx context.Context) error {
	changed, stop := p.changed()
	defer stop()
	for {
		if s := p.snapshot(); s != nil {
			p.setDomain(s.Mesh().GetTrustDomain())
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

func (p *prefetch) setDomain(domain string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if domain == p.domain {
		return
	}
	p.domain = domain
	for a := range p.held {
		old := a.release
		a.release = nil
		p.askLocked(a)
		if old != nil {
			old()
		}
	}
}
