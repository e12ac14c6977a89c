package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/policy"
	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/hbone"
	"github.com/undermesh/undermesh/ztunnel/identity"
	"github.com/undermesh/undermesh/ztunnel/telemetry"
)

// Identity makes the TLS configurations of the pods of this node; identity.Manager is the real one.
type Identity interface {
	// ClientTLS waits for a certificate of src; the configuration accepts a server that is one of want.
	ClientTLS(ctx context.Context, src api.Identity, want []api.Identity) (*tls.Config, error)
	// Fingerprint returns when a certificate of id is there for ServerTLS, with its SHA-256 in hexadecimal digits.
	Fingerprint(ctx context.Context, id api.Identity) (string, error)
	// ServerTLS presents a certificate of dst and asks every client for one.
	ServerTLS(dst api.Identity) *tls.Config
	// Peer is the client of a finished handshake of ServerTLS.
	Peer(s tls.ConnectionState) (*identity.Peer, error)
}

// Sockets opens connections in one pod's network namespace. Methods are safe for concurrent use and return when ctx ends.
// What they return should be a *net.TCPConn; a connection without CloseWrite or SetLinger(int) can be neither half-closed nor
// reset.
type Sockets interface {
	// Dial connects to addr as the pod itself, by its own routes and with its own address. The connection is not captured.
	Dial(ctx context.Context, addr netip.AddrPort) (net.Conn, error)
	// Leg is Dial for a connection whose destination's policies were judged here: the receiver does not judge it again. What
	// was not judged must never leave by it.
	Leg(ctx context.Context, addr netip.AddrPort) (net.Conn, error)
	// Deliver connects to the pod's application at addr with client as the source address (any free port of it).
	Deliver(ctx context.Context, client netip.Addr, addr netip.AddrPort) (net.Conn, error)
}

// Config is what a Proxy needs. Snapshot, Changed, Identity, Clock and Telemetry are required.
type Config struct {
	// Snapshot returns the mesh as known; nil before the first one.
	Snapshot func() *client.Snapshot
	// Changed subscribes to changes of Snapshot: a coalescing channel, and a function that ends the subscription.
	Changed   func() (<-chan struct{}, func())
	Identity  Identity
	Clock     clock.Clock
	Telemetry *telemetry.Registry
	Log       *slog.Logger // default: discard
	// Tunnel holds the limits of tunnel connections. Its Clock, Log and DrainTimeout are set from this Config.
	Tunnel hbone.Config
	// Names resolves the hostnames of workloads without an address; nil: nobody does, and they have no endpoint.
	Names Names
	// Rand says where the turns of endpoints begin, and picks among the addresses of a name. Default math/rand/v2.
	Rand policy.Rand

	// Random is for what requests leave to chance, 64 bits a time; safe for concurrent use. Default math/rand/v2.
	Random func() uint64
	// Credentials gives what DestinationRules name by tls.credentialName; nil: nobody does, and such connections are refused.
	Credentials Credentials
	// Roots are those of servers that a DestinationRule asks TLS to; default: the system's.
	Roots *x509.CertPool

	// Network is the network of this node's pods; default "".
	Network string
	// ClusterID labels metrics and baggage. Default api.DefaultClusterID.
	ClusterID string

	HoldTimeout    time.Duration // how long a connection waits for what decides about it; default 10 s
	RefuseDelay    time.Duration // how long a refused client may stay silent before its reset; default 100 ms
	ConnectTimeout time.Duration // of the upstream connection; default 10 s
	// DetectTimeout is how long a client's first bytes are waited for on a port that declares no protocol, where the mesh does not say;
	// a server that speaks first is that much later. Default 100 ms.
	DetectTimeout time.Duration
	// HandshakeTimeout bounds TLS on the tunnel listener. It includes the wait for the pod's first certificate. Default 15 s.
	HandshakeTimeout time.Duration
	ProbeTimeout     time.Duration // until a probe's head was read; default 1 s
	// DrainTimeout is how long connections go on after Pod.Run was told to end. Default 0: they are reset at once.
	DrainTimeout time.Duration
	// RemovedGrace is how long connections of a pod go on that left the mesh (Pod.Remove). Default 1 h.
	RemovedGrace time.Duration

	// DeletedGrace bounds how long the connections of a pod go on that was deleted (Pod.Delete): its processes have ended, and what is
	// left is to tell its peers. Default 500 ms.
	DeletedGrace time.Duration

	MaxConns       int // open connections and tunnel streams of the node; default 200,000
	MaxConnsPerPod int // of one pod; default 50,000
	MaxRefusals    int // refused clients that wait for their reset; beyond it the reset is immediate. Default 4096
	// MaxHandshakes bounds the TLS handshakes on one pod's tunnel listener at a time; others wait, up to 32 times as many.
	// A client address may have an eighth of them. Default 256.
	MaxHandshakes int
	// MaxAffinity bounds the clients of services with ClientIP affinity that are remembered, at each port of each service; the
	// oldest of the pod with the most are forgotten. Default 32,768.
	MaxAffinity           int
	MaxAffinityPerPod     int // caused by one pod; its oldest are forgotten. Default 4096
	MaxAffinityPerService int // of those, at one service. Default 1024
}

func (c Config) withDefaults() Config {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Rand == nil {
		c.Rand = systemRand{}
	}
	if c.Random == nil {
		c.Random = rand.Uint64
	}
	if c.ClusterID == "" {
		c.ClusterID = api.DefaultClusterID
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&c.HoldTimeout, 10 * time.Second}, {&c.RefuseDelay, 100 * time.Millisecond}, {&c.ConnectTimeout, 10 * time.Second}, {&c.DetectTimeout, 100 * time.Millisecond},
		{&c.HandshakeTimeout, 15 * time.Second}, {&c.ProbeTimeout, time.Second}, {&c.RemovedGrace, time.Hour},
		{&c.DeletedGrace, 500 * time.Millisecond},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	for _, n := range []struct {
		field *int
		value int
	}{{&c.MaxConns, 200_000}, {&c.MaxConnsPerPod, 50_000}, {&c.MaxRefusals, 4096}, {&c.MaxHandshakes, 256},
		{&c.MaxAffinity, 32_768}, {&c.MaxAffinityPerPod, 4096}, {&c.MaxAffinityPerService, 1024}} {
		if *n.field == 0 {
			*n.field = n.value
		}
	}
	c.Tunnel.Clock, c.Tunnel.Log, c.Tunnel.DrainTimeout = c.Clock, c.Log, c.DrainTimeout
	return c
}

// Validate names the first field that is missing or out of range.
func (c Config) Validate() error {
	switch {
	case c.Snapshot == nil:
		return errors.New("proxy config: Snapshot is not set")
	case c.Changed == nil:
		return errors.New("proxy config: Changed is not set")
	case c.Identity == nil:
		return errors.New("proxy config: Identity is not set")
	case c.Clock == nil:
		return errors.New("proxy config: Clock is not set")
	case c.Telemetry == nil:
		return errors.New("proxy config: Telemetry is not set")
	case c.HoldTimeout < 0, c.RefuseDelay < 0, c.ConnectTimeout < 0, c.DetectTimeout < 0, c.HandshakeTimeout < 0, c.ProbeTimeout < 0, c.DrainTimeout < 0, c.RemovedGrace < 0, c.DeletedGrace < 0:
		return errors.New("proxy config: a duration is negative")
	case c.MaxConns < 0, c.MaxConnsPerPod < 0, c.MaxRefusals < 0, c.MaxHandshakes < 0,
		c.MaxAffinity < 0, c.MaxAffinityPerPod < 0, c.MaxAffinityPerService < 0:
		return errors.New("proxy config: a limit is negative")
	}
	return nil
}

type systemRand struct{}

func (systemRand) IntN(n int) int { return rand.IntN(n) }
