package hbone

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// fleet is a dialer whose connections are served by h on in-memory pipes, all ended by stop.
type fleet struct {
	cfg   Config
	h     Handler
	dials atomic.Int32
	fail  atomic.Bool
	wg    sync.WaitGroup

	mu      sync.Mutex
	servers []*Server
}

var errNoRoute = errors.New("no route")

func (f *fleet) dial(context.Context) (net.Conn, error) {
	f.dials.Add(1)
	if f.fail.Load() {
		return nil, errNoRoute
	}
	a, b := net.Pipe()
	s := NewServer(b, f.cfg, f.h)
	f.mu.Lock()
	f.servers = append(f.servers, s)
	f.mu.Unlock()
	f.wg.Go(func() { _ = s.Run(context.Background()) })
	return a, nil
}

func (f *fleet) stop() {
	f.mu.Lock()
	for _, s := range f.servers {
		s.Close()
	}
	f.mu.Unlock()
	f.wg.Wait()
}

func inBubble(t *testing.T, f func(t *testing.T, p *Pool[string], fl *fleet)) {
	synctest.Test(t, func(t *testing.T) {
		fl := &fleet{cfg: testConfig(), h: echoHandler}
		p := NewPool[string](PoolConfig[string]{Conn: testConfig(), GrowStreams: 2, StreamsPerConn: 4, Max: 3})
		f(t, p, fl)
		p.Close()
		fl.stop()
	})
}

func mustConnect(t *testing.T, p *Pool[string], fl *fleet) *Stream {
	t.Helper()
	s, err := p.Connect(t.Context(), "k", fl.dial, Request{Authority: "10.0.0.7:80"})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestPoolGrowsAndShrinks(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Pool[string], fl *fleet) {
		var all []*Stream
		for range 12 { // 3 connections × 4 streams
			all = append(all, mustConnect(t, p, fl))
			synctest.Wait() // let a growing dial finish
		}
		if n := p.Conns("k"); n != 3 || fl.dials.Load() != 3 {
			t.Fatalf("%d connections after %d dials, want 3", n, fl.dials.Load())
		}
		// Max bounds growth by load; a thirteenth stream has no place without another connection.
		fl.fail.Store(true)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := p.Connect(ctx, "k", fl.dial, Request{Authority: "10.0.0.7:80"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("a thirteenth stream when nobody can be dialed: %v, want to wait", err)
		}
		fl.fail.Store(false)
		waiting := make(chan *Stream)
		go func() { waiting <- mustConnect(t, p, fl) }()
		synctest.Wait()
		all[0].Close()
		all[0] = <-waiting
		for range 5 {
			all = append(all, mustConnect(t, p, fl))
			synctest.Wait()
		}
		if n := p.Conns("k"); n != 5 {
			t.Fatalf("%d connections for 17 streams of 4 a connection, want 5", n)
		}
		for _, s := range all {
			s.Close()
		}
		time.Sleep(31 * time.Second)
		synctest.Wait()
		if n := p.Conns("k"); n != 1 {
			t.Errorf("%d connections after ShrinkTimeout, want 1", n)
		}
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if n := p.Conns("k"); n != 0 {
			t.Errorf("%d connections after IdleTimeout, want 0", n)
		}
		fl.wg.Wait() // the servers saw the close
	})
}

func TestPoolSharesOneDial(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Pool[string], fl *fleet) {
		release := make(chan struct{})
		slow := func(ctx context.Context) (net.Conn, error) {
			<-release
			return fl.dial(ctx)
		}
		var wg sync.WaitGroup
		first, cancel := context.WithCancel(t.Context())
		wg.Go(func() {
			if _, err := p.Connect(first, "k", slow, Request{Authority: "10.0.0.7:80"}); !errors.Is(err, context.Canceled) {
				t.Errorf("cancelled caller: %v", err)
			}
		})
		synctest.Wait()
		wg.Go(func() {
			s, err := p.Connect(t.Context(), "k", slow, Request{Authority: "10.0.0.7:80"})
			if err != nil {
				t.Error(err)
				return
			}
			s.Close()
		})
		synctest.Wait()
		cancel() // the first caller's end is not the dial's
		synctest.Wait()
		close(release)
		wg.Wait()
		if n := fl.dials.Load(); n != 1 {
			t.Errorf("%d dials, want 1", n)
		}
	})
}

func TestPoolDialError(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Pool[string], fl *fleet) {
		fl.fail.Store(true)
		for range 2 { // the second asks again
			if _, err := p.Connect(t.Context(), "k", fl.dial, Request{Authority: "10.0.0.7:80"}); !errors.Is(err, errNoRoute) {
				t.Fatalf("got %v", err)
			}
		}
		if n := fl.dials.Load(); n != 2 {
			t.Errorf("%d dials, want 2", n)
		}
		hang := func(ctx context.Context) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		start := time.Now()
		if _, err := p.Connect(t.Context(), "k", hang, Request{Authority: "10.0.0.7:80"}); !errors.Is(err, errDialTimeout) {
			t.Errorf("hanging dial: %v", err)
		}
		if d := time.Since(start); d != 10*time.Second {
			t.Errorf("hanging dial took %v", d)
		}
	})
}

func TestPoolReplacesDrainingConnection(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Pool[string], fl *fleet) {
		old := mustConnect(t, p, fl)
		fl.servers[0].Drain()
		synctest.Wait()
		s := mustConnect(t, p, fl)
		if fl.dials.Load() != 2 || s.c == old.c {
			t.Errorf("%d dials; the new stream must be on a new connection", fl.dials.Load())
		}
		if _, err := old.Write([]byte("still")); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 5)
		if _, err := io.ReadFull(old, b); err != nil || string(b) != "still" {
			t.Errorf("stream on the draining connection: %q, %v", b, err)
		}
		old.Close()
		synctest.Wait()
		if err := old.c.err(); err == nil {
			t.Error("the drained connection is open after its last stream")
		}
	})
}

func TestPoolRetire(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Pool[string], fl *fleet) {
		old := mustConnect(t, p, fl)
		p.Retire(func(k string) bool { return k == "k" })
		s := mustConnect(t, p, fl)
		if s.c == old.c {
			t.Error("a retired connection took a stream")
		}
		if _, err := old.Write([]byte("x")); err != nil {
			t.Errorf("stream of a retired connection: %v", err)
		}
		old.Close()
		s.Close()
	})
}

// TestPoolMaxAge: what an old tunnel carries is judged anew by whoever judges connections.
func TestPoolMaxAge(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Pool[string], fl *fleet) {
		old := mustConnect(t, p, fl)
		time.Sleep(19 * time.Second)
		if s := mustConnect(t, p, fl); s.c != old.c {
			t.Error("a connection younger than MaxAge was not used")
		} else {
			s.Close()
		}
		time.Sleep(time.Second)
		s := mustConnect(t, p, fl)
		if s.c == old.c || fl.dials.Load() != 2 {
			t.Errorf("%d dials; a stream beyond MaxAge must be on a new connection", fl.dials.Load())
		}
		if _, err := old.Write([]byte("still")); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 5)
		if _, err := io.ReadFull(old, b); err != nil || string(b) != "still" {
			t.Errorf("stream on the old connection: %q, %v", b, err)
		}
		old.Close()
		s.Close()
		synctest.Wait()
		if err := old.c.err(); err == nil {
			t.Error("the old connection is open after its last stream")
		}
		time.Sleep(20 * time.Second)
		fl.fail.Store(true) // the firewall has closed
		if _, err := p.Connect(t.Context(), "k", fl.dial, Request{Authority: "10.0.0.7:80"}); !errors.Is(err, errNoRoute) {
			t.Errorf("connect when nothing can be dialed any more: %v", err)
		}
	})
}

func TestPoolClose(t *testing.T) {
	inBubble(t, func(t *testing.T, p *Pool[string], fl *fleet) {
		s := mustConnect(t, p, fl)
		p.Close()
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, ErrClosed) {
			t.Errorf("stream after Close: %v", err)
		}
		if _, err := p.Connect(t.Context(), "k", fl.dial, Request{Authority: "10.0.0.7:80"}); !errors.Is(err, ErrClosed) {
			t.Errorf("Connect after Close: %v", err)
		}
	})
}
