package identity

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/undermesh/undermesh/ztunnel/clock"
)

const defaultTTL = 24 * time.Hour

// loudEvery is how many failures in a row of one identity make one warning, beside the first.
const loudEvery = 12

// keep fetches for one entry, again at half life and after failures, until the entry is unused or ctx ends. A failed renewal
// keeps the certificate held, which stays in use until it expires.
func (m *Manager) keep(ctx context.Context, e *entry) {
	failures := 0
	for {
		wait, want := m.due(e)
		if !want {
			return
		}
		if wait > 0 {
			if !pause(ctx, m.cfg.Clock, wait, e.wake) {
				return
			}
			continue
		}
		err := m.renew(ctx, e)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			failures = 0
			continue
		}
		failures++
		delay := m.backoff(failures)
		level := slog.LevelDebug
		if failures == 1 || failures%loudEvery == 0 { // an outage of the CA concerns every identity of the node
			level = slog.LevelWarn
		}
		m.cfg.Log.Log(ctx, level, "certificate not issued, will ask again", "identity", e.id.String(), "err", err, "attempt", failures, "dur", delay)
		if !pause(ctx, m.cfg.Clock, delay, nil) {
			return
		}
	}
}

// due tells how long the entry needs nothing; want is false when it was dropped for disuse.
func (m *Manager) due(e *entry) (wait time.Duration, want bool) {
	now := m.cfg.Clock.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	unused := e.used.Add(m.cfg.Linger).Sub(now)
	if e.holds == 0 && unused <= 0 {
		delete(m.entries, e.id)
		close(e.changed) // a caller that still waits looks it up again and so makes it anew
		e.changed = make(chan struct{})
		m.updateTrustLocked()
		m.cfg.Log.Info("identity dropped, nobody uses it", "identity", e.id.String())
		return 0, false
	}
	if e.cert == nil {
		return 0, true
	}
	wait = e.renewAt.Sub(now)
	if e.holds == 0 {
		wait = min(wait, unused)
	}
	return max(wait, 0), true
}

// renew makes a new key and asks the CA for its certificate.
func (m *Manager) renew(ctx context.Context, e *entry) error {
	if err := m.slots.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("wait for a turn: %w", err)
	}
	defer m.slots.Release(1)
	start := m.cfg.Clock.Now()
	cert, err := m.issue(ctx, e)
	now := m.cfg.Clock.Now()
	m.metrics.issued(now.Sub(start), err)

	m.mu.Lock()
	defer m.mu.Unlock()
	e.err = err
	if err == nil {
		e.cert = cert
		// Half of what is left, 5 % to either side: the node's certificates do not come due together.
		life := cert.expires().Sub(now)
		e.renewAt = now.Add(max(time.Duration(float64(life)*(0.45+0.1*m.cfg.Jitter())), time.Second))
		m.hurryLocked(e)
		m.updateTrustLocked()
		m.cfg.Log.Info("certificate issued", "identity", e.id.String(), "serial", cert.Leaf.SerialNumber.Text(16),
			"expires", cert.expires(), "renew", e.renewAt)
	}
	close(e.changed)
	e.changed = make(chan struct{})
	return err
}

func (m *Manager) issue(ctx context.Context, e *entry) (*Certificate, error) {
	key, csr, err := newRequest(e.id)
	if err != nil {
		return nil, err
	}
	var ttl time.Duration
	if m.cfg.TTL != nil {
		ttl = m.cfg.TTL()
	}
	if ttl <= 0 {
		ttl = defaultTTL
	}
	ctx, cancel := clock.WithTimeout(ctx, m.cfg.Clock, m.cfg.IssueLimit, fmt.Errorf("no answer within %s", m.cfg.IssueLimit))
	defer cancel()
	answer, err := m.cfg.Issuer.Issue(ctx, Request{Identity: e.id, CSR: csr, TTL: ttl})
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return nil, fmt.Errorf("ask the CA for %s: %w", e.id, err)
	}
	return newCertificate(e.id, key, answer, m.cfg.Clock.Now(), m.cfg.Roots.isRevoked)
}

// backoff doubles from BackoffMin to BackoffMax, and takes up to a fifth off so that nodes do not ask in step.
func (m *Manager) backoff(failures int) time.Duration {
	d := m.cfg.BackoffMin
	for i := 1; i < failures && d < m.cfg.BackoffMax; i++ {
		d *= 2
	}
	return time.Duration(float64(min(d, m.cfg.BackoffMax)) * (1 - 0.2*m.cfg.Jitter()))
}
