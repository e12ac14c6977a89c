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

func TestClientSeesAnswers(t *testing.T) {
	for name, tc := range map[string]struct {
		answer func(p *rawPeer, id uint32)
		check  func(error) bool
	}{
		"401":       {func(p *rawPeer, id uint32) { p.headers(id, true, ":status", "401", "x-why", "rbac") }, isStatus(401)},
		"503 open":  {func(p *rawPeer, id uint32) { p.headers(id, false, ":status", "503") }, isStatus(503)},
		"refused":   {func(p *rawPeer, id uint32) { p.must(p.fr.WriteRSTStream(id, http2.ErrCodeRefusedStream)) }, Retryable},
		"goaway":    {func(p *rawPeer, id uint32) { p.must(p.fr.WriteGoAway(0, http2.ErrCodeNo, nil)) }, Retryable},
		"reset":     {func(p *rawPeer, id uint32) { p.must(p.fr.WriteRSTStream(id, http2.ErrCodeConnect)) }, isReset(frame.CodeConnect, true)},
		"bad":       {func(p *rawPeer, id uint32) { p.headers(id, false, ":status", "xyz") }, isReset(frame.CodeProtocol, false)},
		"data only": {func(p *rawPeer, id uint32) { p.must(p.fr.WriteData(id, false, []byte("x"))) }, isReset(frame.CodeProtocol, false)},
		"lost":      {func(p *rawPeer, id uint32) { p.c.Close() }, func(err error) bool { return err != nil && !Retryable(err) }},
		"100 then 200": {func(p *rawPeer, id uint32) {
			p.headers(id, false, ":status", "103")
			p.headers(id, false, ":status", "200")
		}, func(err error) bool { return err == nil }},
	} {
		t.Run(name, func(t *testing.T) {
			againstClient(t, testConfig(), func(cl *Client, p *rawPeer) {
				got := make(chan error, 1)
				go func() {
					_, err := cl.Connect(p.t.Context(), Request{Authority: "10.0.0.7:80", First: []byte("early")})
					got <- err
				}()
				p.must(p.fr.WriteSettings())
				id := next[*http2.HeadersFrame](p).StreamID
				if d := next[*http2.DataFrame](p).Data(); string(d) != "early" {
					t.Errorf("first bytes %q", d)
				}
				tc.answer(p, id)
				if err := <-got; !tc.check(err) {
					t.Errorf("Connect returned %v", err)
				}
			})
		})
	}
}

func isStatus(code int) func(error) bool {
	return func(err error) bool {
		var se *StatusError
		return errors.As(err, &se) && se.Code == code && !Retryable(err)
	}
}

func isReset(code frame.Code, remote bool) func(error) bool {
	return func(err error) bool {
		var se *StreamError
		return errors.As(err, &se) && se.Code == code && se.Remote == remote && !Retryable(err)
	}
}

func TestConnectContext(t *testing.T) {
	againstClient(t, testConfig(), func(cl *Client, p *rawPeer) {
		ctx, cancel := context.WithTimeout(p.t.Context(), time.Second)
		defer cancel()
		got := make(chan error, 1)
		go func() {
			_, err := cl.Connect(ctx, Request{Authority: "10.0.0.7:80"})
			got <- err
		}()
		if f := next[*http2.RSTStreamFrame](p); f.ErrCode != http2.ErrCodeCancel {
			t.Errorf("RST_STREAM %v", f.ErrCode)
		}
		if err := <-got; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Connect: %v", err)
		}
	})
}

func TestDeadPeer(t *testing.T) {
	againstClient(t, testConfig(), func(cl *Client, p *rawPeer) {
		p.must(p.fr.WriteSettings())
		go func() { _, _ = io.Copy(io.Discard, p.c) }() // reads, but says nothing
		start := time.Now()
		_, err := cl.Connect(p.t.Context(), Request{Authority: "10.0.0.7:80"})
		if !errors.Is(err, ErrPeerDead) {
			t.Errorf("Connect: %v", err)
		}
		if d := time.Since(start); d < 20*time.Second || d > 41*time.Second {
			t.Errorf("dead after %v, want PingInterval to twice that, and PingTimeout", d)
		}
	})
}

func TestLivePeerStays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := bufPipe()
		cl := startPair(t, a, b, testConfig(), testConfig(), echoHandler)
		s, err := cl.Connect(t.Context(), Request{Authority: "10.0.0.7:80"})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if err := cl.Err(); err != nil {
			t.Errorf("after an idle hour: %v", err)
		}
		s.Close()
	})
}

func TestServerDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := bufPipe()
		cfg := testConfig()
		cfg.DrainTimeout = time.Minute
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- Serve(ctx, b, cfg, echoHandler) }()
		cl := NewClient(a, testConfig())
		s, err := cl.Connect(t.Context(), Request{Authority: "10.0.0.7:80"})
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		synctest.Wait()
		if _, err := cl.Connect(t.Context(), Request{Authority: "10.0.0.7:80"}); !errors.Is(err, ErrGoAway) {
			t.Errorf("Connect on a draining connection: %v", err)
		}
		_, _ = s.Write([]byte("on"))
		_ = s.CloseWrite()
		if got, err := io.ReadAll(s); err != nil || string(got) != "on" {
			t.Errorf("open stream: %q, %v", got, err)
		}
		start := time.Now()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if d := time.Since(start); d > time.Second {
			t.Errorf("Serve returned %v after the last stream", d)
		}
		cl.Close()
	})
}

func TestServerDrainTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := bufPipe()
		cfg := testConfig()
		cfg.DrainTimeout = time.Minute
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- Serve(ctx, b, cfg, echoHandler) }()
		cl := NewClient(a, testConfig())
		s, err := cl.Connect(t.Context(), Request{Authority: "10.0.0.7:80"})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if d := time.Since(start); d < time.Minute || d > 62*time.Second {
			t.Errorf("forced after %v, want a minute", d)
		}
		if _, err := s.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("a stream that was cut off reads %v", err)
		}
		cl.Close()
	})
}
