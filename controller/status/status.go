// Package status writes back to where users look what the mesh makes of their objects: conditions in the form of each kind.
// Only one replica of the controller, the leader, runs it.
//
// Invariants: a status is written again until it is there; a status that is there already costs no request; what is refused
// is told before what is accepted; nothing here holds up the compiler.
package status

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/validate"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// Conditions that are written.
const (
	ConditionAccepted   = "Accepted"
	ConditionEnforced   = "Enforced"
	ConditionProgrammed = "Programmed" // of a Gateway of the Gateway API
)

// Writer stores one status. now is the status of the object as it was seen last, nil when it was not seen. It does nothing
// when the object is gone or says the same already, and reports whether it asked for something to be stored.
type Writer interface {
	Write(ctx context.Context, s validate.Status, now map[string]any) (wrote bool, err error)
}

// Config of a Manager.
type Config struct {
	Writer  Writer        // required
	Log     *slog.Logger  // default slog.DiscardHandler
	Clock   clock.Clock   // default clock.System
	Backoff time.Duration // between attempts after an error; default 2 s
	// Burst statuses are written at once, and after that one each Interval; default 200 and 10 ms.
	Burst    int
	Interval time.Duration
	// Check looks closer at an object before its status is written; nil finds nothing.
	Check func(kind string, object metav1.Object) []validate.Finding
}

func (c Config) withDefaults() Config {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Clock == nil {
		c.Clock = clock.System()
	}
	if c.Backoff <= 0 {
		c.Backoff = 2 * time.Second
	}
	if c.Burst <= 0 {
		c.Burst = 200
	}
	if c.Interval <= 0 {
		c.Interval = 10 * time.Millisecond
	}
	return c
}

// Manager keeps the statuses that ought to be written. All methods are safe for concurrent use.
type Manager struct {
	cfg  Config
	wake chan struct{}

	mu    sync.Mutex // protects below
	want  map[string]validate.Status
	seen  map[string]map[string]any // what objects say
	dirty map[string]bool
	leads bool
}

// New returns a Manager that writes nothing before Run.
func New(cfg Config) *Manager {
	return &Manager{cfg: cfg.withDefaults(), wake: make(chan struct{}, 1), want: map[string]validate.Status{},
		seen: map[string]map[string]any{}, dirty: map[string]bool{}}
}

// Observe takes in what the objects say of themselves now.
func (m *Manager) Observe(events []model.Event) {
	m.mu.Lock()
	for _, e := range events {
		if _, ok := model.ResourceOf(e.Kind); !ok {
			continue
		}
		k := validate.Status{Kind: string(e.Kind), Namespace: e.Name.Namespace, Name: e.Name.Name}.Key()
		if e.Object == nil || e.Status == nil {
			delete(m.seen, k)
		} else {
			m.seen[k] = e.Status
		}
		if _, ok := m.want[k]; ok {
			m.dirty[k] = true // somebody may have written over it
		}
	}
	m.mu.Unlock()
	m.signal()
}

// Update takes in new statuses.
func (m *Manager) Update(statuses []validate.Status) {
	m.mu.Lock()
	for _, s := range statuses {
		k := s.Key()
		if s.Gone && !m.leads {
			delete(m.want, k)
			delete(m.dirty, k)
			continue
		}
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
	m.leads = true
	for k := range m.want {
		m.dirty[k] = true
	}
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		m.leads = false
		m.mu.Unlock()
	}()
	m.signal()
	p := &pace{burst: float64(m.cfg.Burst), interval: m.cfg.Interval, clock: m.cfg.Clock}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.wake:
		}
		if m.write(ctx, p) {
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

// rank orders what is written: what concerns security first.
func rank(key string) int {
	kind, _, _ := strings.Cut(key, " ")
	if r, ok := model.ResourceOf(model.Kind(kind)); ok && r.Group == model.GroupSecurity {
		return 0
	}
	return 1
}

// write reports whether everything was written.
func (m *Manager) write(ctx context.Context, p *pace) bool {
	m.mu.Lock()
	todo := slices.SortedFunc(maps.Keys(m.dirty), func(a, b string) int {
		if r := rank(a) - rank(b); r != 0 {
			return r
		}
		return strings.Compare(a, b)
	})
	clear(m.dirty)
	m.mu.Unlock()
	var first error // of an attempt that failed
	failed := 0
	for i, k := range todo {
		if ctx.Err() != nil || !p.wait(ctx) {
			m.put(todo[i:])
			return true
		}
		wrote, err := m.one(ctx, k)
		if wrote {
			p.take()
		}
		if err != nil {
			failed++
			if first == nil {
				first = err
			}
			m.put([]string{k})
		}
	}
	if first != nil && ctx.Err() == nil {
		m.cfg.Log.Warn("write status", "failed", failed, "err", first)
	}
	return first == nil
}

// put marks keys as to be written.
func (m *Manager) put(keys []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range keys {
		m.dirty[k] = true
	}
}

// one writes one status.
func (m *Manager) one(ctx context.Context, k string) (wrote bool, err error) {
	m.mu.Lock()
	s, ok := m.want[k]
	now := m.seen[k]
	m.mu.Unlock()
	if !ok {
		return false, nil
	}
	if s.Object != nil && m.cfg.Check != nil && !s.Gone {
		s = s.With(m.cfg.Check(s.Kind, s.Object))
	}
	if wrote, err = m.cfg.Writer.Write(ctx, s, now); err != nil {
		return wrote, err
	}
	if s.Gone {
		m.mu.Lock()
		if m.want[k].Gone {
			delete(m.want, k)
		}
		m.mu.Unlock()
	}
	return wrote, nil
}

// pace is a token bucket: burst at once, then one each interval.
type pace struct {
	burst    float64
	interval time.Duration
	clock    clock.Clock

	spent float64 // tokens that were taken and did not come back yet
	at    time.Time
}

func (p *pace) refill() {
	now := p.clock.Now()
	p.spent = max(0, p.spent-float64(now.Sub(p.at))/float64(p.interval))
	p.at = now
}

func (p *pace) take() {
	p.refill()
	p.spent++
}

// wait reports false when ctx ended before there was a token.
func (p *pace) wait(ctx context.Context) bool {
	p.refill()
	over := p.spent - p.burst + 1
	if over <= 0 {
		return true
	}
	return clock.Pause(ctx, p.clock, time.Duration(over*float64(p.interval)))
}
