package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/ca"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/server"
	"github.com/undermesh/undermesh/test/sim/memnet"
	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/identity"
	"github.com/undermesh/undermesh/ztunnel/proxy"
	"github.com/undermesh/undermesh/ztunnel/telemetry"
)

const (
	controlZone = "control" // where the controller is
	userTimeout = 20 * time.Second
)

var controllerAddr = netip.MustParseAddr("10.255.0.1")

// secret is the Secret of the CA's root; it outlives controllers.
type secret struct {
	mu   sync.Mutex // protects below
	data map[string][]byte
}

// Load implements ca.Store.
func (s *secret) Load(context.Context) (map[string][]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.data), nil
}

// CreateOnce implements ca.Store.
func (s *secret) CreateOnce(_ context.Context, data map[string][]byte) (map[string][]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.data == nil {
		s.data = maps.Clone(data)
	}
	return maps.Clone(s.data), nil
}

// root is the file with the roots on the nodes.
func (s *secret) root() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.data == nil {
		return nil, errors.New("there is no root yet")
	}
	return s.data[ca.FileCACert], nil
}

// process is something that can be killed and awaited.
type process struct {
	sockets *memnet.Process
	cancel  context.CancelFunc
	done    sync.WaitGroup
}

func newProcess(ctx context.Context) (*process, context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	return &process{sockets: memnet.NewProcess(), cancel: cancel}, ctx
}

// kill ends the process as SIGKILL would, as far as its peers can see, and waits for its goroutines.
func (p *process) kill() {
	p.sockets.Kill()
	p.cancel()
	p.done.Wait()
}

// controller is the one replica of the control plane.
type controller struct {
	w    *world
	host *memnet.Host
	proc *process // nil: it is down
}

func (c *controller) start(ctx context.Context) error {
	proc, ctx := newProcess(ctx)
	var tokens strings.Builder
	for _, n := range c.w.nodes {
		fmt.Fprintf(&tokens, "token-%s,system:serviceaccount:%s:%s,%s\n", n.name, api.DefaultRootNamespace, api.ZtunnelName, n.name)
	}
	auth, err := ca.ParseStaticTokens(strings.NewReader(tokens.String()))
	if err != nil {
		return err
	}
	var socket *memnet.Socket
	srv, err := server.New(server.Config{
		Source: c.w.objects, Compile: compile.Config{CertTTL: c.w.certTTL()}, Clock: clock.System(), Log: c.w.log("controller"), XDSAddr: "xds",
		Listen: func(string, string) (net.Listener, error) {
			s, err := c.host.Listen(api.PortXDS)
			if err != nil {
				return nil, err
			}
			socket = s
			return s.Open(proc.sockets), nil
		},
		Authority: &server.AuthorityConfig{
			Store: &c.w.secret, Authenticator: auth, ServingNames: []string{"istiod.istio-system.svc"},
		},
	})
	if err != nil {
		return err
	}
	c.proc = proc
	proc.done.Go(func() {
		err := srv.Run(ctx)
		if socket != nil {
			socket.Close()
		}
		if err != nil && ctx.Err() == nil {
			c.w.violate("recovery", "controller ended: %v", err)
		}
	})
	return nil
}

func (c *controller) stop() {
	if c.proc != nil {
		c.proc.kill()
		c.proc = nil
	}
}

// node is a node with its agent, which holds the listeners, and its ztunnel, which may be down.
type node struct {
	w    *world
	name string
	host *memnet.Host // the node's own network
	rng  *rand.Rand   // jitter

	mu    sync.Mutex // protects below
	ours  map[*memnet.Process]bool
	zt    *ztunnel // nil: it is down
	falls []time.Time

	routes, rules confirmed // VirtualServices and DestinationRules that it has; protected by world.mu
}

// ztunnel is one process of a node's data plane.
type ztunnel struct {
	*process
	n     *node
	ctx   context.Context //nolint:containedctx // of the process
	mesh  *client.Client
	ids   *identity.Manager
	proxy *proxy.Proxy
	pods  map[*pod]*proxy.Pod // driver only
}

// owns reports whether a process is, or was, the node's ztunnel.
func (n *node) owns(p *memnet.Process) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return p != nil && n.ours[p]
}

// fellSince reports whether the ztunnel was killed at t or later.
func (n *node) fellSince(t time.Time) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.falls) > 0 && !n.falls[len(n.falls)-1].Before(t)
}

// Float64 makes node a client.Rand; its callers are two goroutines.
func (n *node) Float64() float64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.rng.Float64()
}

// IntN makes node a policy.Rand.
func (n *node) IntN(max int) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.rng.IntN(max)
}

// issuer asks the CA over a connection of its own each time: gRPC's back-off has a jitter that no seed reaches.
type issuer struct{ plane identity.ControlPlane }

// Issue implements identity.Issuer.
func (i issuer) Issue(ctx context.Context, r identity.Request) (chain []string, err error) {
	conn, err := i.plane.Connect()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	return identity.NewCAClient(conn).Issue(ctx, r)
}

// start makes a new ztunnel, which gets the pods of the node from the agent.
func (n *node) start(ctx context.Context, pods []*pod) error {
	proc, ctx := newProcess(ctx)
	roots := identity.NewRoots(n.w.secret.root)
	plane := identity.ControlPlane{
		Addr: netip.AddrPortFrom(controllerAddr, api.PortXDS).String(), Roots: roots, Clock: clock.System(),
		Token: func() (string, error) { return "token-" + n.name, nil },
		Dial: func(ctx context.Context, addr string) (net.Conn, error) {
			to, err := netip.ParseAddrPort(addr)
			if err != nil {
				return nil, err
			}
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			c, err := memnet.Dialer{Host: n.host, Process: proc.sockets, UserTimeout: userTimeout}.Dial(ctx, to)
			if err != nil {
				return nil, err
			}
			return c, nil
		},
	}
	zt := &ztunnel{process: proc, n: n, ctx: ctx, pods: map[*pod]*proxy.Pod{}}
	zt.mesh = client.New(client.Config{
		Dial:     func(context.Context) (*grpc.ClientConn, error) { return plane.Connect() },
		NodeID:   "ztunnel~" + n.host.Addr().String() + "~ztunnel-" + n.name + ".istio-system~istio-system.svc.cluster.local",
		NodeName: n.name, Clock: clock.System(), Rand: n, Log: n.w.log(n.name + " xds"),
	})
	var err error
	zt.ids, err = identity.New(identity.Config{
		Issuer: issuer{plane}, Roots: roots, Trust: zt.trust, TTL: zt.ttl, Clock: clock.System(), Jitter: n.Float64, Log: n.w.log(n.name + " identity"),
	})
	if err != nil {
		return err
	}
	stats := telemetry.New(telemetry.Config{Clock: clock.System(), Gather: -1, Out: &recorder{n.w, n}})
	cfg := proxy.Config{
		Snapshot: zt.mesh.Snapshot, Changed: zt.mesh.Watch, Identity: zt.ids, Clock: clock.System(), Telemetry: stats,
		Log: n.w.log(n.name + " proxy"), Rand: n, HandshakeTimeout: 18 * time.Second,
	}
	if f := n.w.opt.Hooks.Proxy; f != nil {
		f(n.name, &cfg)
	}
	if err := cfg.Validate(); err != nil {
		return err
	}
	zt.proxy = proxy.New(cfg)
	n.mu.Lock()
	n.ours[proc.sockets], n.zt = true, zt
	n.mu.Unlock()
	for _, run := range []func(context.Context) error{zt.mesh.Run, zt.ids.Run, stats.Run, zt.proxy.Run, zt.confirm} {
		proc.done.Go(func() {
			if err := run(ctx); err != nil {
				n.w.violate("recovery", "ztunnel of %s: %v", n.name, err)
			}
		})
	}
	for _, p := range pods {
		zt.add(p)
	}
	return nil
}

func (zt *ztunnel) trust() identity.Trust {
	s := zt.mesh.Snapshot()
	if s == nil {
		return identity.Trust{}
	}
	return identity.Trust{Domain: s.Mesh().GetTrustDomain(), Aliases: s.Mesh().GetTrustDomainAliases()}
}

func (zt *ztunnel) ttl() time.Duration {
	if s := zt.mesh.Snapshot(); s != nil {
		return s.Mesh().GetWorkloadCertTtl().AsDuration()
	}
	return 0
}

// add serves a pod, as inpod does by the agent's word.
func (zt *ztunnel) add(p *pod) {
	var s proxy.Sockets = sockets{p, zt.sockets}
	if f := zt.n.w.opt.Hooks.Sockets; f != nil {
		s = f(s)
	}
	pp := zt.proxy.NewPod(proxy.PodConfig{
		UID: p.uid, Name: p.name, Namespace: p.ns, ServiceAccount: p.who.name, Addrs: []netip.Addr{p.ip}, Sockets: s,
	})
	zt.pods[p] = pp
	for kind, socket := range map[proxy.Kind]*memnet.Socket{proxy.Outbound: p.out, proxy.Inbound: p.in, proxy.Tunnel: p.tunnel} {
		pp.Listen(kind, socket.Open(zt.sockets))
	}
	zt.done.Go(func() {
		if err := pp.Run(zt.ctx); err != nil {
			zt.n.w.violate("recovery", "pod %s: %v", p, err)
		}
	})
}

// remove follows the agent's word that the pod is gone.
func (zt *ztunnel) remove(p *pod) {
	if pp := zt.pods[p]; pp != nil {
		pp.Remove()
		delete(zt.pods, p)
	}
}

// stop kills the node's ztunnel. The pods' sockets stay, with what waits in them.
func (n *node) stop() {
	n.mu.Lock()
	zt := n.zt
	n.zt = nil
	if zt != nil {
		n.falls = append(n.falls, time.Now())
	}
	n.mu.Unlock()
	if zt != nil {
		zt.kill()
	}
}

func (n *node) running() *ztunnel {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.zt
}
