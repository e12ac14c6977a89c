package http

import (
	"bufio"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/http/h1"
)

// frozen is a clock that stands, and whose timers do not.
type frozen struct {
	clock.Clock
	at time.Time
}

func (f frozen) Now() time.Time { return f.at }

// TestDeadAtOnce: a host that ends closes all its connections. Though they were used a moment ago, neither what may be done twice nor
// what may not meets them.
func TestDeadAtOnce(t *testing.T) {
	upgrade := []string{"GET / HTTP/1.1", "Host: a", "Connection: Upgrade", "Upgrade: websocket"}
	for name, c := range map[string]struct {
		request []string
		status  int
	}{
		"GET":     {[]string{"GET / HTTP/1.1", "Host: a"}, 200},
		"PUT":     {[]string{"PUT / HTTP/1.1", "Host: a", "Content-Length: 1", "", "x"}, 200},
		"POST":    {[]string{"POST / HTTP/1.1", "Host: a", "Content-Length: 0"}, 200},
		"upgrade": {upgrade, 101},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(c *Config) { c.Clock = frozen{clock.System(), time.Unix(1e9, 0)} })
			w.loopback = true
			w.routes("a", toUp)
			const n = 3 * maxReplays
			die := make(chan struct{})
			var met, dead sync.WaitGroup
			met.Add(n)
			dead.Add(n)
			w.cluster("up", nil, func(c net.Conn) {
				select {
				case <-die:
					answers(map[bool]string{true: ok, false: "HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"}[name != "upgrade"])(c)
					return
				default:
				}
				defer dead.Done()
				if _, err := readMessage(bufio.NewReader(c)); err != nil {
					t.Error(err)
				}
				met.Done()
				met.Wait() // each client has a connection of its own
				_, _ = io.WriteString(c, ok)
				<-die
				_ = c.Close()
			})
			var all sync.WaitGroup
			for range n {
				all.Go(func() {
					if a := w.connect().get("GET / HTTP/1.1", "Host: a"); a.StatusCode != 200 {
						t.Errorf("%d", a.StatusCode)
					}
				})
			}
			all.Wait()
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for w.flow.Workload.Stats().ActiveRequests != 0 { // their connections are in the pool then
				<-tick.C
			}
			close(die)
			dead.Wait()
			if a := w.connect().get(c.request...); a.StatusCode != c.status {
				t.Errorf("%d, want %d: %q", a.StatusCode, c.status, w.log(0))
			}
		})
	}
}

// TestSpareIsOfOneHost: a connection that was made for one host and is left over is not taken for one to the host that is tried next.
func TestSpareIsOfOneHost(t *testing.T) {
	w := newWorld(t)
	w.routes("a", toUp)
	c := w.cluster("up", nil, answers(ok))
	x := w.e.exchange(&w.flow, discard{}, &guard{e: w.e})
	if _, err := h1.ParseRequest([]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), x.req, h1.Limits{}); err != nil {
		t.Fatal(err)
	}
	w.flow.Listener = w.flow.Workload.Listener(Outbound, 80)
	x.start(w.e.now())
	x.ctx, x.cluster, x.entry.Cluster = w.ctx, c, c
	x.entry.VirtualHost = w.Routes(x.req)
	x.entry.Route = x.entry.VirtualHost.Match(x.req, &x.in)
	x.body.done.Store(true)
	x.requested()
	near, far := w.pair()
	x.spare = &Conn{Net: near}
	if fail := x.try(); fail != nil || w.dials != 1 {
		t.Errorf("%d connections were made: %+v", w.dials, fail)
	}
	if _, err := far.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the connection that is left over is still there: %v", err)
	}
	x.finish()
	w.e.put(x)
}
