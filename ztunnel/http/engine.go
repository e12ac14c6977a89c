package http

import (
	"context"
	"fmt"
	"net"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/undermesh/undermesh/ztunnel/cluster"
)

// Engine serves HTTP connections. It is safe for concurrent use.
type Engine struct {
	cfg       Config
	epoch     time.Time
	free      buffers
	exchanges sync.Pool
	date      atomic.Pointer[date]
	draining  atomic.Bool
	plain     Headers // of flows that say nothing
	toils     *turns  // of requests whose rules cost much
	crowds    *turns  // of workloads with many requests under way

	mu      sync.Mutex // protects below
	tenants map[*Tenant]int
	closed  bool
	copies  sync.WaitGroup // of requests, which outlive them
}

// New returns an engine. It starts nothing.
func New(cfg Config) (*Engine, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("check the configuration of the HTTP engine: %w", err)
	}
	cfg = cfg.withDefaults()
	e := &Engine{cfg: cfg, epoch: cfg.Clock.Now(), tenants: map[*Tenant]int{}}
	e.toils, e.crowds = newTurns(cfg.Turns, e.now), newTurns(cfg.Turns, e.now)
	return e, nil
}

// now is the time since the engine was made, in nanoseconds; never 0.
func (e *Engine) now() int64 { return int64(e.cfg.Clock.Now().Sub(e.epoch)) | 1 }

// date is a value of the date field, which holds for one second.
type date struct {
	second int64
	text   []byte
}

// httpDate returns the value of the date field for a time of the engine.
func (e *Engine) httpDate(now int64) []byte {
	t := e.epoch.Add(time.Duration(now))
	if d := e.date.Load(); d != nil && d.second == t.Unix() {
		return d.text
	}
	d := &date{second: t.Unix(), text: t.UTC().AppendFormat(nil, "Mon, 02 Jan 2006 15:04:05 GMT")}
	e.date.Store(d)
	return d.text
}

// Serve serves the connection c to its end and closes it. early are bytes that were read from it before. It returns why the
// connection ended, nil for an end in order. When ctx ends it is closed at once. Safe for concurrent use.
func (e *Engine) Serve(ctx context.Context, c net.Conn, early []byte, f *Flow) (err error) {
	defer c.Close()
	if f.Listener == nil {
		f.Listener = f.Workload.Listener(f.Direction, f.Destination.Port())
	}
	s := &server{e: e, f: f, sock: newSocket(c, early), g: guard{e: e}}
	if !e.enter(s) {
		f.Workload.counts.connectionsRefused.Add(1)
		f.Listener.inc(cxOverloadReject)
		return errCrowded
	}
	defer e.leave(s)
	f.worker = int(e.cfg.Random() % cluster.Workers)
	defer func() {
		if p := recover(); p != nil {
			e.panicked(f, p)
			err = fmt.Errorf("serve %s: panic: %v", f.Source, p)
		}
	}()
	unhook := context.AfterFunc(ctx, func() {
		s.g.stop(stopped)
		_ = c.Close()
	})
	defer unhook()
	return s.serve(ctx)
}

// panicked notes a panic, which ends one connection.
func (e *Engine) panicked(f *Flow, p any) {
	f.Workload.counts.panics.Add(1)
	e.cfg.Log.Error("serving an HTTP connection panicked", "src", f.Source, "dst", f.Destination, "panic", p, "stack", string(debug.Stack()))
}

func (e *Engine) enter(s *server) bool {
	t := s.f.Workload
	t.mu.Lock()
	if len(t.conns) >= t.limits.Connections {
		t.mu.Unlock()
		return false
	}
	t.conns[s] = struct{}{}
	t.mu.Unlock()
	s.f.Listener.opened(e.cfg.Clock.Now())
	e.mu.Lock()
	e.tenants[t]++
	e.mu.Unlock()
	return true
}

func (e *Engine) leave(s *server) {
	t := s.f.Workload
	t.mu.Lock()
	delete(t.conns, s)
	t.mu.Unlock()
	s.f.Listener.closed(s.spoken)
	if s.leaving() {
		s.f.Listener.inc(cxDrainClose)
	}
	e.mu.Lock()
	if e.tenants[t]--; e.tenants[t] == 0 {
		delete(e.tenants, t)
	}
	e.mu.Unlock()
}

// hold begins a copy of a request; false: the engine is closed.
func (e *Engine) hold() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return false
	}
	e.copies.Add(1)
	return true
}

func (e *Engine) release() { e.copies.Done() }

// Close waits for the copies of requests that are under way; they have their timeouts. No more are sent.
func (e *Engine) Close() {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.copies.Wait()
}

// Drain ends all connections after the requests that are under way: with HTTP/1.1 their answers say Connection: close, with HTTP/2
// GOAWAY is sent. Idle ones are closed. Connections that are served from now on end after their first request. It does not wait.
func (e *Engine) Drain() {
	e.draining.Store(true)
	e.mu.Lock()
	var list []*Tenant
	for t := range e.tenants {
		list = append(list, t)
	}
	e.mu.Unlock()
	for _, t := range list {
		t.wake()
	}
}
