package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sync/errgroup"

	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/ztunnel/dns"
	"github.com/undermesh/undermesh/ztunnel/proxy"
)

// names keeps the hostnames of the mesh resolved.
type names struct {
	resolver *dns.Resolver // nil: there are no name servers
	snapshot func() *client.Snapshot
	changed  func() (<-chan struct{}, func())
}

// newNames reads the name servers. Without any the node serves all but hosts that must be resolved.
func newNames(w *worker) (*names, error) {
	servers, err := nameServers(w.o.resolvConf)
	if err != nil {
		w.log.Warn("hosts of service entries cannot be resolved", "err", err)
		return &names{nil, w.mesh.Snapshot, w.mesh.Watch}, nil
	}
	resolver, err := dns.New(dns.Config{
		Servers: servers, Dial: (&net.Dialer{}).DialContext, Clock: w.clock, Log: w.log.With("component", "dns"),
		ID: func() uint16 {
			var b [2]byte
			_, _ = rand.Read(b[:]) // never fails (crypto/rand)
			return binary.BigEndian.Uint16(b[:])
		},
	})
	if err != nil {
		return nil, err
	}
	return &names{resolver, w.mesh.Snapshot, w.mesh.Watch}, nil
}

func nameServers(path string) ([]netip.AddrPort, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read name servers: %w", err)
	}
	defer f.Close()
	servers, err := dns.Servers(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return servers, nil
}

// proxy is what the proxy asks; nil when nothing can be resolved.
func (n *names) proxy() proxy.Names {
	if n.resolver == nil {
		return nil
	}
	return n.resolver
}

// run tracks the hostnames of the newest snapshot until ctx ends.
func (n *names) run(ctx context.Context) error {
	if n.resolver == nil {
		<-ctx.Done()
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return n.resolver.Run(ctx) })
	g.Go(func() error {
		changed, stop := n.changed()
		defer stop()
		var last *client.Snapshot
		for {
			if now := n.snapshot(); now != nil && (last == nil || !now.SameHostnames(last)) {
				n.resolver.Track(now.Hostnames())
				last = now
			}
			select {
			case <-ctx.Done():
				return nil
			case <-changed:
			}
		}
	})
	return g.Wait()
}
