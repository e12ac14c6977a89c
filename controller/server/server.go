// Package server assembles the controller: a source of objects, the compiler, the xDS server and the certificate
// authority, and what watches over them: readiness, metrics, leadership, statuses.
//
// Invariants: it is ready only when it can serve the truth (first snapshot published, authority loaded); an outage of the
// API server ends nothing that was working; it stops when its context ends, after every stream was told to go elsewhere.
package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/credential"
	"github.com/undermesh/undermesh/controller/compile"
	"github.com/undermesh/undermesh/controller/credentials"
	"github.com/undermesh/undermesh/controller/jwks/keeper"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/status"
	"github.com/undermesh/undermesh/controller/validate"
	"github.com/undermesh/undermesh/controller/watch"
	"github.com/undermesh/undermesh/controller/xds"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// grace is how long streams may go on after the stop: nodes reconnect to another replica meanwhile.
const grace = 2 * time.Second

// Config of a Server. Source, Listen and Clock are required.
type Config struct {
	Source  watch.Source
	Compile compile.Config
	Index   *watch.Index // default: one of its own; it is to know the accounts of nodes
	Log     *slog.Logger // default slog.DiscardHandler
	Clock   clock.Clock
	Listen  func(network, address string) (net.Listener, error)

	XDSAddr      string // TLS: delta ADS and the CA; "" serves none
	XDSPlainAddr string // delta ADS without TLS or token, for tests; "" serves none
	MonitorAddr  string // /metrics; "" serves none
	ReadyAddr    string // /ready; "" serves none
	DebugAddr    string // /debug/syncz and profiles, of a loopback address only; "" serves none
	Replica      string // this pod's name, for the debug door
	WebhookAddr  string // TLS: admission; "" serves none

	// Catalogue judges what admission is asked about; required with WebhookAddr.
	Catalogue *validate.Catalogue

	// Authority is required with XDSAddr; nil: there is none.
	Authority *AuthorityConfig
	// Status stores what the mesh makes of the objects; nil stores nothing.
	Status status.Writer
	// Addresses stores the addresses of service entries; nil: none are assigned.
	Addresses interface {
		WriteAddresses(ctx context.Context, a status.Assignment) error
	}
	// Keys fetches the keys of token issuers and stores them (JW-09); Fetch and Store are required in it. nil: nobody does.
	Keys *keeper.Config
	// Secrets reads the Secret that a DestinationRule names, as credentials.Config.Get; nil: nobody does.
	Secrets func(ctx context.Context, n model.Name) (credential.Data, error)
	// Probe asks the API server whether it is there, for the metric of staleness; nil: there is none.
	Probe func(ctx context.Context) error
	// History of what Source delivered, for nodes that come from another replica; nil: there is no other.
	History interface {
		xds.History
		prometheus.Collector
	}
	// Lead runs its argument while this replica may write; default: always.
	Lead func(ctx context.Context, lead func(context.Context) error) error
	// Publish tells the nodes the root certificates; it is called by the leader after a start and when they change. May be nil.
	Publish func(ctx context.Context, roots []byte) error
}

func (c Config) withDefaults() Config {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Index == nil {
		c.Index = watch.NewIndex(c.nodeAccounts()...)
	}
	if c.Lead == nil {
		c.Lead = always
	}
	return c
}

// nodeAccounts are those of the nodes' proxies, "namespace/account".
func (c Config) nodeAccounts() []string {
	if c.Authority != nil && c.Authority.TrustedNodeAccounts != nil {
		return c.Authority.TrustedNodeAccounts
	}
	return []string{cmp.Or(c.Compile.InstallNamespace, api.DefaultRootNamespace) + "/" + api.ZtunnelName}
}

// Validate names the first field that is missing.
func (c Config) Validate() error {
	switch {
	case c.Source == nil:
		return errors.New("check server config: Source: missing")
	case c.Clock == nil:
		return errors.New("check server config: Clock: missing")
	case c.Listen == nil:
		return errors.New("check server config: Listen: missing")
	case checkDebugAddr(c.DebugAddr) != nil:
		return checkDebugAddr(c.DebugAddr)
	case c.XDSAddr != "" && c.Authority == nil:
		return errors.New("check server config: Authority: missing, and XDSAddr is set")
	case c.WebhookAddr != "" && (c.Authority == nil || c.Catalogue == nil):
		return errors.New("check server config: Authority or Catalogue: missing, and WebhookAddr is set")
	}
	return nil
}

// Server is one replica of the controller.
type Server struct {
	cfg      Config
	registry *prometheus.Registry
	store    *xds.Store
	ca       *authority // nil: there is none
	engine   *engine
	statuses *status.Manager     // nil: none are written
	assigner *status.Allocator   // nil: no addresses are assigned
	keys     *keeper.Keeper      // nil: none are fetched
	secrets  *credentials.Keeper // nil: none are read
	stale    *staleness          // nil: there is no API server
	stopping atomic.Bool
}

// New returns a Server that has done nothing yet.
func New(cfg Config) (*Server, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, registry: prometheus.NewRegistry(), store: xds.NewStore(xds.StoreConfig{Clock: cfg.Clock})}
	m, err := newMetrics(s.registry)
	if err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	if cfg.Probe != nil {
		if s.stale, err = newStaleness(cfg.Clock, cfg.Log, cfg.Probe, s.registry); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	report := func([]model.Event, []validate.Status) {}
	if cfg.Status != nil {
		check, err := newCheck()
		if err != nil {
			return nil, err
		}
		s.statuses = status.New(status.Config{Writer: cfg.Status, Log: cfg.Log, Clock: cfg.Clock, Check: check})
		report = func(events []model.Event, statuses []validate.Status) {
			s.statuses.Observe(events)
			s.statuses.Update(statuses)
		}
	}
	entries := func([]model.EntryAddresses) {}
	if cfg.Addresses != nil {
		s.assigner = status.NewAllocator(status.AllocatorConfig{Writer: cfg.Addresses, Pools: validate.Pools(), Log: cfg.Log, Clock: cfg.Clock})
		entries = s.assigner.Update
	}
	s.engine = &engine{log: cfg.Log, clock: cfg.Clock, out: publisher{s.store, cfg.Log}, status: report, entries: entries, index: cfg.Index,
		metrics: m, compiler: compile.New(cfg.Compile), logged: map[string]string{}}
	if err := s.keepKeys(); err != nil {
		return nil, err
	}
	if cfg.Authority != nil {
		s.ca = newAuthority(*cfg.Authority, cfg, s.trustDomain, s.registry)
	}
	if err := s.keepSecrets(); err != nil {
		return nil, err
	}
	return s, nil
}

// keepKeys makes the keeper of keys, if there is to be one.
func (s *Server) keepKeys() error {
	if s.cfg.Keys == nil {
		return nil
	}
	cfg := *s.cfg.Keys
	cfg.Clock, cfg.Log = s.cfg.Clock, s.cfg.Log
	k, err := keeper.New(cfg)
	if err != nil {
		return err
	}
	if err := s.registry.Register(k); err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	s.keys, s.engine.keys = k, k.Set
	return nil
}

// trustDomain is the one in force. Before the first snapshot it is the default for the name of a new root, and "", which no
// identity has, for everything else; so it is when the mesh's configuration is not known.
func (s *Server) trustDomain() string {
	m := s.engine.mesh.Load()
	if s.ca != nil && s.ca.loaded.Load() != nil && (m == nil || s.engine.held.Load() != nil) {
		return ""
	}
	if m != nil {
		return m.TrustDomain
	}
	if td := s.cfg.Compile.Mesh.TrustDomain; td != "" {
		return td
	}
	return api.DefaultTrustDomain
}

// Missing says what keeps the server from being ready, "" when nothing does.
func (s *Server) Missing() string {
	var missing []string
	if s.stopping.Load() {
		missing = append(missing, "the server is stopping")
	}
	if held := s.engine.held.Load(); held != nil {
		missing = append(missing, *held)
	} else if !s.engine.synced.Load() {
		missing = append(missing, "objects are not synchronised yet")
	}
	if s.ca != nil && s.ca.loaded.Load() == nil {
		missing = append(missing, s.ca.missing())
	}
	return strings.Join(missing, "; ")
}

// Run serves until ctx ends or a part fails, and returns when every part has ended.
func (s *Server) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	xc := xds.Config{Store: s.store, Clock: s.cfg.Clock, Log: s.cfg.Log, Registerer: s.registry}
	if s.cfg.History != nil {
		xc.History = s.cfg.History
		if err := s.registry.Register(s.cfg.History); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	listeners, err := s.listen()
	if err != nil {
		return err
	}
	disco := xds.NewServer(xc)
	if s.ca != nil {
		g.Go(func() error { return s.ca.run(ctx) })
	}
	g.Go(func() error { return s.cfg.Source.Run(ctx, s.engine.apply) })
	if s.secrets != nil {
		g.Go(func() error { return s.secrets.Run(ctx) })
	}
	g.Go(func() error { return s.cfg.Lead(ctx, s.lead) })
	if s.stale != nil {
		g.Go(func() error { return s.stale.run(ctx) })
	}
	for _, l := range listeners {
		g.Go(func() error { return l.serve(ctx, disco) })
	}
	g.Go(func() error {
		<-ctx.Done()
		s.stopping.Store(true)
		return nil
	})
	return g.Wait()
}

// door is one listener with what it serves.
type door struct {
	net.Listener
	serve func(ctx context.Context, disco *xds.Server) error
}

func (s *Server) listen() (doors []door, err error) {
	defer func() {
		if err != nil {
			for _, d := range doors {
				d.Close()
			}
		}
	}()
	open := func(addr string, serve func(net.Listener) func(context.Context, *xds.Server) error) error {
		if addr == "" {
			return nil
		}
		l, err := s.cfg.Listen("tcp", addr)
		if err != nil {
			return fmt.Errorf("listen on %s: %w", addr, err)
		}
		doors = append(doors, door{l, serve(l)})
		return nil
	}
	debug := func(l net.Listener) func(context.Context, *xds.Server) error {
		return func(ctx context.Context, disco *xds.Server) error {
			return serveHTTP(ctx, s.bound(l, debugDoor), debugHandler(s.cfg.Replica, s.store, disco.Clients), writeProfile)
		}
	}
	page := func(h http.Handler, bounds doorBounds) func(net.Listener) func(context.Context, *xds.Server) error {
		return func(l net.Listener) func(context.Context, *xds.Server) error {
			return func(ctx context.Context, _ *xds.Server) error {
				return serveHTTP(ctx, s.bound(l, bounds), h, writeAnswer)
			}
		}
	}
	err = errors.Join(
		open(s.cfg.MonitorAddr, page(monitorHandler(s.registry), monitorDoor)),
		open(s.cfg.ReadyAddr, page(readyHandler(s.Missing, s.stale.age), readyDoor)),
		open(s.cfg.DebugAddr, debug),
		open(s.cfg.XDSPlainAddr, func(l net.Listener) func(context.Context, *xds.Server) error {
			return func(ctx context.Context, disco *xds.Server) error {
				srv := grpc.NewServer(serverOptions()...)
				disco.Register(srv)
				return serveGRPC(ctx, s.cfg.Clock, l, srv)
			}
		}),
		open(s.cfg.XDSAddr, s.secure),
		open(s.cfg.WebhookAddr, s.admission),
	)
	return doors, err
}

// bound bounds the connections of a door.
func (s *Server) bound(l net.Listener, bounds doorBounds) net.Listener {
	return newBounded(l, bounds, s.engine.metrics.refused, s.cfg.Index.OfNode)
}

// secure serves delta ADS and the CA over TLS to callers that prove who they are. Connections wait for the authority.
func (s *Server) secure(l net.Listener) func(context.Context, *xds.Server) error {
	return func(ctx context.Context, disco *xds.Server) error {
		select {
		case <-ctx.Done():
			return l.Close()
		case <-s.ca.ready:
		}
		loaded := s.ca.loaded.Load()
		srv := grpc.NewServer(slices.Concat(serverOptions(), guards(), s.ca.options(loaded))...)
		disco.Register(srv)
		loaded.Register(srv)
		if s.secrets != nil {
			credential.Register(srv, s.secrets)
		}
		return serveGRPC(ctx, s.cfg.Clock, s.bound(l, discoveryDoor), srv)
	}
}

// serveGRPC serves until ctx ends; then streams end within the grace.
func serveGRPC(ctx context.Context, c clock.Clock, l net.Listener, srv *grpc.Server) error {
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	force := c.AfterFunc(grace, srv.Stop)
	defer force.Stop()
	srv.GracefulStop()
	<-failed
	return nil
}

// lead is what only one replica does.
func (s *Server) lead(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	if s.statuses != nil {
		g.Go(func() error { return s.statuses.Run(ctx) })
	}
	if s.assigner != nil {
		g.Go(func() error { return s.assigner.Run(ctx) })
	}
	if s.keys != nil {
		g.Go(func() error { return s.keys.Run(ctx) })
	}
	if s.cfg.Publish != nil && s.ca != nil {
		g.Go(func() error { return s.publishRoots(ctx) })
	}
	if s.ca != nil {
		g.Go(func() error { return s.ca.lead(ctx) })
		if s.cfg.Authority.DNS != nil {
			g.Go(func() error { return s.ca.keepDNS(ctx, s.engine.mesh.Load) })
		}
	}
	g.Go(func() error { // a leader without work still holds its office
		<-ctx.Done()
		return nil
	})
	return g.Wait()
}

// publishPeriod is how often the root certificates are checked where nodes look for them.
const publishPeriod = 10 * time.Second

func (s *Server) publishRoots(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-s.ca.ready:
	}
	for {
		wait := publishPeriod
		roots, err := s.ca.loaded.Load().RootPEM()
		if err == nil {
			err = s.cfg.Publish(ctx, roots)
		}
		if err == nil {
			s.ca.ca.Distributed(roots)
		}
		if err != nil && ctx.Err() == nil {
			s.cfg.Log.Warn("publish root certificates", "err", err)
			wait = time.Second
		}
		if !clock.Pause(ctx, s.cfg.Clock, wait) {
			return nil
		}
	}
}
