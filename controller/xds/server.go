package xds

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// Config configures a Server. Store and Clock are required.
type Config struct {
	Store      *Store
	Clock      clock.Clock
	Types      []string              // served; default all types of controller/api
	Log        *slog.Logger          // default: discard
	Registerer prometheus.Registerer // nil: metrics are not exported
}

// Server answers delta ADS streams from a Store. It is safe for concurrent use and owns no goroutine beyond its streams.
type Server struct {
	discovery.UnimplementedAggregatedDiscoveryServiceServer
	cfg     Config
	metrics metrics

	mu    sync.Mutex // protects below
	next  uint64
	conns map[*conn]struct{}
}

// NewServer returns a server to be registered with a grpc.Server.
func NewServer(cfg Config) *Server {
	if cfg.Types == nil {
		cfg.Types = []string{api.MeshSettingsType, api.WorkloadSettingsType, api.AuthorizationType, api.AddressType,
			api.ScopeType, api.ClusterType, api.RouteType}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: cfg, metrics: newMetrics(cfg.Registerer), conns: map[*conn]struct{}{}}
}

// Register adds the discovery service to a gRPC server.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	discovery.RegisterAggregatedDiscoveryServiceServer(r, s)
}

// Auth says who may open a stream. All fields are required.
type Auth struct {
	Log *slog.Logger
	// Authenticate returns whose token it is, "namespace/account". Its error is logged and not told to the caller.
	Authenticate func(ctx context.Context, token string) (string, error)
	// BadToken is in the chain of Authenticate's error when the token proves nothing; other errors are no verdict.
	BadToken error
	// Accounts are those whose streams are served, "namespace/account".
	Accounts []string
}

// StreamAuth refuses streams without "authorization: Bearer TOKEN" of one of the accounts: Unauthenticated without a valid
// token, PermissionDenied for another account, Unavailable if the token could not be checked.
func StreamAuth(a Auth) grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
		caller, err := a.admit(ss.Context(), info.FullMethod)
		if err != nil {
			return err
		}
		return next(srv, callerStream{ss, context.WithValue(ss.Context(), callerKey{}, caller)})
	}
}

func (a Auth) admit(ctx context.Context, method string) (string, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	token := Bearer(md)
	if token == "" {
		return "", status.Error(codes.Unauthenticated, "no bearer token")
	}
	caller, err := a.Authenticate(ctx, token)
	switch {
	case errors.Is(err, a.BadToken):
		a.Log.Warn("stream refused", "method", method, "peer", peerAddr(ctx), "err", err)
		return "", status.Error(codes.Unauthenticated, "the token is not valid")
	case err != nil:
		a.Log.Warn("stream cannot be authenticated", "method", method, "peer", peerAddr(ctx), "err", err)
		return "", status.Error(codes.Unavailable, "the token cannot be checked now")
	case !slices.Contains(a.Accounts, caller):
		a.Log.Warn("stream refused", "method", method, "peer", peerAddr(ctx), "caller", caller, "err", "no account of a node")
		return "", status.Errorf(codes.PermissionDenied, "account %s is none of a node's proxy", caller)
	}
	return caller, nil
}

type callerKey struct{}

type callerStream struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // the interface demands it
}

func (c callerStream) Context() context.Context { return c.ctx }

// Bearer returns the token of "authorization: Bearer TOKEN", "" if there is none.
func Bearer(md metadata.MD) string {
	for _, v := range md.Get("authorization") {
		if token, ok := strings.CutPrefix(v, "Bearer "); ok {
			return token
		}
	}
	return ""
}

func peerAddr(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		return p.Addr.String()
	}
	return ""
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

func (s *Server) serve(st stream) error {
	c := s.connect(st)
	defer s.disconnect(c)
	ctx, cancel := context.WithCancel(st.Context())
	requests, failed := make(chan *discovery.DeltaDiscoveryRequest), make(chan error, 1)
	go func() { // ends with the stream at the latest, which ends when serve returns
		for {
			req, err := st.Recv()
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
	defer cancel()
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
			s.cfg.Log.Warn("discovery stream ended", "client", c.status.ID, "peer", c.status.Peer, "err", err)
			return err
		}
	}
}

func (s *Server) connect(st stream) *conn {
	caller, _ := st.Context().Value(callerKey{}).(string)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next++
	c := &conn{
		srv: s, stream: st, cursor: s.cfg.Store.subscribe(), subs: map[string]*subscription{},
		status: ClientStatus{
			Connection: strconv.FormatUint(s.next, 10), Peer: peerAddr(st.Context()), Caller: caller,
			Connected: s.cfg.Clock.Now(), Types: map[string]TypeStatus{},
		},
	}
	s.conns[c] = struct{}{}
	s.metrics.clients.Set(float64(len(s.conns)))
	return c
}

func (s *Server) disconnect(c *conn) {
	s.cfg.Store.unsubscribe(c.cursor)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
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

// ClientStatus is one connected client, for proxy-status.
type ClientStatus struct {
	ID         string // of the node, as it says; empty before its first request
	NodeName   string // of the Kubernetes node, as it says
	Connection string // number of the stream
	Peer       string // address
	Caller     string // proved by the token, empty on the plain listener
	Connected  time.Time
	Types      map[string]TypeStatus
}

// TypeStatus is how far one client is with one type.
type TypeStatus struct {
	SentGeneration, AckedGeneration uint64 // 0: none
	SentAt, AckedAt                 time.Time
	Rejected                        uint64 // responses refused on this stream
	LastError                       string // of the last refusal
}

// Synced reports whether the client acknowledged all that it was sent.
func (t TypeStatus) Synced() bool {
	return t.SentGeneration != 0 && t.SentGeneration == t.AckedGeneration
}

func namesError(typ, field string, n, limit int) error {
	return status.Errorf(codes.InvalidArgument, "subscribe to %s: %s: %d, want at most %d", typ, field, n, limit)
}
