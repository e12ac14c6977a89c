package ca

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"testing"
	"time"
)

// hierarchy makes root -> intermediate files as the documents' Makefile does, and keeps the root's key.
func hierarchy(t testing.TB, now time.Time, life time.Duration) (files map[string][]byte, root *issuer) {
	t.Helper()
	made, err := selfSigned("root", now)
	must(t, err)
	root, err = parseRoot(made, now)
	must(t, err)
	return below(t, root, now, life), root
}

func below(t testing.TB, root *issuer, now time.Time, life time.Duration) map[string][]byte {
	t.Helper()
	key := newKey(t)
	serial, err := newSerial()
	must(t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "Intermediate CA"}, NotBefore: now, NotAfter: now.Add(life),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, root.cert, key.Public(), root.key)
	must(t, err)
	raw, err := x509.MarshalECPrivateKey(key)
	must(t, err)
	ca := encodeCert(der)
	return map[string][]byte{
		FileCACert: ca, FileRootCert: root.roots, FileCertChain: append(bytes.Clone(ca), root.roots...),
		FileCAKey: pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw}),
	}
}
