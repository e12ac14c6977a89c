package ca

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/undermesh/undermesh/controller/api"
)

const (
	// DNSSecretType is the type of the Secrets that hold DNS certificates; one of another type is somebody else's.
	DNSSecretType = "istio.io/dns-key-and-cert"
	dnsOwnerLabel = "ca.undermesh.io/dns-certificate"
	dnsTTL        = 90 * 24 * time.Hour
	// FileKey is the leaf's key in such a Secret.
	FileKey = "key.pem"
	maxDNS  = 100 // certificates of a mesh
)

// DNSCertificate is one entry of the mesh configuration's certificates (MT-21).
type DNSCertificate struct {
	SecretName string
	DNSNames   []string
}

// DNSConfig says where DNS certificates are kept and which names they may have.
type DNSConfig struct {
	Client        writableSecrets // clientset.CoreV1().Secrets(Namespace)
	Namespace     string          // of the control plane
	ClusterDomain string          // default cluster.local
	// Allowed are the names, or "*.SUFFIX", that are no names of services and are wanted all the same.
	Allowed []string
}

// KeepDNS makes the Secrets of wanted that are missing, and again those whose certificate is past half of its life, has other
// names or another root. What cannot be done is in the error, which names each Secret; the others are done. Only the leader
// calls it.
func (a *Authority) KeepDNS(ctx context.Context, cfg DNSConfig, wanted []DNSCertificate) error {
	if len(wanted) > maxDNS {
		return fmt.Errorf("keep DNS certificates: %d are asked for, want at most %d", len(wanted), maxDNS)
	}
	var errs []error
	seen := map[string]bool{}
	for i, w := range wanted {
		err := cfg.check(w)
		if err == nil && seen[w.SecretName] {
			err = errors.New("secretName: an earlier entry has it too")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("certificates[%d] %q: %w", i, w.SecretName, err))
			continue
		}
		seen[w.SecretName] = true
		if err := a.keepDNS(ctx, cfg, w); err != nil {
			errs = append(errs, fmt.Errorf("certificates[%d]: secret %s/%s: %w", i, cfg.Namespace, w.SecretName, err))
		}
	}
	return errors.Join(errs...)
}

// check refuses names that are not those of the cluster's own services, unless somebody said that they are wanted: a mesh
// configuration must not make the mesh's root vouch for anything.
func (c DNSConfig) check(w DNSCertificate) error {
	if problems := validation.IsDNS1123Subdomain(w.SecretName); len(problems) > 0 {
		return fmt.Errorf("secretName: %s", problems[0])
	}
	if slices.Contains([]string{api.CASecret, RotationSecretName, "cacerts"}, w.SecretName) {
		return errors.New("secretName: belongs to the certificate authority")
	}
	if len(w.DNSNames) == 0 {
		return errors.New("dnsNames: there are none")
	}
	for i, name := range w.DNSNames {
		if err := c.checkName(name, w.DNSNames); err != nil {
			return fmt.Errorf("dnsNames[%d]: %q %w", i, name, err)
		}
	}
	return nil
}

func (c DNSConfig) checkName(name string, all []string) error {
	if problems := validation.IsDNS1123Subdomain(strings.TrimPrefix(name, "*.")); len(problems) > 0 || len(name) > 253 {
		return errors.New("is not a DNS name")
	}
	domain := c.ClusterDomain
	if domain == "" {
		domain = api.DefaultClusterDomain
	}
	parts := strings.Split(strings.TrimSuffix(name, "."+domain), ".")
	long := len(parts) == 3 && parts[2] == "svc"
	short := len(parts) == 2 && name == parts[0]+"."+parts[1]
	if (long || short) && (parts[0] == api.ControllerName && parts[1] == c.Namespace || parts[0] == "kubernetes" && parts[1] == "default") {
		return errors.New("is the control plane's own name")
	}
	if parts[0] == "*" {
		long, short = false, false
	}
	// "a.b" may be a service or a host of the internet: it counts as a service beside its long form.
	if long || short && (parts[1] == c.Namespace || slices.Contains(all, name+".svc")) {
		return nil
	}
	for _, a := range c.Allowed {
		first, rest, _ := strings.Cut(name, ".")
		if a == name || strings.HasPrefix(a, "*.") && first != "*" && a[2:] == rest {
			return nil
		}
	}
	return errors.New("is not the name of a service: the installation's value pilot.dnsCertificateNames can allow it")
}

func (a *Authority) keepDNS(ctx context.Context, cfg DNSConfig, w DNSCertificate) error {
	now := a.cfg.Clock.Now()
	iss, err := a.current()
	if err != nil {
		return err
	}
	bundle, err := a.RootPEM()
	if err != nil {
		return err
	}
	held, err := cfg.Client.Get(ctx, w.SecretName, metav1.GetOptions{})
	missing := apierrors.IsNotFound(err)
	switch {
	case missing:
		held = &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: w.SecretName}, Type: DNSSecretType}
	case err != nil:
		return fmt.Errorf("read: %w", err)
	case held.Type != DNSSecretType || held.Labels[dnsOwnerLabel] == "":
		return errors.New("exists and is not ours: it is left alone")
	case current(held.Data, w, iss, bundle, now):
		return nil
	}
	held = held.DeepCopy()
	held.Labels = map[string]string{dnsOwnerLabel: "true", "app": api.ControllerName, "app.kubernetes.io/part-of": "undermesh"}
	leaf, data, err := iss.dns(w.DNSNames, bundle, now)
	if err != nil {
		return err
	}
	held.Data = data
	if missing {
		_, err = cfg.Client.Create(ctx, held, metav1.CreateOptions{})
	} else {
		_, err = cfg.Client.Update(ctx, held, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	a.cfg.Log.Info("DNS certificate signed", "secret", cfg.Namespace+"/"+w.SecretName, "names", w.DNSNames,
		"serial", leaf.SerialNumber.Text(16), "not_after", leaf.NotAfter)
	return nil
}

// current reports whether a Secret holds what is wanted, with half of the certificate's life left.
func current(data map[string][]byte, w DNSCertificate, iss *issuer, bundle []byte, now time.Time) bool {
	chain, err := parseCerts(data[FileCertChain])
	if err != nil {
		return false
	}
	key, err := parseKey(data[FileKey])
	if err != nil {
		return false
	}
	leaf := chain[0]
	public, ok := key.Public().(*ecdsa.PublicKey)
	return ok && public.Equal(leaf.PublicKey) && slices.Equal(leaf.DNSNames, w.DNSNames) &&
		leaf.CheckSignatureFrom(iss.cert) == nil && bytes.Equal(data[FileRootCert], bundle) &&
		leaf.NotAfter.Sub(now) > leaf.NotAfter.Sub(leaf.NotBefore)/2
}

func (iss *issuer) dns(names []string, bundle []byte, now time.Time) (*x509.Certificate, map[string][]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("generate key: %w", err)
	}
	leaf, err := iss.sign(&x509.Certificate{DNSNames: names, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}},
		key.Public(), now, dnsTTL)
	if err != nil {
		return nil, nil, err
	}
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode key: %w", err)
	}
	chain := encodeCert(leaf.Raw)
	for _, c := range iss.chain[:len(iss.chain)-1] {
		chain = append(chain, encodeCert(c.Raw)...)
	}
	return leaf, map[string][]byte{FileCertChain: chain, FileRootCert: bundle,
		FileKey: pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw})}, nil
}
