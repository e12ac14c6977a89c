// Package pki makes the certificates, keys and kubeconfigs of a test cluster. All of it is thrown away with the cluster;
// keys are ECDSA P-256, the service account key is RSA as most verifiers expect RS256.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// validity is longer than any test cluster lives.
const validity = 365 * 24 * time.Hour

// Config says what to make.
type Config struct {
	// Dir receives the files; it must exist.
	Dir string
	// Server is the API server's URL in the kubeconfigs.
	Server string
	// ServerNames and ServerIPs are the API server's subject alternative names.
	ServerNames []string
	ServerIPs   []net.IP
	// Nodes are the names of nodes, each of which gets a kubelet client certificate.
	Nodes []string
	// Now is the time that certificates begin at, less one hour for clocks that differ.
	Now time.Time
}

// user is a client of the API server: a certificate, and a kubeconfig when it is used by a component.
type user struct {
	file, cn, org string
	kubeconfig    bool
}

// Write makes all files below c.Dir: ca, apiserver, kubelet-client and front-proxy pairs (.crt, .key), sa.key and sa.pub, and
// one NAME.kubeconfig for admin, controller-manager, scheduler, kube-proxy, netpol and each node.
func Write(c Config) error {
	ca, err := newAuthority(c)
	if err != nil {
		return err
	}
	server := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "kube-apiserver"},
		DNSNames:    c.ServerNames,
		IPAddresses: c.ServerIPs,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if _, _, err := ca.issue("apiserver", server); err != nil {
		return err
	}
	users := []user{
		{"kubelet-client", "apiserver-kubelet-client", "system:masters", false},
		{"front-proxy", "front-proxy-client", "", false},
		{"admin", "admin", "system:masters", true},
		{"controller-manager", "system:kube-controller-manager", "", true},
		{"scheduler", "system:kube-scheduler", "", true},
		{"kube-proxy", "system:kube-proxy", "", true},
		{"netpol", "netpol", "", true},
	}
	for _, n := range c.Nodes {
		users = append(users, user{n, "system:node:" + n, "system:nodes", true})
	}
	for _, u := range users {
		if err := ca.user(u); err != nil {
			return err
		}
	}
	return serviceAccountKey(c.Dir)
}

// authority is the cluster's certificate authority.
type authority struct {
	cfg  Config
	cert *x509.Certificate
	pem  []byte
	key  crypto.Signer
}

func newAuthority(c Config) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key of ca: %w", err)
	}
	a := &authority{cfg: c, key: key}
	tmpl := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "test-cluster-ca"},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}
	if err := a.complete(tmpl); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of ca: %w", err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("parse certificate of ca: %w", err)
	}
	a.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	_, err = a.write("ca", a.pem, key)
	return a, err
}

func (a *authority) complete(t *x509.Certificate) error {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return fmt.Errorf("draw serial number: %w", err)
	}
	t.SerialNumber = serial
	t.NotBefore = a.cfg.Now.Add(-time.Hour)
	t.NotAfter = a.cfg.Now.Add(validity)
	return nil
}

// issue signs t for a new key and writes file.crt and file.key; it returns both as PEM.
func (a *authority) issue(file string, t *x509.Certificate) (cert, key []byte, err error) {
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key of %s: %w", file, err)
	}
	if err := a.complete(t); err != nil {
		return nil, nil, err
	}
	t.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, priv.Public(), a.key)
	if err != nil {
		return nil, nil, fmt.Errorf("sign certificate of %s: %w", file, err)
	}
	cert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	key, err = a.write(file, cert, priv)
	return cert, key, err
}

func (a *authority) write(file string, cert []byte, priv crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		return nil, fmt.Errorf("encode key of %s: %w", file, err)
	}
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err := os.WriteFile(filepath.Join(a.cfg.Dir, file+".key"), key, 0o600); err != nil {
		return nil, fmt.Errorf("write key of %s: %w", file, err)
	}
	if err := os.WriteFile(filepath.Join(a.cfg.Dir, file+".crt"), cert, 0o644); err != nil {
		return nil, fmt.Errorf("write certificate of %s: %w", file, err)
	}
	return key, nil
}

func (a *authority) user(u user) error {
	t := &x509.Certificate{
		Subject:     pkix.Name{CommonName: u.cn},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if u.org != "" {
		t.Subject.Organization = []string{u.org}
	}
	cert, key, err := a.issue(u.file, t)
	if err != nil || !u.kubeconfig {
		return err
	}
	b64 := base64.StdEncoding.EncodeToString
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- name: cluster
  cluster:
    server: %s
    certificate-authority-data: %s
users:
- name: %[3]s
  user:
    client-certificate-data: %s
    client-key-data: %s
contexts:
- name: cluster
  context: {cluster: cluster, user: %[3]s}
current-context: cluster
`, a.cfg.Server, b64(a.pem), u.file, b64(cert), b64(key))
	if err := os.WriteFile(filepath.Join(a.cfg.Dir, u.file+".kubeconfig"), []byte(text), 0o600); err != nil {
		return fmt.Errorf("write kubeconfig of %s: %w", u.file, err)
	}
	return nil
}

func serviceAccountKey(dir string) error {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return fmt.Errorf("make service account key: %w", err)
	}
	priv, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode service account key: %w", err)
	}
	pub, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("encode public service account key: %w", err)
	}
	for name, b := range map[string]*pem.Block{
		"sa.key": {Type: "PRIVATE KEY", Bytes: priv},
		"sa.pub": {Type: "PUBLIC KEY", Bytes: pub},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(b), 0o600); err != nil {
			return fmt.Errorf("write service account key: %w", err)
		}
	}
	return nil
}
