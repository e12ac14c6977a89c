package identity

import (
	"crypto/x509"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/undermesh/undermesh/ztunnel/clock"
)

// shiftedClock is ahead of the machine's.
type shiftedClock struct {
	clock.Clock
	by atomic.Int64
}

func (c *shiftedClock) Now() time.Time { return c.Clock.Now().Add(time.Duration(c.by.Load())) }

func TestPeerIsCheckedAgain(t *testing.T) {
	ca, next := newFakeCA(t, "one"), newFakeCA(t, "two")
	issuer := &switchIssuer{to: ca}
	file := bundle(ca)
	ahead := &shiftedClock{Clock: clock.System()}
	var domain atomic.Pointer[Trust]
	domain.Store(&Trust{Domain: "cluster.local"})
	m, _ := start(t, issuer, file, func(c *Config) {
		c.Clock, c.Trust = ahead, func() Trust { return *domain.Load() }
	})
	end := time.Now().Add(time.Hour).Truncate(time.Second)
	ca.alter = func(c *x509.Certificate) { c.NotAfter = end }
	leaf := leafFor(t, ca, alice.String())
	ca.alter = nil
	o := handshake(t, rawClient(leaf), m.ServerTLS(bob))
	if o.server != nil {
		t.Fatal(o.server)
	}
	p, err := m.Peer(o.srvState)
	must(t, err)
	if !p.Expires().Equal(end) || p.ID != alice {
		t.Errorf("%s until %s, want alice until %s", p.ID, p.Expires(), end)
	}
	must(t, p.Check())

	domain.Store(&Trust{Domain: "other.local"})
	if err := p.Check(); !errors.Is(err, ErrPeerTrustDomain) {
		t.Errorf("of a domain that is foreign now: %v", err)
	}
	domain.Store(&Trust{Domain: "other.local", Aliases: []string{"cluster.local"}})
	must(t, p.Check())

	ahead.by.Store(int64(2 * time.Hour))
	if err := p.Check(); !errors.Is(err, ErrPeerExpired) {
		t.Errorf("expired: %v", err)
	}
	if _, err := m.Peer(o.srvState); !errors.Is(err, ErrPeerExpired) {
		t.Errorf("a new Peer of an expired certificate: %v", err)
	}
	ahead.by.Store(0)
	must(t, p.Check())

	before := m.trustGeneration()
	m.mu.Lock()
	m.updateTrustLocked()
	m.mu.Unlock()
	if m.trustGeneration() != before {
		t.Error("the same roots count as changed")
	}
	issuer.set(next)
	file.set(next.pem())
	m.reloadRoots()
	if err := p.Check(); !errors.Is(err, ErrPeerUntrusted) {
		t.Errorf("of a root that is distrusted now: %v", err)
	}
}
