package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"

	"github.com/undermesh/undermesh/controller/api"
)

// Shown is what "proxy-config secret -o json" says of a pod.
type Shown struct {
	Chain   []*x509.Certificate // leaf first
	Trusted []*x509.Certificate
	Text    string
}

// Secret runs the documents' command for the pod of an app.
func (w *World) Secret(ctx context.Context, namespace, app string) (*Shown, error) {
	pod, err := w.OnePod(ctx, namespace, app)
	if err != nil {
		return nil, err
	}
	out, err := w.Undermesh(ctx, "proxy-config", "secret", pod.Metadata.Name, "-n", namespace, "-o", "json")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrOther, err)
	}
	var dump struct {
		DynamicActiveSecrets []struct {
			Name   string
			Secret struct {
				TLSCertificate    struct{ CertificateChain struct{ InlineBytes []byte } }
				ValidationContext struct{ TrustedCA struct{ InlineBytes []byte } }
			}
		}
	}
	if err := json.Unmarshal([]byte(out), &dump); err != nil {
		return nil, fmt.Errorf("parse secrets: %w", err)
	}
	s := &Shown{Text: out}
	for _, d := range dump.DynamicActiveSecrets {
		switch d.Name {
		case "default":
			s.Chain, err = certificates(d.Secret.TLSCertificate.CertificateChain.InlineBytes)
		case "ROOTCA":
			s.Trusted, err = certificates(d.Secret.ValidationContext.TrustedCA.InlineBytes)
		}
		if err != nil {
			return nil, err
		}
	}
	if len(s.Chain) == 0 || len(s.Trusted) == 0 {
		return nil, fmt.Errorf("%w: no certificate is in use yet", ErrOther)
	}
	return s, nil
}

func certificates(raw []byte) (out []*x509.Certificate, err error) {
	for {
		var block *pem.Block
		if block, raw = pem.Decode(raw); block == nil {
			return out, nil
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
}

// newCA makes a self-signed CA, or one below parent.
func newCA(name string, parent *authority) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour)}
	signer, by := any(key), tmpl
	if parent != nil {
		signer, by = parent.key, parent.cert
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, by, key.Public(), signer)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &authority{cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}, err
}

// cacerts is the Secret of the documents: an intermediate below root.
func cacerts(root *authority) (yaml string, between *authority, err error) {
	if between, err = newCA("Intermediate CA", root); err != nil {
		return "", nil, err
	}
	raw, err := x509.MarshalPKCS8PrivateKey(between.key)
	if err != nil {
		return "", nil, err
	}
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf(`apiVersion: v1
kind: Secret
metadata: {name: cacerts, namespace: %s}
data:
  ca-cert.pem: %s
  ca-key.pem: %s
  root-cert.pem: %s
  cert-chain.pem: %s
`, api.DefaultRootNamespace, b64(between.pem), b64(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})), b64(root.pem),
		b64(append(bytes.Clone(between.pem), root.pem...))), between, nil
}

// Signer signs the approved requests of one signer name, as a controller of somebody's CA would, until ctx ends. It returns how
// many it signed.
func (w *World) Signer(ctx context.Context, name string, ca *authority) (signed int, err error) {
	for ctx.Err() == nil {
		out, err := w.Kubectl(ctx, "get", "certificatesigningrequests", "-o", "json")
		if err != nil {
			break
		}
		var list struct {
			Items []struct {
				Metadata struct{ Name string }
				Spec     struct {
					SignerName string
					Request    []byte
				}
				Status struct {
					Certificate []byte
					Conditions  []struct{ Type string }
				}
			}
		}
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			return signed, fmt.Errorf("parse requests: %w", err)
		}
		for _, r := range list.Items {
			if r.Spec.SignerName != name || len(r.Status.Certificate) > 0 || len(r.Status.Conditions) != 1 || r.Status.Conditions[0].Type != "Approved" {
				continue
			}
			text, err := ca.answer(r.Spec.Request)
			if err != nil {
				return signed, err
			}
			patch := fmt.Sprintf(`{"status":{"certificate":%q}}`, base64.StdEncoding.EncodeToString(text))
			if _, err := w.Kubectl(ctx, "patch", "certificatesigningrequest", r.Metadata.Name, "--subresource=status", "--type=merge", "-p", patch); err != nil {
				if strings.Contains(err.Error(), "NotFound") { // its time was up
					continue
				}
				return signed, err
			}
			signed++
		}
	}
	return signed, nil
}

func (a *authority) answer(request []byte) ([]byte, error) {
	block, _ := pem.Decode(request)
	if block == nil {
		return nil, errors.New("the request is no PEM")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{SerialNumber: serial, URIs: csr.URIs, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, csr.PublicKey, a.key)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), err
}
