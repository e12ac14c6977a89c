package load

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// ProxyName is the DNS name in the certificate of both proxies.
const ProxyName = "bench.invalid"

// relayBuffer is what a proxy reads at once, in bytes.
const relayBuffer = 128 << 10

// WriteCertificate makes a certificate (ECDSA P-256, its own authority, one day) for both proxies in dir: cert.pem, key.pem.
func WriteCertificate(dir string, now time.Time) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: ProxyName}, DNSNames: []string{ProxyName},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return fmt.Errorf("make certificate: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode key: %w", err)
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "cert.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o600),
		os.WriteFile(filepath.Join(dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
}

// TLSConfig reads what WriteCertificate wrote: TLS 1.3, both sides verified, no resumption.
func TLSConfig(dir string) (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	roots := x509.NewCertPool()
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("parse certificate: %w", err)
	}
	roots.AddCert(leaf)
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, RootCAs: roots, ClientCAs: roots,
		ClientAuth: tls.RequireAndVerifyClientCert, ServerName: ProxyName, SessionTicketsDisabled: true,
	}, nil
}

// TLSOut carries a plain connection to a TLSIn at addr.
func TLSOut(ctx context.Context, cfg *tls.Config, addr string) func(net.Conn) {
	buffers := newBuffers()
	return func(app net.Conn) {
		raw, err := dial(ctx, addr)
		if err != nil {
			return
		}
		t := tls.Client(raw, cfg)
		defer t.Close()
		relay(app, t, buffers)
	}
}

// TLSIn ends TLS and carries the connection to addr.
func TLSIn(ctx context.Context, cfg *tls.Config, addr string) func(net.Conn) {
	buffers := newBuffers()
	return func(raw net.Conn) {
		t := tls.Server(raw, cfg)
		if err := t.HandshakeContext(ctx); err != nil {
			return
		}
		app, err := dial(ctx, addr)
		if err != nil {
			return
		}
		defer app.Close()
		relay(app, t, buffers)
	}
}

type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// newBuffers keeps used buffers of a proxy, as *[]byte, so that short connections do not pay for new ones.
func newBuffers() *sync.Pool {
	return &sync.Pool{New: func() any { b := make([]byte, relayBuffer); return &b }}
}

// relay copies both ways until both have ended; an error on one way ends the other.
func relay(app net.Conn, t *tls.Conn, buffers *sync.Pool) {
	a := app.(halfCloser)
	var wg sync.WaitGroup
	wg.Go(func() { pass(t, a, buffers) })
	pass(a, t, buffers)
	wg.Wait()
}

// pass copies until the end of src and passes it on.
func pass(dst, src halfCloser, buffers *sync.Pool) {
	b := buffers.Get().(*[]byte)
	defer buffers.Put(b)
	// The wrapping hides ReadFrom and WriteTo, so that the buffer is used.
	_, err := io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, *b)
	if err == nil {
		err = dst.CloseWrite()
	}
	if err != nil {
		dst.Close()
		src.Close()
	}
}
