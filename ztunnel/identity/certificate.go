package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/undermesh/undermesh/controller/api"
)

// Certificate is a verified certificate of a workload of this node with its key. It is immutable.
type Certificate struct {
	Identity api.Identity
	Leaf     *x509.Certificate
	// Intermediates lead from the leaf to Root, in the order of the CA's answer.
	Intermediates []*x509.Certificate
	Root          *x509.Certificate

	tls         tls.Certificate // leaf, intermediates and the key
	fingerprint string
}

// fingerprintOf is the SHA-256 of a certificate as X-Forwarded-Client-Cert has it.
func fingerprintOf(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

// valid reports whether the whole chain is within its validity.
func (c *Certificate) valid(now time.Time) bool {
	return !now.Before(c.Leaf.NotBefore) && now.Before(c.expires())
}

// expires is when the first certificate of the chain ends.
func (c *Certificate) expires() time.Time {
	at := c.Leaf.NotAfter
	for _, i := range append([]*x509.Certificate{c.Root}, c.Intermediates...) {
		if i.NotAfter.Before(at) {
			at = i.NotAfter
		}
	}
	return at
}

var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

// newRequest makes a key and a request for id: no subject, one critical URI name.
func newRequest(id api.Identity) (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("generate key for %s: %w", id, err)
	}
	names, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(id.String())}})
	if err != nil {
		return nil, nil, fmt.Errorf("encode name %s: %w", id, err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		ExtraExtensions: []pkix.Extension{{Id: oidSubjectAltName, Critical: true, Value: names}},
	}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("create certificate request for %s: %w", id, err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), nil
}

// parsePEM reads every certificate of data. It refuses data without any, blocks of another type and text behind the last.
func parsePEM(data []byte) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for rest := data; len(bytes.TrimSpace(rest)) > 0; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return nil, errors.New("parse certificates: not PEM")
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("parse certificates: unexpected PEM block %q", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parse certificate %d: %w", len(all), err)
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil, errors.New("parse certificates: there is none")
	}
	return all, nil
}

// newCertificate checks the CA's answer: the leaf has our key and names id and nothing else, and leads to the last
// certificate of the answer, a root that is not distrusted, at the time now.
func newCertificate(id api.Identity, key crypto.Signer, answer []string, now time.Time, distrusted func(*x509.Certificate) bool) (*Certificate, error) {
	var chain []*x509.Certificate
	for _, text := range answer {
		part, err := parsePEM([]byte(text))
		if err != nil {
			return nil, fmt.Errorf("read the CA's answer for %s: %w", id, err)
		}
		chain = append(chain, part...)
	}
	if len(chain) < 2 {
		return nil, fmt.Errorf("read the CA's answer for %s: %d certificates, want a leaf and its root at least", id, len(chain))
	}
	c := &Certificate{Identity: id, Leaf: chain[0], Intermediates: chain[1 : len(chain)-1], Root: chain[len(chain)-1]}
	public, ok := c.Leaf.PublicKey.(*ecdsa.PublicKey)
	if !ok || !public.Equal(key.Public()) {
		return nil, fmt.Errorf("check certificate of %s: it is for another key", id)
	}
	if got, err := leafIdentity(c.Leaf); err != nil {
		return nil, fmt.Errorf("check certificate of %s: %w", id, err)
	} else if got != id {
		return nil, fmt.Errorf("check certificate of %s: it names %s", id, got)
	}
	if !selfSigned(c.Root) {
		return nil, fmt.Errorf("check certificate of %s: the last of the chain is not a root", id)
	}
	if distrusted(c.Root) {
		return nil, fmt.Errorf("check certificate of %s: its root was taken out of the root file", id)
	}
	roots := x509.NewCertPool()
	roots.AddCert(c.Root)
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if _, err := verifyChain(c.Leaf, c.Intermediates, roots, now, usage); err != nil {
			return nil, fmt.Errorf("check certificate of %s: %w", id, err)
		}
	}
	c.tls, c.fingerprint = tls.Certificate{PrivateKey: key, Leaf: c.Leaf}, fingerprintOf(c.Leaf)
	sent := chain
	if len(c.Intermediates) == 0 {
		sent = chain[:1] // peers have the root; with intermediates the documents show it all the same (MT-18)
	}
	for _, part := range sent {
		c.tls.Certificate = append(c.tls.Certificate, part.Raw)
	}
	return c, nil
}

func selfSigned(c *x509.Certificate) bool {
	return c.IsCA && bytes.Equal(c.RawIssuer, c.RawSubject) && c.CheckSignatureFrom(c) == nil
}

// leafIdentity returns the workload that a leaf names. It must have exactly one URI (SPIFFE X.509-SVID, 2) and must not
// be a CA. Returns ErrPeerName otherwise.
func leafIdentity(leaf *x509.Certificate) (api.Identity, error) {
	if leaf.IsCA {
		return api.Identity{}, fmt.Errorf("%w: it is a CA's", ErrPeerName)
	}
	if len(leaf.URIs) != 1 {
		return api.Identity{}, fmt.Errorf("%w: %d URIs, want 1", ErrPeerName, len(leaf.URIs))
	}
	id, err := api.ParseIdentity(leaf.URIs[0].String())
	if err != nil {
		return api.Identity{}, fmt.Errorf("%w: %w", ErrPeerName, err)
	}
	return id, nil
}

// verifyChain returns until when a chain holds: the end of its first certificate, of the chain that lasts longest. The errors
// are ErrPeerExpired and ErrPeerUntrusted, with the cause.
func verifyChain(leaf *x509.Certificate, intermediates []*x509.Certificate, roots *x509.CertPool, now time.Time, usage x509.ExtKeyUsage) (time.Time, error) {
	pool := x509.NewCertPool()
	for _, c := range intermediates {
		pool.AddCert(c)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage},
	})
	if err == nil {
		var until time.Time
		for _, chain := range chains {
			end := leaf.NotAfter
			for _, c := range chain {
				if c.NotAfter.Before(end) {
					end = c.NotAfter
				}
			}
			if end.After(until) {
				until = end
			}
		}
		return until, nil
	}
	if invalid := (x509.CertificateInvalidError{}); errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		return time.Time{}, fmt.Errorf("%w: %w", ErrPeerExpired, err)
	}
	return time.Time{}, fmt.Errorf("%w: %w", ErrPeerUntrusted, err)
}
