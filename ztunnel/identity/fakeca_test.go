package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

var (
	alice = api.Identity{TrustDomain: "cluster.local", Namespace: "foo", ServiceAccount: "alice"}
	bob   = api.Identity{TrustDomain: "cluster.local", Namespace: "bar", ServiceAccount: "bob"}
)

// fakeCA is a root that signs what it is asked for; fail and hook change its answers.
type fakeCA struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	root *x509.Certificate
	life time.Duration

	mu     sync.Mutex
	serial int64
	asked  []Request
	fail   error
	block  chan struct{}
	alter  func(*x509.Certificate)
}

func newFakeCA(t *testing.T, name string) *fakeCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	now := time.Now()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{name}}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(10, 0, 0), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	must(t, err)
	root, err := x509.ParseCertificate(der)
	must(t, err)
	return &fakeCA{t: t, key: key, root: root, life: 24 * time.Hour, serial: 1}
}

func (ca *fakeCA) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.root.Raw})
}

func (ca *fakeCA) Issue(ctx context.Context, r Request) ([]string, error) {
	ca.mu.Lock()
	ca.asked = append(ca.asked, r)
	fail, block := ca.fail, ca.block
	ca.mu.Unlock()
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if fail != nil {
		return nil, fail
	}
	b, _ := pem.Decode(r.CSR)
	csr, err := x509.ParseCertificateRequest(b.Bytes)
	if err != nil {
		return nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, err
	}
	leaf := ca.sign(csr.PublicKey, csr.URIs)
	return []string{string(leaf), string(ca.pem())}, nil
}

func (ca *fakeCA) sign(public any, uris []*url.URL) []byte {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	ca.serial++
	now := time.Now()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(ca.serial), URIs: uris, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(ca.life),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	if ca.alter != nil {
		ca.alter(tmpl)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.root, public, ca.key)
	must(ca.t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func (ca *fakeCA) requests() int {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return len(ca.asked)
}

func (ca *fakeCA) setFail(err error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	ca.fail = err
}

// rootFile is a root file in memory.
type rootFile struct {
	mu   sync.Mutex
	data []byte
}

func (f *rootFile) set(parts ...[]byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.data = nil
	for _, p := range parts {
		f.data = append(f.data, p...)
	}
}

func (f *rootFile) read() ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.data == nil {
		return nil, errors.New("no such file")
	}
	return f.data, nil
}

// start runs a Manager until the test ends. Inside a synctest bubble the caller must call stop itself.
func start(t *testing.T, issuer Issuer, roots *rootFile, change func(*Config)) (m *Manager, stop func()) {
	t.Helper()
	cfg := Config{
		Issuer: issuer, Roots: NewRoots(roots.read), Clock: clock.System(),
		Trust: func() Trust { return Trust{Domain: "cluster.local", Aliases: []string{"old.local"}} },
	}
	if change != nil {
		change(&cfg)
	}
	m, err := New(cfg)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run returned %v", err)
		}
	})
	t.Cleanup(stop)
	return m, stop
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
