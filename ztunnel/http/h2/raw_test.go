package h2

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/undermesh/undermesh/ztunnel/http/frame"
	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// rawPeer speaks frames by x/net's Framer, an implementation that is not ours.
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

// plain are the fields of a legal request.
var plain = []string{":method", "POST", ":scheme", "http", ":authority", "a", ":path", "/"}

// request opens a stream by a legal request.
func (p *rawPeer) request(id uint32, end bool, more ...string) {
	p.headers(id, end, append(plain[:len(plain):len(plain)], more...)...)
}

func (p *rawPeer) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

func loopback(t testing.TB) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// againstServer runs a raw client against our server.
func againstServer(t *testing.T, cfg Config, accept func(*Stream), f func(p *rawPeer)) (served error) {
	t.Helper()
	a, b := loopback(t)
	done := make(chan error, 1)
	go func() { done <- NewServer(b, cfg, accept).Serve(context.Background(), nil) }()
	_, _ = io.WriteString(a, frame.Preface)
	p := newRawPeer(t, a)
	p.must(p.fr.WriteSettings())
	f(p)
	a.Close()
	return <-done
}

// againstClient runs our client against a raw server.
func againstClient(t *testing.T, cfg Config, f func(c *Conn, p *rawPeer)) {
	t.Helper()
	a, b := loopback(t)
	c := NewClient(a, cfg)
	pre := make([]byte, len(frame.Preface))
	if _, err := io.ReadFull(b, pre); err != nil || string(pre) != frame.Preface {
		t.Fatalf("preface %q, %v", pre, err)
	}
	p := newRawPeer(t, b)
	p.must(p.fr.WriteSettings())
	f(c, p)
	b.Close()
	c.Close()
}

// goHang is a server whose handlers end with their stream.
func goHang(s *Stream) {
	s.Go(func(s *Stream) {
		over := make(chan struct{})
		s.OnDone(func() { close(over) })
		<-over
	})
}

// breaches are what a client does wrong; rst tells whether its stream ends, or the connection.
var breaches = map[string]struct {
	send func(p *rawPeer)
	code http2.ErrCode
	rst  bool
}{
	"data on stream 0":         {func(p *rawPeer) { p.fr.WriteData(0, false, []byte("x")) }, http2.ErrCodeProtocol, false},
	"data on idle stream":      {func(p *rawPeer) { p.fr.WriteData(7, false, []byte("x")) }, http2.ErrCodeProtocol, false},
	"even stream":              {func(p *rawPeer) { p.request(2, true) }, http2.ErrCodeProtocol, false},
	"lower stream":             {func(p *rawPeer) { p.request(5, true); p.request(3, true) }, http2.ErrCodeProtocol, false},
	"settings of 5":            {func(p *rawPeer) { p.fr.WriteRawFrame(http2.FrameSettings, 0, 0, make([]byte, 5)) }, http2.ErrCodeFrameSize, false},
	"settings on a stream":     {func(p *rawPeer) { p.fr.WriteRawFrame(http2.FrameSettings, 0, 1, nil) }, http2.ErrCodeProtocol, false},
	"acknowledgement of 6":     {func(p *rawPeer) { p.fr.WriteRawFrame(http2.FrameSettings, 1, 0, make([]byte, 6)) }, http2.ErrCodeFrameSize, false},
	"frame of 16 KiB and 1":    {func(p *rawPeer) { p.fr.WriteRawFrame(0x77, 0, 0, make([]byte, 16<<10+1)) }, http2.ErrCodeFrameSize, false},
	"initial window of 2^31":   {func(p *rawPeer) { p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31}) }, http2.ErrCodeFlowControl, false},
	"max frame of 1":           {func(p *rawPeer) { p.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1}) }, http2.ErrCodeProtocol, false},
	"push of 2":                {func(p *rawPeer) { p.fr.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 2}) }, http2.ErrCodeProtocol, false},
	"connection window 2^31":   {func(p *rawPeer) { p.fr.WriteWindowUpdate(0, 1<<31-1) }, http2.ErrCodeFlowControl, false},
	"connection window by 0":   {func(p *rawPeer) { p.fr.WriteWindowUpdate(0, 0) }, http2.ErrCodeProtocol, false},
	"stream window by 0":       {func(p *rawPeer) { p.request(1, false); p.fr.WriteWindowUpdate(1, 0) }, http2.ErrCodeProtocol, true},
	"stream window 2^31":       {func(p *rawPeer) { p.request(1, false); p.fr.WriteWindowUpdate(1, 1<<31-1) }, http2.ErrCodeFlowControl, true},
	"window of an idle stream": {func(p *rawPeer) { p.fr.WriteWindowUpdate(9, 1) }, http2.ErrCodeProtocol, false},
	"reset of an idle stream":  {func(p *rawPeer) { p.fr.WriteRSTStream(9, 0) }, http2.ErrCodeProtocol, false},
	"push promise":             {func(p *rawPeer) { p.fr.WriteRawFrame(http2.FramePushPromise, 4, 1, make([]byte, 8)) }, http2.ErrCodeProtocol, false},
	"continuation alone":       {func(p *rawPeer) { p.fr.WriteContinuation(1, true, nil) }, http2.ErrCodeProtocol, false},
	"ping inside a block": {func(p *rawPeer) {
		p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(plain...)})
		p.fr.WritePing(false, [8]byte{})
	}, http2.ErrCodeProtocol, false},
	"bad compression": {func(p *rawPeer) {
		p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0xff, 0xff, 0xff}, EndHeaders: true})
	}, http2.ErrCodeCompression, false},
	"long padding": {func(p *rawPeer) {
		p.request(1, false)
		p.fr.WriteRawFrame(http2.FrameData, http2.FlagDataPadded, 1, []byte{9, 1, 2})
	}, http2.ErrCodeProtocol, false},
	"stream window": {func(p *rawPeer) {
		p.request(1, false)
		for range 5 {
			p.fr.WriteData(1, false, make([]byte, 16<<10))
		}
	}, http2.ErrCodeFlowControl, true},
	"connection window": {func(p *rawPeer) {
		for id := uint32(1); id < 132; id += 2 {
			p.request(id, false)
			for range 4 {
				p.fr.WriteData(id, false, make([]byte, 16<<10))
			}
		}
	}, http2.ErrCodeFlowControl, false},
	"data after the end":       {func(p *rawPeer) { p.request(1, true); p.fr.WriteData(1, false, []byte("x")) }, http2.ErrCodeStreamClosed, true},
	"headers after the end":    {func(p *rawPeer) { p.request(1, true); p.headers(1, true, "a", "b") }, http2.ErrCodeStreamClosed, true},
	"headers without end":      {func(p *rawPeer) { p.request(1, false); p.headers(1, false, "a", "b") }, http2.ErrCodeProtocol, true},
	"pseudo field in trailers": {func(p *rawPeer) { p.request(1, false); p.headers(1, true, ":path", "/") }, http2.ErrCodeProtocol, true},
	"depends on itself":        {func(p *rawPeer) { p.fr.WritePriority(3, http2.PriorityParam{StreamDep: 3}) }, http2.ErrCodeProtocol, true},
	"more than announced": {func(p *rawPeer) {
		p.request(1, false, "content-length", "3")
		p.fr.WriteData(1, false, []byte("1234"))
	}, http2.ErrCodeProtocol, true},
	"less than announced": {func(p *rawPeer) {
		p.request(1, false, "content-length", "3")
		p.fr.WriteData(1, true, []byte("12"))
	}, http2.ErrCodeProtocol, true},
	"trailers instead of the body": {func(p *rawPeer) {
		p.request(1, false, "content-length", "3")
		p.headers(1, true, "a", "b")
	}, http2.ErrCodeProtocol, true},
	"no body, but announced": {func(p *rawPeer) { p.request(1, true, "content-length", "3") }, http2.ErrCodeProtocol, true},
}

func TestBreaches(t *testing.T) {
	for name, tc := range breaches {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig()
			err := againstServer(t, cfg, goHang, func(p *rawPeer) {
				tc.send(p)
				if tc.rst {
					if got := next[*http2.RSTStreamFrame](p).ErrCode; got != tc.code {
						t.Errorf("RST_STREAM %v, want %v", got, tc.code)
					}
					p.must(p.fr.WritePing(false, [8]byte{1}))
					next[*http2.PingFrame](p) // the connection lives
				} else if got := next[*http2.GoAwayFrame](p).ErrCode; got != tc.code {
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

// TestMalformedRequests: no handler sees them (RFC 9113 §8.1.1), and others on the connection go on.
func TestMalformedRequests(t *testing.T) {
	req := func(kv ...string) []string { return kv }
	with := func(kv ...string) []string { return append(plain[:len(plain):len(plain)], kv...) }
	for name, fields := range map[string][]string{
		"upper case":              with("X-A", "b"),
		"empty name":              with("", "b"),
		"blank in a name":         with("x a", "b"),
		"colon in a name":         with("x:a", "b"),
		"NUL in a value":          with("x-a", "a\x00b"),
		"CR in a value":           with("x-a", "a\rb"),
		"LF in a value":           with("x-a", "a\nb"),
		"control in a value":      with("x-a", "a\x01b"),
		"blank before a value":    with("x-a", " b"),
		"blank after a value":     with("x-a", "b\t"),
		"connection":              with("connection", "close"),
		"keep-alive":              with("keep-alive", "1"),
		"proxy-connection":        with("proxy-connection", "close"),
		"transfer-encoding":       with("transfer-encoding", "chunked"),
		"upgrade":                 with("upgrade", "h2c"),
		"te":                      with("te", "gzip"),
		"unknown pseudo field":    req(append([]string{":a", "b"}, plain...)...),
		"pseudo field behind":     req(":method", "GET", ":scheme", "http", ":authority", "a", "x-a", "b", ":path", "/"),
		"pseudo field twice":      with(":path", "/"),
		"status":                  req(append([]string{":status", "200"}, plain...)...),
		"no method":               req(":scheme", "http", ":authority", "a", ":path", "/"),
		"method of two words":     req(":method", "GET /", ":scheme", "http", ":authority", "a", ":path", "/"),
		"no scheme":               req(":method", "GET", ":authority", "a", ":path", "/"),
		"bad scheme":              req(":method", "GET", ":scheme", "ht/tp", ":authority", "a", ":path", "/"),
		"no path":                 req(":method", "GET", ":scheme", "http", ":authority", "a"),
		"empty path":              req(":method", "GET", ":scheme", "http", ":authority", "a", ":path", ""),
		"path without slash":      req(":method", "GET", ":scheme", "http", ":authority", "a", ":path", "x"),
		"star of GET":             req(":method", "GET", ":scheme", "http", ":authority", "a", ":path", "*"),
		"blank in the path":       req(":method", "GET", ":scheme", "http", ":authority", "a", ":path", "/a b"),
		"request line in a path":  req(":method", "GET", ":scheme", "http", ":authority", "a", ":path", "/ HTTP/1.1\r\nx: y"),
		"no authority":            req(":method", "GET", ":scheme", "http", ":path", "/"),
		"empty authority":         req(":method", "GET", ":scheme", "http", ":authority", "", ":path", "/"),
		"user information":        req(":method", "GET", ":scheme", "http", ":authority", "u@a", ":path", "/"),
		"path in the authority":   req(":method", "GET", ":scheme", "http", ":authority", "a/b", ":path", "/"),
		"host differs":            with("host", "b"),
		"two hosts":               req(":method", "GET", ":scheme", "http", ":path", "/", "host", "a", "host", "b"),
		"CONNECT with a path":     req(":method", "CONNECT", ":authority", "a:1", ":path", "/"),
		"CONNECT to nobody":       req(":method", "CONNECT"),
		"extended CONNECT":        req(":method", "CONNECT", ":protocol", "websocket", ":scheme", "http", ":authority", "a", ":path", "/"),
		"length of letters":       with("content-length", "x"),
		"negative length":         with("content-length", "-1"),
		"length of 19 digits":     with("content-length", "9999999999999999999"),
		"two lengths":             with("content-length", "1", "content-length", "2"),
		"two equal lengths":       with("content-length", "1", "content-length", "1"),
		"two lengths in one":      with("content-length", "1, 1"),
		"lengths of sign and hex": with("content-length", "+1"),
	} {
		t.Run(name, func(t *testing.T) {
			_ = againstServer(t, testConfig(), func(s *Stream) {
				if s.ID() == 1 {
					t.Errorf("a handler saw %q", s.Request().AppendLines(nil))
				}
				goEcho(s)
			}, func(p *rawPeer) {
				p.headers(1, true, fields...)
				if got := next[*http2.RSTStreamFrame](p); got.ErrCode != http2.ErrCodeProtocol || got.StreamID != 1 {
					t.Errorf("RST_STREAM %v", got)
				}
				p.request(3, true)
				if got := next[*http2.HeadersFrame](p); got.StreamID != 3 {
					t.Errorf("answer to %d", got.StreamID)
				}
			})
		})
	}
}

// TestRequests: what of a request arrives in which field.
func TestRequests(t *testing.T) {
	type want struct {
		method, scheme, authority, path, protocol string
		body                                      int64
		lines                                     string
	}
	cfg := testConfig()
	cfg.ExtendedConnect = true
	for name, tc := range map[string]struct {
		end    bool
		fields []string
		want   want
	}{
		"GET":        {true, []string{":method", "GET", ":scheme", "https", ":authority", "a:1", ":path", "/x?y#z", "x-a", "b"}, want{"GET", "https", "a:1", "/x?y#z", "", 0, "x-a: b\r\n"}},
		"host alone": {true, []string{":method", "GET", ":scheme", "http", ":path", "/", "host", "a"}, want{"GET", "http", "a", "/", "", 0, ""}},
		"same host":  {true, []string{":method", "GET", ":scheme", "http", ":authority", "a.B", ":path", "/", "host", "A.b"}, want{"GET", "http", "a.B", "/", "", 0, ""}},
		"cookies":    {true, append(plain[:8:8], "cookie", "a=1", "x-a", "b", "cookie", "b=2", "cookie", "c=3"), want{"POST", "http", "a", "/", "", 0, "x-a: b\r\ncookie: a=1; b=2; c=3\r\n"}},
		"length":     {false, append(plain[:8:8], "content-length", "3"), want{"POST", "http", "a", "/", "", 3, "content-length: 3\r\n"}},
		"no length":  {false, plain, want{"POST", "http", "a", "/", "", -1, ""}},
		"te":         {true, append(plain[:8:8], "te", "trailers"), want{"POST", "http", "a", "/", "", 0, "te: trailers\r\n"}},
		"OPTIONS":    {true, []string{":method", "OPTIONS", ":scheme", "http", ":authority", "a", ":path", "*"}, want{"OPTIONS", "http", "a", "*", "", 0, ""}},
		"CONNECT":    {false, []string{":method", "CONNECT", ":authority", "a:1"}, want{"CONNECT", "", "a:1", "", "", -1, ""}},
		"websocket":  {false, []string{":method", "CONNECT", ":protocol", "websocket", ":scheme", "http", ":authority", "a", ":path", "/"}, want{"CONNECT", "http", "a", "/", "websocket", -1, ""}},
		"bytes":      {true, append(plain[:8:8], "x-a", "\x80é\tb", "x-empty", ""), want{"POST", "http", "a", "/", "", 0, "x-a: \x80é\tb\r\nx-empty: \r\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := make(chan want, 1)
			_ = againstServer(t, cfg, func(s *Stream) {
				r := s.Request()
				got <- want{string(r.Method), string(r.Scheme), string(r.Authority), string(r.Path), string(r.Protocol), r.Body, string(r.AppendLines(nil))}
				goHang(s)
			}, func(p *rawPeer) {
				p.headers(1, tc.end, tc.fields...)
				if w := <-got; w != tc.want {
					t.Errorf("got %+v, want %+v", w, tc.want)
				}
			})
		})
	}
}

// TestResponses: what a client makes of what a server says.
func TestResponses(t *testing.T) {
	for name, tc := range map[string]struct {
		method string
		send   func(p *rawPeer)
		body   string // "": an error
	}{
		"plain": {"GET", func(p *rawPeer) { p.headers(1, false, ":status", "200"); p.fr.WriteData(1, true, []byte("ok")) }, "200 ok"},
		"length": {"GET", func(p *rawPeer) {
			p.headers(1, false, ":status", "200", "content-length", "2")
			p.fr.WriteData(1, true, []byte("ok"))
		}, "200 ok"},
		"HEAD with length": {"HEAD", func(p *rawPeer) { p.headers(1, true, ":status", "200", "content-length", "2") }, "200 "},
		"304 with length":  {"GET", func(p *rawPeer) { p.headers(1, true, ":status", "304", "content-length", "2") }, "304 "},
		"reset after all": {"POST", func(p *rawPeer) {
			p.headers(1, false, ":status", "413")
			p.fr.WriteData(1, true, []byte("no"))
			p.fr.WriteRSTStream(1, 0)
		}, "413 no"},
		"HEAD with body": {"HEAD", func(p *rawPeer) { p.headers(1, false, ":status", "200"); p.fr.WriteData(1, true, []byte("ok")) }, ""},
		"204 with body":  {"GET", func(p *rawPeer) { p.headers(1, false, ":status", "204"); p.fr.WriteData(1, true, []byte("ok")) }, ""},
		"short": {"GET", func(p *rawPeer) {
			p.headers(1, false, ":status", "200", "content-length", "3")
			p.fr.WriteData(1, true, []byte("ok"))
		}, ""},
		"empty, announced":  {"GET", func(p *rawPeer) { p.headers(1, true, ":status", "200", "content-length", "3") }, ""},
		"data first":        {"GET", func(p *rawPeer) { p.fr.WriteData(1, true, []byte("ok")) }, ""},
		"no status":         {"GET", func(p *rawPeer) { p.headers(1, true, "a", "b") }, ""},
		"status of 4":       {"GET", func(p *rawPeer) { p.headers(1, true, ":status", "2000") }, ""},
		"status of letters": {"GET", func(p *rawPeer) { p.headers(1, true, ":status", "abc") }, ""},
		"switching":         {"GET", func(p *rawPeer) { p.headers(1, false, ":status", "101") }, ""},
		"end after 103":     {"GET", func(p *rawPeer) { p.headers(1, true, ":status", "103") }, ""},
		"request's fields":  {"GET", func(p *rawPeer) { p.headers(1, true, ":status", "200", ":path", "/") }, ""},
		"connection":        {"GET", func(p *rawPeer) { p.headers(1, true, ":status", "200", "connection", "close") }, ""},
		"reset":             {"GET", func(p *rawPeer) { p.headers(1, false, ":status", "200"); p.fr.WriteRSTStream(1, 2) }, ""},
		"close":             {"GET", func(p *rawPeer) { p.headers(1, false, ":status", "200"); p.c.Close() }, ""},
		"large": {"GET", func(p *rawPeer) {
			p.headers(1, true, ":status", "200", "a", strings.Repeat("b", 8000))
			p.fr.WriteData(1, true, nil)
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig()
			cfg.MaxHeaderList = 4 << 10
			againstClient(t, cfg, func(c *Conn, p *rawPeer) {
				r := get("a", "/")
				r.Method = []byte(tc.method)
				s, err := c.Open(r, tc.method != "POST")
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				_ = s.Flush()
				next[*http2.HeadersFrame](p)
				tc.send(p)
				resp, err := s.ReadHead()
				got := ""
				if err == nil {
					var body []byte
					if body, err = io.ReadAll(s); err == nil {
						got = string(appendDecimal(resp.Status)) + " " + string(body)
					}
				}
				if got != tc.body || err != nil && Retryable(err) {
					t.Errorf("got %q, %v; want %q", got, err, tc.body)
				}
			})
		})
	}
}

func appendDecimal(n int) []byte {
	return []byte{byte('0' + n/100), byte('0' + n/10%10), byte('0' + n%10)}
}

// TestEncoder: what is written is read by x/net as it was, without what belongs to HTTP/1.
func TestEncoder(t *testing.T) {
	r := get("a:1", "/x")
	for _, kv := range [][2]string{{"Accept", "*/*"}, {"X-Mixed", "Ab"}, {"Connection", "close"}, {"Keep-Alive", "1"}, {"TE", "trailers"},
		{"Upgrade", "h2c"}, {"Transfer-Encoding", "chunked"}, {"Cookie", "a"}, {"Host", "b"}, {"x-long", strings.Repeat("v", 300)}, {"user-agent", "c"}} {
		r.Add(head.IDOf([]byte(kv[0])), kv[0], []byte(kv[1]))
	}
	r.Del(head.UserAgent, "user-agent")
	var got []string
	d := hpack.NewDecoder(4096, func(f hpack.HeaderField) { got = append(got, f.Name+"="+f.Value) })
	if _, err := d.Write(appendRequest(nil, r)); err != nil {
		t.Fatal(err)
	}
	want := ":method=GET|:scheme=http|:path=/x|:authority=a:1|accept=*/*|x-mixed=Ab|te=trailers|cookie=a|x-long=" + strings.Repeat("v", 300)
	if s := strings.Join(got, "|"); s != want {
		t.Errorf("got %s\nwant %s", s, want)
	}
	for _, status := range []int{100, 103, 200, 204, 206, 299, 304, 400, 404, 418, 500, 503, 999} {
		got = nil
		if _, err := d.Write(appendResponse(nil, &head.Response{Status: status})); err != nil || got[0] != ":status="+string(appendDecimal(status)) {
			t.Errorf("status %d came as %v, %v", status, got, err)
		}
	}
}
