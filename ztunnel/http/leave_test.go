package http

import (
	"bufio"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/http/frame"
	"github.com/undermesh/undermesh/ztunnel/http/h2"
	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// deaf is a host that reads the head of a request, answers with text, and reads no more.
func (w *world) deaf(text string) func(net.Conn) {
	return func(c net.Conn) {
		r := bufio.NewReader(oneByOneConn{c})
		for line := ""; line != "\r\n"; {
			var err error
			if line, err = r.ReadString('\n'); err != nil {
				return
			}
		}
		_, _ = io.WriteString(c, text)
		<-w.ctx.Done()
	}
}

// oneByOneConn keeps bufio from reading more than it is asked for.
type oneByOneConn struct{ net.Conn }

func (c oneByOneConn) Read(p []byte) (int, error) { return c.Conn.Read(p[:1]) }

// narrow makes the connections to come take little that is not read.
func (w *world) narrow() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.control = func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<10)
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, 4<<10)
		})
	}
}

// wantNothing waits until the workload has neither connection nor request under way, and nothing is held for it.
func (w *world) wantNothing() {
	w.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); ; <-tick.C {
		s := w.flow.Workload.Stats()
		if s.ActiveRequests == 0 && s.HeldBytes == 0 && s.ActiveConnections == 0 {
			break
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("%+v", s)
		}
	}
	for name, n := range w.clusters["up"].Stats {
		if strings.HasSuffix(name, "rq_active") && n != 0 {
			w.t.Errorf("%s is %d", name, n)
		}
	}
}

// TestLeaveWhileTheHostDoesNotRead: a client that leaves while what it sent waits for the host is noticed, and everything of its
// request is given back. The host cannot hold it.
func TestLeaveWhileTheHostDoesNotRead(t *testing.T) {
	t.Parallel()
	const (
		upload   = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n"
		chunks   = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000000\r\n"
		upgrade  = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
		switched = "HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
		begun    = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab"
		more     = 112 << 10 // than host and engine take, and less than what the kernel holds besides: the end of a client comes behind it
		gone     = "0 DC downstream_remote_disconnect"
	)
	end := func(c *net.TCPConn) { _ = c.Close() }
	half := func(c *net.TCPConn) { _ = c.CloseWrite() }
	cut := func(c *net.TCPConn) {
		_ = c.SetLinger(0)
		_ = c.Close()
	}
	for name, c := range map[string]struct {
		request, answer, later string // later: sent when the client is looked for already
		bytes                  int
		leave                  func(*net.TCPConn)
		want                   string // of the log
	}{
		"it closes":                       {upload, "", "", more, end, gone},
		"it is cut off":                   {upload, "", "", more, cut, gone},
		"it ends its direction":           {upload, "", "", more, half, gone},
		"chunks":                          {chunks, "", "", more, end, gone},
		"after the answer has begun":      {upload, begun, "", more, end, "200 DC downstream_remote_disconnect"},
		"a tunnel is cut off":             {upgrade, switched, "", more, cut, "101 DC downstream_remote_disconnect"},
		"another request waits behind it": {get + upload, "", "", more / 4, end, gone},
		"another request comes meanwhile": {get, "", upload, more / 4, end, gone},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.loopback = true
			w.routes("a", `{"match":{"prefix":"/"},"route":{"cluster":"up","timeout":"0s","upgradeConfigs":[{"upgradeType":"websocket"}]}}`)
			w.cluster("up", nil, w.deaf(c.answer))
			client := w.connect()
			w.narrow()
			text := strings.Repeat("x", c.bytes)
			if c.later == "" {
				client.send(c.request + text)
			} else {
				client.send(c.request)
			}
			<-time.After(3 * lookFirst)
			if c.later != "" {
				if _, err := io.WriteString(client.Conn, c.later+text); err != nil {
					t.Fatal(err)
				}
			}
			if n := w.flow.Workload.Stats().ActiveRequests; n != 1 {
				t.Fatalf("%d requests are under way: %q", n, w.log(0))
			}
			c.leave(client.Conn.(*net.TCPConn))
			w.wantNothing()
			if got := w.log(1)[0]; got != c.want {
				t.Errorf("log %q, want %q", got, c.want)
			}
		})
	}
}

// TestLeaveByReset: the same of a stream of HTTP/2 that is reset, and of a connection of HTTP/2 that ends.
func TestLeaveByReset(t *testing.T) {
	t.Parallel()
	for name, leave := range map[string]func(*h2.Conn, *h2.Stream){
		"the stream is reset": func(_ *h2.Conn, s *h2.Stream) { s.Reset(frame.CodeCancel) },
		"the connection ends": func(c *h2.Conn, _ *h2.Stream) { c.Kill(h2.ErrClosed) },
	} {
		for _, two := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				w.loopback = true
				w.routes("a", `{"match":{"prefix":"/"},"route":{"cluster":"up","timeout":"0s"}}`)
				if two {
					w.cluster("up", overHTTP2, func(c net.Conn) {
						srv := h2.NewServer(c, h2.Config{Clock: clock.System()}, func(s *h2.Stream) { s.Go(func(*h2.Stream) { <-w.ctx.Done() }) })
						_ = srv.Serve(w.ctx, nil)
					})
				} else {
					w.cluster("up", nil, w.deaf(""))
				}
				c := h2.NewClient(w.connect().Conn, h2.Config{Clock: clock.System()})
				s, err := c.Open(&head.Request{Method: []byte("POST"), Scheme: []byte("http"), Authority: []byte("a"), Path: []byte("/"), Body: -1}, false)
				if err != nil {
					t.Fatal(err)
				}
				full := make(chan struct{})
				go func() {
					defer close(full)
					piece := make([]byte, 64<<10)
					for {
						if _, err := s.Write(piece); err != nil {
							return
						}
					}
				}()
				<-time.After(300 * time.Millisecond) // the windows and the buffers of the kernel are full
				if n := w.flow.Workload.Stats().ActiveRequests; n != 1 {
					t.Fatalf("%d requests are under way", n)
				}
				leave(c, s)
				<-full
				if got := w.log(1)[0]; got != "0 DC downstream_remote_disconnect" {
					t.Errorf("log %q", got)
				}
				c.Kill(h2.ErrClosed)
				w.wantNothing()
			})
		}
	}
}

// TestDeafHostHoldsNothing: a host that does not read the body, and says something else than an answer, or a whole answer, does not hold
// the request either.
func TestDeafHostHoldsNothing(t *testing.T) {
	const answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
	for name, c := range map[string]struct {
		answer, length string
		status         int
		want           string
	}{
		"no HTTP":     {"nonsense\r\n\r\n", "100", 502, "502 URX,UPE upstream_reset_before_response_started{protocol_error}"},
		"all is sent": {answer, "3", 200, "200 - via_upstream"},
		"it is not":   {answer, "100", 200, "200 - via_upstream"},
		"another try": {"HTTP/1.1 500 S\r\nContent-Length: 0\r\n\r\n", "100", 500, "500 URX via_upstream"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, nil, func(t *testing.T, w *world) {
				w.routes("a", `{"match":{"prefix":"/"},"route":{"cluster":"up","timeout":"0s","retryPolicy":{"retryOn":"5xx","numRetries":1}}}`)
				w.cluster("up", nil, w.deaf(c.answer))
				client := w.connect()
				client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + c.length + "\r\n\r\n")
				synctest.Wait()
				client.send("abc")
				if a := client.read("POST"); a.StatusCode != c.status {
					t.Errorf("status %d", a.StatusCode)
				}
				if got := w.log(1)[0]; got != c.want {
					t.Errorf("log %q, want %q", got, c.want)
				}
				_ = client.Close()
				synctest.Wait()
				w.wantNothing()
			})
		})
	}
}
