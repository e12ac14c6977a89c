package identity

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"slices"
	"sync"
)

// Roots are the trusted roots of the root file (the ConfigMap istio-ca-root-cert, or what the controller writes in
// directory mode). Safe for concurrent use.
type Roots struct {
	read func() ([]byte, error)

	mu         sync.Mutex
	data       []byte
	current    []*x509.Certificate
	revoked    map[string]bool // DER of roots that were in the file and are no longer
	lastPool   *x509.CertPool
	generation uint64 // counts changes of the file
}

// NewRoots makes Roots that read the file through read, which is called by Reload only.
func NewRoots(read func() ([]byte, error)) *Roots {
	return &Roots{read: read, revoked: map[string]bool{}}
}

// Reload reads the file. An unreadable or malformed one changes nothing and is an error: the roots known before stay trusted.
func (r *Roots) Reload() error {
	data, err := r.read()
	if err != nil {
		return fmt.Errorf("read roots: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if bytes.Equal(data, r.data) {
		return nil
	}
	next, err := parsePEM(data)
	if err != nil {
		return fmt.Errorf("read roots: %w", err)
	}
	for _, c := range next {
		if !c.IsCA {
			return fmt.Errorf("read roots: %q is not a CA certificate", c.Subject)
		}
	}
	for _, c := range r.current {
		r.revoked[string(c.Raw)] = true
	}
	pool := x509.NewCertPool()
	for _, c := range next {
		delete(r.revoked, string(c.Raw))
		pool.AddCert(c)
	}
	r.data, r.current, r.lastPool = bytes.Clone(data), next, pool
	r.generation++
	return nil
}

// Pool returns the roots of the file; an empty pool, which trusts nobody, before the first Reload succeeded.
func (r *Roots) Pool() *x509.CertPool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.lastPool == nil {
		return x509.NewCertPool()
	}
	return r.lastPool
}

// List returns the roots of the file; do not modify.
func (r *Roots) List() []*x509.Certificate {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.current
}

// Generation counts the changes of the file; 0 before it was read.
func (r *Roots) Generation() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.generation
}

// outdated reports whether another root than c signs now: c is in the file, and the controller writes the root that signs
// into its first place.
func (r *Roots) outdated(c *x509.Certificate) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.IndexFunc(r.current, c.Equal) > 0
}

func (r *Roots) isRevoked(c *x509.Certificate) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.revoked[string(c.Raw)]
}
