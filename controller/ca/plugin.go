package ca

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"
)

var plugInFiles = []string{FileCACert, FileCAKey, FileRootCert, FileCertChain}

// parsePlugIn checks the cacerts files (MT-18). Its errors begin with the file's name.
func parsePlugIn(files map[string][]byte, now time.Time) (*issuer, error) {
	for _, f := range plugInFiles {
		if len(files[f]) == 0 {
			return nil, fmt.Errorf("%s: missing or empty", f)
		}
	}
	iss, err := parseSigner(files, now)
	if err != nil {
		return nil, err
	}
	roots, err := parseCerts(files[FileRootCert])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", FileRootCert, err)
	}
	between, err := parseCerts(files[FileCertChain])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", FileCertChain, err)
	}
	opts := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}
	for i, c := range roots {
		if !c.IsCA || !c.BasicConstraintsValid || c.CheckSignatureFrom(c) != nil {
			return nil, fmt.Errorf("%s: certificate %d (%s) is not a self-signed CA", FileRootCert, i+1, c.Subject)
		}
		opts.Roots.AddCert(c)
	}
	for _, c := range between {
		opts.Intermediates.AddCert(c)
	}
	chains, err := iss.cert.Verify(opts)
	if err != nil {
		return nil, fmt.Errorf("%s: does not lead to %s by way of %s: %w", FileCACert, FileRootCert, FileCertChain, err)
	}
	iss.chain, iss.plugged, iss.roots = shortest(chains), true, nil
	for _, c := range roots {
		iss.roots = append(iss.roots, encodeCert(c.Raw)...)
	}
	return iss, nil
}

// shortest is the chain that is sent: the order of those that Verify finds is not fixed.
func shortest(chains [][]*x509.Certificate) []*x509.Certificate {
	return slices.MinFunc(chains, func(a, b []*x509.Certificate) int { return cmp.Compare(len(a), len(b)) })
}

// parseIssuer checks files of either kind.
func parseIssuer(files map[string][]byte, now time.Time) (*issuer, error) {
	if _, plugged := files[FileRootCert]; plugged {
		return parsePlugIn(files, now)
	}
	return parseRoot(files, now)
}

// parseRoot checks the persisted self-signed root.
func parseRoot(files map[string][]byte, now time.Time) (*issuer, error) {
	iss, err := parseSigner(files, now)
	if err != nil {
		return nil, err
	}
	if err := iss.cert.CheckSignatureFrom(iss.cert); err != nil {
		return nil, fmt.Errorf("%s: is not self-signed: %w", FileCACert, err)
	}
	iss.chain, iss.roots = []*x509.Certificate{iss.cert}, encodeCert(iss.cert.Raw)
	return iss, nil
}

func parseSigner(files map[string][]byte, now time.Time) (*issuer, error) {
	certs, err := parseCerts(files[FileCACert])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", FileCACert, err)
	}
	cert := certs[0]
	switch {
	case !cert.IsCA || !cert.BasicConstraintsValid:
		return nil, fmt.Errorf("%s: is not a CA certificate", FileCACert)
	case cert.KeyUsage != 0 && cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return nil, fmt.Errorf("%s: its key usage does not include signing certificates", FileCACert)
	case now.Before(cert.NotBefore) || !now.Before(cert.NotAfter):
		return nil, fmt.Errorf("%s: valid from %s to %s, now is %s", FileCACert, cert.NotBefore, cert.NotAfter, now)
	}
	key, err := parseKey(files[FileCAKey])
	if err != nil {
		return nil, fmt.Errorf("%s: %w", FileCAKey, err)
	}
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("%s: is not the key of %s", FileCAKey, FileCACert)
	}
	return &issuer{cert: cert, key: key, files: files}, nil
}

func parseCerts(raw []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, raw = pem.Decode(raw); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("holds a PEM block %q, want CERTIFICATE", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(out)+1, err)
		}
		out = append(out, c)
	}
	switch {
	case len(out) == 0:
		return nil, errors.New("holds no PEM certificate")
	case len(bytes.TrimSpace(raw)) > 0:
		return nil, errors.New("holds something behind the last PEM certificate")
	}
	return out, nil
}

func parseKey(raw []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(raw)
	for rest := raw; block != nil && block.Type == "EC PARAMETERS"; {
		_, rest = pem.Decode(rest)
		block, _ = pem.Decode(rest)
	}
	if block == nil {
		return nil, errors.New("holds no PEM key")
	}
	switch block.Type {
	case "EC PRIVATE KEY":
		return x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		return x509.ParsePKCS1PrivateKey(block.Bytes)
	case "PRIVATE KEY":
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, err
		}
		if s, ok := key.(crypto.Signer); ok {
			return s, nil
		}
		return nil, fmt.Errorf("holds a %T, which cannot sign", key)
	}
	return nil, fmt.Errorf("holds a PEM block %q, want a private key", block.Type)
}

// checkPublic refuses keys that are too weak or of an unknown kind.
func checkPublic(key crypto.PublicKey) error {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if k.Curve.Params().BitSize < 256 {
			return fmt.Errorf("public key: %d-bit curve, want 256 or more", k.Curve.Params().BitSize)
		}
	case *rsa.PublicKey:
		if k.N.BitLen() < 2048 || k.N.BitLen() > 8192 {
			return fmt.Errorf("public key: RSA of %d bits, want 2048 to 8192", k.N.BitLen())
		}
	case ed25519.PublicKey:
	default:
		return fmt.Errorf("public key: unknown kind %T", key)
	}
	return nil
}
