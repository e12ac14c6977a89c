package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// TestLongAuthorityIsNotLogged sends what no client of ours would send.
func TestLongAuthorityIsNotLogged(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		b := w.pod("b", "httpbin", "10.0.1.1")
		defer w.stop(b)
		w.apply(client.Resource{Message: workload("foo", "sleep", netip.MustParseAddr("10.0.0.1"))}, client.Resource{Message: workload("foo", "httpbin", b.ip)})
		tc := w.tlsTo(b, account("sleep"))
		defer tc.Close()
		var block strings.Builder
		enc := hpack.NewEncoder(&block)
		_ = enc.WriteField(hpack.HeaderField{Name: ":method", Value: "CONNECT"})
		_ = enc.WriteField(hpack.HeaderField{Name: ":authority", Value: strings.Repeat("\x01", 10_000) + ":80"})
		fr := startHTTP2(t, tc)
		if err := fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte(block.String()), EndHeaders: true}); err != nil {
			t.Fatal(err)
		}
		for {
			f, err := fr.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := f.(*http2.HeadersFrame); ok {
				break
			}
		}
		_ = tc.Close()
		synctest.Wait()
		for line := range strings.SplitSeq(w.log.String(), "\n") {
			if len(line) > 2000 {
				t.Errorf("log line of %d bytes: %.100s", len(line), line)
			}
		}
	})
}

// capturedHello is a ClientHello as the mesh's clients send it.
func capturedHello(t *testing.T, w *world) []byte {
	t.Helper()
	cfg, err := w.ids.ClientTLS(w.ctx, account("sleep"), []api.Identity{account("httpbin")})
	if err != nil {
		t.Fatal(err)
	}
	near, far := memPair(netip.MustParseAddrPort("10.9.9.9:1"), netip.MustParseAddrPort("10.9.9.9:2"))
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = tls.Client(near, cfg).HandshakeContext(w.ctx)
	}()
	b := make([]byte, 16<<10)
	n, err := far.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	_ = far.Close()
	<-done
	return b[:n]
}

// TestStalledHandshakesDoNotHoldUpOthers: strangers begin 40 handshakes a second and do not go on.
func TestStalledHandshakesDoNotHoldUpOthers(t *testing.T) {
	for name, c := range map[string]struct {
		sources int
		send    func(hello []byte) []byte
	}{
		"nothing":                        {1, func([]byte) []byte { return nil }},
		"one byte":                       {1, func(h []byte) []byte { return h[:1] }},
		"all but one byte":               {1, func(h []byte) []byte { return h[:len(h)-1] }},
		"a whole hello":                  {1, func(h []byte) []byte { return h }},
		"a whole hello, many strangers":  {40, func(h []byte) []byte { return h }},
		"one byte, of the client itself": {0, func(h []byte) []byte { return h[:1] }},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(c *Config) { c.MaxConnsPerPod = 50 }, func(t *testing.T, w *world) {
				a, b := w.pod("a", "sleep", "10.0.0.1"), w.pod("b", "httpbin", "10.0.1.1")
				defer w.stop(a, b)
				b.echo()
				w.apply(client.Resource{Message: workload("foo", "sleep", a.ip)}, client.Resource{Message: workload("foo", "httpbin", b.ip)})
				bytes := c.send(capturedHello(t, w))
				stop, ended := make(chan struct{}), make(chan struct{})
				go func() {
					defer close(ended)
					for i := 0; ; i++ {
						select {
						case <-stop:
							return
						case <-time.After(time.Second / 40):
						}
						src := a.ip
						if c.sources > 0 {
							src = netip.AddrFrom4([4]byte{10, 9, 9, byte(i % c.sources)})
						}
						conn, err := w.net.dial(src, netip.AddrPortFrom(b.ip, 15008))
						if err != nil {
							t.Error(err)
							return
						}
						_, _ = conn.Write(bytes)
					}
				}()
				time.Sleep(20 * time.Second)
				for i := range 20 { // a tunnel is used for 20 s: each connection makes its own
					start := time.Now()
					if got, err := say(t, a.connect("10.0.1.1:80"), "x"); err != nil || got != "10.0.0.1\nx" {
						t.Errorf("connection %d after %v: %q, %v", i, time.Since(start), got, err)
					}
					if d := time.Since(start); d > 3*time.Second {
						t.Errorf("connection %d took %v", i, d)
					}
					time.Sleep(21 * time.Second)
				}
				close(stop)
				<-ended
				time.Sleep(time.Minute)
				synctest.Wait()
				g := b.gate
				g.mu.Lock()
				defer g.mu.Unlock()
				if left := g.total + len(g.sources) + g.silent.Len() + g.queue.Len() + g.busy.Len() + int(g.node.Load()); left != 0 || g.timer != nil {
					t.Errorf("the gate still counts %d (%+v)", left, g)
				}
			})
		})
	}
}

// TestFullGate: places are shared out by address, and one that is held for long goes to who waits.
func TestFullGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var node atomic.Int64
		g := newGate(clock.System(), 8, &node) // one place an address
		client := func(addr string) (*visitor, context.Context) {
			ctx, cut := context.WithCancelCause(t.Context())
			return g.enter(netip.MustParseAddr(addr), cut), ctx
		}
		var all []*visitor
		var ends []context.Context
		for i := range 8 {
			v, ctx := client(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}).String())
			if !g.wait(ctx, v) {
				t.Fatalf("place %d", i)
			}
			all, ends = append(all, v), append(ends, ctx)
		}
		time.Sleep(time.Second)
		start := time.Now()
		v, ctx := client("10.0.1.1")
		got := make(chan bool)
		go func() { got <- g.wait(ctx, v) }()
		<-ends[0].Done()
		if d := time.Since(start); d != time.Second || !errors.Is(context.Cause(ends[0]), errCrowded) {
			t.Errorf("cut off after %v: %v", d, context.Cause(ends[0]))
		}
		g.leave(all[0])
		if !<-got {
			t.Error("the free place was not given")
		}
		second, sctx := client("10.0.0.5")
		go func() { got <- g.wait(sctx, second) }()
		synctest.Wait()
		g.leave(all[1])
		select {
		case <-got:
			t.Error("an address got a second place")
		case <-time.After(time.Millisecond):
		}
		g.leave(all[5])
		<-got
		for _, v := range append(all, v, second) {
			g.leave(v)
		}
		var silent []context.Context
		for range 9 { // 8 are what an address may have
			_, ctx := client("10.0.0.9")
			silent = append(silent, ctx)
		}
		if !errors.Is(context.Cause(silent[0]), errCrowded) || silent[1].Err() != nil {
			t.Error("not the oldest silent client went")
		}
		if node.Load() != 8 {
			t.Errorf("the node counts %d", node.Load())
		}
	})
}

// startHTTP2 is the preface of a client that is not ours.
func startHTTP2(t *testing.T, c net.Conn) *http2.Framer {
	t.Helper()
	if _, err := c.Write([]byte(http2.ClientPreface)); err != nil {
		t.Fatal(err)
	}
	fr := http2.NewFramer(c, c)
	fr.SetMaxReadFrameSize(1 << 20)
	if err := fr.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return fr
}
