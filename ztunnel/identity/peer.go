package identity

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/undermesh/undermesh/controller/api"
)

// Peer is the client of a finished handshake of ServerTLS. What it proved holds until its chain expires, and as long as roots
// and trust domains stay as they are. Safe for concurrent use.
type Peer struct {
	// ID is who it proved to be.
	ID api.Identity
	// Fingerprint is the SHA-256 of its certificate in hexadecimal digits.
	Fingerprint string

	m     *Manager
	state tls.ConnectionState

	mu         sync.Mutex // protects below
	generation uint64     // of the trust that the rest was found with
	expires    time.Time
	err        error
}

// Peer returns the client of a finished handshake of ServerTLS, with the errors of such a handshake.
func (m *Manager) Peer(s tls.ConnectionState) (*Peer, error) {
	id, err := PeerIdentity(s)
	if err != nil {
		return nil, err
	}
	p := &Peer{ID: id, Fingerprint: fingerprintOf(s.PeerCertificates[0]), m: m, state: s, generation: m.trustGeneration()}
	if p.expires, err = m.verifyClient(s); err != nil {
		return nil, err
	}
	return p, nil
}

// Expires is when the first certificate of the peer's chain ends.
func (p *Peer) Expires() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.expires
}

// Check reports whether the peer would be accepted now. It verifies the chain again only after roots or trust domains have
// changed. Returns ErrPeerExpired, ErrPeerUntrusted or ErrPeerTrustDomain.
func (p *Peer) Check() error {
	now := p.m.trustGeneration()
	p.mu.Lock()
	defer p.mu.Unlock()
	if now != p.generation {
		expires, err := p.m.verifyClient(p.state)
		if p.generation, p.err = now, err; err == nil {
			p.expires = expires
		}
	}
	if p.err != nil {
		return p.err
	}
	if !p.m.cfg.Clock.Now().Before(p.expires) {
		return fmt.Errorf("%w since %s", ErrPeerExpired, p.expires.Format(time.RFC3339))
	}
	return nil
}

// verifyClient is the check of a client of the mesh. It returns when the chain expires.
func (m *Manager) verifyClient(s tls.ConnectionState) (time.Time, error) {
	return m.verifyPeer(s, x509.ExtKeyUsageClientAuth, func(peer api.Identity) error {
		if m.cfg.Trust().accepts(peer.TrustDomain) {
			return nil
		}
		return fmt.Errorf("%w: %s", ErrPeerTrustDomain, peer)
	})
}

// trustGeneration changes with the roots and with the trust domains.
func (m *Manager) trustGeneration() uint64 {
	now := m.cfg.Trust()
	m.trustMu.Lock()
	defer m.trustMu.Unlock()
	if now.Domain != m.trust.Domain || !slices.Equal(now.Aliases, m.trust.Aliases) {
		m.trust = Trust{Domain: now.Domain, Aliases: slices.Clone(now.Aliases)}
		m.trustChanges++
	}
	return m.trustChanges + m.poolChanges.Load()
}
