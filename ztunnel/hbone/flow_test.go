package hbone

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
)

// TestNegativeWindow shrinks the initial window below what was sent; the stream must go on only when it is positive.
func TestNegativeWindow(t *testing.T) {
	cfg := testConfig()
	againstClient(t, cfg, func(cl *Client, p *rawPeer) {
		p.must(p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1000}))
		synctest.Wait()
		go func() {
			s, err := cl.Connect(p.t.Context(), Request{Authority: "10.0.0.7:80"})
			if err != nil {
				t.Error(err)
				return
			}
			if n, err := s.Write(make([]byte, 1500)); n != 1500 || err != nil {
				t.Errorf("wrote %d, %v", n, err)
			}
			_ = s.CloseWrite()
		}()
		id := next[*http2.HeadersFrame](p).StreamID
		p.headers(id, false, ":status", "200")
		if n := len(next[*http2.DataFrame](p).Data()); n != 1000 {
			t.Fatalf("first frame has %d bytes, want 1000", n)
		}
		p.must(p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 100})) // now -900
		p.must(p.fr.WriteWindowUpdate(id, 900))                                                 // now 0
		p.must(p.fr.WritePing(false, [8]byte{1}))
		for {
			f, err := p.fr.ReadFrame()
			p.must(err)
			if d, ok := f.(*http2.DataFrame); ok {
				t.Fatalf("%d bytes sent against a window of 0", len(d.Data()))
			}
			if g, ok := f.(*http2.PingFrame); ok && g.IsAck() {
				break
			}
		}
		p.must(p.fr.WriteWindowUpdate(id, 300))
		if n := len(next[*http2.DataFrame](p).Data()); n != 300 {
			t.Fatalf("second frame has %d bytes, want 300", n)
		}
		p.must(p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 400})) // +300
		if n := len(next[*http2.DataFrame](p).Data()); n != 200 {
			t.Fatalf("third frame has %d bytes, want 200", n)
		}
	})
}

func TestPeerMaxFrameAndStreams(t *testing.T) {
	againstClient(t, testConfig(), func(cl *Client, p *rawPeer) {
		p.must(p.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1},
			http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20}))
		synctest.Wait()
		go func() {
			s, err := cl.Connect(p.t.Context(), Request{Authority: "10.0.0.7:80"})
			if err != nil {
				t.Error(err)
				return
			}
			_, _ = s.Write(make([]byte, 60000))
		}()
		id := next[*http2.HeadersFrame](p).StreamID
		p.headers(id, false, ":status", "200")
		for n := 0; n < 60000; {
			k := len(next[*http2.DataFrame](p).Data())
			if k > 16<<10 {
				t.Fatalf("frame of %d bytes", k)
			}
			n += k
		}
		if _, err := cl.Connect(p.t.Context(), Request{Authority: "10.0.0.7:80"}); !errors.Is(err, ErrTooManyStreams) || !Retryable(err) {
			t.Errorf("second stream: %v", err)
		}
	})
}

// TestSlowReader stops reading one stream: others go on, and what is held stays within the stream's window.
func TestSlowReader(t *testing.T) {
	cfg := testConfig()
	cfg.StreamWindow, cfg.StreamWindowMax, cfg.ConnWindow, cfg.MaxBuffered = 64<<10, 128<<10, 256<<10, 512<<10
	synctest.Test(t, func(t *testing.T) {
		a, b := bufPipe()
		var stuck *Stream
		release := make(chan struct{})
		cl := startPair(t, a, b, testConfig(), cfg, func(ctx context.Context, r *ServerRequest) {
			if r.Header.Get("x-slow") == "" {
				echoHandler(ctx, r)
				return
			}
			s, err := r.Accept(nil)
			if err != nil {
				t.Error(err)
				return
			}
			stuck = s
			<-release
			if n, err := io.Copy(io.Discard, s); n != 1<<20 || err != nil {
				t.Errorf("slow reader got %d bytes, %v", n, err)
			}
			_ = s.CloseWrite()
		})
		slow, err := cl.Connect(t.Context(), Request{Authority: "10.0.0.7:80", Header: Header{{"x-slow", "1"}}})
		if err != nil {
			t.Fatal(err)
		}
		wrote := make(chan error, 1)
		go func() {
			_, err := slow.Write(make([]byte, 1<<20))
			_ = slow.CloseWrite()
			wrote <- err
		}()
		synctest.Wait()
		for range 5 {
			fast, err := cl.Connect(t.Context(), Request{Authority: "10.0.0.7:80"})
			if err != nil {
				t.Fatal(err)
			}
			want := make([]byte, 1<<20)
			go func() {
				_, _ = fast.Write(want)
				_ = fast.CloseWrite()
			}()
			if got, err := io.ReadAll(fast); err != nil || len(got) != len(want) {
				t.Fatalf("fast stream: %d bytes, %v", len(got), err)
			}
		}
		stuck.rmu.Lock()
		held := stuck.q.size
		stuck.rmu.Unlock()
		if held != 64<<10 || slow.Stats().Sent != 64<<10 {
			t.Errorf("held %d, sent %d for the slow reader, want the window of 64 KiB", held, slow.Stats().Sent)
		}
		close(release)
		if err := <-wrote; err != nil {
			t.Error(err)
		}
		if _, err := io.ReadAll(slow); err != nil {
			t.Error(err)
		}
	})
}

// TestBudget: when many streams are stuck the connection holds no more than MaxBuffered, and goes on afterwards.
func TestBudget(t *testing.T) {
	cfg := testConfig()
	cfg.StreamWindow, cfg.StreamWindowMax, cfg.ConnWindow, cfg.MaxBuffered = 128<<10, 128<<10, 128<<10, 256<<10
	synctest.Test(t, func(t *testing.T) {
		a, b := bufPipe()
		release := make(chan struct{})
		srv := NewServer(b, cfg, func(_ context.Context, r *ServerRequest) {
			s, err := r.Accept(nil)
			if err != nil {
				return
			}
			<-release
			_, _ = io.Copy(io.Discard, s)
			_ = s.CloseWrite()
		})
		done := make(chan error, 1)
		go func() { done <- srv.Run(t.Context()) }()
		cl := NewClient(a, testConfig())
		ended := make(chan error, 8)
		for range 8 {
			s, err := cl.Connect(t.Context(), Request{Authority: "10.0.0.7:80"})
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				_, err := s.Write(make([]byte, 300<<10))
				_ = s.CloseWrite()
				_, _ = io.ReadAll(s)
				ended <- err
			}()
		}
		synctest.Wait()
		srv.c.recv.mu.Lock()
		held := srv.c.recv.buffered
		srv.c.recv.mu.Unlock()
		if held > 256<<10 || held < 200<<10 {
			t.Errorf("%d bytes held, want at most and nearly 256 KiB", held)
		}
		close(release)
		for range 8 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		srv.c.recv.mu.Lock()
		if srv.c.recv.buffered != 0 {
			t.Errorf("%d bytes held at the end", srv.c.recv.buffered)
		}
		srv.c.recv.mu.Unlock()
		cl.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestWindowGrows(t *testing.T) {
	cfg := testConfig()
	cfg.StreamWindow, cfg.StreamWindowMax = 64<<10, 1<<20
	synctest.Test(t, func(t *testing.T) {
		a, b := bufPipe()
		window := make(chan int64, 1)
		cl := startPair(t, a, b, testConfig(), cfg, func(_ context.Context, r *ServerRequest) {
			s, err := r.Accept(nil)
			if err != nil {
				return
			}
			buf := make([]byte, 4<<10)
			for err == nil {
				_, err = s.Read(buf)
			}
			window <- s.window
		})
		s, err := cl.Connect(t.Context(), Request{Authority: "10.0.0.7:80"})
		if err != nil {
			t.Fatal(err)
		}
		for range 4096 {
			if _, err := s.Write(make([]byte, 1<<10)); err != nil {
				t.Fatal(err)
			}
			synctest.Wait() // the reader keeps up
		}
		_ = s.CloseWrite()
		if w := <-window; w != 1<<20 {
			t.Errorf("window is %d after 4 MiB read at once, want 1 MiB", w)
		}
	})
}

func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := bufPipe()
		cl := startPair(t, a, b, testConfig(), testConfig(), func(ctx context.Context, r *ServerRequest) {
			_, _ = r.Accept(nil)
			<-ctx.Done()
		})
		s, err := cl.Connect(t.Context(), Request{Authority: "10.0.0.7:80"})
		if err != nil {
			t.Fatal(err)
		}
		_ = s.SetDeadline(time.Now().Add(3 * time.Second))
		start := time.Now()
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, errDeadline) {
			t.Errorf("Read: %v", err)
		}
		_ = s.SetDeadline(time.Now().Add(4 * time.Second))
		if n, err := s.Write(make([]byte, 10<<20)); !errors.Is(err, errDeadline) || n == 0 {
			t.Errorf("Write: %d, %v", n, err)
		}
		if d := time.Since(start); d != 7*time.Second {
			t.Errorf("late by %v", d)
		}
		s.Close()
	})
}

// TestEnded: that the peer has ended its direction, or has left, is known without reading what it sent.
func TestEnded(t *testing.T) {
	againstClient(t, testConfig(), func(cl *Client, p *rawPeer) {
		p.must(p.fr.WriteSettings())
		synctest.Wait()
		streams := make(chan *Stream, 1)
		go func() {
			s, err := cl.Connect(p.t.Context(), Request{Authority: "10.0.0.7:80"})
			if err != nil {
				t.Error(err)
			}
			streams <- s
		}()
		id := next[*http2.HeadersFrame](p).StreamID
		p.headers(id, false, ":status", "200")
		s := <-streams
		waited := make(chan error, 1)
		go func() { waited <- s.Wait() }()
		synctest.Wait()
		if len(waited) != 0 {
			t.Errorf("nothing came, and the wait is over: %v", <-waited)
		}
		for _, c := range []struct {
			say       func() error
			half, all bool
		}{
			{func() error { return p.fr.WriteData(id, false, []byte("abc")) }, false, false},
			{func() error { return p.fr.WriteData(id, true, nil) }, true, false},
			{func() error { return p.fr.WriteRSTStream(id, http2.ErrCodeCancel) }, true, true},
		} {
			p.must(c.say())
			synctest.Wait()
			if half, all := s.Ended(); half != c.half || all != c.all {
				t.Errorf("ended: %v, %v; want %v, %v", half, all, c.half, c.all)
			}
		}
		if err := <-waited; err != nil {
			t.Error(err)
		}
		if err := s.Wait(); err == nil {
			t.Error("a stream that was reset has something to read")
		}
	})
}
