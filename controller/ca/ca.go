// Package ca issues the mesh's certificates: it owns the root (self-signed once and persisted, or an operator's cacerts),
// proves callers, and answers istio.v1.auth.IstioCertificateService.
//
// Invariants: a certificate is signed only for the caller's own identity, or for one that the NodeAuthorizer grants to a
// trusted node proxy; keys of workloads never come here; every signature and every refusal is one log line; what is
// missing or malformed is refused, and what was good before stays in force; while the key of a root
// is there it is replaced only after everybody had time to trust the next one, and once it is gone only when an operator says so;
// the old root is trusted until nothing that it signed is valid any more.
package ca

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/quota"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// PlugInSecret is the name of the Secret with an operator's signing certificate, in the namespace of the control plane.
const PlugInSecret = "cacerts"

// Files of the cacerts secret and of the persisted root.
const (
	FileCACert    = "ca-cert.pem"
	FileCAKey     = "ca-key.pem"
	FileRootCert  = "root-cert.pem"
	FileCertChain = "cert-chain.pem"
)

const (
	rootLifetime = 10 * 365 * 24 * time.Hour
	servingTTL   = 24 * time.Hour
	backdate     = 2 * time.Minute // clocks of nodes differ
)

// ErrNotLoaded is returned while the root has not been loaded.
var ErrNotLoaded = errors.New("the signing key is not loaded")

// ErrOtherRoot is returned when the stored root is not the one that signs here, and no rotation leads to it.
var ErrOtherRoot = errors.New("the stored root is not the one that this controller signs with")

// Store persists the self-signed root. Data has the keys FileCACert and FileCAKey.
type Store interface {
	// Load returns nil and no error when there is none.
	Load(ctx context.Context) (map[string][]byte, error)
	// CreateOnce stores data unless something is stored; it returns what is stored then.
	CreateOnce(ctx context.Context, data map[string][]byte) (map[string][]byte, error)
}

// NodeAuthorizer decides whether a node's proxy may hold an identity: a pod with it runs on the caller's node.
type NodeAuthorizer interface {
	MayImpersonate(ctx context.Context, caller Caller, id api.Identity) error
}

// Config configures an Authority. Clock, Authenticator, NodeAuthorizer, and Store or PlugIn are required.
type Config struct {
	Store Store
	// PlugIn returns the cacerts files by name, nil when there are none: self-signed then. It is asked at each Sync.
	PlugIn func(ctx context.Context) (map[string][]byte, error)
	// Rotation is what replicas agree upon while a root is replaced; nil: a root is never replaced.
	Rotation RotationStore
	// Spread is how long a new root is published before it signs; default 5 min. Kubelets take up to 2 min to bring a changed
	// ConfigMap into pods.
	Spread time.Duration
	// External signs the workloads' certificates; nil: the authority's own key does.
	External *External

	// TrustDomain is asked at every signature; nil means cluster.local, an answer "" that it is not known yet.
	TrustDomain func() string

	Authenticator  Authenticator
	NodeAuthorizer NodeAuthorizer
	// TrustedNodeAccounts may impersonate, "namespace/account"; default istio-system/ztunnel.
	TrustedNodeAccounts []string

	DefaultTTL time.Duration // of workload certificates; default 24 h
	MaxTTL     time.Duration // a request for more is refused; default 90 days

	Clock clock.Clock
	Log   *slog.Logger // default: discard
	// Metrics is where the collectors are registered; nil: nowhere.
	Metrics prometheus.Registerer
}

func (c Config) withDefaults() Config {
	if c.TrustDomain == nil {
		c.TrustDomain = func() string { return api.DefaultTrustDomain }
	}
	if c.TrustedNodeAccounts == nil {
		c.TrustedNodeAccounts = []string{api.DefaultRootNamespace + "/" + api.ZtunnelName}
	}
	if c.DefaultTTL == 0 {
		c.DefaultTTL = 24 * time.Hour
	}
	if c.MaxTTL == 0 {
		c.MaxTTL = 90 * 24 * time.Hour
	}
	if c.Spread == 0 {
		c.Spread = 5 * time.Minute
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// Validate names the first field that is missing or wrong.
func (c Config) Validate() error {
	switch {
	case c.Clock == nil:
		return errors.New("check ca config: Clock: missing")
	case c.Authenticator == nil:
		return errors.New("check ca config: Authenticator: missing")
	case c.NodeAuthorizer == nil:
		return errors.New("check ca config: NodeAuthorizer: missing")
	case c.Store == nil && c.PlugIn == nil:
		return errors.New("check ca config: Store: missing, and no PlugIn")
	case c.Spread < 0:
		return fmt.Errorf("check ca config: Spread: %s is negative", c.Spread)
	case c.DefaultTTL > c.MaxTTL:
		return fmt.Errorf("check ca config: DefaultTTL: %s is more than MaxTTL %s", c.DefaultTTL, c.MaxTTL)
	}
	return nil
}

// Authority is the CA. It is safe for concurrent use after Load.
type Authority struct {
	cfg     Config
	metrics *metrics
	lines   *quota.Lines[netip.Addr] // about refusals, by address

	syncing  sync.Mutex          // one Sync at a time, protects below; order: syncing before mu
	wanted   *issuer             // what the Secrets ask for: the last that was good
	fallback *issuer             // the stored self-signed one, while cacerts, which are wanted, are gone
	external []*x509.Certificate // roots of the external signer: the last that were good

	mu        sync.RWMutex        // protects below
	issuer    *issuer             // in force; nil until Load
	signers   []*x509.Certificate // roots of the external signer; nil: there is none
	bundle    []byte              // PEM: every root that is trusted, the one that signs workloads first
	record    *Record             // as last seen; nil: there is none
	published publication
}

// publication is when a bundle was first given to the nodes.
type publication struct {
	bundle string
	at     time.Time
}

// since is when all of the roots were first given to the nodes; zero: they were not.
func (p publication) since(roots []byte) time.Time {
	certs, err := parseCerts(roots)
	if err != nil { // there are none
		return time.Time{}
	}
	for _, c := range certs {
		if !strings.Contains(p.bundle, string(encodeCert(c.Raw))) {
			return time.Time{}
		}
	}
	return p.at
}

// New returns an authority that cannot sign before Load.
func New(cfg Config) *Authority {
	cfg = cfg.withDefaults()
	return &Authority{cfg: cfg, metrics: newMetrics(), lines: quota.NewLines[netip.Addr](cfg.Clock)}
}

// Load reads the plugged-in certificates, or reads the self-signed root from the Store and makes it there when there is
// none; of several controllers that make it at once all take the one that was stored. It succeeds once.
func (a *Authority) Load(ctx context.Context) error {
	if err := a.cfg.Validate(); err != nil {
		return err
	}
	if err := a.Sync(ctx, false); err != nil {
		return err
	}
	return a.metrics.register(a.cfg.Metrics, a)
}

func (a *Authority) current() (*issuer, error) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if a.issuer == nil {
		return nil, ErrNotLoaded
	}
	return a.issuer, nil
}

// RootPEM is what peers must trust, the root that signs workloads first. Returns ErrNotLoaded before Load.
func (a *Authority) RootPEM() ([]byte, error) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if a.issuer == nil {
		return nil, ErrNotLoaded
	}
	return a.bundle, nil
}

// Distributed is told that the nodes were given the roots of RootPEM: from then on they have Config.Spread to take them in.
func (a *Authority) Distributed(roots []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.published.bundle != string(roots) {
		a.published = publication{string(roots), a.cfg.Clock.Now()}
	}
}
