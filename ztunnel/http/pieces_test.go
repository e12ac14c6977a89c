package http

import (
	"bufio"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/http/h2"
	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// TestBuffersAreBounded: a workload has large buffers up to its limit and small ones beyond, and what is given back can be had again.
func TestBuffersAreBounded(t *testing.T) {
	w := NewTenant(TenantLimits{Pieces: 2 * largeBuffer})
	var free buffers
	one, two, three := free.piece(w, nil, true), free.piece(w, nil, true), free.piece(w, nil, true)
	if len(one.b) != largeBuffer || len(two.b) != largeBuffer || len(three.b) != smallBuffer {
		t.Errorf("buffers of %d, %d and %d bytes", len(one.b), len(two.b), len(three.b))
	}
	if again := free.piece(w, one, true); again != one {
		t.Error("a buffer that is large enough was changed")
	}
	if one = free.piece(w, one, false); len(one.b) != smallBuffer || w.pieces.Load() != largeBuffer {
		t.Errorf("a buffer of %d bytes while %d are charged", len(one.b), w.pieces.Load())
	}
	if three = free.piece(w, three, true); len(three.b) != largeBuffer {
		t.Errorf("a buffer of %d bytes after another was given back", len(three.b))
	}
	for _, b := range []*buffer{one, two, three} {
		free.put(b)
	}
	if n := w.pieces.Load(); n != 0 {
		t.Errorf("%d bytes are charged for nothing", n)
	}
}

// webSocket is a host that answers as much as it was sent, in a tunnel: a mebibyte, then a byte.
func webSocket(c net.Conn) {
	r := bufio.NewReader(c)
	if _, err := readMessage(r); err != nil {
		return
	}
	_, _ = io.WriteString(c, "HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n")
	b := make([]byte, 1<<20)
	for _, n := range []int{len(b), 1} {
		if _, err := io.ReadFull(r, b[:n]); err != nil {
			return
		}
		if _, err := c.Write(b[:n]); err != nil {
			return
		}
	}
	_, _ = io.Copy(io.Discard, r)
}

// TestIdleTunnelHoldsLittle: a tunnel that has carried much, and carries nothing now, has no large buffer.
func TestIdleTunnelHoldsLittle(t *testing.T) {
	for name, open := range map[string]func(*testing.T, *testClient) io.ReadWriter{"HTTP/1.1": overOne, "HTTP/2": overTwo} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, nil, func(t *testing.T, w *world) {
				w.cluster("up", nil, webSocket)
				c := w.connect()
				s := open(t, c)
				b := make([]byte, 1<<20)
				for _, n := range []int{len(b), 1} {
					w.wg.Go(func() { _, _ = s.Write(b[:n]) })
					if _, err := io.ReadFull(s, b[:n]); err != nil {
						t.Fatal(err)
					}
				}
				synctest.Wait()
				if n := w.flow.Workload.pieces.Load(); n != 0 {
					t.Errorf("%d bytes of buffers for nothing", n)
				}
				_ = c.Close()
			})
		})
	}
}

func overOne(t *testing.T, c *testClient) io.ReadWriter {
	c.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	for {
		switch line, err := c.r.ReadString('\n'); {
		case err != nil:
			t.Fatal(err)
		case line == "\r\n":
			return struct {
				io.Reader
				io.Writer
			}{c.r, c.Conn}
		case strings.HasPrefix(strings.ToLower(line), "content-length"):
			t.Errorf("a tunnel of a length: %q", line)
		}
	}
}

// flushed sends what is written.
type flushed struct{ *h2.Stream }

func (f flushed) Write(p []byte) (int, error) {
	if n, err := f.Stream.Write(p); err != nil {
		return n, err
	}
	return len(p), f.Flush()
}

func overTwo(t *testing.T, c *testClient) io.ReadWriter {
	hc := h2.NewClient(c.Conn, h2.Config{Clock: clock.System()})
	synctest.Wait() // for the server's SETTINGS, which allow it
	s, err := hc.Open(&head.Request{Method: []byte("CONNECT"), Scheme: []byte("http"), Authority: []byte("a"), Path: []byte("/"), Protocol: []byte("websocket"), Body: -1}, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	if r, err := s.ReadHead(); err != nil || r.Status != 200 || r.Has(head.ContentLength) {
		t.Fatal(r, err)
	}
	return flushed{s}
}

// TestNoLengthOfATunnel: what opens a tunnel over HTTP/2 and tells of a body is malformed: a host of HTTP/1.1 that declines the tunnel
// would take the next request for that body.
func TestNoLengthOfATunnel(t *testing.T) {
	for name, want := range map[string]bool{"0": true, "50": false} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, nil, func(t *testing.T, w *world) {
				got := make(chan string, 1)
				w.cluster("up", nil, seen(got, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
				c := w.connect()
				hc := h2.NewClient(c.Conn, h2.Config{Clock: clock.System()})
				synctest.Wait()
				r := &head.Request{Method: []byte("CONNECT"), Scheme: []byte("http"), Authority: []byte("a"), Path: []byte("/"), Protocol: []byte("websocket"), Body: -1}
				r.AddString(head.ContentLength, name)
				s, err := hc.Open(r, false)
				if err != nil {
					t.Fatal(err)
				}
				_ = s.WriteEnd(nil)
				if _, err = s.ReadHead(); (err == nil) != want {
					t.Errorf("answered: %v", err)
				}
				if want {
					if m := <-got; strings.Contains(m, "content-length") {
						t.Errorf("the host saw %q", m)
					}
				}
				hc.Kill(h2.ErrClosed)
			})
		})
	}
}

// TestEndlessHints: a host that only ever says that it will answer is given up.
func TestEndlessHints(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.routes("a", `{"match":{"prefix":"/"},"route":{"cluster":"up","timeout":"0s"}}`)
		w.cluster("up", nil, func(c net.Conn) {
			if _, err := readMessage(bufio.NewReader(c)); err != nil {
				return
			}
			for err := error(nil); err == nil; {
				_, err = io.WriteString(c, "HTTP/1.1 103 Early Hints\r\n\r\n")
			}
		})
		if resp := w.connect().get("GET / HTTP/1.1", "Host: a"); resp.StatusCode != 502 {
			t.Errorf("status %d", resp.StatusCode)
		}
		if l := w.log(1)[0]; l != "502 UPE upstream_reset_after_response_started{protocol_error}" {
			t.Errorf("log %q", l)
		}
	})
}
