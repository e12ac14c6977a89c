package keeper

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/undermesh/undermesh/controller/jwks"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// FetcherConfig is what a Fetcher needs. Resolve, Dial and Clock are required.
type FetcherConfig struct {
	// Resolve returns the addresses of a host name.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	// Dial connects to an address that the Guard let pass; its host is never a name.
	Dial  func(ctx context.Context, network, address string) (net.Conn, error)
	Clock clock.Clock
	Guard Guard
	// Roots verify https; default: those of the system.
	Roots *x509.CertPool
	// Timeout of one fetch with all that belongs to it; default 5 s.
	Timeout time.Duration
	// MaxBytes of one answer; default 256 KiB.
	MaxBytes int64
}

// Fetcher fetches keys. It is safe for concurrent use.
type Fetcher struct {
	cfg    FetcherConfig
	client *http.Client
}

// NewFetcher returns a Fetcher; nothing is connected yet.
func NewFetcher(cfg FetcherConfig) (*Fetcher, error) {
	if cfg.Resolve == nil || cfg.Dial == nil || cfg.Clock == nil {
		return nil, errors.New("check fetcher config: Resolve, Dial or Clock: missing")
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 5 * time.Second
	}
	if cfg.MaxBytes <= 0 {
		cfg.MaxBytes = 256 << 10
	}
	f := &Fetcher{cfg: cfg}
	f.client = &http.Client{
		// Who answers with a redirect would choose where we go next.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy: nil, DialContext: f.dial, TLSClientConfig: &tls.Config{RootCAs: cfg.Roots, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout: cfg.Timeout, DisableKeepAlives: true, DisableCompression: true,
			MaxResponseHeaderBytes: 16 << 10,
		},
	}
	return f, nil
}

// refused is why a connection is not made.
type refused struct{ why error }

func (r *refused) Error() string {
	return r.why.Error() + ": the control plane does not connect to such addresses"
}

// dial looks the name up, and connects to what it checked and to nothing else: a name that gives another address when it is
// looked up again gains nothing.
func (f *Fetcher) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	addrs := []netip.Addr{}
	if literal, err := netip.ParseAddr(host); err == nil {
		addrs = append(addrs, literal)
	} else if addrs, err = f.cfg.Resolve(ctx, host); err != nil {
		return nil, fmt.Errorf("look up %s: %w", host, err)
	}
	for _, a := range addrs {
		if err := f.cfg.Guard.Check(a); err != nil {
			return nil, &refused{err}
		}
	}
	err = fmt.Errorf("%s has no address", host)
	for _, a := range addrs {
		var c net.Conn
		if c, err = f.cfg.Dial(ctx, network, net.JoinHostPort(a.Unmap().WithZone("").String(), port)); err == nil {
			return c, nil
		}
	}
	return nil, err
}

// Fetch returns the public keys of a source in the form of RFC 7517, sorted. The error says what went wrong without
// anything of the answer.
func (f *Fetcher) Fetch(ctx context.Context, source string) (keys string, err error) {
	ctx, cancel := clock.WithTimeout(ctx, f.cfg.Clock, f.cfg.Timeout, fmt.Errorf("no answer within %s", f.cfg.Timeout))
	defer cancel()
	body, err := f.get(ctx, source)
	if err != nil {
		return "", err
	}
	if strings.HasSuffix(source, jwks.Discovery) {
		var config struct {
			URI string `json:"jwks_uri"`
		}
		if err := json.Unmarshal(body, &config); err != nil || config.URI == "" {
			return "", errors.New("the issuer's configuration names no jwks_uri")
		}
		if body, err = f.get(ctx, config.URI); err != nil {
			return "", fmt.Errorf("the issuer's jwks_uri: %w", err)
		}
	}
	return jwks.ParseKeys(body)
}

func (f *Fetcher) get(ctx context.Context, from string) ([]byte, error) {
	if _, err := jwks.ParseURL(from); err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, errors.New("is not a URL")
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "undermesh-controller")
	resp, err := f.client.Do(req)
	if err != nil {
		return nil, explain(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		if resp.StatusCode/100 == 3 {
			return nil, fmt.Errorf("answers with a redirect (%d), which is not followed", resp.StatusCode)
		}
		return nil, fmt.Errorf("answers with status %d", resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, f.cfg.MaxBytes+1))
	if err != nil {
		return nil, explain(ctx, err)
	}
	if int64(len(body)) > f.cfg.MaxBytes {
		return nil, fmt.Errorf("answers with more than %d bytes", f.cfg.MaxBytes)
	}
	return body, nil
}

// explain keeps of an error what helps and comes from us: never what the other side sent, as errors of net/http hold.
func explain(ctx context.Context, err error) error {
	var (
		guard *refused
		dns   *net.DNSError
		cert  *tls.CertificateVerificationError
		op    *net.OpError
	)
	switch {
	case errors.As(err, &guard):
		return guard
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.As(err, &dns) && dns.IsNotFound:
		return errors.New("the host is not found")
	case errors.As(err, &dns):
		return errors.New("the host cannot be looked up")
	case errors.As(err, &cert):
		return errors.New("the server's certificate is not trusted")
	case errors.As(err, &op) && op.Op == "dial":
		return errors.New("cannot connect")
	}
	return errors.New("the connection failed, or the answer is not HTTP")
}
