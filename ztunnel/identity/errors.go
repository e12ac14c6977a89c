package identity

import (
	"errors"

	"github.com/undermesh/undermesh/controller/api/reason"
)

// Causes of refusal; test with errors.Is.
var (
	// ErrNoIdentity: no valid certificate of our own workload within the time limit. It wraps the CA's last answer.
	ErrNoIdentity = errors.New("no certificate for the workload")
	// ErrNoPeerCertificate: the peer sent none.
	ErrNoPeerCertificate = errors.New("peer sent no certificate")
	// ErrPeerExpired: a certificate of the peer's chain is expired or not valid yet.
	ErrPeerExpired = errors.New("peer certificate is outside its validity")
	// ErrPeerUntrusted: the peer's chain does not end in a root of the mesh.
	ErrPeerUntrusted = errors.New("peer certificate is not signed by a root of the mesh")
	// ErrPeerName: the peer's leaf does not carry exactly one SPIFFE URI of a workload.
	ErrPeerName = errors.New("peer certificate names no workload identity")
	// ErrPeerUnexpected: the peer is a workload, but not one that the connection is for.
	ErrPeerUnexpected = errors.New("peer has another identity than expected")
	// ErrPeerTrustDomain: the peer is a workload of a trust domain that the mesh does not accept.
	ErrPeerTrustDomain = errors.New("peer is of a foreign trust domain")
	// ErrPeerProtocol: the peer did not agree to h2 over TLS 1.3.
	ErrPeerProtocol = errors.New("peer did not negotiate h2 over TLS 1.3")
)

// noPeerCertificate is what crypto/tls says when a client sends no certificate; it has no sentinel for it.
const noPeerCertificate = "tls: client didn't provide a certificate"

// causes are the values of the metric label; the first match counts.
var causes = []struct {
	err  error
	name string
	why  reason.Reason
}{
	{ErrNoIdentity, "no_identity", reason.NoIdentity},
	{ErrNoPeerCertificate, "no_certificate", reason.TLSHandshake},
	{ErrPeerExpired, "expired", reason.TLSHandshake},
	{ErrPeerUntrusted, "untrusted_root", reason.TLSHandshake},
	{ErrPeerName, "no_spiffe_name", reason.PeerIdentity},
	{ErrPeerUnexpected, "unexpected_identity", reason.PeerIdentity},
	{ErrPeerTrustDomain, "foreign_trust_domain", reason.PeerIdentity},
	{ErrPeerProtocol, "protocol", reason.TLSHandshake},
}

// ReasonOf maps the error of a handshake, or of Certificate, to the registry: NoIdentity, PeerIdentity, and TLSHandshake
// for everything else.
func ReasonOf(err error) reason.Reason {
	for _, c := range causes {
		if errors.Is(err, c.err) {
			return c.why
		}
	}
	return reason.TLSHandshake
}

// Cause is the short name of why err refused a peer, for metrics and logs: "expired", "untrusted_root",
// "unexpected_identity", "no_certificate", …; "other" when the handshake broke for another cause.
func Cause(err error) string {
	for _, c := range causes {
		if errors.Is(err, c.err) {
			return c.name
		}
	}
	if err != nil && err.Error() == noPeerCertificate {
		return "no_certificate"
	}
	return "other"
}
