package app

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	_ "golang.org/x/crypto/x509roots/fallback" // roots where the system has none, as in our image

	"github.com/undermesh/undermesh/controller/jwks/keeper"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// keyOptions say from where keys of token issuers may be fetched.
type keyOptions struct {
	private     bool
	allow, deny string // networks, separated by commas
	roots       string // file
	node        string // addresses of the node, separated by commas
}

// fetchKeys makes the configuration of what fetches keys, without its store.
func fetchKeys(o keyOptions) (*keeper.Config, error) {
	cfg := keeper.FetcherConfig{Clock: clock.System(), Guard: keeper.Guard{Private: o.private}}
	var err error
	if cfg.Guard.Allow, err = networks(o.allow); err != nil {
		return nil, fmt.Errorf("-jwks-allow: %w", err)
	}
	if cfg.Guard.Deny, err = networks(o.deny); err != nil {
		return nil, fmt.Errorf("-jwks-deny: %w", err)
	}
	if cfg.Guard.Own, err = ownAddresses(o.node); err != nil {
		return nil, fmt.Errorf("variable HOST_IP: %w", err)
	}
	if o.roots != "" {
		if cfg.Roots, err = rootsWith(o.roots); err != nil {
			return nil, fmt.Errorf("-jwks-roots: %w", err)
		}
	}
	resolver, dialer := &net.Resolver{}, &net.Dialer{Timeout: 3 * time.Second}
	cfg.Resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
		return resolver.LookupNetIP(ctx, "ip", host)
	}
	cfg.Dial = dialer.DialContext
	f, err := keeper.NewFetcher(cfg)
	if err != nil {
		return nil, err
	}
	return &keeper.Config{Fetch: f.Fetch}, nil
}

// ownAddresses returns what lists the addresses of this network namespace, at the time, and those of the node.
func ownAddresses(node string) (func() ([]netip.Addr, error), error) {
	var fixed []netip.Addr
	for text := range strings.SplitSeq(node, ",") {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		a, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("%q is not an address", text)
		}
		fixed = append(fixed, a)
	}
	return func() ([]netip.Addr, error) {
		found, err := net.InterfaceAddrs()
		if err != nil {
			return nil, fmt.Errorf("list addresses: %w", err)
		}
		all := slices.Clone(fixed)
		for _, a := range found {
			if n, ok := a.(*net.IPNet); ok {
				if ip, ok := netip.AddrFromSlice(n.IP); ok {
					all = append(all, ip)
				}
			}
		}
		return all, nil
	}, nil
}

func networks(list string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for text := range strings.SplitSeq(list, ",") {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("%q is not a network in CIDR notation", text)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// rootsWith are the roots of the system and those of the file.
func rootsWith(file string) (*x509.CertPool, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read roots: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("read roots of the system: %w", err)
	}
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("read roots %s: no certificate", file)
	}
	return pool, nil
}
