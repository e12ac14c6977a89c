package h2

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"github.com/undermesh/undermesh/ztunnel/http/frame"
	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// TestDrainOfServer: GOAWAY in two steps; streams that the client opened in between are served, and then the connection ends.
func TestDrainOfServer(t *testing.T) {
	a, b := loopback(t)
	var handlers atomic.Int32
	release := make(chan struct{})
	c := NewServer(b, testConfig(), func(s *Stream) {
		s.Go(func(s *Stream) {
			handlers.Add(1)
			<-release
			_ = s.WriteHead(ok(), true)
		})
	})
	done := make(chan error, 1)
	go func() { done <- c.Serve(context.Background(), nil) }()
	_, _ = io.WriteString(a, frame.Preface)
	p := newRawPeer(t, a)
	p.must(p.fr.WriteSettings())
	p.request(1, true)
	p.must(p.fr.WritePing(false, [8]byte{1}))
	next[*http2.PingFrame](p)
	c.Drain()
	if f := next[*http2.GoAwayFrame](p); f.LastStreamID != frame.MaxStreamID || f.ErrCode != 0 {
		t.Errorf("first GOAWAY %v", f)
	}
	ping := next[*http2.PingFrame](p)
	p.request(3, true) // on its way before the client knew
	p.must(p.fr.WritePing(true, ping.Data))
	if f := next[*http2.GoAwayFrame](p); f.LastStreamID != 3 || f.ErrCode != 0 {
		t.Errorf("second GOAWAY %v", f)
	}
	p.request(5, true) // is not served
	close(release)
	got := map[uint32]bool{next[*http2.HeadersFrame](p).StreamID: true, next[*http2.HeadersFrame](p).StreamID: true}
	if !got[1] || !got[3] {
		t.Errorf("answers %v", got)
	}
	if err := <-done; !errors.Is(err, ErrClosed) || handlers.Load() != 2 {
		t.Errorf("%v after %d handlers", err, handlers.Load())
	}
	a.Close()
}

// TestDrainWithoutAnswer: a client that does not answer the PING gets the second GOAWAY a few seconds later.
func TestDrainWithoutAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		c := NewServer(b, testConfig(), goEcho)
		done := make(chan error, 1)
		go func() { done <- c.Serve(context.Background(), nil) }()
		p := newRawPeer(t, a)
		hello(p)
		ack(p)
		<-time.After(20 * time.Second) // the timer looks rarely
		go func() { _, _ = io.Copy(io.Discard, a) }()
		c.Drain()
		start := time.Now()
		if err := <-done; !errors.Is(err, ErrClosed) || time.Since(start) > 15*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		a.Close()
	})
}

// TestGoAway: streams above the last one fail so that they may be sent again; the others end, and then the connection.
func TestGoAway(t *testing.T) {
	for _, code := range []http2.ErrCode{http2.ErrCodeNo, http2.ErrCodeEnhanceYourCalm} {
		againstClient(t, testConfig(), func(c *Conn, p *rawPeer) {
			one, err1 := c.Open(get("a", "/1"), true)
			two, err2 := c.Open(get("a", "/2"), true)
			if err := errors.Join(err1, err2); err != nil {
				t.Fatal(err)
			}
			next[*http2.HeadersFrame](p)
			next[*http2.HeadersFrame](p)
			p.must(p.fr.WriteGoAway(1, code, []byte("why")))
			if _, err := two.ReadHead(); !Retryable(err) {
				t.Errorf("second stream: %v", err)
			}
			if _, err := c.Open(get("a", "/3"), true); !Retryable(err) || !errors.Is(err, ErrGoAway) || c.Usable() {
				t.Errorf("third stream: %v", err)
			}
			p.headers(1, true, ":status", "200")
			if r, err := one.ReadHead(); err != nil || r.Status != 200 {
				t.Errorf("first stream: %v", err)
			}
			one.Close()
			two.Close()
			<-c.Done()
		})
	}
	// the farewell is the reason of what was open, when the server closes after it
	againstClient(t, testConfig(), func(c *Conn, p *rawPeer) {
		s, _ := c.Open(get("a", "/"), true)
		next[*http2.HeadersFrame](p)
		p.must(p.fr.WriteGoAway(1, http2.ErrCodeEnhanceYourCalm, []byte("why")))
		p.c.Close()
		var ce *frame.ConnError
		if _, err := s.ReadHead(); !errors.As(err, &ce) || ce.Code != frame.CodeCalm || ce.Reason != "why" || Retryable(err) {
			t.Errorf("got %v", err)
		}
		s.Close()
	})
}

func TestRefusedAndLimits(t *testing.T) {
	againstClient(t, testConfig(), func(c *Conn, p *rawPeer) {
		p.must(p.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1}, http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: 300}))
		for range 4 { // ours, and the acknowledgements of both of theirs
			if _, err := p.fr.ReadFrame(); err != nil {
				t.Fatal(err)
			}
		}
		s, err := c.Open(get("a", "/"), true)
		if err != nil || c.Limit() != 1 || c.Streams() != 1 {
			t.Fatal(err, c.Limit(), c.Streams())
		}
		if _, err := c.Open(get("a", "/"), true); !errors.Is(err, ErrTooManyStreams) || !Retryable(err) || !c.Usable() {
			t.Errorf("second stream: %v", err)
		}
		next[*http2.HeadersFrame](p)
		p.must(p.fr.WriteRSTStream(1, http2.ErrCodeRefusedStream))
		if _, err := s.ReadHead(); !Retryable(err) {
			t.Errorf("refused stream: %v", err)
		}
		s.Close()
		r := get("a", "/")
		r.Add(head.Other, "x-long", make([]byte, 200))
		if _, err := c.Open(r, true); !errors.Is(err, ErrHeadTooLarge) {
			t.Errorf("large head: %v", err)
		}
		r = get("a", "/")
		r.Method, r.Protocol = []byte("CONNECT"), []byte("websocket")
		if _, err := c.Open(r, false); !errors.Is(err, ErrConnectProtocol) {
			t.Errorf("extended CONNECT: %v", err)
		}
	})
}

// TestBackPressure: what nobody reads is bounded by the windows, and what nobody takes by the queue; others go on.
func TestBackPressure(t *testing.T) {
	cfg := testConfig()
	stuck := make(chan *Stream, 8)
	a, b := loopback(t)
	srv := NewServer(b, cfg, func(s *Stream) {
		if string(s.Request().Path) == "/stuck" {
			s.Go(func(s *Stream) {
				stuck <- s
				over := make(chan struct{})
				s.OnDone(func() { close(over) })
				<-over
			})
			return
		}
		goEcho(s)
	})
	done := make(chan error, 1)
	go func() { done <- srv.Serve(context.Background(), nil) }()
	c := NewClient(a, cfg)
	var open []*Stream
	for range 8 {
		s, err := c.Open(get("a", "/stuck"), false)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, s)
		s.Interrupt(nil)
		time.AfterFunc(50*time.Millisecond, func() { s.Interrupt(os.ErrDeadlineExceeded) })
		n, err := s.Write(make([]byte, 1<<20))
		if !errors.Is(err, os.ErrDeadlineExceeded) || n != cfg.withDefaults().StreamWindow {
			t.Errorf("%d bytes went, %v", n, err)
		}
		<-stuck
	}
	s, err := c.Open(get("a", "/"), false)
	if err != nil {
		t.Fatal(err)
	}
	body := bytes.Repeat([]byte("x"), 300_000)
	go func() { _, _ = s.Write(body); _ = s.WriteEnd(nil) }()
	if _, err := s.ReadHead(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(s); err != nil || len(got) != len(body) {
		t.Errorf("%d bytes beside stuck streams, %v", len(got), err)
	}
	s.Close()
	for _, s := range open {
		s.Close()
	}
	c.Close()
	<-done
	if srv.owed+srv.recvWin != int64(cfg.withDefaults().ConnWindow) {
		t.Errorf("window of the connection: %d and %d owed, want %d", srv.recvWin, srv.owed, cfg.withDefaults().ConnWindow)
	}
}

// TestSlowReader: a client that does not read stops its own handlers, not the goroutine that reads; little is queued.
func TestSlowReader(t *testing.T) {
	a, b := loopback(t)
	cfg := testConfig()
	srv := NewServer(b, cfg, func(s *Stream) {
		s.Go(func(s *Stream) {
			_ = s.WriteHead(ok(), false)
			_, _ = s.Write(make([]byte, 64<<20))
		})
	})
	done := make(chan error, 1)
	go func() { done <- srv.Serve(context.Background(), nil) }()
	_, _ = io.WriteString(a, frame.Preface)
	p := newRawPeer(t, a)
	p.must(p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30}))
	p.must(p.fr.WriteWindowUpdate(0, 1<<30))
	for id := uint32(1); id < 20; id += 2 {
		p.request(id, true)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for full := false; !full; <-tick.C { // until the socket is full
		srv.mu.Lock()
		full = srv.writing && len(srv.q) >= cfg.withDefaults().MaxQueued
		srv.mu.Unlock()
	}
	p.must(p.fr.WriteRSTStream(1, http2.ErrCodeCancel)) // is heard
	for ok := false; !ok; <-tick.C {
		srv.mu.Lock()
		ok = srv.streams[1] == nil
		if n := len(srv.q) + len(srv.rest); n > 3*cfg.withDefaults().MaxQueued {
			t.Errorf("%d bytes are queued", n)
		}
		srv.mu.Unlock()
	}
	a.Close()
	<-done
}

// TestEndOfHandlers: what a handler leaves unfinished is reset.
func TestEndOfHandlers(t *testing.T) {
	for name, tc := range map[string]struct {
		handler func(*Stream)
		code    http2.ErrCode
	}{
		"nothing":     {func(*Stream) {}, http2.ErrCodeInternal},
		"half":        {func(s *Stream) { _ = s.WriteHead(ok(), false) }, http2.ErrCodeInternal},
		"early":       {func(s *Stream) { _ = s.WriteHead(ok(), true) }, http2.ErrCodeNo},
		"reset":       {func(s *Stream) { s.Reset(frame.CodeConnect) }, http2.ErrCodeConnect},
		"out of turn": {func(s *Stream) { _, err := s.Write([]byte("x")); expect(s, errors.Is(err, ErrSequence)) }, http2.ErrCodeRefusedStream},
		"two heads": {func(s *Stream) {
			_ = s.WriteHead(ok(), false)
			expect(s, errors.Is(s.WriteHead(ok(), false), ErrSequence))
		}, http2.ErrCodeRefusedStream},
		"after the end": {func(s *Stream) {
			_ = s.WriteHead(ok(), false)
			_ = s.WriteEnd(nil)
			expect(s, errors.Is(s.WriteEnd(nil), ErrSequence))
		}, http2.ErrCodeRefusedStream},
	} {
		t.Run(name, func(t *testing.T) {
			_ = againstServer(t, testConfig(), func(s *Stream) { s.Go(tc.handler) }, func(p *rawPeer) {
				p.request(1, false)
				if f := next[*http2.RSTStreamFrame](p); f.ErrCode != tc.code {
					t.Errorf("RST_STREAM %v, want %v", f.ErrCode, tc.code)
				}
				p.must(p.fr.WriteData(1, true, []byte("on its way"))) // ends nothing
				p.must(p.fr.WritePing(false, [8]byte{1}))
				next[*http2.PingFrame](p)
			})
		})
	}
}

// expect resets the stream in a way that the test looks for.
func expect(s *Stream, ok bool) {
	if ok {
		s.Reset(frame.CodeRefused)
	}
}

// TestDone: the end of a stream by its peer, or of the connection, is told once.
func TestDone(t *testing.T) {
	for name, end := range map[string]func(p *rawPeer){
		"reset": func(p *rawPeer) { p.must(p.fr.WriteRSTStream(1, http2.ErrCodeCancel)) },
		"close": func(p *rawPeer) { p.c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			var calls atomic.Int32
			over := make(chan error, 1)
			_ = againstServer(t, testConfig(), func(s *Stream) {
				s.OnDone(func() { calls.Add(1) })
				s.Go(func(s *Stream) {
					_, err := s.Read(make([]byte, 1))
					s.OnDone(func() { calls.Add(1) }) // at once
					over <- err
				})
			}, func(p *rawPeer) {
				p.request(1, false)
				end(p)
				if err := <-over; err == nil {
					t.Error("Read returned")
				}
			})
			if n := calls.Load(); n != 2 {
				t.Errorf("%d calls", n)
			}
		})
	}
}

// TestKeepalive: a peer that is silent is asked, and given up when it does not answer.
func TestKeepalive(t *testing.T) {
	for _, answers := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			a, b := net.Pipe()
			cfg := testConfig()
			cfg.PingInterval, cfg.PingTimeout = 10*time.Second, 20*time.Second
			c := NewClient(a, cfg)
			p := newRawPeer(t, b)
			_, _ = io.ReadFull(b, make([]byte, len(frame.Preface)))
			p.must(p.fr.WriteSettings())
			p.must(p.fr.WriteSettingsAck())
			go func() {
				for {
					f, err := p.fr.ReadFrame()
					if err != nil {
						return
					}
					if ping, ok := f.(*http2.PingFrame); ok && answers {
						_ = p.fr.WritePing(true, ping.Data)
					}
				}
			}()
			<-time.After(2 * time.Minute)
			if err := c.Err(); (err == nil) != answers || !answers && !errors.Is(err, ErrPeerDead) {
				t.Errorf("answers %v: %v", answers, err)
			}
			b.Close()
			c.Close()
		})
	}
}

// TestPanic: what panics while it reads ends its connection, and the streams of that.
func TestPanic(t *testing.T) {
	over := make(chan struct{})
	err := againstServer(t, testConfig(), func(s *Stream) {
		if s.ID() == 3 {
			panic("a fault")
		}
		s.OnDone(func() { close(over) })
		goRead(s)
	}, func(p *rawPeer) {
		p.request(1, false)
		p.request(3, false)
		if f := next[*http2.GoAwayFrame](p); f.ErrCode != http2.ErrCodeInternal {
			t.Errorf("GOAWAY %v", f.ErrCode)
		}
		<-over
	})
	if !errors.Is(err, errPanic) {
		t.Error(err)
	}
}

// goRead is a server whose handlers read until their stream ends.
func goRead(s *Stream) { s.Go(func(s *Stream) { _, _ = io.Copy(io.Discard, s) }) }
