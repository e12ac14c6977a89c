package http

import (
	"bufio"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/http/h2"
	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// TestWebSocketOverHTTP2: what opens a WebSocket over HTTP/2 (RFC 8441) opens it over HTTP/1.1 with the host, and both directions
// are passed on.
func TestWebSocketOverHTTP2(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.cluster("up", nil, func(c net.Conn) {
			r := bufio.NewReader(c)
			m, err := readMessage(r)
			if err != nil || !strings.HasPrefix(m, "GET /ws HTTP/1.1\r\n") || !strings.Contains(m, "connection: upgrade\r\nupgrade: websocket\r\n") ||
				!strings.Contains(m, "sec-websocket-key: ") || strings.Contains(m, "transfer-encoding") {
				t.Errorf("the host saw %q, %v", m, err)
			}
			_, _ = io.WriteString(c, "HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			_, _ = io.Copy(c, r)
			_ = c.Close()
		})
		c := w.connect()
		hc := h2.NewClient(c.Conn, h2.Config{Clock: clock.System()})
		synctest.Wait() // for the server's SETTINGS, which allow it
		s, err := hc.Open(&head.Request{Method: []byte("CONNECT"), Scheme: []byte("http"), Authority: []byte("a"), Path: []byte("/ws"), Protocol: []byte("websocket"), Body: -1}, false)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
		resp, err := s.ReadHead()
		if err != nil || resp.Status != 200 {
			t.Fatal(resp, err)
		}
		for _, want := range []string{"hello", "again"} {
			if _, err := s.Write([]byte(want)); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, len(want))
			if err := s.Flush(); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(s, b); err != nil || string(b) != want {
				t.Errorf("%q %v", b, err)
			}
			time.Sleep(time.Hour)
		}
		hc.Kill(h2.ErrClosed)
		if l := w.log(1)[0]; !strings.HasPrefix(l, "200 ") {
			t.Errorf("log %q", l)
		}
	})
}

// TestMirrorWithoutMemory: a copy whose body may not be held is not sent. A head that tells of a body, sent without it, would take the
// next request on the connection for the body.
func TestMirrorWithoutMemory(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.flow.Workload = NewTenant(TenantLimits{Bytes: 12 << 10})
		w.routes("a", `{"match":{"prefix":"/"},"route":{"cluster":"up","requestMirrorPolicies":[{"cluster":"copy"}]}}`)
		got := make(chan string, 2)
		w.cluster("up", nil, answers(ok, ok))
		w.cluster("copy", nil, seen(got, ok))
		c := w.connect()
		c.get("POST /x HTTP/1.1", "Host: a", "Content-Length: 3", "", "abc")
		c.get("GET /next HTTP/1.1", "Host: a")
		if m := <-got; !strings.HasPrefix(m, "GET /next ") {
			t.Errorf("the first copy was %q", m)
		}
		synctest.Wait()
		if s := w.flow.Workload.Stats(); s.ActiveMirrors != 0 || s.HeldBytes != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// TestWebSocketOfSlowHost: a host may take its time to switch, while the client is watched, and nothing is lost of either direction.
func TestWebSocketOfSlowHost(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.cluster("up", nil, func(c net.Conn) {
			r := bufio.NewReader(c)
			if _, err := readMessage(r); err != nil {
				t.Error(err)
			}
			time.Sleep(time.Minute)
			_, _ = io.WriteString(c, "HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n")
			_, _ = io.Copy(c, r)
			_ = c.Close()
		})
		w.routes("a", `{"match":{"prefix":"/"},"route":{"cluster":"up","timeout":"0s"}}`)
		c := w.connect()
		c.send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		a := c.read("GET")
		if a.StatusCode != 101 || a.Header.Get("Upgrade") != "other" {
			t.Fatalf("%+v", a)
		}
		for _, want := range []string{"hello", "again"} {
			c.send(want)
			b := make([]byte, len(want))
			if _, err := io.ReadFull(c.r, b); err != nil || string(b) != want {
				t.Fatalf("%q %v", b, err)
			}
		}
	})
}

// TestUpgradeRefused: where a host does not switch, no other request is taken from the connection: what follows was meant for the host.
func TestUpgradeRefused(t *testing.T) {
	for _, status := range []string{"200 OK", "403 Forbidden"} {
		inBubble(t, nil, func(t *testing.T, w *world) {
			w.cluster("up", nil, answers("HTTP/1.1 "+status+"\r\nContent-Length: 2\r\n\r\nno", ok))
			c := w.connect()
			c.send("GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n")
			if a := c.read("GET"); itoa(a.StatusCode) != status[:3] || a.body != "no" || !c.over() {
				t.Errorf("%s: %+v", status, a)
			}
			if list := w.log(1); len(list) != 1 {
				t.Errorf("log %q", list)
			}
		})
	}
}
