package hbone

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"github.com/undermesh/undermesh/ztunnel/http/frame"
)

// TestServerEndsIdleConnections: also that of a peer which neither answers the PING nor closes.
func TestServerEndsIdleConnections(t *testing.T) {
	for name, answers := range map[string]bool{"answers": true, "does not answer": false} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig()
			cfg.IdleTimeout, cfg.PingInterval = 5*time.Minute, -1
			err := againstServer(t, cfg, echoHandler, func(p *rawPeer) {
				start := time.Now()
				p.connect(1)
				next[*http2.HeadersFrame](p)
				time.Sleep(10 * time.Minute) // a stream is open
				p.must(p.fr.WriteData(1, true, nil))
				next[*http2.DataFrame](p)
				if f := next[*http2.GoAwayFrame](p); f.LastStreamID != frame.MaxStreamID {
					t.Errorf("first GOAWAY up to %d", f.LastStreamID)
				}
				if d := time.Since(start); d != 15*time.Minute {
					t.Errorf("drained after %v, want 5 min after the stream", d)
				}
				f := next[*http2.PingFrame](p)
				p.connect(3) // under way when the peer drained
				next[*http2.HeadersFrame](p)
				if answers {
					p.must(p.fr.WritePing(true, f.Data))
				}
				if g := next[*http2.GoAwayFrame](p); g.LastStreamID != 3 || g.ErrCode != http2.ErrCodeNo {
					t.Errorf("second GOAWAY: %v", g)
				}
				want := 15 * time.Minute
				if !answers {
					want += 20 * time.Second
				}
				if d := time.Since(start); d != want {
					t.Errorf("no streams after %v, want %v", d, want)
				}
				p.must(p.fr.WriteData(3, true, []byte("x")))
				if _, err := io.ReadAll(p.c); err != nil && !errors.Is(err, io.EOF) {
					t.Error(err)
				}
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// TestPoolTakesIdleEndsQuietly: each use comes while or after the server drains.
func TestPoolTakesIdleEndsQuietly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := testConfig()
		cfg.IdleTimeout = time.Second
		fl := &fleet{cfg: cfg, h: echoHandler}
		p := NewPool[string](PoolConfig[string]{Conn: testConfig(), MaxAge: time.Hour})
		for i := range 300 {
			s, err := p.Connect(context.Background(), "k", fl.dial, Request{Authority: "10.0.0.7:80"})
			if err != nil {
				t.Fatalf("use %d: %v", i, err)
			}
			_, _ = io.WriteString(s, "x")
			_ = s.CloseWrite()
			if b, err := io.ReadAll(s); err != nil || string(b) != "x" {
				t.Fatalf("use %d: %q, %v", i, b, err)
			}
			_ = s.Close()
			if i%2 == 0 {
				time.Sleep(time.Second)
			} else {
				time.Sleep(time.Second - time.Nanosecond)
			}
		}
		if n := fl.dials.Load(); n < 100 {
			t.Errorf("%d connections: none ended idle, the test shows nothing", n)
		}
		p.Close()
		fl.stop()
	})
}

// TestIdleCheckLeavesADrainAlone: streams that are under way when somebody drains the connection are served.
func TestIdleCheckLeavesADrainAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := bufPipe()
		cfg := testConfig()
		cfg.IdleTimeout, cfg.PingInterval = 5*time.Minute, -1
		srv := NewServer(b, cfg, echoHandler)
		done := make(chan error, 1)
		go func() { done <- srv.Run(t.Context()) }()
		_, _ = io.WriteString(a, frame.Preface)
		p := newRawPeer(t, a)
		p.must(p.fr.WriteSettings())
		p.connect(1)
		next[*http2.HeadersFrame](p)
		time.Sleep(5*time.Minute - time.Second)
		srv.Drain()
		next[*http2.GoAwayFrame](p)
		time.Sleep(2 * time.Second)
		p.connect(3)
		if f := next[*http2.HeadersFrame](p); f.StreamID != 3 {
			t.Errorf("answer to stream %d, want 3", f.StreamID)
		}
		a.Close()
		<-done
	})
}
