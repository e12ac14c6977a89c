package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"time"

	"github.com/undermesh/undermesh/controller/api"
)

// authority is the mesh's root, as a test that has the right to read its secret can use it.
type authority struct {
	cert *x509.Certificate
	key  any
	pem  []byte
}

// meshRoot reads the root from the secret of the self-signed CA.
func (w *World) meshRoot(ctx context.Context) (*authority, error) {
	out, err := w.Kubectl(ctx, "get", "secret", "-n", api.DefaultRootNamespace, api.CASecret, "-o", "json")
	if err != nil {
		return nil, err
	}
	var secret struct{ Data map[string]string }
	if err := json.Unmarshal([]byte(out), &secret); err != nil {
		return nil, fmt.Errorf("parse secret: %w", err)
	}
	var blocks [2]*pem.Block
	var raw []byte
	for i, key := range []string{"ca-cert.pem", "ca-key.pem"} {
		b, err := base64.StdEncoding.DecodeString(secret.Data[key])
		if err != nil {
			return nil, fmt.Errorf("secret %s, key %s: %w", api.CASecret, key, err)
		}
		if i == 0 {
			raw = b
		}
		if blocks[i], _ = pem.Decode(b); blocks[i] == nil {
			return nil, fmt.Errorf("secret %s, key %s: no PEM", api.CASecret, key)
		}
	}
	cert, err := x509.ParseCertificate(blocks[0].Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse root: %w", err)
	}
	key, err := parseKey(blocks[1].Bytes)
	return &authority{cert, key, raw}, err
}

func parseKey(der []byte) (any, error) {
	if k, err := x509.ParseECPrivateKey(der); err == nil {
		return k, nil
	}
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("parse root key: %w", err)
	}
	return k, nil
}

// foreignRoot is an authority that nobody trusts.
func foreignRoot() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{"cluster.local"}}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &authority{cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}, err
}

// issue signs a client certificate for a URI that ends at the given time, and returns certificate and key in one PEM.
func (a *authority) issue(uri string, notAfter time.Time) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(uri)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{SerialNumber: serial, URIs: []*url.URL{u}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: notAfter}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	k, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: k})...), nil
}

// Handshake runs openssl s_client from a pod outside the mesh to a mesh pod's tunnel port. cert is certificate and key, nil
// for none. It returns the server's SANs, and the alert with which the server refused, "" when it did not.
func (w *World) Handshake(ctx context.Context, addr string, cert []byte) (san, alert string, err error) {
	args := "-connect " + addr + " -alpn h2 -tls1_3"
	if cert != nil {
		if _, err := w.ExecIn(ctx, cert, "legacy", "sleep", "cat > /tmp/client.pem"); err != nil {
			return "", "", err
		}
		args += " -cert /tmp/client.pem -key /tmp/client.pem"
	}
	// The server judges the client's certificate after the client is done: wait for its word before closing.
	r, err := w.Exec(ctx, "legacy", "sleep", "(sleep 2) | openssl s_client "+args+" > /tmp/out 2>&1; grep -o 'alert [a-z ]*' /tmp/out | head -1; echo ---; openssl x509 -noout -ext subjectAltName < /tmp/out")
	if err != nil {
		return "", "", err
	}
	alert, rest, ok := strings.Cut(r.Out, "---\n")
	if !ok || !strings.Contains(rest, "URI:") {
		return "", "", fmt.Errorf("handshake with %s: no server certificate: %q %q", addr, r.Out, r.Err)
	}
	san = strings.TrimSpace(rest[strings.Index(rest, "URI:"):])
	return san, strings.TrimSpace(alert), nil
}

// Credential is what a client shows to the tunnel of a pod, and whether it is refused.
type Credential struct {
	Title   string
	by      *authority
	uri     string
	ends    time.Time
	Refused bool
}

// Credentials are one certificate of the mesh, and those that must be refused.
func (w *World) Credentials(ctx context.Context) ([]Credential, error) {
	root, err := w.meshRoot(ctx)
	if err != nil {
		return nil, err
	}
	foreign, err := foreignRoot()
	if err != nil {
		return nil, err
	}
	const sleep = "spiffe://cluster.local/ns/bar/sa/sleep"
	in, past := time.Now().Add(time.Hour), time.Now().Add(-time.Hour)
	return []Credential{
		{"a certificate of the mesh", root, sleep, in, false},
		{"no certificate", nil, "", in, true},
		{"a foreign root", foreign, sleep, in, true},
		{"an expired certificate", root, sleep, past, true},
		{"a SAN that is no workload identity", root, "https://cluster.local/ns/bar/sa/sleep", in, true},
		{"another trust domain", root, "spiffe://evil.example/ns/bar/sa/sleep", in, true},
	}, nil
}

// Show makes a handshake with httpbin.foo, checks the server's identity and whether the client is refused as it must be (MT-16).
func (w *World) Show(ctx context.Context, c Credential) error {
	pod, err := w.OnePod(ctx, "foo", "httpbin")
	if err != nil {
		return err
	}
	var cert []byte
	if c.by != nil {
		if cert, err = c.by.issue(c.uri, c.ends); err != nil {
			return err
		}
	}
	san, alert, err := w.Handshake(ctx, pod.Status.PodIP+":15008", cert)
	if err != nil {
		return fmt.Errorf("%s: %w", c.Title, err)
	}
	if want := "URI:spiffe://cluster.local/ns/foo/sa/httpbin"; san != want {
		return fmt.Errorf("%s: server's SAN is %q, want %q", c.Title, san, want)
	}
	if (alert != "") != c.Refused {
		return fmt.Errorf("%s: alert %q, refusal wanted: %v", c.Title, alert, c.Refused)
	}
	w.Say("  %-36s server %s, %s", c.Title+":", san, map[bool]string{true: "refused: " + alert, false: "accepted"}[c.Refused])
	return nil
}
