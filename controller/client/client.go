package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// maxMessage bounds one response; the first one of a type holds the whole mesh.
const maxMessage = 200 << 20

// Config configures a Client. Dial, NodeID, Clock and Rand are required.
type Config struct {
	// Dial makes a connection to the controller; the client closes it. It is called once an attempt. The caller sets
	// the transport's credentials and its keepalive, which is what notices a dead peer.
	Dial func(context.Context) (*grpc.ClientConn, error)
	// Token returns the bearer token for a new stream, so that a rotated one is read anew; nil sends none.
	Token func(context.Context) (string, error)

	NodeID    string   // "ztunnel~IP~POD.NAMESPACE~NAMESPACE.svc.DOMAIN"
	NodeName  string   // of the Kubernetes node
	ClusterID string   // default "Kubernetes"
	IPs       []string // of this proxy

	// Types are subscribed to in this order, and Snapshot waits for all; default everything that a Snapshot is made of.
	// Against a controller that knows only Istio's, list only those: settings then have their defaults.
	Types []string

	MinBackoff time.Duration // before the first reconnection; default 100 ms
	MaxBackoff time.Duration // default 15 s

	Log        *slog.Logger // default: discard
	Clock      clock.Clock
	Rand       Rand                  // jitter
	Registerer prometheus.Registerer // nil: metrics are not exported
}

// Rand is the source of chance; *math/rand/v2.Rand is one. It is called from Run's goroutine only.
type Rand interface{ Float64() float64 }

func (c Config) withDefaults() Config {
	if c.ClusterID == "" {
		c.ClusterID = api.DefaultClusterID
	}
	if c.Types == nil {
		c.Types = Types()
	}
	if c.MinBackoff == 0 {
		c.MinBackoff = 100 * time.Millisecond
	}
	if c.MaxBackoff == 0 {
		c.MaxBackoff = 15 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Validate names the first field that is missing or wrong.
func (c Config) Validate() error {
	switch {
	case c.Dial == nil:
		return errors.New("check client config: Dial: missing")
	case c.NodeID == "":
		return errors.New("check client config: NodeID: empty")
	case c.Clock == nil:
		return errors.New("check client config: Clock: missing")
	case c.Rand == nil:
		return errors.New("check client config: Rand: missing")
	}
	for _, t := range c.Types {
		if newMessage(t) == nil {
			return fmt.Errorf("check client config: Types: unknown type %q", t)
		}
	}
	return nil
}

// Client follows a controller. Its exported methods are safe for concurrent use.
type Client struct {
	cfg     Config
	metrics metrics

	snapshot atomic.Pointer[Snapshot] // nil until every type arrived

	state state // of Run's goroutine

	mu       sync.Mutex // protects below
	watchers map[chan struct{}]struct{}
}

// New returns a client that does nothing until Run.
func New(cfg Config) *Client {
	cfg = cfg.withDefaults()
	return &Client{
		cfg: cfg, metrics: newMetrics(cfg.Registerer), state: newState(cfg.Types),
		watchers: map[chan struct{}]struct{}{},
	}
}

// Snapshot returns the newest state of the mesh, nil until every type arrived once. During an outage it stays.
func (c *Client) Snapshot() *Snapshot { return c.snapshot.Load() }

// Watch returns a channel that receives after Snapshot changed, several changes as one. stop ends it and is idempotent;
// the channel is not closed.
func (c *Client) Watch() (changed <-chan struct{}, stop func()) {
	ch := make(chan struct{}, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watchers[ch] = struct{}{}
	return ch, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.watchers, ch)
	}
}

func (c *Client) publish(s *Snapshot) {
	c.snapshot.Store(s)
	c.mu.Lock()
	defer c.mu.Unlock()
	for ch := range c.watchers {
		select {
		case ch <- struct{}{}:
		default: // it has not looked since the last change
		}
	}
}

// Run follows the controller until ctx ends, reconnecting with exponential back-off and jitter and resuming where the
// last stream ended. It returns an error only for a wrong Config. Call it once.
func (c *Client) Run(ctx context.Context) error {
	if err := c.cfg.Validate(); err != nil {
		return err
	}
	delay := c.cfg.MinBackoff
	for {
		received, err := c.session(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if received {
			delay = c.cfg.MinBackoff
		}
		c.metrics.terminations.Inc()
		wait := time.Duration((0.5 + c.cfg.Rand.Float64()/2) * float64(delay))
		c.cfg.Log.Warn("controller stream ended", "err", err, "retry_in", wait, "has_snapshot", c.Snapshot() != nil)
		if !clock.Pause(ctx, c.cfg.Clock, wait) {
			return nil
		}
		delay = min(2*delay, c.cfg.MaxBackoff)
	}
}

// session is one stream; received says whether the controller answered at all.
func (c *Client) session(ctx context.Context) (received bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if ctx, err = c.authorize(ctx); err != nil {
		return false, err
	}
	conn, err := c.cfg.Dial(ctx)
	if err != nil {
		return false, fmt.Errorf("dial controller: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(conn).
		DeltaAggregatedResources(ctx, grpc.MaxCallRecvMsgSize(maxMessage))
	if err != nil {
		return false, fmt.Errorf("open discovery stream: %w", err)
	}
	c.state.begin()
	node := c.node()
	for _, t := range c.cfg.Types {
		req := &discovery.DeltaDiscoveryRequest{Node: node, TypeUrl: t, InitialResourceVersions: c.state.versions[t]}
		if err := stream.Send(req); err != nil {
			return false, fmt.Errorf("subscribe to %s: %w", t, streamError(stream, err))
		}
		node = nil
	}
	for {
		resp, err := stream.Recv()
		if err != nil {
			return received, fmt.Errorf("receive from controller: %w", err)
		}
		received = true
		if err := stream.Send(c.handle(resp)); err != nil {
			return received, fmt.Errorf("acknowledge %s: %w", resp.GetTypeUrl(), streamError(stream, err))
		}
	}
}

// streamError returns why Send failed: it reports only io.EOF, Recv has the status.
func streamError(s discovery.AggregatedDiscoveryService_DeltaAggregatedResourcesClient, err error) error {
	if _, cause := s.Recv(); cause != nil {
		return cause
	}
	return err
}

func (c *Client) authorize(ctx context.Context) (context.Context, error) {
	md := metadata.Pairs("clusterid", c.cfg.ClusterID)
	if c.cfg.Token != nil {
		token, err := c.cfg.Token(ctx)
		if err != nil {
			return ctx, fmt.Errorf("read token: %w", err)
		}
		md.Set("authorization", "Bearer "+token)
	}
	return metadata.NewOutgoingContext(ctx, md), nil
}

func (c *Client) node() *core.Node {
	pod, namespace := "", ""
	if parts := strings.Split(c.cfg.NodeID, "~"); len(parts) == 4 {
		pod, namespace, _ = strings.Cut(parts[2], ".")
	}
	fields := map[string]*structpb.Value{
		"NAME":         structpb.NewStringValue(pod),
		"NAMESPACE":    structpb.NewStringValue(namespace),
		"INSTANCE_IPS": structpb.NewStringValue(strings.Join(c.cfg.IPs, ",")),
		"NODE_NAME":    structpb.NewStringValue(c.cfg.NodeName),
		"CLUSTER_ID":   structpb.NewStringValue(c.cfg.ClusterID),
	}
	if c.state.seen != "" {
		fields[api.SeenMetadata] = structpb.NewStringValue(c.state.seen)
	}
	return &core.Node{Id: c.cfg.NodeID, ClientFeatures: []string{api.DiscoveryParts, api.DiscoveryShort, api.DiscoverySeen},
		Metadata: &structpb.Struct{Fields: fields}}
}

// handle applies one response and returns its acknowledgement. Resources that do not parse keep their previous state
// and are named in the NACK; the others of the response count.
func (c *Client) handle(resp *discovery.DeltaDiscoveryResponse) *discovery.DeltaDiscoveryRequest {
	c.metrics.messages.WithLabelValues(resp.GetTypeUrl()).Inc()
	next, changed, err := c.state.apply(resp)
	if changed && next != nil {
		c.publish(next)
	}
	ack := &discovery.DeltaDiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()}
	if err != nil {
		c.metrics.rejected.WithLabelValues(resp.GetTypeUrl()).Inc()
		c.cfg.Log.Error("resource refused", "type", resp.GetTypeUrl(), "err", err)
		ack.ErrorDetail = nack(err)
	}
	return ack
}
