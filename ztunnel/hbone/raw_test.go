package hbone

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/undermesh/undermesh/ztunnel/http/frame"
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
		_, _ = io.WriteString(a, frame.Preface)
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
		pre := make([]byte, len(frame.Preface))
		if _, err := io.ReadFull(b, pre); err != nil || string(pre) != frame.Preface {
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
	small.ConnWindow, small.MaxBuffered, small.StreamWindow, small.MaxFrame = frame.DefaultWindow, frame.DefaultWindow, 40000, 32<<10
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
			var ce *frame.ConnError
			if got := errors.As(err, &ce); got == tc.rst {
				t.Errorf("Serve returned %v", err)
			}
		})
	}
}

func TestPrefaceAndFirstFrame(t *testing.T) {
	for name, first := range map[string]string{
		"http1":       "GET / HTTP/1.1\r\nhost: a\r\n\r\n",
		"no settings": frame.Preface + "\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678",
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
		"long authority":   {"400", []string{":method", "CONNECT", ":authority", strings.Repeat("a", 60_000) + ":80"}},
		"control byte":     {"400", []string{":method", "CONNECT", ":authority", "10.0.0.7\x01:80"}},
		"not ASCII":        {"400", []string{":method", "CONNECT", ":authority", "b\xc3\xa4r:80"}},
		"zone":             {"400", []string{":method", "CONNECT", ":authority", "[fe80::1%eth0]:80"}},
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
		go func() { // the server may hang up in the middle
			for range 20 {
				id += 2
				b := p.block(":method", "CONNECT", ":authority", "10.0.0.7:80")
				_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: b, EndHeaders: true})
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
		_, _ = io.WriteString(a, frame.Preface)
		fr := http2.NewFramer(a, nil)
		_ = fr.WriteSettings()
		n := 0
		for ; n < 1<<20; n++ {
			if fr.WritePing(false, [8]byte{}) != nil {
				break
			}
		}
		a.Close()
		var ce *frame.ConnError
		if err := <-done; !errors.As(err, &ce) || ce.Code != frame.CodeCalm {
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
