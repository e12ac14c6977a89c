package proxy

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/hbone"
)

func account(name string) api.Identity {
	return api.Identity{TrustDomain: "cluster.local", Namespace: "foo", ServiceAccount: name}
}

// attacker opens a tunnel to p with the certificate of id, from the address of another pod.
func (w *world) attacker(p *testPod, id api.Identity) *hbone.Client {
	w.t.Helper()
	return hbone.NewClient(w.tlsTo(p, id), hbone.Config{Clock: clock.System()})
}

// tlsTo is the connection under an attacker.
func (w *world) tlsTo(p *testPod, id api.Identity) *tls.Conn {
	w.t.Helper()
	cfg, err := w.ids.ClientTLS(w.ctx, id, []api.Identity{account(p.cfg.ServiceAccount)})
	if err != nil {
		w.t.Fatal(err)
	}
	raw, err := w.net.dial(netip.MustParseAddr("10.0.0.1"), netip.AddrPortFrom(p.ip, 15008))
	if err != nil {
		w.t.Fatal(err)
	}
	tc := tls.Client(hbone.NewTransport(raw), cfg)
	if err := tc.HandshakeContext(w.ctx); err != nil {
		w.t.Fatal(err)
	}
	return tc
}

func TestConnectIsJudgedByCertificateAndAddress(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		b := w.pod("b", "httpbin", "10.0.1.1")
		defer w.stop(b)
		b.echo()
		w.net.listen(netip.MustParseAddrPort("10.0.1.2:80"))
		w.apply(client.Resource{Message: workload("foo", "sleep", netip.MustParseAddr("10.0.0.1"))},
			client.Resource{Message: workload("foo", "httpbin", b.ip, "foo/only-sleep")},
			client.Resource{Message: allowFrom("foo", "only-sleep", "cluster.local/ns/foo/sa/sleep")})
		sleep, mallory := w.attacker(b, account("sleep")), w.attacker(b, account("mallory"))
		defer sleep.Close()
		defer mallory.Close()
		for _, c := range []struct {
			name, authority string
			from            *hbone.Client
			status          int
			log             string
		}{
			{"other pod's address", "10.0.1.2:80", sleep, 400, "reason=authority_mismatch"},
			{"hostname", "httpbin.foo.svc.cluster.local:80", sleep, 400, "reason=authority_mismatch"},
			{"loopback", "127.0.0.1:80", sleep, 400, "reason=authority_mismatch"},
			{"unspecified", "0.0.0.0:80", sleep, 400, "reason=authority_mismatch"},
			{"outbound port", "10.0.1.1:15001", sleep, 400, "reason=mesh_port"},
			{"inbound port", "10.0.1.1:15006", sleep, 400, "reason=mesh_port"},
			{"tunnel port", "10.0.1.1:15008", sleep, 400, "reason=mesh_port"},
			{"closed port", "10.0.1.1:81", sleep, 503, "reason=upstream_connect"},
			{"right address, other certificate", "10.0.1.1:80", mallory, 401, "policy=foo/only-sleep"},
		} {
			_, err := c.from.Connect(w.ctx, hbone.Request{Authority: c.authority})
			var status *hbone.StatusError
			if !errors.As(err, &status) || status.Code != c.status {
				t.Errorf("%s: %v, want status %d", c.name, err, c.status)
			}
			w.wantLog(c.log)
		}
		s, err := sleep.Connect(w.ctx, hbone.Request{Authority: "[::ffff:10.0.1.1]:80"})
		if err != nil {
			t.Fatalf("mapped form of the pod's own address: %v", err)
		}
		_ = s.Close()
		w.wantLog("src.identity=spiffe://cluster.local/ns/foo/sa/mallory", "reason=policy_not_allowed")
	})
}

func TestGarbageOnTheTunnelPort(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		b := w.pod("b", "httpbin", "10.0.1.1")
		defer w.stop(b)
		w.apply(client.Resource{Message: workload("foo", "httpbin", b.ip)})
		for name, bytes := range map[string]string{"http": "GET / HTTP/1.1\r\n\r\n", "preface": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "nothing": ""} {
			c, err := w.net.dial(netip.MustParseAddr("10.9.9.9"), netip.AddrPortFrom(b.ip, 15008))
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			if bytes != "" {
				_, _ = io.WriteString(c, bytes)
			}
			_, _ = io.ReadAll(c)
			if d := time.Since(start); d > 15*time.Second {
				t.Errorf("%s: the connection lived for %v", name, d)
			}
		}
		w.wantLog("reason=tls_handshake", "direction=inbound")
	})
}

func TestNoCertificateNoTunnel(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		b := w.pod("b", "httpbin", "10.0.1.1")
		defer w.stop(b)
		w.apply(client.Resource{Message: workload("foo", "httpbin", b.ip)})
		raw, err := w.net.dial(netip.MustParseAddr("10.9.9.9"), netip.AddrPortFrom(b.ip, 15008))
		if err != nil {
			t.Fatal(err)
		}
		tc := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13})
		_ = tc.HandshakeContext(w.ctx) // TLS 1.3: the client is done before the server has asked
		if _, err := tc.Read(make([]byte, 1)); err == nil {
			t.Error("the server went on without a certificate")
		}
		_ = tc.Close()
		w.wantLog("reason=tls_handshake")
	})
}

func TestServerWithAnotherIdentityIsRefused(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		a, b := w.pod("a", "sleep", "10.0.0.1"), w.pod("b", "impostor", "10.0.1.1")
		defer w.stop(a, b)
		b.echo()
		// the mesh says that the address is httpbin's; the pod there can prove impostor only
		w.apply(client.Resource{Message: workload("foo", "sleep", a.ip)}, client.Resource{Message: workload("foo", "impostor", b.ip)})
		wrong := workload("foo", "httpbin", b.ip)
		w.apply(client.Resource{Message: wrong})
		if w.snapshot().WorkloadByIP("", b.ip).GetName() != "httpbin" {
			t.Fatal("the address is impostor's in this snapshot: the test shows nothing")
		}
		got, err := say(t, a.connect("10.0.1.1:80"), "secret")
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("got %q, %v, want a reset", got, err)
		}
		w.wantLog("reason=peer_identity", "direction=outbound")
	})
}

func TestHalfCloseThroughTheTunnel(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		a, b := w.pod("a", "sleep", "10.0.0.1"), w.pod("b", "httpbin", "10.0.1.1")
		defer w.stop(a, b)
		w.apply(client.Resource{Message: workload("foo", "sleep", a.ip)}, client.Resource{Message: workload("foo", "httpbin", b.ip)})
		c := a.connect("10.0.1.1:80")
		up, err := b.app.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, "question")
		_ = c.(*memConn).CloseWrite()
		if got, err := io.ReadAll(up); err != nil || string(got) != "question" {
			t.Fatalf("server: %q, %v", got, err)
		}
		_, _ = io.WriteString(up, "answer")
		_ = up.Close()
		if got, err := io.ReadAll(c); err != nil || string(got) != "answer" {
			t.Fatalf("client: %q, %v", got, err)
		}

		c = a.connect("10.0.1.1:80")
		if up, err = b.app.Accept(); err != nil {
			t.Fatal(err)
		}
		reset(up)
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("server reset: client got %v", err)
		}
		c = a.connect("10.0.1.1:80")
		if up, err = b.app.Accept(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		reset(c)
		if _, err := up.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("client reset: server got %v", err)
		}
		w.wantLog("reason=upstream_reset", "direction=outbound")
		w.wantLog("reason=downstream_reset", "direction=inbound")
	})
}

func TestRefusedByTheOtherNodeIsAReset(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		a, b := w.pod("a", "sleep", "10.0.0.1"), w.pod("b", "httpbin", "10.0.1.1")
		defer w.stop(a, b)
		b.echo()
		w.apply(client.Resource{Message: workload("foo", "sleep", a.ip)}, client.Resource{Message: workload("foo", "httpbin", b.ip, "foo/nobody")},
			client.Resource{Message: allowFrom("foo", "nobody", "cluster.local/ns/foo/sa/nobody")})
		start := time.Now()
		if _, err := a.connect("10.0.1.1:80").Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("%v, want a reset", err)
		}
		if d := time.Since(start); d != 100*time.Millisecond {
			t.Errorf("reset after %v, want 100ms", d)
		}
		w.wantLog("reason=tunnel_rejected", "direction=outbound", "status 401: policy_not_allowed")
		w.wantLog("reason=policy_not_allowed", "direction=inbound", "policy=foo/nobody")
	})
}

func TestServiceAddressAndHairpin(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		a, b := w.pod("a", "sleep", "10.0.0.1"), w.pod("b", "httpbin", "10.0.1.1")
		defer w.stop(a, b)
		a.echo()
		b.echo()
		svc := func(name, vip string) client.Resource {
			return client.Resource{Message: &workloadapi.Service{
				Name: name, Namespace: "foo", Hostname: name + ".foo.svc.cluster.local",
				Addresses: []*workloadapi.NetworkAddress{{Address: netip.MustParseAddr(vip).AsSlice()}},
				Ports:     []*workloadapi.Port{{ServicePort: 8000, TargetPort: 80}},
			}}
		}
		member := func(p *testPod, name string) client.Resource {
			wl := workload("foo", p.cfg.Name, p.ip)
			wl.Services = map[string]*workloadapi.PortList{"foo/" + name + ".foo.svc.cluster.local": {Ports: []*workloadapi.Port{{ServicePort: 8000, TargetPort: 80}}}}
			return client.Resource{Message: wl}
		}
		w.apply(svc("httpbin", "10.96.0.1"), svc("sleep", "10.96.0.2"), svc("empty", "10.96.0.3"), member(a, "sleep"), member(b, "httpbin"))
		if got, err := say(t, a.connect("10.96.0.1:8000"), "x"); err != nil || got != "10.0.0.1\nx" {
			t.Fatalf("got %q, %v", got, err)
		}
		w.wantLog("dst.service=httpbin.foo.svc.cluster.local", "direction=outbound")
		w.wantLog("dst.service=httpbin.foo.svc.cluster.local", "direction=inbound")
		if got, err := say(t, a.connect("10.96.0.2:8000"), "x"); err != nil || got != "10.0.0.1\nx" {
			t.Fatalf("hairpin: got %q, %v", got, err)
		}
		for _, dst := range []string{"10.96.0.3:8000", "10.96.0.1:8001"} {
			if _, err := say(t, a.connect(dst), "x"); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%s: %v, want a reset", dst, err)
			}
		}
		w.wantLog("reason=no_endpoint")
		out := w.net.listen(netip.MustParseAddrPort("192.0.2.1:443"))
		go func() {
			if c, err := out.Accept(); err == nil {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}
		}()
		if got, err := say(t, a.connect("192.0.2.1:443"), "x"); err != nil || got != "x" {
			t.Fatalf("outside: got %q, %v", got, err)
		}
		w.wantLog("path=passthrough")
		if slices.Contains(w.net.legs, netip.MustParseAddrPort("192.0.2.1:443")) {
			t.Error("what left the mesh was said to be judged")
		}
	})
}

func TestPanicEndsOneConnection(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		b := w.pod("b", "httpbin", "10.0.1.1")
		defer w.stop(b)
		b.echo()
		w.apply(client.Resource{Message: workload("foo", "httpbin", b.ip)})
		b.sockets.bad = func() { panic("defect") }
		if _, err := say(t, b.arrive(b.in, "10.9.0.1:5000", 80), "x"); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("%v, want a reset", err)
		}
		w.wantLog("reason=internal")
		b.sockets.bad = nil
		if got, err := say(t, b.arrive(b.in, "10.9.0.1:5001", 80), "x"); err != nil || got != "10.9.0.1\nx" {
			t.Fatalf("the next connection: %q, %v", got, err)
		}
	})
}

func TestRemovedPodKeepsItsConnectionsForTheGrace(t *testing.T) {
	inWorld(t, func(c *Config) { c.RemovedGrace = time.Minute }, func(t *testing.T, w *world) {
		a, b := w.pod("a", "sleep", "10.0.0.1"), w.pod("b", "httpbin", "10.0.1.1")
		defer w.stop(a, b)
		b.echo()
		w.apply(client.Resource{Message: workload("foo", "sleep", a.ip)}, client.Resource{Message: workload("foo", "httpbin", b.ip)})
		conns := []net.Conn{a.connect("10.0.1.1:80"), b.arrive(b.in, "10.9.0.1:5000", 80)}
		for _, c := range conns {
			if _, err := io.ReadFull(c, make([]byte, len("10.0.0.1\n"))); err != nil {
				t.Fatal(err)
			}
		}
		start := time.Now()
		b.Remove()
		synctest.Wait()
		select {
		case c := <-b.in.ch:
			t.Fatalf("unexpected %v", c)
		case <-b.in.done:
		}
		for i, c := range conns {
			_, _ = io.WriteString(c, "x")
			if n, err := c.Read(make([]byte, 1)); n != 1 || err != nil {
				t.Errorf("connection %d after the removal: %v", i, err)
			}
		}
		for i, c := range conns {
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("connection %d at the end: %v, want a reset", i, err)
			}
		}
		if d := time.Since(start); d != time.Minute {
			t.Errorf("ended after %v, want the grace of 1m", d)
		}
		<-b.finished
		w.wantLog("reason=pod_removed")
	})
}

func TestLimits(t *testing.T) {
	inWorld(t, func(c *Config) { c.MaxConnsPerPod = 2 }, func(t *testing.T, w *world) {
		b := w.pod("b", "httpbin", "10.0.1.1")
		defer w.stop(b)
		b.echo()
		w.apply(client.Resource{Message: workload("foo", "httpbin", b.ip)})
		first, second := b.arrive(b.in, "10.9.0.1:5000", 80), b.arrive(b.in, "10.9.0.1:5001", 80)
		synctest.Wait()
		if _, err := b.arrive(b.in, "10.9.0.1:5002", 80).Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("third: %v, want a reset", err)
		}
		w.wantLog("reason=overload")
		for _, c := range []net.Conn{first, second} {
			if _, err := say(t, c, "x"); err != nil {
				t.Error(err)
			}
		}
		synctest.Wait()
		if _, err := say(t, b.arrive(b.in, "10.9.0.1:5003", 80), "x"); err != nil {
			t.Errorf("after the others ended: %v", err)
		}
	})
}

func TestAcceptGoesOnAfterErrors(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		b := w.pod("b", "httpbin", "10.0.1.1")
		defer w.stop(b)
		b.echo()
		w.apply(client.Resource{Message: workload("foo", "httpbin", b.ip)})
		l := &failingListener{memListener: newMemListener(netip.AddrPort{}), left: 3}
		b.Listen(Inbound, l)
		start := time.Now()
		if got, err := say(t, b.arrive(l.memListener, "10.9.0.1:5000", 80), "x"); err != nil || !strings.HasPrefix(got, "10.9.0.1") {
			t.Fatalf("got %q, %v", got, err)
		}
		if d := time.Since(start); d != (5+10+20)*time.Millisecond {
			t.Errorf("accepted after %v, want 35ms of growing pauses", d)
		}
	})
}

type failingListener struct {
	*memListener
	left int
}

func (l *failingListener) Accept() (net.Conn, error) {
	if l.left > 0 {
		l.left--
		return nil, syscall.EMFILE
	}
	return l.memListener.Accept()
}
