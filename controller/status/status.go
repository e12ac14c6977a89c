// Package status writes what the compiler found about policies back to where users look: the conditions Accepted and
// Enforced of AuthorizationPolicy and PeerAuthentication. Only one replica of the controller, the leader, runs it.
//
// Invariants: a status is written again until it is there; a status that is there already is not written; nothing here
// holds up the compiler.
package status

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/undermesh/undermesh/controller/validate"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// Conditions that are written.
const (
	ConditionAccepted = "Accepted"
	ConditionEnforced = "Enforced"
)

// writer stores one status; it does nothing when the object is gone or says the same already.
type writer interface {
	Write(ctx context.Context, s validate.Status) error
}

// Config of a Manager.
type Config struct {
	Writer  writer        // required
	Log     *slog.Logger  // default slog.DiscardHandler
	Clock   clock.Clock   // default clock.System
	Backoff time.Duration // between attempts after an error; default 2 s
}

// Manager keeps the statuses that ought to be written. All methods are safe for concurrent use.
type Manager struct {
	cfg  Config
	wake chan struct{}

	mu    sync.Mutex // protects below
	want  map[string]validate.Status
	dirty map[string]bool
}

// New returns a Manager that writes nothing before Run.
func New(cfg Config) *Manager {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Clock == nil {
		cfg.Clock = clock.System()
	}
	if cfg.Backoff <= 0 {
		cfg.Backoff = 2 * time.Second
	}
	return &Manager{cfg: cfg, wake: make(chan struct{}, 1), want: map[string]validate.Status{}, dirty: map[string]bool{}}
}

// Update takes in new statuses.
func (m *Manager) Update(statuses []validate.Status) {
	m.mu.Lock()
	for _, s := range statuses {
		k := s.Key()
		m.dirty[k] = true
		m.want[k] = s
	}
	m.mu.Unlock()
	m.signal()
}

func (m *Manager) signal() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// Run writes until ctx ends. It begins with everything: the leader before may have written something else.
func (m *Manager) Run(ctx context.Context) error {
	m.mu.Lock()
	for k, s := range m.want {
		if s.Gone {
			delete(m.want, k)
			delete(m.dirty, k)
			continue
		}
		m.dirty[k] = true
	}
	m.mu.Unlock()
	m.signal()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.wake:
		}
		if m.write(ctx) {
			continue
		}
		timer := m.cfg.Clock.AfterFunc(m.cfg.Backoff, m.signal)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-m.wake:
			timer.Stop()
		}
		m.signal()
	}
}

// write reports whether everything was written.
func (m *Manager) write(ctx context.Context) bool {
	m.mu.Lock()
	todo := slices.Collect(maps.Keys(m.dirty))
	clear(m.dirty)
	m.mu.Unlock()
	good := true
	for _, k := range todo {
		m.mu.Lock()
		s := m.want[k]
		if s.Gone {
			delete(m.want, k)
		}
		m.mu.Unlock()
		err := m.cfg.Writer.Write(ctx, s)
		if err == nil {
			continue
		}
		if ctx.Err() == nil {
			m.cfg.Log.Warn("write policy status", "kind", s.Kind, "policy", s.Namespace+"/"+s.Name, "err", err)
		}
		good = false
		m.mu.Lock()
		if _, still := m.want[k]; !still && s.Gone {
			m.want[k] = s
		}
		m.dirty[k] = true
		m.mu.Unlock()
	}
	return good
}

// condition is one condition as both writers store it.
type condition struct {
	name, status, reason, message string
}

func conditionsOf(s validate.Status) []condition {
	word := func(b bool) string {
		if b {
			return "True"
		}
		return "False"
	}
	return []condition{
		{ConditionAccepted, word(s.Accepted), s.AcceptedBy, s.Message},
		{ConditionEnforced, word(s.Enforced), s.EnforcedBy, s.Message},
	}
}
