package proxy

import (
	"errors"
	"io"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/undermesh/undermesh/controller/api/securityapi"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
)

func TestAcrossNodesTheTunnel(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		a, b := w.pod("a", "sleep", "10.0.0.1"), w.pod("b", "httpbin", "10.0.1.1")
		defer w.stop(a, b)
		b.echo()
		w.apply(client.Resource{Message: workload("foo", "sleep", a.ip)}, client.Resource{Message: workload("foo", "httpbin", b.ip, "istio-system/"+strict().GetName())},
			client.Resource{Message: strict()})
		for range 3 {
			got, err := say(t, a.connect("10.0.1.1:80"), "hello")
			if err != nil || got != "10.0.0.1\nhello" {
				t.Fatalf("got %q, %v", got, err)
			}
		}
		if n := w.net.dialled(15008); n != 1 {
			t.Errorf("%d tunnel connections for 3 of the same pair, want 1", n)
		}
		w.wantLog("direction=outbound", "path=tunnel", "dst.hbone_addr=10.0.1.1:80", "dst.identity=spiffe://cluster.local/ns/foo/sa/httpbin", "bytes_sent=5")
		w.wantLog("direction=inbound", "path=tunnel", "src.identity=spiffe://cluster.local/ns/foo/sa/sleep", "bytes_recv=5")
	})
}

func TestSameNodeIsProxiedAndJudged(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		a, b, c := w.pod("a", "sleep", "10.0.0.1"), w.pod("a", "httpbin", "10.0.0.2"), w.pod("a", "other", "10.0.0.3")
		defer w.stop(a, b, c)
		b.echo()
		w.apply(client.Resource{Message: workload("foo", "sleep", a.ip)}, client.Resource{Message: workload("foo", "other", c.ip)},
			client.Resource{Message: workload("foo", "httpbin", b.ip, "foo/only-sleep")},
			client.Resource{Message: allowFrom("foo", "only-sleep", "cluster.local/ns/foo/sa/sleep")})
		if got, err := say(t, a.connect("10.0.0.2:80"), "hi"); err != nil || got != "10.0.0.1\nhi" {
			t.Fatalf("allowed: got %q, %v", got, err)
		}
		if len(w.net.legs) != 1 {
			t.Errorf("legs %v, want one", w.net.legs)
		}
		before := w.net.dialled(80)
		if _, err := say(t, c.connect("10.0.0.2:80"), "hi"); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("denied: %v, want a reset", err)
		}
		if w.net.dialled(80) != before {
			t.Error("the application was dialled for a denied connection")
		}
		if w.net.dialled(15008) != 0 {
			t.Error("a tunnel was opened on one node")
		}
		w.wantLog("reason=policy_not_allowed", "policy=foo/only-sleep", "src.workload=other", "path=proxied")
	})
}

func TestStrictRefusesPlainTextAndResetsLate(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		b := w.pod("b", "httpbin", "10.0.1.1")
		defer w.stop(b)
		b.echo()
		w.apply(client.Resource{Message: workload("foo", "httpbin", b.ip, "istio-system/"+strict().GetName())}, client.Resource{Message: strict()})
		silent := b.arrive(b.in, "10.9.0.1:5000", 80)
		start := time.Now()
		if _, err := silent.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("silent client: %v, want a reset", err)
		}
		if d := time.Since(start); d != 100*time.Millisecond {
			t.Errorf("silent client was reset after %v, want 100ms", d)
		}
		start = time.Now()
		if _, err := say(t, b.arrive(b.in, "10.9.0.1:5001", 80), "GET /"); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("talking client: %v, want a reset", err)
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("talking client was reset after %v, want at once", d)
		}
		w.wantLog("reason=strict_mtls", "policy=istio-system/istio_converted_static_strict", "direction=inbound")
		if n := w.net.dialled(80); n != 0 {
			t.Errorf("the application was dialled %d times", n)
		}
	})
}

func TestPlainTextKeepsTheClientAddress(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		b := w.pod("b", "httpbin", "10.0.1.1")
		defer w.stop(b)
		b.echo()
		w.apply(client.Resource{Message: workload("foo", "httpbin", b.ip)})
		got, err := say(t, b.arrive(b.in, "10.9.0.1:5000", 80), "x")
		if err != nil || got != "10.9.0.1\nx" {
			t.Fatalf("got %q, %v", got, err)
		}
		for _, port := range []uint16{15001, 15006, 15008} {
			if _, err := say(t, b.arrive(b.in, "10.9.0.1:5000", port), "x"); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("port %d: %v, want a reset", port, err)
			}
		}
		w.wantLog("reason=mesh_port")
	})
}

func TestPolicyChangeEndsLiveConnections(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		a, b, c := w.pod("a", "sleep", "10.0.0.1"), w.pod("b", "httpbin", "10.0.1.1"), w.pod("b", "sleep2", "10.0.1.2")
		defer w.stop(a, b, c)
		b.echo()
		w.apply(client.Resource{Message: workload("foo", "sleep", a.ip)}, client.Resource{Message: workload("foo", "httpbin", b.ip)},
			client.Resource{Message: workload("foo", "sleep2", c.ip)})
		conns := map[string]io.ReadWriteCloser{
			"tunnel": a.connect("10.0.1.1:80"), "proxied": c.connect("10.0.1.1:80"), "plain": b.arrive(b.in, "10.9.0.1:5000", 80),
		}
		for name, conn := range conns {
			if _, err := conn.Read(make([]byte, 64)); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		w.apply(client.Resource{Message: workload("foo", "httpbin", b.ip, "foo/only-sleep")},
			client.Resource{Message: allowFrom("foo", "only-sleep", "cluster.local/ns/foo/sa/sleep")})
		synctest.Wait()
		for _, name := range []string{"proxied", "plain"} {
			if _, err := conns[name].Read(make([]byte, 64)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%s: %v, want a reset", name, err)
			}
		}
		if _, err := io.WriteString(conns["tunnel"], "still"); err != nil {
			t.Fatal(err)
		}
		if n, err := conns["tunnel"].Read(make([]byte, 64)); n != 5 || err != nil {
			t.Errorf("tunnel: %d, %v: the connection is still allowed", n, err)
		}
		w.wantLog("reason=policy_changed", "policy=foo/only-sleep", "path=proxied")
		w.apply(client.Resource{Message: allowFrom("foo", "only-sleep", "cluster.local/ns/foo/sa/nobody")})
		if _, err := conns["tunnel"].Read(make([]byte, 64)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("tunnel: %v, want a reset", err)
		}
		for _, conn := range conns {
			_ = conn.Close()
		}
	})
}

func TestNothingIsDecidedWithoutASnapshot(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		a, b := w.pod("a", "sleep", "10.0.0.1"), w.pod("a", "httpbin", "10.0.0.2")
		defer w.stop(a, b)
		b.echo()
		start := time.Now()
		if _, err := say(t, a.connect("10.0.0.2:80"), "x"); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("outbound: %v, want a reset", err)
		}
		if d := time.Since(start); d != 10*time.Second {
			t.Errorf("held for %v, want 10s", d)
		}
		if _, err := say(t, b.arrive(b.in, "10.9.0.1:5000", 80), "x"); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("inbound: %v, want a reset", err)
		}
		w.wantLog("reason=not_ready", "direction=outbound")
		w.wantLog("reason=not_ready", "direction=inbound")
		waiting := a.connect("10.0.0.2:80")
		time.Sleep(3 * time.Second)
		// the destination's policy has not arrived: still nothing
		w.apply(client.Resource{Message: workload("foo", "sleep", a.ip)}, client.Resource{Message: workload("foo", "httpbin", b.ip, "foo/late")})
		synctest.Wait()
		if n := w.net.dialled(80); n != 0 {
			t.Fatalf("%d connections before the policies are known", n)
		}
		w.apply(client.Resource{Message: allowFrom("foo", "late", "cluster.local/ns/foo/sa/sleep")})
		if got, err := say(t, waiting, "x"); err != nil || got != "10.0.0.1\nx" {
			t.Fatalf("got %q, %v", got, err)
		}
	})
}

func TestPredecessorOfTheSameNameIsNotThePod(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		b := w.pod("a", "httpbin", "10.0.0.2")
		defer w.stop(b)
		w.apply(client.Resource{Message: workload("foo", "httpbin", netip.MustParseAddr("10.0.0.77"))})
		if _, err := say(t, b.arrive(b.in, "10.9.0.1:5000", 80), "x"); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("%v, want a reset", err)
		}
		w.wantLog("reason=not_ready")
	})
}

func TestProbes(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		b := w.pod("b", "httpbin", "10.0.1.1", Probe{Port: 80, Path: "/healthz?full=1"}, Probe{Port: 8080, Path: "/other"})
		defer w.stop(b)
		b.echo()
		w.apply(client.Resource{Message: workload("foo", "httpbin", b.ip, "istio-system/"+strict().GetName())}, client.Resource{Message: strict()})
		good := "GET /healthz?full=1 HTTP/1.1\r\nHost: 10.0.1.1:80\r\nConnection: close\r\n\r\n"
		if got, err := say(t, b.arrive(b.probe, "10.0.1.254:5000", 80), good); err != nil || got != "10.0.1.254\n"+good {
			t.Fatalf("declared probe: got %q, %v", got, err)
		}
		before := w.net.dialled(80)
		for name, head := range map[string]string{
			"other path":    "GET /admin HTTP/1.1\r\nHost: x\r\n\r\n",
			"no query":      "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
			"other port's":  "GET /other HTTP/1.1\r\nHost: x\r\n\r\n",
			"method":        "POST /healthz?full=1 HTTP/1.1\r\nHost: x\r\n\r\n",
			"body":          "GET /healthz?full=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n",
			"chunked":       "GET /healthz?full=1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
			"upgrade":       "GET /healthz?full=1 HTTP/1.1\r\nUpgrade: h2c\r\n\r\n",
			"pipelined":     good + "GET /admin HTTP/1.1\r\n\r\n",
			"bare newlines": "GET /healthz?full=1 HTTP/1.1\nHost: x\n\n",
			"absolute":      "GET http://x/healthz?full=1 HTTP/1.1\r\n\r\n",
			"garbage":       "\x16\x03\x01\x00\x00",
			"too long":      "GET /healthz?full=1 HTTP/1.1\r\nX: " + strings.Repeat("x", 9000) + "\r\n\r\n",
		} {
			if _, err := say(t, b.arrive(b.probe, "10.0.1.254:5000", 80), head); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%s: %v, want a reset", name, err)
			}
		}
		if n := w.net.dialled(80); n != before {
			t.Errorf("the application was dialled %d times for what is not declared", n-before)
		}
		w.wantLog("reason=probe_not_declared", "path=probe")
	})
}

func TestProbeConnectionCarriesOneRequest(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		b := w.pod("b", "httpbin", "10.0.1.1", Probe{Port: 80, Path: "/healthz"})
		defer w.stop(b)
		b.echo()
		w.apply(client.Resource{Message: workload("foo", "httpbin", b.ip)})
		c := b.arrive(b.probe, "10.0.1.254:5000", 80)
		head := "GET /healthz HTTP/1.1\r\n\r\n"
		if _, err := io.WriteString(c, head); err != nil {
			t.Fatal(err)
		}
		want := len("10.0.1.254\n" + head)
		if _, err := io.ReadFull(c, make([]byte, want)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, "GET /admin HTTP/1.1\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(make([]byte, 100)); n != 0 || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("second request: %d bytes, %v, want a reset", n, err)
		}
		w.wantLog("reason=probe_not_declared")
	})
}

func TestCapturedSourceUsesTheTunnelBeforeItsAnnotation(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		a, b := w.pod("a", "sleep", "10.0.0.1"), w.pod("b", "httpbin", "10.0.1.1")
		defer w.stop(a, b)
		b.echo()
		early := workload("foo", "sleep", a.ip)
		early.TunnelProtocol = workloadapi.TunnelProtocol_NONE
		w.apply(client.Resource{Message: early}, client.Resource{Message: workload("foo", "httpbin", b.ip, "istio-system/"+strict().GetName())},
			client.Resource{Message: strict()})
		if got, err := say(t, a.connect("10.0.1.1:80"), "x"); err != nil || got != "10.0.0.1\nx" {
			t.Fatalf("got %q, %v", got, err)
		}
		w.wantLog("path=tunnel", "direction=inbound")
	})
}

func TestForeignSourceAddressIsNotBelieved(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		a, b := w.pod("a", "sleep", "10.0.0.1"), w.pod("a", "httpbin", "10.0.0.2")
		defer w.stop(a, b)
		b.echo()
		trusted := netip.MustParseAddr("10.66.0.1")
		p := deny("foo", "by-address", &securityapi.Match{SourceIps: []*securityapi.Address{{Address: trusted.AsSlice(), Length: 32}}})
		p.Action = securityapi.Action_ALLOW
		w.apply(client.Resource{Message: workload("foo", "sleep", a.ip)}, client.Resource{Message: workload("foo", "httpbin", b.ip, "foo/by-address")},
			client.Resource{Message: p})
		near, far := memPair(netip.AddrPortFrom(trusted, 33333), netip.MustParseAddrPort("10.0.0.2:80"))
		a.out.ch <- far
		if _, err := say(t, near, "x"); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("%v, want a reset", err)
		}
		w.wantLog("reason=policy_not_allowed", "policy=foo/by-address")
	})
}

func TestPassthroughToAPodOfThisNodeIsJudged(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		a, b := w.pod("a", "sleep", "10.0.0.1"), w.pod("a", "httpbin", "10.0.0.2")
		defer w.stop(a, b)
		b.echo()
		plain := workload("foo", "httpbin", b.ip, "foo/nobody")
		plain.TunnelProtocol = workloadapi.TunnelProtocol_NONE // its annotation is under way
		w.apply(client.Resource{Message: workload("foo", "sleep", a.ip)}, client.Resource{Message: plain},
			client.Resource{Message: allowFrom("foo", "nobody", "cluster.local/ns/foo/sa/nobody")})
		if _, err := say(t, a.connect("10.0.0.2:80"), "x"); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("%v, want a reset", err)
		}
		if n := w.net.dialled(80); n != 0 {
			t.Errorf("the application was dialled %d times", n)
		}
	})
}

func TestSlowHandshakesOfOnePodDoNotHoldUpAnother(t *testing.T) {
	inWorld(t, func(c *Config) { c.MaxHandshakes = 2 }, func(t *testing.T, w *world) {
		a, b := w.pod("b", "httpbin", "10.0.1.1"), w.pod("b", "other", "10.0.1.2")
		defer w.stop(a, b)
		w.apply(client.Resource{Message: workload("foo", "httpbin", a.ip)}, client.Resource{Message: workload("foo", "other", b.ip)})
		for range 3 {
			if _, err := w.net.dial(netip.MustParseAddr("10.9.9.9"), netip.AddrPortFrom(a.ip, 15008)); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		start := time.Now()
		c := w.attacker(b, account("sleep"))
		defer c.Close()
		if d := time.Since(start); d != 0 {
			t.Errorf("the other pod's handshake took %v", d)
		}
		start = time.Now()
		late := w.attacker(a, account("sleep"))
		defer late.Close()
		if d := time.Since(start); d > 15*time.Second {
			t.Errorf("the handshake behind silent clients took %v", d)
		}
	})
}
