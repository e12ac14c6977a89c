package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"net"
	"sync"
	"time"
)

// issuer is a signing certificate with its key and what is sent behind a leaf. It is immutable.
type issuer struct {
	cert  *x509.Certificate
	key   crypto.Signer
	chain []*x509.Certificate // from cert to the root, both included
	roots []byte              // PEM: what peers trust

	files   map[string][]byte // what it was made from
	plugged bool              // an operator's
}

// root is where its chains end.
func (iss *issuer) root() *x509.Certificate { return iss.chain[len(iss.chain)-1] }

// madeFrom reports whether it is what files say.
func (iss *issuer) madeFrom(files map[string][]byte) bool {
	return iss != nil && maps.EqualFunc(iss.files, files, bytes.Equal)
}

func selfSigned(organization string, now time.Time) (map[string][]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{Organization: []string{organization}},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(rootLifetime),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key: %w", err)
	}
	return map[string][]byte{
		FileCACert: encodeCert(der),
		FileCAKey:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}),
	}, nil
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// encodeCerts is nil for none.
func encodeCerts(certs []*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, encodeCert(c.Raw)...)
	}
	return out
}

func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

// sign issues a leaf; it never outlives the signing certificate.
func (iss *issuer) sign(tmpl *x509.Certificate, public crypto.PublicKey, now time.Time, ttl time.Duration) (*x509.Certificate, error) {
	var err error
	if tmpl.SerialNumber, err = newSerial(); err != nil {
		return nil, err
	}
	tmpl.NotBefore, tmpl.NotAfter = now.Add(-backdate), now.Add(ttl)
	if tmpl.NotAfter.After(iss.cert.NotAfter) {
		tmpl.NotAfter = iss.cert.NotAfter
	}
	if !tmpl.NotAfter.After(now) {
		return nil, fmt.Errorf("sign certificate: the signing certificate expired at %s", iss.cert.NotAfter)
	}
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	tmpl.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, tmpl, iss.cert, public, iss.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

// ServingCertificate returns a tls.Config.GetCertificate for the controller's own listeners. names are DNS names or
// addresses. The certificate is made when first needed and again at half of its life.
func (a *Authority) ServingCertificate(names []string) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	var mu sync.Mutex
	var current *tls.Certificate
	var renew time.Time
	var from *issuer
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		iss, err := a.current()
		if err != nil {
			return nil, err
		}
		mu.Lock()
		defer mu.Unlock()
		now := a.cfg.Clock.Now()
		if current != nil && from == iss && now.Before(renew) {
			return current, nil
		}
		next, err := iss.serving(names, now)
		if err != nil {
			return nil, fmt.Errorf("make serving certificate: %w", err)
		}
		current, from, renew = next, iss, now.Add(next.Leaf.NotAfter.Sub(now)/2)
		return current, nil
	}
}

func (iss *issuer) serving(names []string, now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	tmpl := &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, n)
		}
	}
	leaf, err := iss.sign(tmpl, key.Public(), now, servingTTL)
	if err != nil {
		return nil, err
	}
	out := &tls.Certificate{PrivateKey: key, Leaf: leaf, Certificate: [][]byte{leaf.Raw}}
	for _, c := range iss.chain {
		out.Certificate = append(out.Certificate, c.Raw)
	}
	return out, nil
}
