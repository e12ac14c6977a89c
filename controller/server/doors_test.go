package server

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func refusedVec() *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "x"}, []string{"door", "reason"})
}

// TestNodesHavePlaces: strangers that take all places that they may have leave those of nodes: of who has a node's address, and
// of who proved to be one, as long as its stream lasts.
func TestNodesHavePlaces(t *testing.T) {
	node, proxy := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.66.9.9")
	b := newBounded(nil, discoveryDoor, refusedVec(), func(ip netip.Addr) bool { return ip == node })
	enter := func(from netip.Addr) (*boundedConn, string) {
		stranger, why := b.enter(from, b.isNode(from))
		return &boundedConn{door: b, from: from, stranger: stranger}, why
	}
	first, why := enter(proxy) // a node that nobody knows yet
	if why != "" || !first.stranger {
		t.Fatal(why)
	}
	first.prove()
	var held []*boundedConn
	for p := range 64 {
		for range b.bounds.each {
			if c, why := enter(netip.MustParseAddr(fmt.Sprintf("10.66.0.%d", p))); why == "" {
				held = append(held, c)
			}
		}
	}
	if len(held) != b.bounds.strangers {
		t.Errorf("strangers have %d connections", len(held))
	}
	second, why := enter(proxy)
	if _, w := enter(node); w != "" || why != "" {
		t.Errorf("a node is refused: %q %q", w, why)
	}
	t.Run("control: another address", func(t *testing.T) {
		if _, why := enter(netip.MustParseAddr("10.66.1.1")); why != "all" {
			t.Errorf("%q", why)
		}
	})
	second.leave()
	first.leave()
	first.leave() // once
	if _, why := enter(proxy); why != "all" {
		t.Errorf("an address whose stream ended: %q", why)
	}
	for _, c := range held {
		c.leave()
	}
	if b.all != 1 || b.strangers != 0 || len(b.count) != 1 || len(b.proved) != 0 {
		t.Errorf("left behind: %+v", b)
	}
}

// pipes is a listener in memory.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes"} }

// TestSlowClientsEnd: nobody keeps a connection of a door for ever, whether he says nothing, sends half a request, or reads no
// answer.
func TestSlowClientsEnd(t *testing.T) {
	for name, x := range map[string]struct {
		send string
		read int // bytes of the answer
		most time.Duration
	}{
		"nothing":     {"", 0, readHeader},
		"half a head": {"GET / HTTP/1.1\r\nHost:", 0, readHeader},
		"half a body": {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx", 1 << 30, readRequest},
		"idle":        {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 1 << 30, idleHTTP},
		"no reader":   {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 10, writeAnswer},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newPipes()
				h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					_, _ = io.Copy(io.Discard, r.Body)
					w.Header().Set("Content-Length", fmt.Sprint(512<<10))
					_, _ = io.WriteString(w, strings.Repeat("x", 512<<10))
				})
				served := make(chan error, 1)
				bounded := newBounded(l, monitorDoor, refusedVec(), func(netip.Addr) bool { return false })
				go func() { served <- serveHTTP(t.Context(), bounded, h, writeAnswer) }()
				ours, theirs := net.Pipe()
				l.conns <- theirs
				before := time.Now()
				var wg sync.WaitGroup
				wg.Go(func() {
					_, _ = io.WriteString(ours, x.send)
					_, _ = io.CopyN(io.Discard, ours, int64(x.read))
				})
				gone := func() bool {
					bounded.mu.Lock()
					defer bounded.mu.Unlock()
					return bounded.all == 0
				}
				for synctest.Wait(); !gone() && time.Since(before) < time.Hour; synctest.Wait() {
					time.Sleep(time.Second) // of the bubble
				}
				if took := time.Since(before); took > x.most+2*time.Second || took < x.most {
					t.Errorf("it ends after %s, want %s", took, x.most)
				}
				ours.Close()
				wg.Wait()
				l.Close()
				<-served
			})
		})
	}
}
