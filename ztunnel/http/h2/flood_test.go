package h2

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"github.com/undermesh/undermesh/ztunnel/http/frame"
)

// floods are what a client may repeat for nothing, by number.
var floods = map[string]func(p *rawPeer, i uint32) error{
	"SETTINGS":     func(p *rawPeer, _ uint32) error { return p.fr.WriteSettings() },
	"SETTINGS ack": func(p *rawPeer, _ uint32) error { return p.fr.WriteSettingsAck() },
	"PING":         func(p *rawPeer, _ uint32) error { return p.fr.WritePing(false, [8]byte{}) },
	"PING ack":     func(p *rawPeer, _ uint32) error { return p.fr.WritePing(true, [8]byte{}) },
	"PRIORITY": func(p *rawPeer, i uint32) error {
		return p.fr.WritePriority(2*i+1, http2.PriorityParam{StreamDep: 2})
	},
	"empty DATA": func(p *rawPeer, i uint32) error {
		if i == 0 {
			p.request(1, false)
		}
		return p.fr.WriteData(1, false, nil)
	},
	"padded DATA": func(p *rawPeer, i uint32) error {
		if i == 0 {
			p.request(1, false)
		}
		return p.fr.WriteDataPadded(1, false, nil, make([]byte, 10))
	},
	"WINDOW_UPDATE": func(p *rawPeer, _ uint32) error { return p.fr.WriteWindowUpdate(0, 1) },
	"unknown":       func(p *rawPeer, _ uint32) error { return p.fr.WriteRawFrame(0x77, 0, 0, nil) },
	"GOAWAY":        func(p *rawPeer, _ uint32) error { return p.fr.WriteGoAway(0, 0, nil) },
	"rapid reset": func(p *rawPeer, i uint32) error {
		p.buf.Reset()
		if err := p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: p.block(plain...), EndHeaders: true, EndStream: true}); err != nil {
			return err
		}
		return p.fr.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
	},
	"made to reset": func(p *rawPeer, i uint32) error {
		if err := p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: p.block(plain...), EndHeaders: true}); err != nil {
			return err
		}
		return p.fr.WriteWindowUpdate(2*i+1, 0)
	},
	"malformed": func(p *rawPeer, i uint32) error {
		return p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: []byte{0x82, 0x82}, EndHeaders: true})
	},
	"large head": func(p *rawPeer, i uint32) error {
		return p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, EndHeaders: true, EndStream: true,
			BlockFragment: p.block(":path", string(make([]byte, 5000)))})
	},
	"too many streams": func(p *rawPeer, i uint32) error {
		return p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 2*i + 1, BlockFragment: p.block(plain...), EndHeaders: true})
	},
	"CONTINUATION": func(p *rawPeer, i uint32) error {
		if i == 0 {
			return p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(plain...)})
		}
		return p.fr.WriteContinuation(1, false, nil)
	},
	"CONTINUATION with bytes": func(p *rawPeer, i uint32) error {
		if i == 0 {
			return p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(plain...)})
		}
		return p.fr.WriteContinuation(1, false, p.block("a", string(make([]byte, 8000))))
	},
}

// TestFloods wants the connection to end with ENHANCE_YOUR_CALM after at most a few thousand frames in no time, and little to
// be held, whether the client reads its answers or not.
func TestFloods(t *testing.T) {
	for name, send := range floods {
		for _, reads := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					a, b := net.Pipe() // no buffer: answers that are not read are stuck
					cfg := testConfig()
					cfg.MaxHeaderList = 4 << 10
					done := make(chan error, 1)
					c := NewServer(b, cfg, goHang)
					go func() { done <- c.Serve(context.Background(), nil) }()
					_, _ = io.WriteString(a, frame.Preface)
					p := newRawPeer(t, a)
					p.must(p.fr.WriteSettings())
					if reads {
						go func() { _, _ = io.Copy(io.Discard, a) }()
					}
					n, most := uint32(0), 0
					for ; n < 20_000 && c.Err() == nil && send(p, n) == nil; n++ {
						if n%100 == 0 {
							c.mu.Lock()
							most = max(most, len(c.q)+len(c.rest), c.active*100)
							c.mu.Unlock()
						}
					}
					a.Close()
					var ce *frame.ConnError
					if err := <-done; !errors.As(err, &ce) || ce.Code != frame.CodeCalm {
						t.Errorf("after %d: %v", n, err)
					}
					if n > 6000 || most > 300<<10 {
						t.Errorf("%d passed, %d bytes were held", n, most)
					}
				})
			})
		}
	}
}

// TestFloodsInTime: what comes at a bearable rate, for hours, ends nothing.
func TestFloodsInTime(t *testing.T) {
	for _, name := range []string{"SETTINGS", "PING", "PRIORITY", "empty DATA", "WINDOW_UPDATE", "rapid reset", "malformed"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := net.Pipe()
				done := make(chan error, 1)
				c := NewServer(b, testConfig(), goHang)
				go func() { done <- c.Serve(context.Background(), nil) }()
				_, _ = io.WriteString(a, frame.Preface)
				p := newRawPeer(t, a)
				p.must(p.fr.WriteSettings())
				p.must(p.fr.WriteSettingsAck())
				go func() { _, _ = io.Copy(io.Discard, a) }()
				for i := range uint32(4000) {
					if err := floods[name](p, i); err != nil {
						t.Fatalf("after %d: %v", i, err)
					}
					<-time.After(50 * time.Millisecond)
				}
				a.Close()
				if err := <-done; !errors.Is(err, ErrPeerClosed) && !errors.Is(err, io.ErrClosedPipe) {
					t.Error(err)
				}
			})
		})
	}
}

// TestResetsAmongAnswers: a client that resets as many streams as it lets end is not one that floods.
func TestResetsAmongAnswers(t *testing.T) {
	cfg := testConfig()
	cfg.Burst = 20
	err := againstServer(t, cfg, func(s *Stream) {
		if s.ID()%4 == 1 {
			goHang(s)
			return
		}
		goEcho(s)
	}, func(p *rawPeer) {
		for id := uint32(1); id < 2000; id += 4 {
			p.request(id, true)
			p.must(p.fr.WriteRSTStream(id, http2.ErrCodeCancel))
			p.request(id+2, true)
			if f := next[*http2.HeadersFrame](p); f.StreamID != id+2 {
				t.Fatalf("answer to %d", f.StreamID)
			}
		}
	})
	var ce *frame.ConnError
	if errors.As(err, &ce) {
		t.Error(err)
	}
}

// TestSlowPeers: what does not go on within its time ends the connection.
func TestSlowPeers(t *testing.T) {
	for name, tc := range map[string]struct {
		do   func(p *rawPeer)
		want error
		code frame.Code
		by   time.Duration
	}{
		"nothing":             {func(*rawPeer) {}, nil, frame.CodeSettingsTimeout, 15 * time.Second},
		"half a preface":      {func(p *rawPeer) { _, _ = io.WriteString(p.c, "PRI * HT") }, nil, frame.CodeSettingsTimeout, 15 * time.Second},
		"no acknowledgement":  {func(p *rawPeer) { hello(p); p.request(1, true) }, nil, frame.CodeSettingsTimeout, 15 * time.Second},
		"half a frame":        {func(p *rawPeer) { hello(p); ack(p); _, _ = p.c.Write([]byte{0, 0, 9, 1, 5}) }, nil, frame.CodeCalm, 20 * time.Second},
		"half a block":        {func(p *rawPeer) { hello(p); ack(p); half(p) }, nil, frame.CodeCalm, 20 * time.Second},
		"a block in pieces":   {func(p *rawPeer) { hello(p); ack(p); half(p); drip(p) }, nil, frame.CodeCalm, 20 * time.Second},
		"no stream":           {func(p *rawPeer) { hello(p); ack(p) }, ErrClosed, 0, time.Hour + time.Minute},
		"reads nothing":       {func(p *rawPeer) { hello(p); ack(p); p.request(1, true) }, ErrSlow, 0, 45 * time.Second},
		"reads head, no more": {func(p *rawPeer) { hello(p); ack(p); p.request(1, true); next[*http2.HeadersFrame](p) }, ErrSlow, 0, 45 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := net.Pipe()
				done := make(chan error, 1)
				start := time.Now()
				go func() {
					done <- NewServer(b, testConfig(), func(s *Stream) {
						s.Go(func(s *Stream) {
							if name == "no acknowledgement" {
								return
							}
							_ = s.WriteHead(ok(), false)
							_ = s.Flush()
							_, _ = s.Write(make([]byte, 1<<20))
						})
					}).Serve(context.Background(), nil)
				}()
				p := newRawPeer(t, a)
				tc.do(p)
				if tc.want != ErrSlow {
					go func() { _, _ = io.Copy(io.Discard, a) }()
				}
				err := <-done
				var ce *frame.ConnError
				if tc.want != nil && !errors.Is(err, tc.want) || tc.want == nil && (!errors.As(err, &ce) || ce.Code != tc.code) {
					t.Error(err)
				}
				if d := time.Since(start); d > tc.by {
					t.Errorf("it took %v, want at most %v", d, tc.by)
				}
				a.Close()
				<-time.After(2 * time.Second) // for drip
			})
		})
	}
}

func hello(p *rawPeer) {
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = io.WriteString(p.c, frame.Preface)
		_ = p.fr.WriteSettings()
	}()
	next[*http2.SettingsFrame](p)
	next[*http2.WindowUpdateFrame](p)
	next[*http2.SettingsFrame](p)
	<-sent
}

func ack(p *rawPeer) { p.must(p.fr.WriteSettingsAck()) }

func half(p *rawPeer) {
	p.must(p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(plain...)}))
}

// drip continues the block, a frame a second.
func drip(p *rawPeer) {
	go func() {
		for p.fr.WriteContinuation(1, false, nil) == nil {
			<-time.After(time.Second)
		}
	}()
}
