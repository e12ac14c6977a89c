//go:build !race

// The race detector makes sync.Pool forget, so that nothing can be said about allocations.

package http

import (
	"testing"
)

const plainRequest = "GET /a/b?c=d HTTP/1.1\r\nHost: a\r\nUser-Agent: curl/7.73.0-DEV\r\nAccept: */*\r\n\r\n"

// exchanger returns a function that does one exchange over a connection that is kept.
func exchanger(w *world, loopback bool) func() {
	w.loopback = loopback
	w.flow.Record = func(*Entry) {}
	w.routes("a", `{"name":"r","match":{"prefix":"/"},"route":{"cluster":"up","timeout":"0s","retryPolicy":{"retryOn":"connect-failure,refused-stream,unavailable","numRetries":2}}}`)
	w.cluster("up", nil, fixed(ok))
	c := w.connect()
	in, out := make([]byte, 4096), []byte(plainRequest)
	return func() {
		if _, err := c.Write(out); err != nil {
			w.t.Fatal(err)
		}
		for n := 0; ; {
			k, err := c.Conn.Read(in[n:])
			if err != nil {
				w.t.Fatal(err)
			}
			if n += k; n > 2 && string(in[n-2:n]) == "ok" {
				return
			}
		}
	}
}

// TestNoAllocation: a request of HTTP/1.1 over connections that are kept allocates nothing, with a route, a retry policy, a
// pool, a log entry.
func TestNoAllocation(t *testing.T) {
	for name, loopback := range map[string]bool{"memory": false, "loopback": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			do := exchanger(w, loopback)
			for range 10 {
				do()
			}
			if n := testing.AllocsPerRun(300, do); n != 0 {
				t.Errorf("%v allocations for a request", n)
			}
		})
	}
}

func BenchmarkExchange(b *testing.B) {
	w := newWorld(b)
	do := exchanger(w, true)
	do()
	b.ReportAllocs()
	for b.Loop() {
		do()
	}
}
