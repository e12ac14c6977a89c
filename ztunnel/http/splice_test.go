package http

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// long is a body that differs everywhere, long enough to be moved by the kernel.
func long() string {
	var b strings.Builder
	for i := 0; b.Len() < 2<<20; i++ {
		fmt.Fprintf(&b, "%x,", i*i)
	}
	return b.String()
}

// answering is a host that writes a part of an answer of so many bytes to each request, and then does what else is asked.
func answering(length int, part string, then func(net.Conn)) func(net.Conn) {
	return func(c net.Conn) {
		r := bufio.NewReader(c)
		for {
			if _, err := http.ReadRequest(r); err != nil {
				return
			}
			if _, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", length, part); err != nil {
				return
			}
			if then != nil {
				then(c)
				return
			}
		}
	}
}

// TestLongBody: what the kernel moves between sockets is what is copied where it cannot, and ends as that does.
func TestLongBody(t *testing.T) {
	body := long()
	for _, loopback := range []bool{false, true} {
		t.Run(fmt.Sprint("loopback ", loopback), func(t *testing.T) {
			begin := func(t *testing.T, host func(net.Conn)) *world {
				w := newWorld(t, func(c *Config) { c.Limits.StreamIdle = 1500 * time.Millisecond })
				w.loopback = loopback
				w.routes("a", `{"match":{"prefix":"/"},"route":{"cluster":"up","timeout":"0s"}}`)
				w.cluster("up", nil, host)
				return w
			}
			want := func(t *testing.T, w *world, line string) {
				if got := w.log(1)[0]; got != line {
					t.Errorf("logged %q, want %q", got, line)
				}
			}
			t.Run("whole", func(t *testing.T) {
				w := begin(t, answering(len(body), body, nil))
				var sent int64
				record := w.flow.Record
				w.flow.Record = func(e *Entry) { sent = e.BytesSent; record(e) }
				c := w.connect()
				for n := range 3 {
					if a := c.get("GET / HTTP/1.1", "Host: a"); a.body != body {
						t.Fatalf("answer %d has %d bytes, want %d, or others", n, len(a.body), len(body))
					}
				}
				w.log(3)
				if w.dials != 1 || sent != int64(len(body)) {
					t.Errorf("%d connections, %d bytes in the log", w.dials, sent)
				}
			})
			t.Run("host ends", func(t *testing.T) {
				w := begin(t, answering(len(body), body[:1<<20], func(net.Conn) {}))
				if a := w.connect().get("GET / HTTP/1.1", "Host: a"); a.body != body[:1<<20]+" <unexpected EOF>" {
					t.Errorf("%d bytes", len(a.body))
				}
				want(t, w, "200 UPE upstream_reset_after_response_started{protocol_error}")
			})
			t.Run("host is silent", func(t *testing.T) {
				over := make(chan struct{})
				w := begin(t, answering(len(body), body[:1<<20], func(net.Conn) { <-over }))
				defer close(over)
				if a := w.connect().get("GET / HTTP/1.1", "Host: a"); a.body != body[:1<<20]+" <unexpected EOF>" {
					t.Errorf("%d bytes", len(a.body))
				}
				want(t, w, "200 SI stream_idle_timeout")
			})
			t.Run("client leaves", func(t *testing.T) {
				w := begin(t, answering(1<<40, body, func(c net.Conn) {
					for err := error(nil); err == nil; {
						_, err = io.WriteString(c, body)
					}
				}))
				c := w.connect()
				c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
				if _, err := io.CopyN(io.Discard, c, 300<<10); err != nil {
					t.Fatal(err)
				}
				_ = c.Close()
				want(t, w, "200 DC downstream_remote_disconnect")
			})
		})
	}
}

// TestHostResets: a host that resets is at fault, whatever the client does.
func TestHostResets(t *testing.T) {
	body := long()
	w := newWorld(t)
	w.loopback = true
	w.routes("a", `{"match":{"prefix":"/"},"route":{"cluster":"up","timeout":"0s"}}`)
	w.cluster("up", nil, answering(len(body), body[:1<<20], func(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0) }))
	if a := w.connect().get("GET / HTTP/1.1", "Host: a"); len(a.body) >= len(body) {
		t.Errorf("%d bytes", len(a.body))
	}
	if got := w.log(1)[0]; !strings.HasPrefix(got, "200 UC upstream_reset_after_response_started") {
		t.Errorf("logged %q", got)
	}
}

type wrapped struct{ *net.TCPConn }

func (w wrapped) Plain() *net.TCPConn { return w.TCPConn }

func TestSocketOf(t *testing.T) {
	tcp := &net.TCPConn{}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if socketOf(tcp) != tcp || socketOf(wrapped{tcp}) != tcp || socketOf(a) != nil || socketOf(struct{ *net.TCPConn }{tcp}) != nil {
		t.Error("another socket")
	}
}
