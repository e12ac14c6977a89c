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

	"golang.org/x/net/http2"

	"github.com/undermesh/undermesh/ztunnel/http/frame"
)

// TestKilledStreamBehindAPeerThatDoesNotRead must let go of its application, although the tunnel takes nothing.
func TestKilledStreamBehindAPeerThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe() // no buffer: what the server sends is stuck
		cfg := testConfig()
		cfg.PingInterval = -1
		killed := errors.New("killed")
		ended := make(chan error, 8)
		kill := make(chan context.CancelCauseFunc, 8)
		done := make(chan error, 1)
		h := func(_ context.Context, r *ServerRequest) {
			ctx, cancel := context.WithCancelCause(t.Context())
			kill <- cancel
			s, err := r.Accept(nil)
			if err != nil { // its answer shares the write that is stuck
				ended <- killed
				return
			}
			near, far := net.Pipe()
			go func() {
				_, _ = io.Copy(near, zeros{})
				_ = near.Close()
			}()
			_, err = Relay(ctx, s, far)
			ended <- err
		}
		go func() { done <- Serve(t.Context(), b, cfg, h) }()
		_, _ = io.WriteString(a, frame.Preface)
		p := newRawPeer(t, a)
		p.must(p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30}))
		p.must(p.fr.WriteWindowUpdate(0, 1<<30))
		for i := range 4 {
			p.connect(uint32(2*i + 1))
		}
		// the preface and the answers are read, the payloads are not
		for range 4 {
			next[*http2.HeadersFrame](p)
		}
		synctest.Wait()
		var kills []context.CancelCauseFunc
		for range 4 {
			kills = append(kills, <-kill)
		}
		for _, k := range kills {
			k(killed)
		}
		time.Sleep(time.Second)
		// one of them may be the one whose write is stuck: it belongs to the connection
		if n := len(ended); n < 3 {
			t.Errorf("%d of 4 killed relays have ended", n)
		}
		a.Close()
		<-done
		for range 4 {
			if err := <-ended; !errors.Is(err, killed) {
				t.Errorf("relay ended with %v", err)
			}
		}
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// TestPoolOfAServerWithoutStreams: SETTINGS_MAX_CONCURRENT_STREAMS of 0 is not answered by dialing on and on.
func TestPoolOfAServerWithoutStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dials atomic.Int32
		allow := make(chan struct{})
		dial := func(context.Context) (net.Conn, error) {
			dials.Add(1)
			a, b := bufPipe()
			go func() {
				_, _ = io.ReadFull(b, make([]byte, len(frame.Preface)))
				fr := http2.NewFramer(b, b)
				var mu sync.Mutex // one frame at a time
				_ = fr.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 0})
				go func() {
					<-allow
					mu.Lock()
					defer mu.Unlock()
					_ = fr.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
				}()
				for {
					f, err := fr.ReadFrame()
					if err != nil {
						return
					}
					if h, ok := f.(*http2.HeadersFrame); ok {
						mu.Lock()
						select {
						case <-allow:
							_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: h.StreamID, BlockFragment: []byte{0x88}, EndHeaders: true})
						default:
							_ = fr.WriteRSTStream(h.StreamID, http2.ErrCodeRefusedStream)
						}
						mu.Unlock()
					}
				}
			}()
			time.Sleep(time.Millisecond)
			return a, nil
		}
		cfg := testConfig()
		cfg.PingInterval = -1
		p := NewPool[string](PoolConfig[string]{Conn: cfg, Max: 3})
		warm, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		_, _ = p.Connect(warm, "k", dial, Request{Authority: "10.0.0.7:80"}) // SETTINGS may come behind the first request
		cancel()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		_, err := p.Connect(ctx, "k", dial, Request{Authority: "10.0.0.7:80"})
		cancel()
		if err == nil {
			t.Error("connected")
		}
		if n := dials.Load(); n > 3 {
			t.Errorf("%d connections were dialed, Max is 3", n)
		}
		close(allow)
		s, err := p.Connect(t.Context(), "k", dial, Request{Authority: "10.0.0.7:80"})
		if err != nil {
			t.Fatal(err)
		}
		_ = s.Close()
		p.Close()
	})
}
