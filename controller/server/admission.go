package server

import (
	"context"
	"crypto/tls"
	"net"

	"github.com/undermesh/undermesh/controller/webhook"
	"github.com/undermesh/undermesh/controller/xds"
)

// admission answers the API server's reviews over TLS, with the certificate of the other listeners. It waits for the
// authority; until then reviews fail, which the API server ignores.
func (s *Server) admission(l net.Listener) func(context.Context, *xds.Server) error {
	return func(ctx context.Context, _ *xds.Server) error {
		h, err := webhook.New(webhook.Config{Catalogue: s.cfg.Catalogue, Log: s.cfg.Log, Metrics: s.registry, Clock: s.cfg.Clock})
		if err != nil {
			l.Close()
			return err
		}
		select {
		case <-ctx.Done():
			return l.Close()
		case <-s.ca.ready:
		}
		certificate := s.ca.loaded.Load().ServingCertificate(s.cfg.Authority.ServingNames)
		return serveHTTP(ctx, tls.NewListener(s.bound(l, webhookDoor), &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: certificate,
			NextProtos: []string{"http/1.1"}}), h, writeAnswer)
	}
}
