package proxy

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/securityapi"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/identity"
	"github.com/undermesh/undermesh/ztunnel/telemetry"
)

// testCA signs whatever it is asked for.
type testCA struct {
	key  *ecdsa.PrivateKey
	root *x509.Certificate
}

func newTestCA(t *testing.T) *testCA {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{"test"}}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(10, 0, 0), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &testCA{key, root}
}

func encodePEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func (ca *testCA) Issue(_ context.Context, r identity.Request) ([]string, error) {
	b, _ := pem.Decode(r.CSR)
	csr, err := x509.ParseCertificateRequest(b.Bytes)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), URIs: csr.URIs, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, ca.root, csr.PublicKey, ca.key)
	if err != nil {
		return nil, err
	}
	return []string{string(encodePEM(der)), string(encodePEM(ca.root.Raw))}, nil
}

// world is two nodes on one network: nodes "a" and "b", each with a Proxy.
type world struct {
	t     *testing.T
	net   *memNet
	ctx   context.Context
	ids   *identity.Manager
	nodes map[string]*Proxy
	tel   map[string]*telemetry.Registry
	log   *lockedBuffer

	mu        sync.Mutex
	snap      *client.Snapshot
	resources []client.Resource
	subs      []chan struct{}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// inWorld runs f in a bubble; everything that it starts ends before the bubble does.
func inWorld(t *testing.T, alter func(*Config), f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		w := &world{t: t, net: newMemNet(), ctx: ctx, nodes: map[string]*Proxy{}, tel: map[string]*telemetry.Registry{}, log: &lockedBuffer{}}
		ca := newTestCA(t)
		roots := identity.NewRoots(func() ([]byte, error) { return encodePEM(ca.root.Raw), nil })
		ids, err := identity.New(identity.Config{
			Issuer: ca, Roots: roots, Clock: clock.System(),
			Trust: func() identity.Trust { return identity.Trust{Domain: "cluster.local"} },
		})
		if err != nil {
			t.Fatal(err)
		}
		w.ids = ids
		var wg sync.WaitGroup
		run := func(f func(context.Context) error) {
			wg.Go(func() {
				if err := f(ctx); err != nil {
					t.Error(err)
				}
			})
		}
		run(ids.Run)
		for _, node := range []string{"a", "b"} {
			tel := telemetry.New(telemetry.Config{Clock: clock.System(), Out: w.log, Gather: -1, Access: func() telemetry.Access { return telemetry.Access{Text: true} }})
			cfg := Config{Snapshot: w.snapshot, Changed: w.subscribe, Identity: ids, Clock: clock.System(), Telemetry: tel}
			if alter != nil {
				alter(&cfg)
			}
			w.nodes[node], w.tel[node] = New(cfg), tel
			run(tel.Run)
			run(w.nodes[node].Run)
		}
		defer func() {
			cancel()
			w.net.end()
			wg.Wait()
			synctest.Wait()
		}()
		f(t, w)
	})
}

func (w *world) snapshot() *client.Snapshot {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.snap
}

func (w *world) subscribe() (<-chan struct{}, func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	ch := make(chan struct{}, 1)
	w.subs = append(w.subs, ch)
	return ch, func() {}
}

// apply adds resources to the mesh and publishes the result.
func (w *world) apply(list ...client.Resource) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.resources = append(w.resources, list...)
	var err error
	if w.snap == nil {
		w.snap, err = client.NewSnapshot(w.resources...)
	} else {
		w.snap, err = w.snap.With(w.snap.Generation()+1, list, nil)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	for _, ch := range w.subs {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

func workload(ns, name string, ip netip.Addr, policies ...string) *workloadapi.Workload {
	return &workloadapi.Workload{
		Uid: "Kubernetes//Pod/" + ns + "/" + name, Name: name, Namespace: ns, Addresses: [][]byte{ip.AsSlice()},
		ServiceAccount: name, TunnelProtocol: workloadapi.TunnelProtocol_HBONE, WorkloadName: name, CanonicalName: name,
		CanonicalRevision: "v1", AuthorizationPolicies: policies, ClusterId: "Kubernetes",
	}
}

// strict is what PeerAuthentication STRICT compiles to.
func strict() *securityapi.Authorization {
	present := &securityapi.StringMatch{MatchType: &securityapi.StringMatch_Presence{}}
	return deny("istio-system", api.StrictPolicyName, &securityapi.Match{NotPrincipals: []*securityapi.StringMatch{present}})
}

func deny(ns, name string, m *securityapi.Match) *securityapi.Authorization {
	return &securityapi.Authorization{
		Namespace: ns, Name: name, Scope: securityapi.Scope_WORKLOAD_SELECTOR, Action: securityapi.Action_DENY,
		Groups: []*securityapi.Group{{Rules: []*securityapi.Rules{{Matches: []*securityapi.Match{m}}}}},
	}
}

func allowFrom(ns, name, principal string) *securityapi.Authorization {
	p := deny(ns, name, &securityapi.Match{Principals: []*securityapi.StringMatch{{MatchType: &securityapi.StringMatch_Exact{Exact: principal}}}})
	p.Action = securityapi.Action_ALLOW
	return p
}

// testPod is a pod with its listeners.
type testPod struct {
	*Pod
	w        *world
	ip       netip.Addr
	out, in  *memListener
	tunnel   *memListener
	probe    *memListener
	app      *memListener // port 80
	sockets  *memSockets
	server   *http.Server // of web
	finished chan struct{}
}

// pod starts a pod of the namespace foo and declares its workload, unless quiet.
func (w *world) pod(node, name, ip string, probes ...Probe) *testPod {
	w.t.Helper()
	addr := netip.MustParseAddr(ip)
	p := &testPod{w: w, ip: addr, sockets: &memSockets{net: w.net, addr: addr}, finished: make(chan struct{})}
	p.Pod = w.nodes[node].NewPod(PodConfig{
		UID: name, Name: name, Namespace: "foo", ServiceAccount: name, Addrs: []netip.Addr{addr}, Probes: probes, Sockets: p.sockets,
	})
	p.out, p.in, p.probe = newMemListener(netip.AddrPort{}), newMemListener(netip.AddrPort{}), newMemListener(netip.AddrPort{})
	p.tunnel = w.net.listen(netip.AddrPortFrom(addr, 15008))
	p.app = w.net.listen(netip.AddrPortFrom(addr, 80))
	p.Listen(Outbound, p.out)
	p.Listen(Inbound, p.in)
	p.Listen(Tunnel, p.tunnel)
	p.Listen(Probes, p.probe)
	ctx := w.ctx
	go func() {
		defer close(p.finished)
		if err := p.Run(ctx); err != nil {
			w.t.Error(err)
		}
	}()
	return p
}

// connect makes a connection of the pod's own process to dst, as capture would hand it over.
func (p *testPod) connect(dst string) net.Conn {
	near, far := memPair(netip.AddrPortFrom(p.ip, 33333), netip.MustParseAddrPort(dst))
	p.out.ch <- far
	return patient(near)
}

// arrive makes a connection that arrives in plain text from src.
func (p *testPod) arrive(l *memListener, src string, port uint16) net.Conn {
	near, far := memPair(netip.MustParseAddrPort(src), netip.AddrPortFrom(p.ip, port))
	l.ch <- far
	return patient(near)
}

// patient makes a read that nothing ends fail the test: an hour of the bubble's time is soon over.
func patient(c *memConn) *memConn {
	_ = c.SetReadDeadline(time.Now().Add(time.Hour))
	return c
}

// echo answers every connection of the application with its peer's address and then its input.
func (p *testPod) echo() {
	go func() {
		for {
			c, err := p.app.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.WriteString(c, c.RemoteAddr().(*net.TCPAddr).IP.String()+"\n")
				_, _ = io.Copy(c, c)
			}()
		}
	}()
}

func (w *world) stop(pods ...*testPod) {
	for _, p := range pods {
		_ = p.app.Close()
	}
}

// say writes text, ends the direction and returns everything that comes back.
func say(t *testing.T, c net.Conn, text string) (string, error) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		return "", err
	}
	if err := c.(*memConn).CloseWrite(); err != nil {
		return "", err
	}
	b, err := io.ReadAll(c)
	return string(b), err
}

func (w *world) wantLog(parts ...string) {
	w.t.Helper()
	synctest.Wait()
	for line := range strings.SplitSeq(w.log.String(), "\n") {
		ok := true
		for _, p := range parts {
			ok = ok && strings.Contains(line, p)
		}
		if ok {
			return
		}
	}
	w.t.Errorf("no log line has %q:\n%s", parts, w.log.String())
}
