// Package ca issues the mesh's certificates: it owns the root (self-signed once and persisted, or an operator's cacerts),
// proves callers, and answers istio.v1.auth.IstioCertificateService.
//
// Invariants: a certificate is signed only for the caller's own identity, or for one that the NodeAuthorizer grants to a
// trusted node proxy; keys of workloads never come here; every signature and every refusal is one log line; what is
// missing or malformed is refused.
package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"sync"
	"time"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

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

// ErrOtherRoot is returned when the stored root is not the one that signs here.
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
	Store  Store
	PlugIn map[string][]byte // the cacerts files by name; nil: self-signed

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
	case c.DefaultTTL > c.MaxTTL:
		return fmt.Errorf("check ca config: DefaultTTL: %s is more than MaxTTL %s", c.DefaultTTL, c.MaxTTL)
	}
	return nil
}

// issuer is a signing certificate with its key and what is sent behind a leaf.
type issuer struct {
	cert  *x509.Certificate
	key   crypto.Signer
	chain []*x509.Certificate // from cert to the root, both included
	roots []byte              // PEM: what peers trust

	stored map[string][]byte // what the Store has of it; nil for a plugged-in one
}

// Authority is the CA. It is safe for concurrent use after Load.
type Authority struct {
	cfg Config

	mu     sync.RWMutex // protects below
	issuer *issuer      // nil until Load
}

// New returns an authority that cannot sign before Load.
func New(cfg Config) *Authority { return &Authority{cfg: cfg.withDefaults()} }

// Load reads the plugged-in certificates, or reads the self-signed root from the Store and makes it there when there is
// none; of several controllers that make it at once all take the one that was stored.
func (a *Authority) Load(ctx context.Context) error {
	if err := a.cfg.Validate(); err != nil {
		return err
	}
	iss, err := a.load(ctx)
	if err != nil {
		return err
	}
	a.cfg.Log.Info("signing certificate loaded", "subject", iss.cert.Subject.String(), "plugged_in", a.cfg.PlugIn != nil,
		"not_after", iss.cert.NotAfter)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.issuer = iss
	return nil
}

func (a *Authority) load(ctx context.Context) (*issuer, error) {
	now := a.cfg.Clock.Now()
	if a.cfg.PlugIn != nil {
		iss, err := parsePlugIn(a.cfg.PlugIn, now)
		if err != nil {
			return nil, fmt.Errorf("check cacerts: %w", err)
		}
		return iss, nil
	}
	data, err := a.cfg.Store.Load(ctx)
	if err != nil {
		return nil, fmt.Errorf("load root: %w", err)
	}
	if data == nil {
		if data, err = selfSigned(a.cfg.TrustDomain(), now); err != nil {
			return nil, fmt.Errorf("make root: %w", err)
		}
		if data, err = a.cfg.Store.CreateOnce(ctx, data); err != nil {
			return nil, fmt.Errorf("store root: %w", err)
		}
	}
	iss, err := parseRoot(data, now)
	if err != nil {
		return nil, fmt.Errorf("check stored root: %w", err)
	}
	iss.stored = data
	return iss, nil
}

// Keep stores the self-signed root again if it is gone from the Store: the next controller that starts would make another
// one, and the mesh would fall apart into those who trust the one and those who trust the other. It reports whether it did.
// Returns ErrOtherRoot if another root is stored, and ErrNotLoaded before Load.
func (a *Authority) Keep(ctx context.Context) (restored bool, err error) {
	iss, err := a.current()
	if err != nil || iss.stored == nil {
		return false, err
	}
	data, err := a.cfg.Store.Load(ctx)
	if err != nil {
		return false, fmt.Errorf("load root: %w", err)
	}
	if data == nil {
		if data, err = a.cfg.Store.CreateOnce(ctx, iss.stored); err != nil {
			return false, fmt.Errorf("store root: %w", err)
		}
		restored = true
	}
	block, _ := pem.Decode(data[FileCACert])
	if block == nil || !bytes.Equal(block.Bytes, iss.cert.Raw) {
		return false, ErrOtherRoot
	}
	return restored, nil
}

func (a *Authority) current() (*issuer, error) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if a.issuer == nil {
		return nil, ErrNotLoaded
	}
	return a.issuer, nil
}

// RootPEM is what peers must trust. Returns ErrNotLoaded before Load.
func (a *Authority) RootPEM() ([]byte, error) {
	iss, err := a.current()
	if err != nil {
		return nil, err
	}
	return iss.roots, nil
}

func selfSigned(organization string, now time.Time) (map[string][]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{Organization: []string{organization}},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(rootLifetime),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return map[string][]byte{
		FileCACert: encodeCert(der),
		FileCAKey:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}),
	}, nil
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

// sign issues a leaf; it never outlives the signing certificate.
func (iss *issuer) sign(tmpl *x509.Certificate, public crypto.PublicKey, now time.Time, ttl time.Duration) (*x509.Certificate, error) {
	var err error
	if tmpl.SerialNumber, err = newSerial(); err != nil {
		return nil, err
	}
	tmpl.NotBefore, tmpl.NotAfter = now.Add(-backdate), now.Add(ttl)
	if tmpl.NotAfter.After(iss.cert.NotAfter) {
		tmpl.NotAfter = iss.cert.NotAfter
	}
	if !tmpl.NotAfter.After(now) {
		return nil, fmt.Errorf("sign certificate: the signing certificate expired at %s", iss.cert.NotAfter)
	}
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	tmpl.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, tmpl, iss.cert, public, iss.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

// ServingCertificate returns a tls.Config.GetCertificate for the controller's own listeners. names are DNS names or
// addresses. The certificate is made when first needed and again at half of its life.
func (a *Authority) ServingCertificate(names []string) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	var mu sync.Mutex
	var current *tls.Certificate
	var renew time.Time
	var from *issuer
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		iss, err := a.current()
		if err != nil {
			return nil, err
		}
		mu.Lock()
		defer mu.Unlock()
		now := a.cfg.Clock.Now()
		if current != nil && from == iss && now.Before(renew) {
			return current, nil
		}
		next, err := iss.serving(names, now)
		if err != nil {
			return nil, fmt.Errorf("make serving certificate: %w", err)
		}
		current, from, renew = next, iss, now.Add(next.Leaf.NotAfter.Sub(now)/2)
		return current, nil
	}
}

func (iss *issuer) serving(names []string, now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	tmpl := &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, n)
		}
	}
	leaf, err := iss.sign(tmpl, key.Public(), now, servingTTL)
	if err != nil {
		return nil, err
	}
	out := &tls.Certificate{PrivateKey: key, Leaf: leaf, Certificate: [][]byte{leaf.Raw}}
	for _, c := range iss.chain {
		out.Certificate = append(out.Certificate, c.Raw)
	}
	return out, nil
}
