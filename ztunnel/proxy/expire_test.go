package proxy

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/ztunnel/hbone"
)

// TestExpiredCertificateDrainsItsTunnel: new streams are refused at once, open ones go on.
func TestExpiredCertificateDrainsItsTunnel(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		b := w.pod("b", "httpbin", "10.0.1.1")
		defer w.stop(b)
		b.echo()
		w.apply(client.Resource{Message: workload("foo", "sleep", netip.MustParseAddr("10.0.0.1"))},
			client.Resource{Message: workload("foo", "httpbin", b.ip)})
		cl := w.attacker(b, account("sleep"))
		defer cl.Close()
		old, err := cl.Connect(w.ctx, hbone.Request{Authority: "10.0.1.1:80"})
		if err != nil {
			t.Fatal(err)
		}
		echo := func() error {
			if _, err := io.WriteString(old, "x"); err != nil {
				return err
			}
			_, err := io.ReadFull(old, make([]byte, 1))
			return err
		}
		_, _ = io.ReadFull(old, make([]byte, len("10.0.0.1\n")))
		time.Sleep(24*time.Hour - time.Minute)
		s, err := cl.Connect(w.ctx, hbone.Request{Authority: "10.0.1.1:80"})
		if err != nil || echo() != nil {
			t.Fatalf("before the end: %v", err)
		}
		_ = s.Close()
		time.Sleep(2 * time.Minute)
		if _, err := cl.Connect(w.ctx, hbone.Request{Authority: "10.0.1.1:80"}); !hbone.Retryable(err) {
			t.Errorf("after the end: %v, want one that a pool sends on another tunnel", err)
		}
		time.Sleep(48 * time.Hour)
		if err := echo(); err != nil {
			t.Errorf("the open stream, two days later: %v", err)
		}
		other := w.attacker(b, account("sleep")) // with a certificate of today
		defer other.Close()
		if s, err = other.Connect(w.ctx, hbone.Request{Authority: "10.0.1.1:80"}); err != nil {
			t.Fatal(err)
		}
		_ = s.Close()
	})
}

// TestExpiredClientThatIgnoresGoAway is refused by the check of each CONNECT.
func TestExpiredClientThatIgnoresGoAway(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		b := w.pod("b", "httpbin", "10.0.1.1")
		defer w.stop(b)
		b.echo()
		w.apply(client.Resource{Message: workload("foo", "sleep", netip.MustParseAddr("10.0.0.1"))},
			client.Resource{Message: workload("foo", "httpbin", b.ip)})
		tc := w.tlsTo(b, account("sleep"))
		defer tc.Close()
		fr := startHTTP2(t, tc)
		var mu sync.Mutex // one frame at a time
		connect := func(id uint32) {
			mu.Lock()
			defer mu.Unlock()
			var block bytes.Buffer
			enc := hpack.NewEncoder(&block)
			_ = enc.WriteField(hpack.HeaderField{Name: ":method", Value: "CONNECT"})
			_ = enc.WriteField(hpack.HeaderField{Name: ":authority", Value: "10.0.1.1:80", Sensitive: true})
			if err := fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true}); err != nil {
				t.Error(err)
			}
		}
		status := make(chan string, 8)
		go func() {
			dec := hpack.NewDecoder(4096, nil)
			for {
				f, err := fr.ReadFrame()
				if err != nil {
					return
				}
				switch f := f.(type) {
				case *http2.PingFrame:
					if !f.IsAck() && !strings.HasPrefix(string(f.Data[:]), "drain") {
						mu.Lock()
						_ = fr.WritePing(true, f.Data)
						mu.Unlock()
					}
				case *http2.HeadersFrame:
					if fields, err := dec.DecodeFull(f.HeaderBlockFragment()); err == nil {
						status <- fields[0].Value
					}
				}
			}
		}()
		connect(1) // keeps the tunnel in use
		if got := <-status; got != "200" {
			t.Fatalf("status %s", got)
		}
		time.Sleep(24*time.Hour + time.Minute)
		connect(3)
		if got := <-status; got != "401" {
			t.Errorf("status %s of a CONNECT after the end, want 401", got)
		}
		w.wantLog("reason=tls_handshake", "outside its validity")
	})
}

// TestIdleTunnelEnds: a client that keeps a tunnel without using it loses it; pods notice nothing.
func TestIdleTunnelEnds(t *testing.T) {
	inWorld(t, nil, func(t *testing.T, w *world) {
		a, b := w.pod("a", "sleep", "10.0.0.1"), w.pod("b", "httpbin", "10.0.1.1")
		defer w.stop(a, b)
		b.echo()
		w.apply(client.Resource{Message: workload("foo", "sleep", a.ip)}, client.Resource{Message: workload("foo", "httpbin", b.ip)})
		cl := w.attacker(b, account("sleep"))
		defer cl.Close()
		start := time.Now()
		<-cl.Done()
		if d := time.Since(start); d < tunnelIdle || d > tunnelIdle+time.Minute {
			t.Errorf("the tunnel was kept for %v", d)
		}
		for range 4 {
			if got, err := say(t, a.connect("10.0.1.1:80"), "x"); err != nil || got != "10.0.0.1\nx" {
				t.Errorf("%q, %v", got, err)
			}
			time.Sleep(7 * time.Minute)
		}
		synctest.Wait()
		if n := b.conns.Load(); n != 0 {
			t.Errorf("%d connections of the pod are left", n)
		}
		if _, err := a.connect("10.0.1.1:81").Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("closed port: %v", err)
		}
		if strings.Contains(w.log.String(), "tls_handshake") {
			t.Errorf("a handshake failed:\n%s", w.log)
		}
	})
}
