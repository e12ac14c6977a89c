package main

import (
	"context"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/undermesh/undermesh/ztunnel/http"
)

// TestPath: the proxy of the bench passes the load of each kind on to the server, and its log has a line for each request.
func TestPath(t *testing.T) {
	var ports [4]int
	for i := range ports {
		port, err := freePort()
		if err != nil {
			t.Fatal(err)
		}
		ports[i] = port
	}
	ctx, stop := context.WithCancel(context.Background())
	over := make(chan error, 2)
	go func() { over <- runServer(ctx, []string{"-h1", local(ports[0]), "-h2", local(ports[1])}) }()
	dir := t.TempDir()
	go func() {
		over <- runProxy(ctx, []string{"-listen", local(ports[2]), "-up", local(ports[0]), "-log", dir + "/log"})
	}()
	for _, port := range ports[:3] {
		if err := await(port); err != nil {
			t.Fatal(err)
		}
	}
	for name, w := range map[string]worker{
		"keep": keep(ctx, local(ports[2]), request("host", "/1024", "")), "large": keep(ctx, local(ports[2]), request("host", "/1048576", "")),
		"renew": renew(ctx, local(ports[2]), request("host", "/1024", "Connection: close\r\n")),
	} {
		if l := drive([]worker{w}, 50*time.Millisecond, 0); l.Errors > 0 || l.Requests == 0 || l.P50 == 0 || l.P99 < l.P50 {
			t.Errorf("%s: %+v", name, l)
		}
	}
	c, err := dialH2(ctx, local(ports[1]))
	if err != nil {
		t.Fatal(err)
	}
	if l := drive([]worker{multiplex(c, "host", "/1024", false), multiplex(c, "host", "/1024", true)}, 50*time.Millisecond, 0); l.Errors > 0 || l.Requests == 0 {
		t.Errorf("multiplex: %+v", l)
	}
	_ = c.Close()
	stop()
	for range 2 {
		if err := <-over; err != nil {
			t.Error(err)
		}
	}
}

func TestRecord(t *testing.T) {
	p, err := newProxy("127.0.0.1:1", variant{true, usual}, t.TempDir()+"/log")
	if err != nil {
		t.Fatal(err)
	}
	a, b := net.Pipe()
	defer b.Close()
	e, err := http.New(http.Config{})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = e.Serve(t.Context(), a, nil, &http.Flow{Upstreams: p, Workload: http.NewTenant(http.TenantLimits{}), Record: p.record})
	}()
	if _, err := b.Write(request("host", "/x", "Connection: close\r\n")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	n, err := b.Read(buf)
	if err != nil || !strings.HasPrefix(string(buf[:n]), "HTTP/1.1 503") { // nobody is at that address
		t.Fatalf("%q, %v", buf[:n], err)
	}
	for deadline := time.Now().Add(5 * time.Second); ; {
		p.mu.Lock()
		row := string(p.row)
		p.mu.Unlock()
		if strings.Contains(row, `"GET /x HTTP/1.1" 503 `) && strings.Contains(row, `"host"`) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("logged %q", row)
		}
		<-time.After(time.Millisecond)
	}
}

func TestRow(t *testing.T) {
	cells := []*cell{{cpu: 3, rate: 10, p50: 1, p99: 2, rss: 5}, {cpu: 1, rate: 30, p50: 1, p99: 2, rss: 5}, {cpu: 2, rate: 20, p50: 1, p99: 2, rss: 5}, {missing: "why"}}
	if got := row("w", "p", cells, 4, 0); got != "| w | p | 2.0 [1.0-3.0] | 0.50 |  | 20 | 1 | 2 | 5 | 3 |\n" {
		t.Error(got)
	}
	if got := row("w", "p", cells[3:], 4, 1); !strings.Contains(got, "why") {
		t.Error(got)
	}
}

// TestPace: with a rate the requests are due at equal distances, whatever the answers take, and late ones count as late.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := func(next func() (time.Time, bool), took func(time.Duration)) error {
			for at, more := next(); more; at, more = next() {
				<-time.After(15 * time.Millisecond)
				took(time.Since(at))
			}
			return nil
		}
		if l := drive([]worker{slow, slow}, 100*time.Millisecond, 200); l.Requests != 20 || l.P50 < 30*time.Millisecond || l.P99 < 55*time.Millisecond {
			t.Errorf("%+v", l)
		}
		if l := drive([]worker{slow}, 90*time.Millisecond, 0); l.Requests != 6 || l.P99 != 15*time.Millisecond {
			t.Errorf("%+v", l)
		}
	})
}
