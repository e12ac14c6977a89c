package h2spec

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/summerwind/h2spec/client"
	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	suite "github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"

	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/http/h2"
	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// How many cases the suite has: fewer were left out by mistake.
const (
	serverCases = 146
	clientCases = 57
)

// listen serves an answer of 64 bytes to every request and returns the address.
func listen(t *testing.T, cfg h2.Config) *net.TCPAddr {
	return accept(t, func(ctx context.Context, nc net.Conn) {
		_ = h2.NewServer(nc, cfg, func(s *h2.Stream) { s.Go(answer) }).Serve(ctx, nil)
	})
}

// accept serves each connection in a goroutine and returns the address.
func accept(t *testing.T, serve func(context.Context, net.Conn)) *net.TCPAddr {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { serve(ctx, nc) })
		}
	})
	t.Cleanup(func() { l.Close(); stop(); wg.Wait() })
	return l.Addr().(*net.TCPAddr)
}

func answer(s *h2.Stream) {
	if _, err := io.Copy(io.Discard, s); err != nil {
		return
	}
	r := &head.Response{Status: 200}
	body := strings.Repeat("0123456789abcdef", 4)
	r.AddString(head.ContentLength, fmt.Sprint(len(body)))
	if s.WriteHead(r, string(s.Request().Method) == "HEAD") == nil && string(s.Request().Method) != "HEAD" {
		_ = s.WriteEnd([]byte(body))
	}
}

func TestServer(t *testing.T) { serverSuite(t, listen(t, h2.Config{Clock: clock.System()}), nil) }

// TestEngine: the engine in between, which speaks HTTP/2 to both sides. What does not begin with the preface of HTTP/2 is for it
// a request of HTTP/1, and a bad one.
func TestEngine(t *testing.T) {
	serverSuite(t, engine(t, listen(t, h2.Config{Clock: clock.System()})), map[string]func(*testing.T, net.Conn){"http2/3.5/2": badRequest})
}

func badRequest(t *testing.T, nc net.Conn) {
	if _, err := io.WriteString(nc, "INVALID CONNECTION PREFACE\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(nc)
	if err != nil || !strings.HasPrefix(string(got), "HTTP/1.1 400 ") {
		t.Errorf("got %q, %v; want a status of 400 and the end", got, err)
	}
}

// serverSuite runs all cases against the server at addr; instead has those that are judged in another way.
func serverSuite(t *testing.T, addr *net.TCPAddr, instead map[string]func(*testing.T, net.Conn)) {
	cfg := &config.Config{Host: addr.IP.String(), Port: addr.Port, Path: "/", Timeout: 5 * time.Second, MaxHeaderLen: 4000, Strict: true}
	var ran atomic.Int32
	t.Run("suite", func(t *testing.T) {
		for _, g := range []*spec.TestGroup{generic.Spec(), suite.Spec(), hpack.Spec()} {
			serverGroup(t, cfg, g, instead, &ran)
		}
	})
	if n := ran.Load(); n != serverCases {
		t.Errorf("%d cases ran, want %d", n, serverCases)
	}
}

func serverGroup(t *testing.T, cfg *config.Config, g *spec.TestGroup, instead map[string]func(*testing.T, net.Conn), ran *atomic.Int32) {
	for i, tc := range append(g.Tests, g.StrictTests...) {
		name := fmt.Sprintf("%s/%d", g.ID(), i+1)
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ran.Add(1)
			if other := instead[name]; other != nil {
				nc, err := net.Dial("tcp", cfg.Addr())
				if err != nil {
					t.Fatal(err)
				}
				defer nc.Close()
				other(t, nc)
				return
			}
			conn, err := spec.Dial(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			report(t, tc.Desc, tc.Requirement, tc.Run(cfg, conn))
		})
	}
	for _, sub := range g.Groups {
		serverGroup(t, cfg, sub, instead, ran)
	}
}

// report fails for a skipped case too: the suite skips what a server makes it unable to look at.
func report(t *testing.T, desc, requirement string, err error) {
	var te *spec.TestError
	switch {
	case errors.As(err, &te):
		t.Errorf("%s: %s\nwant %s\ngot %s", desc, requirement, strings.Join(te.Expected, "\nor "), te.Actual)
	case err != nil:
		t.Errorf("%s: %s: %v", desc, requirement, err)
	}
}

func TestClient(t *testing.T) {
	var ran atomic.Int32
	t.Run("suite", func(t *testing.T) { clientGroup(t, client.Spec(), &ran) })
	if n := ran.Load(); n != clientCases {
		t.Errorf("%d cases ran, want %d", n, clientCases)
	}
}

func clientGroup(t *testing.T, g *spec.ClientTestGroup, ran *atomic.Int32) {
	for i, tc := range g.Tests {
		t.Run(fmt.Sprintf("%s/%d", g.ID(), i+1), func(t *testing.T) {
			t.Parallel()
			ran.Add(1)
			report(t, tc.Desc, tc.Requirement, clientCase(t, tc))
		})
	}
	for _, sub := range g.Groups {
		clientGroup(t, sub, ran)
	}
}

// clientCase lets a client of ours ask the suite's server once.
func clientCase(t *testing.T, tc *spec.ClientTestCase) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cfg := &config.Config{Host: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port, Path: "/", Timeout: 5 * time.Second, MaxHeaderLen: 4000, Strict: true}
	over := make(chan struct{})
	defer func() { <-over }()
	go func() {
		defer close(over)
		nc, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Error(err)
			return
		}
		c := h2.NewClient(nc, h2.Config{Clock: clock.System()})
		defer c.Close()
		r := &head.Request{Method: []byte("GET"), Scheme: []byte("http"), Authority: []byte(l.Addr().String()), Path: []byte("/")}
		s, err := c.Open(r, true)
		if err != nil {
			return // the server was faster
		}
		defer s.Close()
		if _, err := s.ReadHead(); err == nil {
			_, _ = io.Copy(io.Discard, s)
		}
		<-c.Done()
	}()
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	conn, err := spec.Accept(cfg, nc)
	if err != nil {
		return err
	}
	return tc.Run(cfg, conn)
}
