package http

import (
	"context"
	"errors"
	"io"
	"math"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/undermesh/undermesh/ztunnel/cluster"
)

// panicking are Upstreams whose connections panic when an answer is read.
type panicking struct{ *world }

func (p panicking) Dial(ctx context.Context, c *cluster.Cluster, h *cluster.Host) (*Conn, error) {
	made, err := p.world.Dial(ctx, c, h)
	if err == nil {
		made.Net = panicConn{made.Net}
	}
	return made, err
}

type panicConn struct{ net.Conn }

func (c panicConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		panic("as it was told")
	}
	return n, err
}

// TestPanicWhileABodyIsPassed: the goroutine that passes the body ends with its request, whose connection is not used again.
func TestPanicWhileABodyIsPassed(t *testing.T) {
	inBubble(t, nil, func(t *testing.T, w *world) {
		w.flow.Upstreams = panicking{w}
		w.cluster("up", nil, func(c net.Conn) {
			b := make([]byte, 4096)
			_, _ = c.Read(b)
			_, _ = io.WriteString(c, ok)
			_, _ = io.Copy(io.Discard, c)
		})
		c := w.connect()
		c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nxx")
		synctest.Wait()
		if s := w.flow.Workload.Stats(); s.Panics != 1 || s.ActiveRequests != 0 || s.ActiveConnections != 0 {
			t.Errorf("%+v", s)
		}
		for name, n := range w.clusters["up"].Stats {
			if strings.HasSuffix(name, "_active") && n != 0 {
				t.Errorf("%s is %d", name, n)
			}
		}
	})
}

// TestEarlyAnswerEndsTheRequest: a host that has answered and does not read the rest of a body does not hold its caller's request.
func TestEarlyAnswerEndsTheRequest(t *testing.T) {
	w := newWorld(t)
	w.loopback = true
	w.routes("a", `{"match":{"prefix":"/"},"route":{"cluster":"up","timeout":"0s"}}`)
	full := make(chan struct{})
	w.cluster("up", nil, func(c net.Conn) {
		_, _ = c.Read(make([]byte, 512))
		<-full
		_, _ = io.WriteString(c, "HTTP/1.1 413 No\r\nContent-Length: 0\r\n\r\n")
		<-w.ctx.Done()
	})
	c := w.connect()
	if _, err := io.WriteString(c.Conn, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	body := []byte(strings.Repeat("x", 20<<20))
	_ = c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond)) // it fills the buffers of the kernel
	_, _ = c.Write(body)
	close(full)
	if a := c.read("POST"); a.StatusCode != 413 {
		t.Errorf("%d", a.StatusCode)
	}
	deadline := time.Now().Add(10 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for ; w.flow.Workload.Stats().ActiveRequests != 0; <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("%+v", w.flow.Workload.Stats())
		}
	}
	_ = c.Close()
	w.close()
	w.e.Close()
}

// TestDeadline: a time that cannot be told never comes; it has not passed.
func TestDeadline(t *testing.T) {
	for d, want := range map[time.Duration]int64{0: 0, -1: 0, 7: 12, math.MaxInt64: 0, math.MaxInt64 - 5: math.MaxInt64} {
		if got := deadline(5, d); got != want {
			t.Errorf("%d after 5 is %d, want %d", d, got, want)
		}
	}
}

// patient is a connection that can be waited for.
type patient struct {
	net.Conn
	waits atomic.Int64
}

func (p *patient) Wait() error {
	p.waits.Add(1)
	return nil
}

// TestWaitWithoutBuffer: what waits for a message on a connection that tells when there is something takes a buffer only then.
func TestWaitWithoutBuffer(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	p := &patient{Conn: near}
	s := newSocket(p, []byte("ab"))
	var free buffers
	go func() {
		_, _ = io.WriteString(far, "cd")
		_ = far.Close()
	}()
	for i, want := range []string{"ab", "cd"} {
		b, err := s.readIdle(&free, nil)
		if err != nil || string(b.bytes()) != want || p.waits.Load() != int64(i) {
			t.Errorf("read %q, %v after %d waits; want %q after %d", b.bytes(), err, p.waits.Load(), want, i)
		}
	}
	gone := &socket{Conn: near, waits: over{}}
	if b, err := gone.readIdle(&free, nil); b != nil || !errors.Is(err, io.EOF) {
		t.Errorf("%v, %v at the end", b, err)
	}
}

// over is the end of a connection that is waited for.
type over struct{}

func (over) Wait() error { return io.EOF }
