package admin

import (
	"container/list"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// AnswerTimeout is what an address that everybody reaches gives a request until its answer was read.
	AnswerTimeout = 30 * time.Second

	maxConns    = 64 // open connections of one server; the oldest makes room for the next
	maxGathered = 2  // answers of /metrics under way: each holds every series once
)

// Serve answers requests on l until ctx ends, then closes it and returns nil when the handlers under way have returned, or
// after a second. An answer that was not read after timeout is cut off; 0 is without limit, for handlers that take their
// time. At most 64 connections are open.
func Serve(ctx context.Context, l net.Listener, h http.Handler, timeout time.Duration, log *slog.Logger) error {
	s := &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		// The read limit is also one of the request's context, so it is not shorter.
		ReadTimeout: timeout, WriteTimeout: timeout,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(&limited{Listener: l, most: maxConns}) }()
	select {
	case err := <-done:
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := s.Shutdown(limit); err != nil {
		s.Close()
	}
	<-done
	return nil
}

// limited keeps the number of open connections. It closes the oldest rather than refuse the newest: who holds many idle
// ones does not keep the kubelet or Prometheus out, whose requests are short.
type limited struct {
	net.Listener
	most int

	mu   sync.Mutex // protects below
	open list.List  // of *limitedConn, the oldest first
}

type limitedConn struct {
	net.Conn
	l    *limited
	at   *list.Element
	once sync.Once
}

// Accept implements net.Listener.
func (l *limited) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	lc := &limitedConn{Conn: c, l: l}
	l.mu.Lock()
	lc.at = l.open.PushBack(lc)
	var oldest *limitedConn
	if l.open.Len() > l.most {
		oldest = l.open.Front().Value.(*limitedConn)
	}
	l.mu.Unlock()
	if oldest != nil {
		_ = oldest.Close() // its request, if there is one, fails
	}
	return lc, nil
}

// Close implements net.Conn.
func (c *limitedConn) Close() error {
	c.once.Do(func() {
		c.l.mu.Lock()
		defer c.l.mu.Unlock()
		c.l.open.Remove(c.at)
	})
	return c.Conn.Close()
}
