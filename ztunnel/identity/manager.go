package identity

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// Source gives certificates of the workloads of this node.
type Source interface {
	// Certificate returns a certificate that is valid now. It waits for the first one; returns ErrNoIdentity when there is
	// none within the limit, or until ctx ends, whose cause is then in the chain as well.
	Certificate(ctx context.Context, id api.Identity) (*Certificate, error)
}

var _ Source = (*Manager)(nil)

// Manager keeps one certificate for each identity in use on the node. All methods are safe for concurrent use.
type Manager struct {
	cfg     Config
	slots   *semaphore.Weighted
	metrics *metrics
	trusted atomic.Pointer[x509.CertPool] // roots of the file and of the certificates held

	poolChanges atomic.Uint64

	loops sync.WaitGroup // one for each entry; added to under mu and while !stopped

	trustMu      sync.Mutex // protects below
	trust        Trust      // as last seen
	trustChanges uint64

	mu        sync.Mutex      // protects below
	ctx       context.Context // of Run; nil before
	stopped   bool
	entries   map[api.Identity]*entry
	rootsSeen uint64
}

// entry is one identity. One loop goroutine fetches for it, so that callers share a request.
type entry struct {
	id   api.Identity
	wake chan struct{} // capacity 1: look again whether the certificate, or the entry, is still wanted

	// below: Manager.mu
	cert    *Certificate
	err     error         // of the last request; nil after a success
	changed chan struct{} // closed and replaced whenever cert or err changes
	holds   int
	used    time.Time // by a caller without a hold
	renewAt time.Time
	hurried int // renewals brought forward since the roots changed
}

// New makes a Manager. It does nothing until Run; callers of Certificate wait until then.
func New(cfg Config) (*Manager, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	m := &Manager{cfg: cfg, slots: semaphore.NewWeighted(int64(cfg.Parallel)), entries: map[api.Identity]*entry{}}
	m.trusted.Store(x509.NewCertPool())
	var err error
	if m.metrics, err = newMetrics(m, cfg.Metrics); err != nil {
		return nil, err
	}
	return m, nil
}

// Run reads the root file, fetches and rotates until ctx ends; it returns nil then, after all its goroutines ended.
// Certificates held stay usable after that until they expire: connections may drain.
func (m *Manager) Run(ctx context.Context) error {
	m.reloadRoots()
	m.mu.Lock()
	if m.ctx != nil {
		m.mu.Unlock()
		return errors.New("run identity manager: it was started before")
	}
	m.ctx = ctx
	for _, e := range m.entries {
		m.loops.Go(func() { m.keep(ctx, e) })
	}
	m.mu.Unlock()
	for pause(ctx, m.cfg.Clock, m.cfg.RootPoll, nil) {
		m.reloadRoots()
	}
	m.mu.Lock()
	m.stopped = true
	m.mu.Unlock()
	m.loops.Wait()
	return nil
}

// Certificate implements Source.
func (m *Manager) Certificate(ctx context.Context, id api.Identity) (*Certificate, error) {
	if id.IsZero() {
		return nil, fmt.Errorf("%w: the workload has no identity", ErrNoIdentity)
	}
	var limit chan struct{}
	for {
		m.mu.Lock()
		e := m.entryLocked(id)
		e.used = m.cfg.Clock.Now()
		cert, changed, cause := e.cert, e.changed, e.err
		m.mu.Unlock()
		if cert != nil && cert.valid(m.cfg.Clock.Now()) {
			return cert, nil
		}
		if limit == nil {
			limit = make(chan struct{})
			t := m.cfg.Clock.AfterFunc(m.cfg.FirstWait, func() { close(limit) })
			defer t.Stop()
		}
		select {
		case <-changed:
		case <-limit:
			if cause == nil {
				cause = errors.New("the CA did not answer")
			}
			return nil, fmt.Errorf("%w %s within %s: %w", ErrNoIdentity, id, m.cfg.FirstWait, cause)
		case <-ctx.Done():
			if cause == nil {
				cause = errors.New("the CA did not answer yet")
			}
			return nil, fmt.Errorf("%w %s: %w: %w", ErrNoIdentity, id, context.Cause(ctx), cause)
		}
	}
}

// Fingerprint waits until a valid certificate of id is held, so that ServerTLS does not, and returns its SHA-256 in hexadecimal
// digits. Its errors are those of Certificate.
func (m *Manager) Fingerprint(ctx context.Context, id api.Identity) (string, error) {
	c, err := m.Certificate(ctx, id)
	if err != nil {
		return "", err
	}
	return c.fingerprint, nil
}

// Watch fetches certificates for ids ahead of their use and keeps them rotated until release is called, once for each call
// of Watch. An identity that nobody holds or uses is dropped with its key after Config.Linger.
func (m *Manager) Watch(ids ...api.Identity) (release func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range ids {
		if !id.IsZero() {
			m.entryLocked(id).holds++
		}
	}
	return sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, id := range ids {
			if e := m.entries[id]; e != nil && !id.IsZero() {
				e.holds--
				e.used = m.cfg.Clock.Now()
				e.poke()
			}
		}
	})
}

func (m *Manager) entryLocked(id api.Identity) *entry {
	e := m.entries[id]
	if e == nil {
		e = &entry{id: id, wake: make(chan struct{}, 1), changed: make(chan struct{}), used: m.cfg.Clock.Now()}
		m.entries[id] = e
		if m.ctx != nil && !m.stopped {
			ctx := m.ctx
			m.loops.Go(func() { m.keep(ctx, e) })
		}
	}
	return e
}

func (e *entry) poke() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// reloadRoots makes a changed root file count, and renews the certificates that it does not cover any more.
func (m *Manager) reloadRoots() {
	err := m.cfg.Roots.Reload()
	m.metrics.rootReload(err)
	if err != nil {
		m.cfg.Log.Warn("root file not read, the roots known before stay", "err", err)
	}
	// The control-plane connection reloads the same Roots: what counts is whether they changed since we looked.
	now := m.cfg.Roots.Generation()
	m.mu.Lock()
	defer m.mu.Unlock()
	if now == m.rootsSeen {
		return
	}
	m.rootsSeen = now
	m.cfg.Log.Info("roots of the mesh changed", "count", len(m.cfg.Roots.List()))
	m.updateTrustLocked()
	for _, e := range m.entries {
		e.hurried = 0
		switch {
		case e.cert == nil:
		case m.cfg.Roots.isRevoked(e.cert.Root):
			e.renewAt = m.cfg.Clock.Now()
			e.poke()
		case m.hurryLocked(e):
			e.poke()
		}
	}
}

// maxHurried is how often one change of the roots brings a renewal forward: a CA that goes on signing with another root than
// the first of the file is taken as it is.
const maxHurried = 4

// hurryLocked brings the renewal forward of a certificate whose root signs no longer: once none is left the old root can be
// withdrawn. It reports whether it did.
func (m *Manager) hurryLocked(e *entry) bool {
	if e.hurried >= maxHurried || !m.cfg.Roots.outdated(e.cert.Root) {
		return false
	}
	at := m.cfg.Clock.Now().Add(m.cfg.RenewSettle + time.Duration(m.cfg.Jitter()*float64(m.cfg.RenewSpread)))
	if !at.Before(e.renewAt) {
		return false
	}
	e.hurried++
	e.renewAt = at
	return true
}

// updateTrustLocked makes the pool anew from the file and the certificates held.
func (m *Manager) updateTrustLocked() {
	pool := x509.NewCertPool()
	for _, c := range m.cfg.Roots.List() {
		pool.AddCert(c)
	}
	for _, e := range m.entries {
		if e.cert != nil && !m.cfg.Roots.isRevoked(e.cert.Root) {
			pool.AddCert(e.cert.Root)
		}
	}
	if m.trusted.Load().Equal(pool) {
		return
	}
	m.trusted.Store(pool)
	m.poolChanges.Add(1)
}

// pause waits for d, for a word on wake (nil: none) or for the end of ctx, which it reports as false.
func pause(ctx context.Context, c clock.Clock, d time.Duration, wake <-chan struct{}) bool {
	done := make(chan struct{})
	t := c.AfterFunc(d, func() { close(done) })
	defer t.Stop()
	select {
	case <-done:
	case <-wake:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}
