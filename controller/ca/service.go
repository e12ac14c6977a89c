package ca

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math"
	"net/url"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
	securityv1 "istio.io/api/security/v1alpha1"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/quota"
)

// impersonatedField is the key of the request's metadata under which a node's proxy names a workload's identity.
const impersonatedField = "ImpersonatedIdentity"

const (
	maxCSR      = 16 << 10 // bytes of a request; an RSA-8192 one has about 3 KiB
	maxIdentity = 512      // bytes of an identity: longer ones are not quoted, nor looked at
	maxSaid     = 2 << 10  // bytes of why a request is refused, in the log and to the caller
)

// Register adds the certificate service to a gRPC server.
func (a *Authority) Register(r grpc.ServiceRegistrar) {
	securityv1.RegisterIstioCertificateServiceServer(r, service{a: a})
}

type service struct {
	securityv1.UnimplementedIstioCertificateServiceServer
	a *Authority
}

// refusal carries the gRPC code of an error.
type refusal struct {
	code codes.Code
	err  error
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

func refuse(code codes.Code, format string, args ...any) error {
	return &refusal{code, fmt.Errorf(format, args...)}
}

// asked is one request, as far as it was understood: what the audit line says.
type asked struct {
	caller   Caller
	identity string // what was asked for
	ttl      time.Duration
	reached  stage
}

// CreateCertificate signs a CSR for the caller's identity, or for the one that a trusted node proxy impersonates. The
// answer is the chain, leaf first and root last (MT-16, MT-18). Each certificate is one line of the log; refusals of one address
// are a few lines in a while, and a number.
func (s service) CreateCertificate(ctx context.Context, req *securityv1.IstioCertificateRequest) (*securityv1.IstioCertificateResponse, error) {
	q := &asked{identity: "unknown"}
	chain, err := s.a.create(ctx, req, q)
	from := "unknown"
	if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
		from = p.Addr.String()
	}
	log := s.a.cfg.Log.With("caller", q.caller.String(), "pod", q.caller.PodName, "node", q.caller.Node, "peer", from, "identity", q.identity)
	if err != nil {
		code := codes.Internal
		if r := (*refusal)(nil); errors.As(err, &r) {
			code = r.code
		}
		s.a.metrics.answered(q.reached, code)
		said := quota.Cut(err.Error(), maxSaid)
		if left, ok := s.a.lines.Take(quota.Addr(from)); ok {
			log.Warn("certificate refused", "reason", code.String(), "left_out", left, "err", said)
		}
		return nil, status.Errorf(code, "caller %s, requested identity %s: %s", q.caller, q.identity, said)
	}
	s.a.metrics.answered(q.reached, codes.OK)
	leaf, root := chain[0], chain[len(chain)-1]
	log.Info("certificate signed", "serial", leaf.SerialNumber.Text(16), "not_after", leaf.NotAfter, "ttl", q.ttl,
		"root", Fingerprint(encodeCert(root.Raw)))
	out := &securityv1.IstioCertificateResponse{}
	for _, c := range chain {
		out.CertChain = append(out.CertChain, string(encodeCert(c.Raw)))
	}
	return out, nil
}

func (a *Authority) create(ctx context.Context, req *securityv1.IstioCertificateRequest, q *asked) ([]*x509.Certificate, error) {
	token := bearer(ctx)
	if token == "" {
		return nil, refuse(codes.Unauthenticated, "authenticate caller: no bearer token")
	}
	caller, err := a.cfg.Authenticator.Authenticate(ctx, token)
	if err != nil {
		code := codes.Unavailable // it could not be told: the caller is to come again
		if errors.Is(err, ErrBadToken) {
			code = codes.Unauthenticated
		}
		return nil, refuse(code, "authenticate caller: %w", err)
	}
	q.caller, q.reached = caller, stageIdentity
	if q.identity, err = a.identity(ctx, caller, req.GetMetadata()); err != nil {
		return nil, err
	}
	q.reached = stageRequest
	csr, err := parseCSR(req.GetCsr(), q.identity)
	if err != nil {
		return nil, refuse(codes.InvalidArgument, "check csr: %w", err)
	}
	if q.ttl, err = a.ttl(req.GetValidityDuration()); err != nil {
		return nil, err
	}
	q.reached = stageSign
	return a.issue(ctx, csr, q)
}

// issue signs with the authority's own key, or has it signed elsewhere. It returns the chain, leaf first and root last.
func (a *Authority) issue(ctx context.Context, csr *x509.CertificateRequest, q *asked) ([]*x509.Certificate, error) {
	now := a.cfg.Clock.Now()
	a.mu.RLock()
	iss, roots := a.issuer, a.signers
	external := a.record.usesExternal(roots, now)
	a.mu.RUnlock()
	if iss == nil {
		return nil, refuse(codes.Unavailable, "%w", ErrNotLoaded)
	}
	if external {
		if err := checkBare(csr); err != nil {
			return nil, refuse(codes.InvalidArgument, "check csr: %w", err)
		}
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr.Raw})
		chain, err := a.cfg.External.sign(ctx, string(text), q.identity, csr.PublicKey, lifetimes{q.ttl, a.cfg.MaxTTL}, roots)
		if err != nil {
			return nil, refuse(codes.Unavailable, "%w", err)
		}
		return chain, nil
	}
	// Only the key and the SAN are taken from the CSR; without a subject the SAN is critical.
	leaf, err := iss.sign(&x509.Certificate{
		URIs:        []*url.URL{csr.URIs[0]},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, csr.PublicKey, now, q.ttl)
	if err != nil {
		return nil, err
	}
	return append([]*x509.Certificate{leaf}, iss.chain...), nil
}

// identity returns the SPIFFE ID that the caller may have a certificate for. With an error it is what was asked for.
func (a *Authority) identity(ctx context.Context, caller Caller, md *structpb.Struct) (string, error) {
	td := a.cfg.TrustDomain()
	if td == "" {
		return "unknown", refuse(codes.Unavailable, "the trust domain is not known yet")
	}
	own := api.Identity{TrustDomain: td, Namespace: caller.Namespace, ServiceAccount: caller.ServiceAccount}
	field, ok := md.GetFields()[impersonatedField]
	if !ok {
		if _, err := api.ParseIdentity(own.String()); err != nil {
			return own.String(), refuse(codes.PermissionDenied, "check caller: %w", err)
		}
		return own.String(), nil
	}
	asked := field.GetStringValue()
	if len(asked) > maxIdentity {
		return "unknown", refuse(codes.InvalidArgument, "metadata.%s: %d bytes, want at most %d", impersonatedField, len(asked), maxIdentity)
	}
	id, err := api.ParseIdentity(asked)
	if err != nil {
		return fmt.Sprintf("%q", asked), refuse(codes.InvalidArgument, "metadata.%s: %w", impersonatedField, err)
	}
	switch {
	case id == own:
		return asked, nil
	case id.TrustDomain != td:
		return asked, refuse(codes.PermissionDenied, "metadata.%s: trust domain is not %q", impersonatedField, td)
	case !slices.Contains(a.cfg.TrustedNodeAccounts, caller.Namespace+"/"+caller.ServiceAccount):
		return asked, refuse(codes.PermissionDenied, "impersonate: the caller is not a trusted node proxy")
	}
	if err := a.cfg.NodeAuthorizer.MayImpersonate(ctx, caller, id); err != nil {
		return asked, refuse(codes.PermissionDenied, "impersonate: %w", err)
	}
	return asked, nil
}

func (a *Authority) ttl(seconds int64) (time.Duration, error) {
	switch {
	case seconds == 0:
		return a.cfg.DefaultTTL, nil
	case seconds < 0 || seconds > math.MaxInt64/int64(time.Second) || time.Duration(seconds)*time.Second > a.cfg.MaxTTL:
		return 0, refuse(codes.InvalidArgument, "validity_duration: %d s, want 1 to %d", seconds, int64(a.cfg.MaxTTL/time.Second))
	}
	return time.Duration(seconds) * time.Second, nil
}

// parseCSR checks a PEM request whose one SAN must be the given SPIFFE ID.
func parseCSR(text, id string) (*x509.CertificateRequest, error) {
	if len(text) > maxCSR {
		return nil, fmt.Errorf("%d bytes, want at most %d", len(text), maxCSR)
	}
	block, rest := pem.Decode([]byte(text))
	switch {
	case block == nil || block.Type != "CERTIFICATE REQUEST" && block.Type != "NEW CERTIFICATE REQUEST":
		return nil, errors.New("holds no PEM certificate request")
	case len(bytes.TrimSpace(rest)) > 0:
		return nil, errors.New("holds something behind the PEM certificate request")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	if err := checkPublic(csr.PublicKey); err != nil {
		return nil, err
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	if len(csr.URIs) != 1 || len(csr.DNSNames)+len(csr.IPAddresses)+len(csr.EmailAddresses) > 0 {
		return nil, fmt.Errorf("subject alternative names: %d URIs and %d others, want the one URI %s",
			len(csr.URIs), len(csr.DNSNames)+len(csr.IPAddresses)+len(csr.EmailAddresses), id)
	}
	if n := len(csr.URIs[0].String()); n > maxIdentity {
		return nil, fmt.Errorf("subject alternative name: %d bytes, want at most %d", n, maxIdentity)
	}
	// ParseIdentity refuses everything that two readers of a URI could take differently.
	if san, err := api.ParseIdentity(csr.URIs[0].String()); err != nil || san.String() != id {
		return nil, fmt.Errorf("subject alternative name: %q, want %q", csr.URIs[0], id)
	}
	return csr, nil
}

func bearer(ctx context.Context) string {
	md, _ := metadata.FromIncomingContext(ctx)
	for _, v := range md.Get("authorization") {
		if token, ok := strings.CutPrefix(v, "Bearer "); ok {
			return token
		}
	}
	return ""
}
