package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	credentials "github.com/undermesh/undermesh/controller/api/credential"
	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/credential"
	"github.com/undermesh/undermesh/ztunnel/hbone"
)

// originate speaks TLS to the server at the other end of up, as the caller's DestinationRule asks (EG-09, MT-13).
func (s *session) originate(up net.Conn, r *way, cfg *tls.Config) (net.Conn, error) {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	timer := s.p.cfg.Clock.AfterFunc(s.connectTimeout(), cancel)
	defer timer.Stop()
	tc := tls.Client(hbone.NewTransport(up), cfg)
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, ended(s.ctx, reason.TLSHandshake, fmt.Errorf("speak TLS to %s: %w", r.addr, err))
	}
	r.protocol = tc.ConnectionState().NegotiatedProtocol
	return tc, nil
}

// originTLS is the configuration that r's rule asks for. What a node cannot do as it was asked is an error.
func (s *session) originTLS(r *way) (*tls.Config, error) {
	t := r.path.Originate
	if field := credentials.File(t); field != "" {
		return nil, fmt.Errorf("tls.%s: files of workloads are not read", field)
	}
	material, err := s.material(r)
	if err != nil {
		return nil, fmt.Errorf("DestinationRule %s: tls.credentialName: %w", r.path.Rule, err)
	}
	return s.p.tlsBy(t, r.path.Called, r.protocols, material)
}

// material is the credential that r's rule names; it is empty for a rule that names none.
func (s *session) material(r *way) (*credentials.Material, error) {
	ref, needed, err := credentials.Of(r.source.GetNamespace(), r.path.Originate)
	switch {
	case !needed:
		return &credentials.Material{}, nil
	case err != nil:
		return nil, err
	case s.p.cfg.Credentials == nil:
		return nil, errors.New("this node has nobody to ask for it")
	}
	ctx, cancel := clock.WithTimeout(s.ctx, s.p.cfg.Clock, s.p.cfg.HoldTimeout, nil)
	defer cancel()
	if r.credential, err = s.p.cfg.Credentials.Get(ctx, ref); err != nil {
		return nil, err
	}
	return r.credential.Material, nil
}

// Credentials gives what DestinationRules name by tls.credentialName; *credential.Manager is the real one.
type Credentials interface {
	// Get waits for the credential until ctx ends.
	Get(ctx context.Context, ref credentials.Ref) (*credential.Credential, error)
}

// tlsBy is the configuration that t asks for, by what the Secret has that it names.
func (p *Proxy) tlsBy(t *settings.ClientTls, svc *client.Service, protocols []string, by *credentials.Material) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.GetSni(), NextProtos: protocols, RootCAs: p.cfg.Roots, Time: p.cfg.Clock.Now}
	if by.Roots != nil {
		cfg.RootCAs = by.Roots
	}
	if by.Certificate != nil {
		// Whatever issuers the server names: it is the one that was asked for.
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return by.Certificate, nil }
	}
	if cfg.ServerName == "" && !strings.HasPrefix(svc.GetHostname(), "*") {
		cfg.ServerName = svc.GetHostname()
	}
	names := t.GetSubjectAltNames()
	if len(names) == 0 {
		names = svc.GetSubjectAltNames()
	}
	if len(names) == 0 && cfg.ServerName != "" {
		names = []string{cfg.ServerName}
	}
	switch {
	case t.GetInsecureSkipVerify(): // the DestinationRule says so
	case len(names) == 0:
		return nil, errors.New("tls: neither sni nor subjectAltNames nor a host without a wildcard says whose certificate is expected")
	default:
		cfg.VerifyConnection = func(state tls.ConnectionState) error { return verifyNamed(cfg, state, names, by.Lists) }
	}
	cfg.InsecureSkipVerify = true // verifyNamed does it
	return cfg, nil
}

// verifyNamed checks that the server's certificate leads to a root, is not revoked, and has one of the names: of DNS, or URIs.
func verifyNamed(cfg *tls.Config, state tls.ConnectionState, names []string, revoked credentials.Lists) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("the server has no certificate")
	}
	leaf, pool := state.PeerCertificates[0], x509.NewCertPool()
	for _, c := range state.PeerCertificates[1:] {
		pool.AddCert(c)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{Roots: cfg.RootCAs, Intermediates: pool, CurrentTime: cfg.Time()})
	if err != nil {
		return fmt.Errorf("verify certificate: %w", err)
	}
	if revoked != nil {
		bad := []error{}
		for _, chain := range chains {
			bad = append(bad, revoked.Check(chain, cfg.Time()))
		}
		if !slices.Contains(bad, nil) {
			return bad[0]
		}
	}
	for _, want := range names {
		if strings.Contains(want, "://") {
			for _, u := range leaf.URIs {
				if u.String() == want {
					return nil
				}
			}
			continue
		}
		if leaf.VerifyHostname(want) == nil {
			return nil
		}
	}
	return fmt.Errorf("verify certificate: it names %.200q, and none of %q", leaf.DNSNames, names)
}
