package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/undermesh/undermesh/controller/api"
)

const protocolH2 = "h2"

// ClientTLS returns the configuration for one connection from src to a proxy that must prove one of want. It waits for src's
// certificate as Certificate does, with the same errors. It sends no server name: the peer is its SPIFFE identity, whatever
// its address. A handshake fails with ErrPeerExpired, ErrPeerUntrusted, ErrPeerName, ErrPeerUnexpected or ErrPeerProtocol.
//
// The suite is AES-GCM wherever both sides have AES instructions (crypto/tls chooses; TLS 1.3 has no weak ones).
func (m *Manager) ClientTLS(ctx context.Context, src api.Identity, want []api.Identity) (*tls.Config, error) {
	want = slices.Clone(want)
	if len(want) == 0 || slices.ContainsFunc(want, api.Identity.IsZero) {
		return nil, fmt.Errorf("%w: no identity is expected of the peer", ErrPeerUnexpected)
	}
	cert, err := m.Certificate(ctx, src)
	if err != nil {
		return nil, err
	}
	cfg := m.baseTLS()
	// crypto/tls verifies by DNS name or not at all; verifyPeer does what it leaves out, for every handshake.
	cfg.InsecureSkipVerify = true
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert.tls, nil }
	cfg.VerifyConnection = func(s tls.ConnectionState) error {
		_, err := m.verifyPeer(s, x509.ExtKeyUsageServerAuth, func(peer api.Identity) error {
			if m.isOneOf(peer, want) {
				return nil
			}
			return fmt.Errorf("%w: it is %s, expected %s", ErrPeerUnexpected, peer, join(want))
		})
		return m.checked("client", src, err)
	}
	return cfg, nil
}

// isOneOf reports whether a server may be who is expected. While a mesh changes its trust domain its nodes do not learn at one
// moment: a name of an accepted trust domain counts as that of another one (MT-23).
func (m *Manager) isOneOf(peer api.Identity, want []api.Identity) bool {
	t := m.cfg.Trust()
	return slices.ContainsFunc(want, func(id api.Identity) bool {
		if id == peer {
			return true
		}
		same := peer.Namespace == id.Namespace && peer.ServiceAccount == id.ServiceAccount
		return same && t.accepts(peer.TrustDomain) && t.accepts(id.TrustDomain)
	})
}

// ServerTLS returns the configuration with which dst's tunnel port is served: mutual, the certificate of dst looked up for each
// handshake. A handshake fails with ErrNoIdentity (ours), ErrPeerExpired, ErrPeerUntrusted, ErrPeerName,
// ErrPeerTrustDomain, ErrPeerProtocol, or with the error of crypto/tls when the client sends no certificate.
func (m *Manager) ServerTLS(dst api.Identity) *tls.Config {
	cfg := m.baseTLS()
	// The chain is verified by verifyPeer, against the roots of the moment; here only that there is one.
	cfg.ClientAuth = tls.RequireAnyClientCert
	cfg.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		cert, err := m.Certificate(hello.Context(), dst)
		if err != nil {
			return nil, err
		}
		return &cert.tls, nil
	}
	cfg.VerifyConnection = func(s tls.ConnectionState) error {
		_, err := m.verifyClient(s)
		return m.checked("server", dst, err)
	}
	return cfg
}

func (m *Manager) baseTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, MaxVersion: tls.VersionTLS13, NextProtos: []string{protocolH2},
		SessionTicketsDisabled: true, DynamicRecordSizingDisabled: true, Time: m.cfg.Clock.Now,
	}
}

// verifyPeer is the whole check of a peer; expected judges the identity that was proved. It returns when the chain expires.
func (m *Manager) verifyPeer(s tls.ConnectionState, usage x509.ExtKeyUsage, expected func(api.Identity) error) (time.Time, error) {
	var expires time.Time
	if s.Version != tls.VersionTLS13 || s.NegotiatedProtocol != protocolH2 {
		return expires, fmt.Errorf("%w: version %s, protocol %q", ErrPeerProtocol, tls.VersionName(s.Version), s.NegotiatedProtocol)
	}
	if s.DidResume {
		return expires, errors.New("a session was resumed although tickets are off")
	}
	if len(s.PeerCertificates) == 0 {
		return expires, ErrNoPeerCertificate
	}
	leaf := s.PeerCertificates[0]
	expires, err := verifyChain(leaf, s.PeerCertificates[1:], m.trusted.Load(), m.cfg.Clock.Now(), usage)
	if err != nil {
		return expires, fmt.Errorf("%w (it names %s)", err, claim(leaf))
	}
	peer, err := leafIdentity(leaf)
	if err != nil {
		return expires, err
	}
	return expires, expected(peer)
}

// checked counts and passes on the outcome of a check.
func (m *Manager) checked(side string, own api.Identity, err error) error {
	m.metrics.handshake(side, err)
	if err != nil {
		m.cfg.Log.Debug("peer refused", "side", side, "identity", own.String(), "cause", Cause(err), "err", err)
	}
	return err
}

// PeerIdentity returns who the peer of a finished handshake of ClientTLS or ServerTLS proved to be.
func PeerIdentity(s tls.ConnectionState) (api.Identity, error) {
	if !s.HandshakeComplete {
		return api.Identity{}, errors.New("read peer identity: the handshake is not complete")
	}
	if len(s.PeerCertificates) == 0 {
		return api.Identity{}, ErrNoPeerCertificate
	}
	return leafIdentity(s.PeerCertificates[0])
}

// claim is what an unverified certificate says about itself, quoted for logs.
func claim(leaf *x509.Certificate) string {
	if len(leaf.URIs) == 0 {
		return fmt.Sprintf("%.200q", leaf.Subject.String())
	}
	return fmt.Sprintf("%.200q", leaf.URIs[0].String())
}

func join(ids []api.Identity) string {
	var parts []string
	for _, id := range ids {
		parts = append(parts, id.String())
	}
	return strings.Join(parts, " or ")
}
