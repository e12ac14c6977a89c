package main

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
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// sitesTLS is a certificate authority that lasts as long as the process, and what it signed.
type sitesTLS struct {
	ca    *x509.Certificate
	key   *ecdsa.PrivateKey
	now   func() time.Time
	mu    sync.Mutex // protects below
	known map[string]*tls.Certificate
}

const (
	certLife  = 48 * time.Hour
	knownMost = 1000 // names; more are refused, since anyone can ask
)

func newSitesTLS(now func() time.Time) (*sitesTLS, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key of CA: %w", err)
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "sites"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: now().Add(-time.Hour), NotAfter: now().Add(certLife)}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of CA: %w", err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parse certificate of CA: %w", err)
	}
	return &sitesTLS{ca: ca, key: key, now: now, known: map[string]*tls.Certificate{}}, nil
}

// pem is the CA's certificate, for clients.
func (s *sitesTLS) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.ca.Raw})
}

// certificate makes one for the name that a client asks for.
func (s *sitesTLS) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := hello.ServerName
	if name == "" {
		name = "localhost"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.known[name]; c != nil {
		return c, nil
	}
	if len(s.known) >= knownMost {
		return nil, errors.New("too many names")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key of %s: %w", name, err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	t := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		NotBefore: s.now().Add(-time.Hour), NotAfter: s.now().Add(certLife)}
	der, err := x509.CreateCertificate(rand.Reader, t, s.ca, key.Public(), s.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of %s: %w", name, err)
	}
	c := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	s.known[name] = c
	return c, nil
}

// titles of wikipedia by the first part of the name.
var titles = map[string]string{"en": "Wikipedia, the free encyclopedia", "de": "Wikipedia – Die freie Enzyklopädie"}

// sitesHandler is what all the sites answer, by the name that they are asked by.
func sitesHandler(caPEM []byte) http.Handler {
	bin := httpbinHandler()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		switch {
		case r.URL.Path == "/ca.pem":
			_, _ = w.Write(caPEM) // the client may be gone
		case host == "edition.cnn.com" && r.TLS == nil:
			w.Header().Set("Location", "https://"+host+r.URL.RequestURI())
			w.WriteHeader(http.StatusMovedPermanently)
		case strings.HasSuffix(host, ".wikipedia.org"):
			name := host
			if r.TLS != nil {
				name = r.TLS.ServerName
			}
			title := titles[strings.TrimSuffix(name, ".wikipedia.org")]
			if title == "" {
				title = name
			}
			page(w, title)
		case strings.HasPrefix(host, "httpbin.") || strings.HasPrefix(host, "my-httpbin."):
			bin.ServeHTTP(w, r)
		default:
			page(w, host)
		}
	})
}

func page(w http.ResponseWriter, title string) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	fmt.Fprintf(w, "<!DOCTYPE html>\n<html><head><title>%s</title></head><body></body></html>\n", title)
}

// sites stands in for the hosts outside the mesh that the documents call, on ports 80 and 443. They answer by the name in the
// request or the handshake: httpbin.org, edition.cnn.com (plain HTTP is sent on to https), *.wikipedia.org and all others. The
// certificates are of an authority of its own, whose certificate is at /ca.pem. Its arguments may be other ports for the two.
func sites(ctx context.Context, args []string) error {
	plain, secure := ":80", ":443"
	if len(args) == 2 {
		plain, secure = ":"+args[0], ":"+args[1]
	}
	ca, err := newSitesTLS(time.Now)
	if err != nil {
		return err
	}
	h := accessLog(os.Stdout, sitesHandler(ca.pem()))
	return both(ctx, func(ctx context.Context) error { return serve(ctx, plain, h) },
		func(ctx context.Context) error {
			return serveTLS(ctx, secure, &tls.Config{GetCertificate: ca.certificate}, h)
		})
}

// both runs servers until ctx ends or one of them does.
func both(ctx context.Context, servers ...func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, len(servers))
	for _, s := range servers {
		go func() { ended <- s(ctx) }()
	}
	var errs error
	for range servers {
		errs = errors.Join(errs, <-ended)
		cancel()
	}
	return errs
}

// serveTLS is serve over TLS, with HTTP/2.
func serveTLS(ctx context.Context, addr string, config *tls.Config, h http.Handler) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", addr, err)
	}
	s := &http.Server{Handler: h, TLSConfig: config, ReadHeaderTimeout: 30 * time.Second}
	return run(ctx, s, addr, func() error { return s.ServeTLS(l, "", "") })
}

// nginx serves the page that nginx has at first, as its configuration file says: "listen", "ssl_certificate", "ssl_certificate_key",
// "ssl_client_certificate" and "ssl_verify_client" count. Its argument may name another file than /etc/nginx/nginx.conf.
func nginx(ctx context.Context, args []string) error {
	file := "/etc/nginx/nginx.conf"
	if len(args) > 0 && strings.HasPrefix(args[0], "/") {
		file = args[0]
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	c, err := parseNginx(string(text))
	if err != nil {
		return fmt.Errorf("configuration %s: %w", file, err)
	}
	h := nginxHandler(c.verify)
	var servers []func(context.Context) error
	for _, l := range c.listen {
		if !l.secure {
			servers = append(servers, func(ctx context.Context) error { return serve(ctx, l.addr, h) })
			continue
		}
		config, err := c.tls()
		if err != nil {
			return err
		}
		servers = append(servers, func(ctx context.Context) error { return serveTLS(ctx, l.addr, config, h) })
	}
	return both(ctx, servers...)
}

// nginxConfig is what counts of a configuration.
type nginxConfig struct {
	listen []struct {
		addr   string
		secure bool
	}
	cert, key, trust string
	verify           bool
}

func parseNginx(text string) (*nginxConfig, error) {
	c := &nginxConfig{}
	for _, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		for _, directive := range strings.FieldsFunc(line, func(r rune) bool { return r == ';' || r == '{' || r == '}' }) {
			f := strings.Fields(directive)
			if len(f) < 2 {
				continue
			}
			switch f[0] {
			case "listen":
				addr := f[1]
				if !strings.Contains(addr, ":") {
					addr = ":" + addr
				}
				c.listen = append(c.listen, struct {
					addr   string
					secure bool
				}{addr, len(f) > 2 && f[2] == "ssl"})
			case "ssl_certificate":
				c.cert = f[1]
			case "ssl_certificate_key":
				c.key = f[1]
			case "ssl_client_certificate":
				c.trust = f[1]
			case "ssl_verify_client":
				c.verify = f[1] == "on"
			}
		}
	}
	if len(c.listen) == 0 {
		return nil, errors.New("there is no listen")
	}
	if c.verify && c.trust == "" {
		return nil, errors.New("ssl_verify_client needs ssl_client_certificate")
	}
	return c, nil
}

func (c *nginxConfig) tls() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		return nil, fmt.Errorf("load certificate: %w", err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"http/1.1"}}
	if c.verify {
		b, err := os.ReadFile(c.trust)
		if err != nil {
			return nil, fmt.Errorf("read certificates to trust: %w", err)
		}
		config.ClientCAs = x509.NewCertPool()
		if !config.ClientCAs.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("%s holds no certificate", c.trust)
		}
		config.ClientAuth = tls.VerifyClientCertIfGiven
	}
	return config, nil
}

// nginxHandler asks for a client's certificate by status 400, as nginx does.
func nginxHandler(verify bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Server", "nginx/1.21.3")
		h.Set("Content-Type", "text/html")
		if verify && (r.TLS == nil || len(r.TLS.PeerCertificates) == 0) {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, "<html>\n<head><title>400 No required SSL certificate was sent</title></head>\n<body></body>\n</html>\n") // the client may be gone
			return
		}
		_, _ = io.WriteString(w, "<!DOCTYPE html>\n<html>\n<head>\n<title>Welcome to nginx!</title>\n</head>\n<body>\n<h1>Welcome to nginx!</h1>\n</body>\n</html>\n")
	})
}
