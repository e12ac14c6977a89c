package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"log/slog"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/nodeagent/netns"
	"github.com/undermesh/undermesh/nodeagent/zds"
	"github.com/undermesh/undermesh/nodeagent/zds/zdsapi"
	"github.com/undermesh/undermesh/test/netnstest"
)

var tunnelAddr = netip.MustParseAddrPort("10.0.0.1:15008")

// podOf makes the namespace of the one pod that the fake controller knows, and hands it to ztunnel as the agent does.
func podOf(t *testing.T, dir string) *netns.NetNS {
	t.Helper()
	ns := netnstest.Netns(t)
	h := netnstest.Handle(t, ns)
	lo, err := h.LinkByName("lo")
	must(t, err)
	addr, err := netlink.ParseAddr(tunnelAddr.Addr().String() + "/32")
	must(t, err)
	must(t, h.AddrAdd(lo, addr))
	nsFile, err := ns.File()
	must(t, err)
	t.Cleanup(func() { nsFile.Close() })
	listener, err := netns.Listen(ns, api.PortTunnel, 128, netns.Options{})
	must(t, err)
	t.Cleanup(func() { listener.Close() })
	pod := zds.Workload{
		UID: "uid-1", Info: &zdsapi.WorkloadInfo{Name: "sleep", Namespace: "foo", ServiceAccount: "sleep"},
		Addrs: []netip.Addr{tunnelAddr.Addr()}, Netns: nsFile, Listeners: zds.Listeners{zdsapi.ListenerKind_TUNNEL: listener},
	}
	s := zds.NewServer(zds.ServerConfig{
		Path: filepath.Join(dir, "zds"), Log: slog.New(slog.DiscardHandler), Snapshot: func() []zds.Workload { return []zds.Workload{pod} },
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return ns
}

// certFor is a client's certificate that names uri.
func (c *fakeController) certFor(uri string) tls.Certificate {
	u, err := url.Parse(uri)
	must(c.t, err)
	key := newKey(c.t)
	der := c.sign(&x509.Certificate{
		URIs: []*url.URL{u}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, key.Public())
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// tunnelTo does a handshake at the pod's tunnel port and reads what comes after it: TLS 1.3 tells a client of its refusal there.
func tunnelTo(ns *netns.NetNS, certs ...tls.Certificate) (leaf *x509.Certificate, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	raw, err := netns.Dial(ctx, ns, tunnelAddr, netns.Options{})
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, Certificates: certs, MinVersion: tls.VersionTLS13})
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return nil, err
	}
	_, err = c.Read(make([]byte, 1)) // the server's SETTINGS, or its refusal
	return c.ConnectionState().PeerCertificates[0], err
}

func TestPodProvesItsIdentity(t *testing.T) {
	netnstest.Require(t)
	dir := t.TempDir()
	c := startController(t, dir)
	ns := podOf(t, dir)
	p := startZtunnel(t, dir, c.addr)
	p.await("readiness", p.isReady)
	p.await("the pod's certificate ahead of its use", func() bool {
		_, body := p.get(p.admin, "/config_dump")
		var dump struct {
			Certificates []struct{ Identity, State string }
			Pods         []struct{ Name string }
		}
		return json.Unmarshal([]byte(body), &dump) == nil && len(dump.Certificates) == 1 && len(dump.Pods) == 1 &&
			dump.Certificates[0].Identity == "spiffe://cluster.local/ns/foo/sa/sleep" && dump.Certificates[0].State == "Available"
	})
	client := c.certFor("spiffe://cluster.local/ns/bar/sa/client")
	leaf, err := tunnelTo(ns, client)
	if err != nil {
		t.Fatal(err)
	}
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://cluster.local/ns/foo/sa/sleep" {
		t.Errorf("the server is %v", leaf.URIs)
	}
	foreign := startController(t, t.TempDir())
	for name, certs := range map[string][]tls.Certificate{
		"none": nil, "foreign root": {foreign.certFor("spiffe://cluster.local/ns/bar/sa/client")},
		"foreign trust domain": {c.certFor("spiffe://evil.example/ns/bar/sa/client")},
		"no workload":          {c.certFor("https://cluster.local/")},
	} {
		if _, err := tunnelTo(ns, certs...); err == nil || !strings.Contains(err.Error(), "remote error: tls") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, logged := range []string{
		"client didn't provide a certificate", "not signed by a root of the mesh", "peer is of a foreign trust domain", "peer certificate names no workload identity",
	} {
		p.await("the log line of "+logged, func() bool { return strings.Contains(p.out.String(), logged) })
	}
	for _, cause := range []string{"untrusted_root", "foreign_trust_domain", "no_spiffe_name", "none"} {
		p.await("the metric of "+cause, func() bool {
			_, body := p.get(p.stats, "/metrics")
			return strings.Contains(body, `undermesh_identity_peers_total{cause="`+cause+`",side="server"}`)
		})
	}

	// While the worker is away a connection waits in the backlog that the agent holds.
	first := p.worker()
	must(t, syscall.Kill(first, syscall.SIGKILL))
	began := time.Now()
	if _, err := tunnelTo(ns, client); err != nil {
		t.Errorf("a connection during the restart: %v", err)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("a connection during the restart took %s", took)
	} else {
		t.Logf("a connection during the restart took %s", took)
	}
	if p.worker() == first {
		t.Error("the worker was not restarted")
	}
}
