// Package credential holds, for the pods of this node, the Secrets by which their DestinationRules have the mesh speak TLS
// (tls.credentialName), as the controller gives them.
//
// Invariants: a credential is asked for when a connection needs it, and forgotten when none did for a while; it is in memory alone;
// what the controller takes back cannot be used from then on, and what it gave last counts while it is away.
package credential

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/undermesh/undermesh/controller/api/credential"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// Config of a Manager. Open and Clock are required.
type Config struct {
	// Open begins a call to the controller, which ends with ctx.
	Open  func(ctx context.Context) (credential.ClientStream, error)
	Clock clock.Clock
	Log   *slog.Logger  // default: discard
	Idle  time.Duration // a credential that nobody used so long is forgotten; default 30 min
	Retry time.Duration // before another call; doubled up to 16 times as long. Default 250 ms
	Most  int           // credentials at once; default 2048
}

// Credential is what TLS needs. It never changes; another one takes its place.
type Credential struct {
	*credential.Material
	old atomic.Bool
}

// Superseded reports that the controller has given another one since, or taken it back: what goes on with it should not be used for
// anything new. It is false for nil.
func (c *Credential) Superseded() bool { return c != nil && c.old.Load() }

// Manager is safe for concurrent use.
type Manager struct {
	cfg  Config
	wake chan struct{} // capacity 1: there is something to ask for, or to drop

	mu      sync.Mutex // protects below
	entries map[credential.Ref]*entry
	dropped []credential.Ref
}

type entry struct {
	used    time.Time
	asked   bool          // by the call that goes on
	known   chan struct{} // closed with the first answer
	now     *Credential   // nil: there is none that is good
	problem string
}

// New returns a Manager that asks for nothing yet.
func New(cfg Config) (*Manager, error) {
	if cfg.Open == nil || cfg.Clock == nil {
		return nil, errors.New("check credential config: Open or Clock: missing")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Idle <= 0 {
		cfg.Idle = 30 * time.Minute
	}
	if cfg.Retry <= 0 {
		cfg.Retry = 250 * time.Millisecond
	}
	if cfg.Most <= 0 {
		cfg.Most = 2048
	}
	return &Manager{cfg: cfg, wake: make(chan struct{}, 1), entries: map[credential.Ref]*entry{}}, nil
}

// Get returns the credential, waiting for the controller's first word on it until ctx ends. Returns an error that names the Secret when
// it cannot be used.
func (m *Manager) Get(ctx context.Context, ref credential.Ref) (*Credential, error) {
	m.mu.Lock()
	e := m.entries[ref]
	if e == nil {
		if len(m.entries) >= m.cfg.Most {
			m.mu.Unlock()
			return nil, fmt.Errorf("use Secret %s/%s: the node has %d credentials already", ref.Namespace, ref.Name, m.cfg.Most)
		}
		e = &entry{known: make(chan struct{})}
		m.entries[ref] = e
		m.poke()
	}
	e.used = m.cfg.Clock.Now()
	m.mu.Unlock()
	select {
	case <-e.known:
	case <-ctx.Done():
		return nil, fmt.Errorf("use Secret %s/%s: the controller has not given it: %w", ref.Namespace, ref.Name, context.Cause(ctx))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.now == nil {
		return nil, fmt.Errorf("use Secret %s/%s: %s", ref.Namespace, ref.Name, e.problem)
	}
	return e.now, nil
}

// Run follows the controller until ctx ends. It calls nobody as long as no credential is needed.
func (m *Manager) Run(ctx context.Context) error {
	delay := m.cfg.Retry
	for {
		if !m.awaitWork(ctx) {
			return nil
		}
		heard, err := m.call(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if heard {
			delay = m.cfg.Retry
		}
		if err != nil {
			m.cfg.Log.Warn("call for credentials ended", "err", err, "retry_in", delay)
			if !clock.Pause(ctx, m.cfg.Clock, delay) {
				return nil
			}
			delay = min(2*delay, 16*m.cfg.Retry)
		}
	}
}

// awaitWork waits until a credential is needed; false when ctx ended.
func (m *Manager) awaitWork(ctx context.Context) bool {
	for {
		m.mu.Lock()
		n := len(m.entries)
		m.mu.Unlock()
		if n > 0 {
			return ctx.Err() == nil
		}
		select {
		case <-m.wake:
		case <-ctx.Done():
			return false
		}
	}
}

// call follows the controller for one call; it ends without an error when no credential is needed any more.
func (m *Manager) call(ctx context.Context) (heard bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := m.cfg.Open(ctx)
	if err != nil {
		return false, m.unserved(err)
	}
	m.mu.Lock()
	m.dropped = nil
	for _, e := range m.entries {
		e.asked = false
	}
	m.mu.Unlock()
	answers, failed := make(chan *settings.Credential), make(chan error, 1)
	var reader sync.WaitGroup
	defer reader.Wait()
	defer cancel()
	reader.Go(func() {
		for {
			c, err := s.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case answers <- c:
			case <-ctx.Done():
				return
			}
		}
	})
	idle := make(chan struct{}, 1)
	timer := m.cfg.Clock.AfterFunc(m.cfg.Idle/4, func() { poke(idle) })
	defer func() { timer.Stop() }()
	for {
		for _, req := range m.requests() {
			if err := s.Send(req); err != nil {
				break // Recv has the reason
			}
		}
		select {
		case c := <-answers:
			heard = true
			m.take(c)
		case err := <-failed:
			return heard, m.unserved(err)
		case <-m.wake:
		case <-idle:
			if m.forget() {
				return heard, nil
			}
			timer = m.cfg.Clock.AfterFunc(m.cfg.Idle/4, func() { poke(idle) })
		case <-ctx.Done():
			return heard, ctx.Err()
		}
	}
}

// unserved tells those who wait that a controller of another kind gives no credentials.
func (m *Manager) unserved(err error) error {
	if status.Code(err) != codes.Unimplemented {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.entries {
		e.set(nil, "the controller gives no credentials")
	}
	return err
}

// requests is what the call that goes on is still to be told.
func (m *Manager) requests() []*settings.CredentialRequest {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*settings.CredentialRequest
	for _, ref := range m.dropped {
		out = append(out, &settings.CredentialRequest{Ref: ref.Message(), Drop: true})
	}
	m.dropped = nil
	for ref, e := range m.entries {
		if !e.asked {
			e.asked = true
			out = append(out, &settings.CredentialRequest{Ref: ref.Message()})
		}
	}
	return out
}

// take takes in what the controller says of a credential.
func (m *Manager) take(c *settings.Credential) {
	ref, err := credential.Parse(c.GetRef())
	if err != nil {
		m.cfg.Log.Warn("controller speaks of a credential that is none", "err", err)
		return
	}
	problem := c.GetProblem()
	material, err := credential.Build(c)
	if err != nil {
		problem = err.Error()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.entries[ref]
	if e == nil {
		return // it was dropped meanwhile
	}
	if err != nil {
		m.cfg.Log.Warn("credential cannot be used", "secret", ref.String(), "err", problem)
		e.set(nil, problem)
		return
	}
	m.cfg.Log.Info("credential", "secret", ref.String())
	e.set(&Credential{Material: material}, "")
}

// set is called with Manager.mu held.
func (e *entry) set(now *Credential, problem string) {
	if e.now != nil {
		e.now.old.Store(true)
	}
	e.now, e.problem = now, problem
	select {
	case <-e.known:
	default:
		close(e.known)
	}
}

// forget drops what nobody used, and reports whether nothing is left.
func (m *Manager) forget() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.cfg.Clock.Now()
	for ref, e := range m.entries {
		if now.Sub(e.used) < m.cfg.Idle {
			continue
		}
		e.set(nil, "it was not used for long")
		delete(m.entries, ref)
		m.dropped = append(m.dropped, ref)
	}
	return len(m.entries) == 0
}

func (m *Manager) poke() { poke(m.wake) }

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
