package ca

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// signingRequests is client-go's CertificateSigningRequestInterface, as far as it is used.
type signingRequests interface {
	Create(ctx context.Context, r *certificatesv1.CertificateSigningRequest, opts metav1.CreateOptions) (*certificatesv1.CertificateSigningRequest, error)
	UpdateApproval(ctx context.Context, name string, r *certificatesv1.CertificateSigningRequest, opts metav1.UpdateOptions) (*certificatesv1.CertificateSigningRequest, error)
	Get(ctx context.Context, name string, opts metav1.GetOptions) (*certificatesv1.CertificateSigningRequest, error)
	Delete(ctx context.Context, name string, opts metav1.DeleteOptions) error
}

const (
	externalPoll    = 200 * time.Millisecond
	externalNow     = 16 // requests under way
	shortestRequest = 10 * time.Minute
	cleanupLimit    = 5 * time.Second
)

// External has workloads' certificates signed by a signer of Kubernetes' certificates API (MT-20): no key that signs
// workloads is in the mesh then. It approves its own requests and removes them; what comes back is checked as any answer of
// a CA is. It is safe for concurrent use.
type External struct {
	client signingRequests
	signer string
	roots  func(ctx context.Context) ([]byte, error)
	clock  clock.Clock
	wait   time.Duration
	slots  chan struct{} // holds one element a request under way
}

// ExternalConfig configures an External. All fields but Wait are required.
type ExternalConfig struct {
	Client signingRequests // clientset.CertificatesV1().CertificateSigningRequests()
	Signer string          // spec.signerName
	// Roots returns the signer's root certificates in PEM. It is asked at each Sync.
	Roots func(ctx context.Context) ([]byte, error)
	Clock clock.Clock
	Wait  time.Duration // for a certificate; default 8 s, below what nodes wait
}

// NewExternal returns an error that names the first field that is missing.
func NewExternal(c ExternalConfig) (*External, error) {
	switch {
	case c.Client == nil, c.Roots == nil, c.Clock == nil:
		return nil, errors.New("check external signer: Client, Roots and Clock must be set")
	case c.Signer == "":
		return nil, errors.New("check external signer: Signer: missing")
	case c.Wait == 0:
		c.Wait = 8 * time.Second
	}
	return &External{client: c.Client, signer: c.Signer, roots: c.Roots, clock: c.Clock, wait: c.Wait,
		slots: make(chan struct{}, externalNow)}, nil
}

func (e *External) readRoots(ctx context.Context) ([]*x509.Certificate, error) {
	raw, err := e.roots(ctx)
	if err != nil {
		return nil, fmt.Errorf("read root of signer %s: %w", e.signer, err)
	}
	certs, err := parseCerts(raw)
	if err != nil {
		return nil, fmt.Errorf("read root of signer %s: %s: %w", e.signer, FileRootCert, err)
	}
	for i, c := range certs {
		if !c.IsCA || c.CheckSignatureFrom(c) != nil {
			return nil, fmt.Errorf("read root of signer %s: %s: certificate %d (%s) is not a self-signed CA", e.signer, FileRootCert, i+1, c.Subject)
		}
	}
	return certs, nil
}

// lifetimes of a certificate: signers need not heed what is asked for.
type lifetimes struct{ asked, longest time.Duration }

// sign has a request signed and returns the chain, leaf first and root last. id is the one SPIFFE ID that the leaf may name.
func (e *External) sign(ctx context.Context, pem, id string, public crypto.PublicKey, life lifetimes, roots []*x509.Certificate) ([]*x509.Certificate, error) {
	ctx, cancel := clock.WithTimeout(ctx, e.clock, e.wait, fmt.Errorf("no certificate within %s", e.wait))
	defer cancel()
	select {
	case e.slots <- struct{}{}:
		defer func() { <-e.slots }()
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("ask signer %s: %d requests are under way: %w", e.signer, externalNow, context.Cause(ctx))
	}
	answer, err := e.request(ctx, pem, life.asked)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause // more than "context canceled"
		}
		return nil, fmt.Errorf("ask signer %s: %w", e.signer, err)
	}
	chain, err := checkAnswer(answer, id, public, roots, e.clock.Now(), life.longest)
	if err != nil {
		return nil, fmt.Errorf("check answer of signer %s: %w", e.signer, err)
	}
	return chain, nil
}

// request makes the object, approves it and waits for the signer. The object is removed whatever happens.
func (e *External) request(ctx context.Context, pem string, ttl time.Duration) ([]byte, error) {
	name, err := requestName()
	if err != nil {
		return nil, err
	}
	seconds := int32(max(ttl, shortestRequest) / time.Second)
	made, err := e.client.Create(ctx, &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app.kubernetes.io/managed-by": api.ControllerName}},
		Spec: certificatesv1.CertificateSigningRequestSpec{Request: []byte(pem), SignerName: e.signer, ExpirationSeconds: &seconds,
			Usages: []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageKeyEncipherment,
				certificatesv1.UsageServerAuth, certificatesv1.UsageClientAuth}},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("create certificate signing request: %w", err)
	}
	defer e.remove(ctx, name)
	made.Status.Conditions = append(made.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
		Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "MeshIdentity",
		Message: "the caller was authenticated and may have this identity",
	})
	if _, err := e.client.UpdateApproval(ctx, name, made, metav1.UpdateOptions{}); err != nil {
		return nil, fmt.Errorf("approve certificate signing request: %w", err)
	}
	for {
		now, err := e.client.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return nil, fmt.Errorf("read certificate signing request: %w", err)
		}
		for _, c := range now.Status.Conditions {
			if c.Type == certificatesv1.CertificateDenied || c.Type == certificatesv1.CertificateFailed {
				return nil, fmt.Errorf("%s: %s: %.200q", c.Type, c.Reason, c.Message)
			}
		}
		if len(now.Status.Certificate) > 0 {
			return now.Status.Certificate, nil
		}
		if !clock.Pause(ctx, e.clock, externalPoll) {
			return nil, context.Cause(ctx)
		}
	}
}

// remove outlives the request, whose time may be up. What it leaves behind Kubernetes' own cleaner takes within a day.
func (e *External) remove(ctx context.Context, name string) {
	ctx, cancel := clock.WithTimeout(context.WithoutCancel(ctx), e.clock, cleanupLimit, nil)
	defer cancel()
	_ = e.client.Delete(ctx, name, metav1.DeleteOptions{})
}

func requestName() (string, error) {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("make name of request: %w", err)
	}
	return "csr-workload-" + hex.EncodeToString(b[:]), nil
}
