// Package load makes and answers the bench's traffic: bulk, request and response, and new connections, and the proxies of
// the comparison "TLS per connection". It has no opinion about what lies between client and server.
package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

// Size is the length of a request and of its response, in bytes.
const Size = 1024

const bulkBuffer = 256 << 10

// Config says what to send where.
type Config struct {
	Addr  string        // host:port of Serve's side that fits: Echo for RoundTrips and Connects, Sink for Bulk
	Conns int           // connections, or workers that make them one after the other
	For   time.Duration // how long to send
}

// Result is what a client measured.
type Result struct {
	Bytes      int64   `json:"bytes"` // that the server confirmed; bulk only
	Ops        int64   `json:"ops"`   // requests answered, or connections
	Errors     int64   `json:"errors"`
	FirstError string  `json:"firstError,omitempty"`
	Seconds    float64 `json:"seconds"` // from the first byte to the last answer
	P50US      float64 `json:"p50us"`   // microseconds of one request; of new connections with the connect
	P99US      float64 `json:"p99us"`
}

// tally collects the work of several goroutines.
type tally struct {
	mu    sync.Mutex // protects below
	r     Result
	times []time.Duration
}

func (t *tally) add(ops, n int64, times []time.Duration, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.r.Ops += ops
	t.r.Bytes += n
	t.times = append(t.times, times...)
	if err != nil {
		t.r.Errors++
		if t.r.FirstError == "" {
			t.r.FirstError = err.Error()
		}
	}
}

func (t *tally) result(took time.Duration) Result {
	t.mu.Lock()
	defer t.mu.Unlock()
	slices.Sort(t.times)
	t.r.Seconds = took.Seconds()
	t.r.P50US, t.r.P99US = quantileUS(t.times, 0.50), quantileUS(t.times, 0.99)
	return t.r
}

// quantileUS is the q-quantile of sorted times in microseconds, 0 without any.
func quantileUS(sorted []time.Duration, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return float64(sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]) / float64(time.Microsecond)
}

// open makes the connections before the clock runs.
func open(ctx context.Context, cfg Config) ([]*net.TCPConn, error) {
	var conns []*net.TCPConn
	for range cfg.Conns {
		c, err := dial(ctx, cfg.Addr)
		if err != nil {
			for _, c := range conns {
				c.Close()
			}
			return nil, err
		}
		conns = append(conns, c)
	}
	return conns, nil
}

func dial(ctx context.Context, addr string) (*net.TCPConn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	return c.(*net.TCPConn), nil
}

// Bulk sends on all connections and counts what the server says it received.
func Bulk(ctx context.Context, cfg Config) (Result, error) {
	conns, err := open(ctx, cfg)
	if err != nil {
		return Result{}, err
	}
	var t tally
	var wg sync.WaitGroup
	start := time.Now()
	for _, c := range conns {
		wg.Go(func() {
			defer c.Close()
			n, err := pour(c, start.Add(cfg.For))
			t.add(0, n, nil, err)
		})
	}
	wg.Wait()
	return t.result(time.Since(start)), nil
}

func pour(c *net.TCPConn, until time.Time) (int64, error) {
	buf := make([]byte, bulkBuffer)
	for time.Now().Before(until) {
		if _, err := c.Write(buf); err != nil {
			return 0, fmt.Errorf("send: %w", err)
		}
	}
	if err := c.CloseWrite(); err != nil {
		return 0, fmt.Errorf("end sending: %w", err)
	}
	var total [8]byte
	if _, err := io.ReadFull(c, total[:]); err != nil {
		return 0, fmt.Errorf("read the server's count: %w", err)
	}
	return int64(binary.BigEndian.Uint64(total[:])), nil
}

// RoundTrips sends a request on each connection, waits for its response, and so on.
func RoundTrips(ctx context.Context, cfg Config) (Result, error) {
	conns, err := open(ctx, cfg)
	if err != nil {
		return Result{}, err
	}
	var t tally
	var wg sync.WaitGroup
	start := time.Now()
	for _, c := range conns {
		wg.Go(func() {
			defer c.Close()
			var times []time.Duration
			buf := make([]byte, Size)
			var err error
			for last := time.Now(); last.Sub(start) < cfg.For && err == nil; {
				if err = ask(c, buf); err == nil {
					now := time.Now()
					times, last = append(times, now.Sub(last)), now
				}
			}
			t.add(int64(len(times)), 0, times, err)
		})
	}
	wg.Wait()
	return t.result(time.Since(start)), nil
}

func ask(c net.Conn, buf []byte) error {
	if _, err := c.Write(buf); err != nil {
		return fmt.Errorf("send request: %w", err)
	}
	if _, err := io.ReadFull(c, buf); err != nil {
		return fmt.Errorf("read response: %w", err)
	}
	return nil
}

// Connects makes connections with one request each, Conns of them at a time, and ends each by a reset, so that no port waits.
func Connects(ctx context.Context, cfg Config) (Result, error) {
	var t tally
	var wg sync.WaitGroup
	start := time.Now()
	for range cfg.Conns {
		wg.Go(func() {
			var times []time.Duration
			buf := make([]byte, Size)
			for {
				began := time.Now()
				if began.Sub(start) >= cfg.For {
					break
				}
				err := connect(ctx, cfg.Addr, buf)
				if err != nil {
					t.add(0, 0, nil, err)
					continue
				}
				times = append(times, time.Since(began))
			}
			t.add(int64(len(times)), 0, times, nil)
		})
	}
	wg.Wait()
	return t.result(time.Since(start)), nil
}

func connect(ctx context.Context, addr string, buf []byte) error {
	c, err := dial(ctx, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetLinger(0); err != nil {
		return fmt.Errorf("ask for a reset at the end: %w", err)
	}
	return ask(c, buf)
}

// Hold opens connections, uses each once, calls ready and keeps them open until ctx ends.
func Hold(ctx context.Context, cfg Config, ready func()) error {
	conns, err := open(ctx, cfg)
	if err != nil {
		return err
	}
	buf := make([]byte, Size)
	for _, c := range conns {
		defer c.Close()
		err = errors.Join(err, ask(c, buf))
	}
	if err != nil {
		return err
	}
	ready()
	<-ctx.Done()
	return nil
}
