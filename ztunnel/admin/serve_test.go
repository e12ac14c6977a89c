package admin

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// serve runs h on a loopback port until the test ends.
func serve(t *testing.T, h http.Handler, timeout time.Duration) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, h, timeout, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// large is a registry of n series with long labels: an answer that no socket buffer holds.
func large(n int) *prometheus.Registry {
	reg := prometheus.NewRegistry()
	v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "large", Help: "x"}, []string{"series"})
	for i := range n {
		v.WithLabelValues(fmt.Sprint(i, strings.Repeat("x", 1000))).Set(1)
	}
	reg.MustRegister(v)
	return reg
}

// unread asks for path and reads nothing.
func unread(t *testing.T, addr, path string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.(*net.TCPConn).SetReadBuffer(2048); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path); err != nil {
		t.Fatal(err)
	}
	return c
}

func statusOf(t *testing.T, c net.Conn) int {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode
}

func TestUnreadMetricsAreFewAndEnd(t *testing.T) {
	a, _ := fixture(t, func(c *Config) { c.Gatherer = large(10_000) })
	addr := serve(t, a.StatsHandler(), time.Second)
	// whoever answers slowly has its place now
	for i, path := range []string{"/metrics", "/stats/prometheus"} {
		c := unread(t, addr, path)
		if code := statusOf(t, c); code != 200 {
			t.Fatalf("scrape %d: %d", i, code)
		}
	}
	for range 10 {
		if code := statusOf(t, unread(t, addr, "/metrics")); code != 503 {
			t.Errorf("one more scrape: %d, want 503", code)
		}
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		if statusOf(t, unread(t, addr, "/metrics")) == 200 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("scrapes that nobody reads hold their places after the write timeout")
		}
		runtime.Gosched()
	}
}

func TestOldestConnectionMakesRoom(t *testing.T) {
	a, _ := fixture(t, nil)
	addr := serve(t, a.ReadyHandler(), time.Minute)
	var idle []net.Conn
	for range 3 * maxConns {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "G"); err != nil { // no longer new, never a request
			t.Fatal(err)
		}
		idle = append(idle, c)
	}
	if code := statusOf(t, unread(t, addr, "/healthz/ready")); code != 200 {
		t.Errorf("readiness beside %d idle connections: %d", len(idle), code)
	}
	open := 0
	for _, c := range idle {
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); err != nil {
			if n, ok := err.(net.Error); ok && n.Timeout() {
				open++
			}
		}
	}
	if open == 0 || open > maxConns {
		t.Errorf("%d idle connections are open, want at most %d", open, maxConns)
	}
}

func TestEndlessHeadersEnd(t *testing.T) {
	a, _ := fixture(t, nil)
	addr := serve(t, a.ReadyHandler(), time.Minute)
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go func() { _, _ = io.WriteString(c, "GET /healthz/ready HTTP/1.1\r\nX: "+strings.Repeat("x", 1<<20)) }()
	if code := statusOf(t, c); code != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a megabyte of header: %d", code)
	}
}
