package hbone

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// rawPeer speaks frames by x/net's Framer, an implementation that is not ours, at the other end of a pipe.
type rawPeer struct {
	t   *testing.T
	c   net.Conn
	fr  *http2.Framer
	enc *hpack.Encoder
	buf bytes.Buffer
}

func newRawPeer(t *testing.T, c net.Conn) *rawPeer {
	p := &rawPeer{t: t, c: c, fr: http2.NewFramer(c, c)}
	p.fr.AllowIllegalWrites = true
	p.fr.SetMaxReadFrameSize(1 << 20)
	p.enc = hpack.NewEncoder(&p.buf)
	return p
}

// next returns the next frame that is of type T, skipping others.
func next[T http2.Frame](p *rawPeer) T {
	p.t.Helper()
	for {
		f, err := p.fr.ReadFrame()
		if err != nil {
			var zero T
			p.t.Fatalf("wait for %T: %v", zero, err)
		}
		if v, ok := f.(T); ok {
			return v
		}
	}
}

func (p *rawPeer) block(kv ...string) []byte {
	p.buf.Reset()
	for i := 0; i < len(kv); i += 2 {
		_ = p.enc.WriteField(hpack.HeaderField{Name: kv[i], Value: kv[i+1]})
	}
	return bytes.Clone(p.buf.Bytes())
}

func (p *rawPeer) headers(id uint32, end bool, kv ...string) {
	p.must(p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: p.block(kv...), EndHeaders: true, EndStream: end}))
}

func (p *rawPeer) connect(id uint32) {
	p.headers(id, false, ":method", "CONNECT", ":authority", "10.0.0.7:80")
}

func (p *rawPeer) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

// againstServer runs a raw client against our server, in a bubble, on a pipe that buffers.
func againstServer(t *testing.T, cfg Config, h Handler, f func(p *rawPeer)) (served error) {
	synctest.Test(t, func(t *testing.T) {
		a, b := bufPipe()
		done := make(chan error, 1)
		go func() { done <- Serve(t.Context(), b, cfg, h) }()
		_, _ = io.WriteString(a, clientPreface)
		p := newRawPeer(t, a)
		p.must(p.fr.WriteSettings())
		f(p)
		a.Close()
		served = <-done
	})
	return served
}

// againstClient runs our client against a raw server.
func againstClient(t *testing.T, cfg Config, f func(cl *Client, p *rawPeer)) {
	synctest.Test(t, func(t *testing.T) {
		a, b := bufPipe()
		cl := NewClient(a, cfg)
		pre := make([]byte, len(clientPreface))
		if _, err := io.ReadFull(b, pre); err != nil || string(pre) != clientPreface {
			t.Fatalf("preface %q, %v", pre, err)
		}
		f(cl, newRawPeer(t, b))
		b.Close()
		cl.Close()
	})
}

// TestProtocolErrors checks the code of the GOAWAY or RST_STREAM for each breach.
func TestProtocolErrors(t *testing.T) {
	small := testConfig()
	small.ConnWindow, small.MaxBuffered, small.StreamWindow, small.MaxFrame = defaultWindow, defaultWindow, 40000, 32<<10
	for _, tc := range []struct {
		name string
		cfg  Config
		send func(p *rawPeer)
		code http2.ErrCode
		rst  bool
	}{
		{"data on stream 0", testConfig(), func(p *rawPeer) { p.fr.WriteData(0, false, []byte("x")) }, http2.ErrCodeProtocol, false},
		{"data on idle stream", testConfig(), func(p *rawPeer) { p.fr.WriteData(7, false, []byte("x")) }, http2.ErrCodeProtocol, false},
		{"even stream", testConfig(), func(p *rawPeer) { p.connect(2) }, http2.ErrCodeProtocol, false},
		{"frame too large", testConfig(), func(p *rawPeer) { p.connect(1); p.fr.WriteRawFrame(0x77, 0, 0, make([]byte, 1<<20+1)) }, http2.ErrCodeFrameSize, false},
		{"ping of 7", testConfig(), func(p *rawPeer) { p.fr.WriteRawFrame(http2.FramePing, 0, 0, make([]byte, 7)) }, http2.ErrCodeFrameSize, false},
		{"ping on a stream", testConfig(), func(p *rawPeer) { p.fr.WriteRawFrame(http2.FramePing, 0, 1, make([]byte, 8)) }, http2.ErrCodeProtocol, false},
		{"settings of 5", testConfig(), func(p *rawPeer) { p.fr.WriteRawFrame(http2.FrameSettings, 0, 0, make([]byte, 5)) }, http2.ErrCodeFrameSize, false},
		{"max frame of 1", testConfig(), func(p *rawPeer) { p.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1}) }, http2.ErrCodeProtocol, false},
		{"initial window of 2^31", testConfig(), func(p *rawPeer) { p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31}) }, http2.ErrCodeFlowControl, false},
		{"window overflow", testConfig(), func(p *rawPeer) { p.fr.WriteWindowUpdate(0, 1<<31-1) }, http2.ErrCodeFlowControl, false},
		{"window update of 0", testConfig(), func(p *rawPeer) { p.fr.WriteWindowUpdate(0, 0) }, http2.ErrCodeProtocol, false},
		{"push promise", testConfig(), func(p *rawPeer) { p.fr.WriteRawFrame(http2.FramePushPromise, 4, 1, make([]byte, 8)) }, http2.ErrCodeProtocol, false},
		{"continuation alone", testConfig(), func(p *rawPeer) { p.fr.WriteContinuation(1, true, nil) }, http2.ErrCodeProtocol, false},
		{"ping inside a header block", testConfig(), func(p *rawPeer) {
			p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(":method", "CONNECT")})
			p.fr.WritePing(false, [8]byte{})
		}, http2.ErrCodeProtocol, false},
		{"bad compression", testConfig(), func(p *rawPeer) {
			p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0xff, 0xff, 0xff}, EndHeaders: true})
		}, http2.ErrCodeCompression, false},
		{"continuation flood", testConfig(), func(p *rawPeer) {
			p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(":method", "CONNECT")})
			for range 100 {
				p.fr.WriteContinuation(1, false, nil)
			}
		}, http2.ErrCodeEnhanceYourCalm, false},
		{"empty data flood", testConfig(), func(p *rawPeer) {
			p.connect(1)
			for range maxEmptyData + 1 {
				p.fr.WriteData(1, false, nil)
			}
		}, http2.ErrCodeEnhanceYourCalm, false},
		{"padding longer than frame", testConfig(), func(p *rawPeer) {
			p.connect(1)
			p.fr.WriteRawFrame(http2.FrameData, http2.FlagDataPadded, 1, []byte{9, 1, 2})
		}, http2.ErrCodeProtocol, false},
		{"connection window", small, func(p *rawPeer) {
			p.connect(1)
			p.connect(3)
			for i := range 4 {
				p.fr.WriteData(uint32(i%2*2+1), false, make([]byte, 20000))
			}
		}, http2.ErrCodeFlowControl, false},
		{"stream window", small, func(p *rawPeer) {
			p.connect(1)
			p.fr.WriteData(1, false, make([]byte, 20000))
			p.fr.WriteData(1, false, make([]byte, 20001))
		}, http2.ErrCodeFlowControl, true},
		{"stream window update of 0", testConfig(), func(p *rawPeer) { p.connect(1); p.fr.WriteWindowUpdate(1, 0) }, http2.ErrCodeProtocol, true},
		{"stream window overflow", testConfig(), func(p *rawPeer) { p.connect(1); p.fr.WriteWindowUpdate(1, 1<<31-1) }, http2.ErrCodeFlowControl, true},
		{"headers twice", testConfig(), func(p *rawPeer) { p.connect(1); p.connect(1) }, http2.ErrCodeProtocol, true},
		{"upper-case header", testConfig(), func(p *rawPeer) {
			p.headers(1, false, ":method", "CONNECT", ":authority", "10.0.0.7:80", "Baggage", "x")
		}, http2.ErrCodeProtocol, true},
		{"pseudo header last", testConfig(), func(p *rawPeer) {
			p.headers(1, false, ":method", "CONNECT", "a", "b", ":authority", "10.0.0.7:80")
		}, http2.ErrCodeProtocol, true},
		{"connection header", testConfig(), func(p *rawPeer) {
			p.headers(1, false, ":method", "CONNECT", ":authority", "10.0.0.7:80", "connection", "close")
		}, http2.ErrCodeProtocol, true},
		{"data after end", testConfig(), func(p *rawPeer) {
			p.headers(1, true, ":method", "CONNECT", ":authority", "10.0.0.7:80")
			p.fr.WriteData(1, false, []byte("x"))
		}, http2.ErrCodeStreamClosed, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			hang := func(ctx context.Context, r *ServerRequest) { <-ctx.Done() }
			err := againstServer(t, tc.cfg, hang, func(p *rawPeer) {
				tc.send(p)
				if tc.rst {
					if got := next[*http2.RSTStreamFrame](p).ErrCode; got != tc.code {
						t.Errorf("RST_STREAM %v, want %v", got, tc.code)
					}
					return
				}
				if got := next[*http2.GoAwayFrame](p).ErrCode; got != tc.code {
					t.Errorf("GOAWAY %v, want %v", got, tc.code)
				}
			})
			var ce *ConnError
			if got := errors.As(err, &ce); got == tc.rst {
				t.Errorf("Serve returned %v", err)
			}
		})
	}
}

func TestPrefaceAndFirstFrame(t *testing.T) {
	for name, first := range map[string]string{
		"http1":       "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
		"no settings": clientPreface + "\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678",
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := bufPipe()
				done := make(chan error, 1)
				go func() { done <- Serve(t.Context(), b, testConfig(), echoHandler) }()
				_, _ = io.WriteString(a, first)
				if got := next[*http2.GoAwayFrame](newRawPeer(t, a)).ErrCode; got != http2.ErrCodeProtocol {
					t.Errorf("GOAWAY %v", got)
				}
				a.Close()
				if err := <-done; err == nil {
					t.Error("Serve returned nil")
				}
			})
		})
	}
}

func TestRequestsThatNoHandlerSees(t *testing.T) {
	huge := strings.Repeat("a", 66<<10)
	for name, tc := range map[string]struct {
		status string
		kv     []string
	}{
		"GET":              {"400", []string{":method", "GET", ":authority", "10.0.0.7:80", ":scheme", "https", ":path", "/"}},
		"no port":          {"400", []string{":method", "CONNECT", ":authority", "10.0.0.7"}},
		"port 0":           {"400", []string{":method", "CONNECT", ":authority", "10.0.0.7:0"}},
		"no authority":     {"400", []string{":method", "CONNECT"}},
		"extended connect": {"400", []string{":method", "CONNECT", ":protocol", "x", ":authority", "10.0.0.7:80"}},
		"huge list":        {"431", []string{":method", "CONNECT", ":authority", "10.0.0.7:80", "x", huge}},
	} {
		t.Run(name, func(t *testing.T) {
			never := func(_ context.Context, r *ServerRequest) { t.Errorf("handler saw %q", r.Authority) }
			_ = againstServer(t, testConfig(), never, func(p *rawPeer) {
				b := p.block(tc.kv...)
				k := min(len(b), 16<<10)
				p.must(p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:k], EndHeaders: k == len(b)}))
				for b = b[k:]; len(b) > 0; b = b[k:] {
					k = min(len(b), 16<<10)
					p.must(p.fr.WriteContinuation(1, k == len(b), b[:k]))
				}
				dec := hpack.NewDecoder(4096, nil)
				f, err := dec.DecodeFull(next[*http2.HeadersFrame](p).HeaderBlockFragment())
				if err != nil || len(f) != 1 || f[0].Value != tc.status {
					t.Errorf("answer %v, %v, want %s", f, err, tc.status)
				}
			})
		})
	}
}

func TestHeaderBlockBeyondAllLimits(t *testing.T) {
	_ = againstServer(t, testConfig(), echoHandler, func(p *rawPeer) {
		b := p.block(":method", "CONNECT", "x", strings.Repeat("&", 300<<10))
		go func() { // the server stops reading in the middle
			_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:16<<10]})
			_ = p.fr.WriteContinuation(1, true, b[16<<10:])
		}()
		if got := next[*http2.GoAwayFrame](p).ErrCode; got != http2.ErrCodeEnhanceYourCalm {
			t.Errorf("GOAWAY %v", got)
		}
	})
}

func TestServerRefusesAndStopsRapidReset(t *testing.T) {
	cfg := testConfig()
	cfg.MaxStreams = 3
	hang := make(chan struct{})
	h := func(_ context.Context, r *ServerRequest) { <-hang }
	_ = againstServer(t, cfg, h, func(p *rawPeer) {
		defer close(hang)
		id := uint32(1)
		for range 4 {
			p.connect(id)
			id += 2
		}
		if f := next[*http2.RSTStreamFrame](p); f.StreamID != 7 || f.ErrCode != http2.ErrCodeRefusedStream {
			t.Errorf("got %v", f)
		}
		// handlers still run: resetting gives no room for new ones
		for i := uint32(1); i < 7; i += 2 {
			p.must(p.fr.WriteRSTStream(i, http2.ErrCodeCancel))
		}
		p.connect(id)
		if f := next[*http2.RSTStreamFrame](p); f.StreamID != id || f.ErrCode != http2.ErrCodeRefusedStream {
			t.Errorf("got %v", f)
		}
		go func() {
			for range 20 {
				id += 2
				p.connect(id)
				_ = p.fr.WriteRSTStream(id, http2.ErrCodeCancel)
			}
		}()
		if f := next[*http2.GoAwayFrame](p); f.ErrCode != http2.ErrCodeEnhanceYourCalm {
			t.Errorf("got %v", f)
		}
	})
}

func TestControlFloodOfAPeerThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe() // no buffer: the server's answers are stuck
		done := make(chan error, 1)
		go func() { done <- Serve(t.Context(), b, testConfig(), echoHandler) }()
		_, _ = io.WriteString(a, clientPreface)
		fr := http2.NewFramer(a, nil)
		_ = fr.WriteSettings()
		n := 0
		for ; n < 1<<20; n++ {
			if fr.WritePing(false, [8]byte{}) != nil {
				break
			}
		}
		a.Close()
		var ce *ConnError
		if err := <-done; !errors.As(err, &ce) || ce.Code != CodeCalm {
			t.Errorf("after %d pings: %v", n, err)
		}
	})
}

func TestIgnoredFrames(t *testing.T) {
	_ = againstServer(t, testConfig(), echoHandler, func(p *rawPeer) {
		p.must(p.fr.WriteRawFrame(0xfa, 0xff, 5, []byte("unknown")))
		p.connect(1)
		p.must(p.fr.WritePriority(1, http2.PriorityParam{StreamDep: 3}))
		p.must(p.fr.WriteSettings(http2.Setting{ID: 0x99, Val: 1}))
		p.must(p.fr.WriteDataPadded(1, true, []byte("padded"), make([]byte, 200)))
		if f := next[*http2.DataFrame](p); string(f.Data()) != "padded" {
			t.Errorf("echo %q", f.Data())
		}
	})
}

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

func TestClientSeesAnswers(t *testing.T) {
	for name, tc := range map[string]struct {
		answer func(p *rawPeer, id uint32)
		check  func(error) bool
	}{
		"401":       {func(p *rawPeer, id uint32) { p.headers(id, true, ":status", "401", "x-why", "rbac") }, isStatus(401)},
		"503 open":  {func(p *rawPeer, id uint32) { p.headers(id, false, ":status", "503") }, isStatus(503)},
		"refused":   {func(p *rawPeer, id uint32) { p.must(p.fr.WriteRSTStream(id, http2.ErrCodeRefusedStream)) }, Retryable},
		"goaway":    {func(p *rawPeer, id uint32) { p.must(p.fr.WriteGoAway(0, http2.ErrCodeNo, nil)) }, Retryable},
		"reset":     {func(p *rawPeer, id uint32) { p.must(p.fr.WriteRSTStream(id, http2.ErrCodeConnect)) }, isReset(CodeConnect, true)},
		"bad":       {func(p *rawPeer, id uint32) { p.headers(id, false, ":status", "xyz") }, isReset(CodeProtocol, false)},
		"data only": {func(p *rawPeer, id uint32) { p.must(p.fr.WriteData(id, false, []byte("x"))) }, isReset(CodeProtocol, false)},
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

func isReset(code ErrCode, remote bool) func(error) bool {
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

func FuzzServerConn(f *testing.F) {
	frame := func(typ, flags byte, id uint32, p []byte) []byte {
		return append(appendFrameHeader(nil, len(p), typ, flags, id), p...)
	}
	var blk bytes.Buffer
	e := hpack.NewEncoder(&blk)
	_ = e.WriteField(hpack.HeaderField{Name: ":method", Value: "CONNECT"})
	_ = e.WriteField(hpack.HeaderField{Name: ":authority", Value: "10.0.0.7:80"})
	open := append(appendSettings(nil), frame(frameHeaders, flagEndHeaders, 1, blk.Bytes())...)
	f.Add(open)
	f.Add(append(bytes.Clone(open), frame(frameData, flagEndStream|flagPadded, 1, []byte{2, 'a', 0, 0})...))
	f.Add(append(bytes.Clone(open), frame(frameSettings, 0, 0, binary.BigEndian.AppendUint32([]byte{0, 4}, 5))...))
	f.Add(append(bytes.Clone(open), frame(frameRST, 0, 1, []byte{0, 0, 0, 8})...))
	f.Add(append(bytes.Clone(open), frame(frameGoAway, 0, 0, make([]byte, 12))...))
	f.Add(append(appendSettings(nil), frame(frameHeaders, flagPriority|flagPadded, 1, []byte{0, 1, 2, 3, 4, 5})...))
	f.Fuzz(func(t *testing.T, in []byte) {
		a, b := bufPipe()
		cfg := testConfig()
		cfg.CloseTimeout = time.Millisecond
		srv := NewServer(b, cfg, echoHandler)
		done := make(chan struct{})
		go func() { defer close(done); _ = srv.Run(context.Background()) }()
		_, _ = a.Write(append([]byte(clientPreface), in...))
		_ = a.CloseWrite()
		_, _ = io.Copy(io.Discard, a)
		<-done
		srv.c.recv.mu.Lock()
		defer srv.c.recv.mu.Unlock()
		if srv.c.recv.buffered != 0 {
			t.Errorf("%d bytes held after the end", srv.c.recv.buffered)
		}
	})
}

func FuzzHeaderBlock(f *testing.F) {
	b := newBlock()
	f.Add(bytes.Clone(b.encode([]HeaderField{{":method", "CONNECT"}, {":authority", "a:1"}}, Header{{"baggage", "x=y"}})))
	f.Add([]byte{0x82, 0x84})
	f.Fuzz(func(t *testing.T, in []byte) {
		const limit = 1 << 12
		m, err := newBlock().decode(in, limit)
		if err != nil {
			var ce *ConnError
			if !errors.As(err, &ce) || ce.Code != CodeCompression {
				t.Fatalf("error %v", err)
			}
			return
		}
		size := 0
		for _, h := range m.header {
			size += len(h.Name) + len(h.Value) + 32
		}
		if size > limit {
			t.Fatalf("list of %d bytes passed the limit", size)
		}
		if m.malformed == "" && !m.tooLarge && m.header.validate() != nil {
			t.Fatalf("illegal header passed: %v", m.header)
		}
	})
}

// FuzzClientConn feeds a client with whatever a server might say.
func FuzzClientConn(f *testing.F) {
	var blk bytes.Buffer
	e := hpack.NewEncoder(&blk)
	_ = e.WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
	h := append(appendFrameHeader(appendSettings(nil), blk.Len(), frameHeaders, flagEndHeaders, 1), blk.Bytes()...)
	f.Add(h)
	f.Add(append(appendFrameHeader(bytes.Clone(h), 2, frameData, flagEndStream, 1), "ok"...))
	f.Add(appendGoAway(bytes.Clone(h), 0, CodeNo, "x"))
	f.Fuzz(func(t *testing.T, in []byte) {
		a, b := bufPipe()
		cfg := testConfig()
		cfg.CloseTimeout = time.Millisecond
		cl := NewClient(a, cfg)
		go func() { _, _ = io.Copy(io.Discard, b) }()
		got := make(chan struct{})
		go func() {
			defer close(got)
			s, err := cl.Connect(context.Background(), Request{Authority: "a:1"})
			if err == nil {
				_, _ = io.Copy(io.Discard, s)
				_ = s.Close()
			}
		}()
		_, _ = b.Write(in)
		_ = b.CloseWrite()
		<-cl.Done()
		<-got
		b.Close()
		if n := cl.Streams(); n != 0 {
			t.Errorf("%d streams after the end", n)
		}
	})
}
