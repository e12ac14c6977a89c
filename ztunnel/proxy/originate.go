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

	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/ztunnel/hbone"
)

// originate speaks TLS to the server at the other end of up, as the caller's DestinationRule asks (EG-09).
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

// systemRoots is what caCertificates calls the roots of the system.
const systemRoots = "system"

// originTLS is the configuration that t asks for. What a node cannot do as it was asked is an error: files and secrets are the
// caller's, which the node does not read.
func (p *Proxy) originTLS(t *settings.ClientTls, svc *client.Service, protocols []string) (*tls.Config, error) {
	switch {
	case t.GetCredentialName() != "":
		return nil, fmt.Errorf("tls.credentialName %q: secrets are not read for workloads", t.GetCredentialName())
	case t.GetMode() == settings.ClientTls_MODE_MUTUAL:
		return nil, errors.New("tls.mode MUTUAL: the files of a client certificate are not read")
	case t.GetCaCertificates() != "" && t.GetCaCertificates() != systemRoots && !t.GetInsecureSkipVerify():
		return nil, fmt.Errorf("tls.caCertificates %q: files of workloads are not read", t.GetCaCertificates())
	case t.GetCaCrl() != "" && !t.GetInsecureSkipVerify():
		return nil, fmt.Errorf("tls.caCrl %q: files of workloads are not read", t.GetCaCrl())
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.GetSni(), NextProtos: protocols, RootCAs: p.cfg.Roots, Time: p.cfg.Clock.Now}
	if cfg.ServerName == "" && !strings.HasPrefix(svc.GetHostname(), "*") {
		cfg.ServerName = svc.GetHostname()
	}
	names := t.GetSubjectAltNames()
	if len(names) == 0 {
		names = svc.GetSubjectAltNames()
	}
	switch {
	case t.GetInsecureSkipVerify():
		cfg.InsecureSkipVerify = true // the DestinationRule says so
	case len(names) > 0:
		cfg.InsecureSkipVerify = true // verifyNamed does it
		cfg.VerifyConnection = func(state tls.ConnectionState) error { return verifyNamed(cfg, state, names) }
	case cfg.ServerName == "":
		return nil, errors.New("tls: neither sni nor subjectAltNames nor a host without a wildcard says whose certificate is expected")
	}
	return cfg, nil
}

// verifyNamed checks that the server's certificate leads to a root and has one of the names: of DNS, or URIs.
func verifyNamed(cfg *tls.Config, state tls.ConnectionState, names []string) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("the server has no certificate")
	}
	leaf, pool := state.PeerCertificates[0], x509.NewCertPool()
	for _, c := range state.PeerCertificates[1:] {
		pool.AddCert(c)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: cfg.RootCAs, Intermediates: pool, CurrentTime: cfg.Time()}); err != nil {
		return fmt.Errorf("verify certificate: %w", err)
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
	return fmt.Errorf("verify certificate: it names %.200q, and none of %q", slices.Concat(leaf.DNSNames), names)
}
