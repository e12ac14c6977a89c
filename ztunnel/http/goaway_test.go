package http

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/http/h2"
	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// TestGoAwayUnderLoad: hosts that end each connection after a hundred requests, by GOAWAY, cost no request anything.
func TestGoAwayUnderLoad(t *testing.T) {
	w := newWorld(t)
	w.loopback = true
	var conns atomic.Int32
	host := func(nc net.Conn) {
		conns.Add(1)
		var served atomic.Int32
		var c *h2.Conn
		c = h2.NewServer(nc, h2.Config{Clock: clock.System(), CloseTimeout: 100 * time.Millisecond}, func(s *h2.Stream) {
			if served.Add(1) == 100 {
				c.Drain()
			}
			s.Go(func(s *h2.Stream) { _ = s.WriteHead(&head.Response{Status: 200}, true) })
		})
		_ = c.Serve(w.ctx, nil)
	}
	w.cluster("c", overHTTP2, host)
	w.routes("a", `{"match":{"prefix":"/"},"route":{"cluster":"c"}}`)
	near, far := w.pair()
	flow := w.flow
	w.wg.Go(func() { _ = w.e.Serve(w.ctx, far, nil, &flow) })
	c := h2.NewClient(near, h2.Config{Clock: clock.System()})
	defer c.Close()
	ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	context.AfterFunc(ctx, func() { c.Kill(context.DeadlineExceeded) }) // rather than hang
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for range 100 {
				r := &head.Request{}
				r.Reset(nil)
				r.Method, r.Scheme, r.Authority, r.Path = []byte("GET"), []byte("http"), []byte("a"), []byte("/")
				s, err := c.Open(r, true)
				if err != nil {
					t.Error(err)
					return
				}
				if resp, err := s.ReadHead(); err != nil || resp.Status != 200 {
					t.Errorf("answer %v, %v", resp, err)
				}
				s.Close()
			}
		})
	}
	wg.Wait()
	if n := conns.Load(); n < 10 {
		t.Errorf("%d connections carried 3200 requests", n)
	}
}
