package xds

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/quota"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// Config configures a Server. Store and Clock are required.
type Config struct {
	Store      *Store
	Clock      clock.Clock
	Types      []string              // served; default all types of controller/api
	Log        *slog.Logger          // default: discard
	Registerer prometheus.Registerer // nil: metrics are not exported
	// StallTimeout is how long a client may leave responses unacknowledged, or unread, without any progress; then its stream
	// ends, and it resumes by its versions. Default 1 min.
	StallTimeout time.Duration
	// History keeps clients from being served an older state than another replica gave them; nil: there is no other.
	History History
	// Streams is how many streams one caller may have open: of one account at one place (see Caller). Default 8.
	Streams int
	// Joins is how many clients are sent all of a type at once; others wait. What is encoded and not read yet is memory, and a
	// thousand nodes that join together are served sooner one after the other. Default 64.
	Joins int
}

// History knows how new the served state is.
type History interface {
	// Seen is what the state holds that is served now, for clients to give back; "" says nothing.
	Seen() string
	// Reach returns nil once no less is served than seen says. Its error is told to the client.
	Reach(ctx context.Context, seen string) error
}

// Server answers delta ADS streams from a Store. It is safe for concurrent use and owns no goroutine beyond its streams.
type Server struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	cfg     Config
	metrics metrics
	names   *quota.Amounts[place]
	joins   chan struct{} // a place is held while all of a type is being sent

	mu    sync.Mutex // protects below
	next  uint64
	conns map[*conn]struct{}
	held  map[place]int // streams
}

// NewServer returns a server to be registered with a grpc.Server.
func NewServer(cfg Config) *Server {
	if cfg.Types == nil {
		cfg.Types = []string{api.MeshSettingsType, api.WorkloadSettingsType, api.AuthorizationType, api.CallRuleType,
			api.RouteRuleType, api.AddressType, api.ScopeType, api.JWKSType}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.StallTimeout == 0 {
		cfg.StallTimeout = time.Minute
	}
	if cfg.Joins == 0 {
		cfg.Joins = 64
	}
	if cfg.Streams == 0 {
		cfg.Streams = 8
	}
	return &Server{cfg: cfg, names: quota.NewAmounts[place](math.MaxInt, maxHeld), joins: make(chan struct{}, cfg.Joins), metrics: newMetrics(cfg.Registerer), conns: map[*conn]struct{}{}, held: map[place]int{}}
}

// Register adds the discovery service to a gRPC server.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	discovery.RegisterAggregatedDiscoveryServiceServer(r, s)
}

// stream is the part of the gRPC stream that a conn uses.
type stream interface {
	Send(*discovery.DeltaDiscoveryResponse) error
	Recv() (*discovery.DeltaDiscoveryRequest, error)
	Context() context.Context
}

// DeltaAggregatedResources serves one client until either side ends the stream.
func (s *Server) DeltaAggregatedResources(st discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return s.serve(st)
}

// serve returns when the stream ended, or when its client makes no progress: then what blocks in Send ends because serve
// returned.
func (s *Server) serve(st stream) error {
	ctx, cancel := context.WithCancel(st.Context())
	defer cancel()
	c, err := s.connect(st)
	if err != nil {
		return err
	}
	expired := make(chan struct{})
	if end := c.caller.Expires; !end.IsZero() {
		timer := s.cfg.Clock.AfterFunc(end.Sub(s.cfg.Clock.Now()), func() { close(expired) })
		defer timer.Stop()
	}
	ended := make(chan error, 1)
	go func() {
		defer s.disconnect(c)
		defer c.unguard()
		ended <- c.run(ctx)
	}()
	select {
	case err := <-ended:
		return err
	case <-c.stalled:
		s.metrics.stalls.Inc()
		s.cfg.Log.Warn("discovery client is cut off: it acknowledges nothing", "client", c.snapshot().ID, "peer", c.status.Peer,
			"dur", s.cfg.StallTimeout)
		return status.Errorf(codes.DeadlineExceeded, "no response was acknowledged for %s", s.cfg.StallTimeout)
	case <-expired:
		s.metrics.refused.WithLabelValues(refusedExpired).Inc()
		return status.Error(codes.Unauthenticated, "the token that opened the stream has ended")
	}
}

// run follows the client and the store until one of them ends the stream.
func (c *conn) run(ctx context.Context) error {
	requests, failed := make(chan *discovery.DeltaDiscoveryRequest), make(chan error, 1)
	go func() { // ends with the stream at the latest, which ends when serve returns
		for {
			req, err := c.stream.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case requests <- req:
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		var err error
		select {
		case req := <-requests:
			err = c.request(req)
		case <-c.cursor.wake:
			c.woken = true
			err = c.push()
		case err = <-failed:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
		if err != nil {
			c.srv.cfg.Log.Warn("discovery stream ended", "client", c.status.ID, "peer", c.status.Peer, "err", err)
			return err
		}
	}
}

// connect makes a place for the stream, or refuses it.
func (s *Server) connect(st stream) (*conn, error) {
	caller, _ := CallerOf(st.Context())
	at := placeOf(caller)
	s.mu.Lock()
	defer s.mu.Unlock()
	if at != (place{}) && s.held[at] >= s.cfg.Streams {
		s.metrics.refused.WithLabelValues(refusedStreams).Inc()
		return nil, status.Errorf(codes.ResourceExhausted, "%s has %d discovery streams, want at most %d", at, s.held[at], s.cfg.Streams)
	}
	s.held[at]++
	s.next++
	c := &conn{
		srv: s, stream: st, caller: caller, cursor: s.cfg.Store.subscribe(), subs: map[string]*subscription{}, stalled: make(chan struct{}),
		status: ClientStatus{
			Connection: strconv.FormatUint(s.next, 10), Peer: peerAddr(st.Context()), Caller: caller.Account, Pod: caller.Pod,
			Connected: s.cfg.Clock.Now(), Types: map[string]TypeStatus{},
		},
	}
	s.conns[c] = struct{}{}
	s.metrics.clients.Set(float64(len(s.conns)))
	return c, nil
}

func (s *Server) disconnect(c *conn) {
	s.cfg.Store.unsubscribe(c.cursor)
	at := placeOf(c.caller)
	s.names.Give(at, c.charged)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	if s.held[at]--; s.held[at] == 0 {
		delete(s.held, at)
	}
	s.metrics.clients.Set(float64(len(s.conns)))
}

// Clients returns the connected clients, sorted by node id.
func (s *Server) Clients() []ClientStatus {
	s.mu.Lock()
	conns := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	out := make([]ClientStatus, 0, len(conns))
	for _, c := range conns {
		out = append(out, c.snapshot())
	}
	slices.SortFunc(out, func(a, b ClientStatus) int {
		return strings.Compare(a.ID+"\x00"+a.Connection, b.ID+"\x00"+b.Connection)
	})
	return out
}
