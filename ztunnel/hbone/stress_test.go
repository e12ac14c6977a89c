package hbone

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/undermesh/undermesh/ztunnel/http/frame"
)

// TestRelayInMemory runs the path of connections that are no TCP sockets, as the simulation does.
func TestRelayInMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := bufPipe()
		cl := startPair(t, a, b, testConfig(), testConfig(), func(ctx context.Context, r *ServerRequest) {
			s, err := r.Accept(nil)
			if err != nil {
				t.Error(err)
				return
			}
			up, far := bufPipe()
			go func() {
				_, _ = io.Copy(far, struct{ io.Reader }{far})
				_ = far.CloseWrite()
			}()
			if _, err := Relay(ctx, s, up); err != nil {
				t.Error(err)
			}
		})
		data := make([]byte, 5<<20)
		for i := range data {
			data[i] = byte(i * 7 >> 3)
		}
		var wg sync.WaitGroup
		for range 4 {
			s, err := cl.Connect(t.Context(), Request{Authority: "10.0.0.7:80"})
			if err != nil {
				t.Fatal(err)
			}
			app, near := bufPipe()
			wg.Go(func() {
				if st, err := Relay(t.Context(), s, near); err != nil || st.Received != uint64(len(data)) {
					t.Errorf("relay: %+v, %v", st, err)
				}
			})
			wg.Go(func() {
				_, _ = app.Write(data)
				_ = app.CloseWrite()
			})
			wg.Go(func() {
				if got, err := io.ReadAll(app); err != nil || !bytes.Equal(got, data) {
					t.Errorf("echo: %d bytes, %v", len(got), err)
				}
			})
		}
		wg.Wait()
	})
}

// TestChaos ends streams in every way at any moment; afterwards neither side may hold a stream, a byte or a handler, and
// the connection must still work.
func TestChaos(t *testing.T) {
	ca, cb := tlsPair(t)
	scfg := testConfig()
	scfg.StreamWindow, scfg.StreamWindowMax, scfg.ConnWindow, scfg.MaxBuffered = 32<<10, 64<<10, 256<<10, 512<<10
	srv := NewServer(cb, scfg, func(ctx context.Context, r *ServerRequest) {
		switch rand.IntN(8) {
		case 0:
			r.Reject(503, nil)
			return
		case 1:
			return
		}
		s, err := r.Accept(nil)
		if err != nil {
			return
		}
		if rand.IntN(4) == 0 {
			_, _ = io.CopyN(s, struct{ io.Reader }{s}, rand.Int64N(1<<16))
			s.Reset(frame.CodeConnect)
			return
		}
		_, _ = io.Copy(s, struct{ io.Reader }{s})
		_ = s.CloseWrite()
	})
	done := make(chan error, 1)
	go func() { done <- srv.Run(context.Background()) }()
	cl := NewClient(ca, testConfig())
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			for range 40 {
				chaosStream(t, cl)
			}
		})
	}
	wg.Wait()

	// a clean exchange after all that; rejected by chance at most
	ok := false
	for range 200 {
		s, err := cl.Connect(t.Context(), Request{Authority: "10.0.0.7:80"})
		if err != nil {
			continue
		}
		_, _ = s.Write(make([]byte, 300<<10))
		_ = s.CloseWrite()
		n, err := io.Copy(io.Discard, s)
		_ = s.Close()
		ok = ok || n == 300<<10 && err == nil
	}
	if !ok {
		t.Error("no exchange succeeded afterwards")
	}
	if n := cl.Streams(); n != 0 {
		t.Errorf("client holds %d streams", n)
	}
	for _, c := range []*conn{cl.c, srv.c} {
		c.recv.mu.Lock()
		if c.recv.buffered != 0 {
			t.Errorf("client %v holds %d bytes", c.client, c.recv.buffered)
		}
		c.recv.mu.Unlock()
	}
	cl.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if srv.running != 0 || len(srv.c.streams) != 0 {
		t.Errorf("server holds %d handlers, %d streams", srv.running, len(srv.c.streams))
	}
}

func chaosStream(t *testing.T, cl *Client) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(20000))*time.Microsecond)
	defer cancel()
	s, err := cl.Connect(ctx, Request{Authority: "10.0.0.7:80", First: make([]byte, rand.IntN(2)*rand.IntN(MaxFirst))})
	if err != nil {
		if errors.Is(err, ErrUnusable) {
			t.Errorf("the connection died: %v", err)
		}
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = s.Write(make([]byte, rand.IntN(200<<10)))
		_ = s.CloseWrite()
	})
	if rand.IntN(2) == 0 {
		_, _ = io.CopyN(io.Discard, s, rand.Int64N(100<<10))
	} else {
		_, _ = io.Copy(io.Discard, s)
	}
	if rand.IntN(2) == 0 {
		s.Reset(frame.CodeCancel)
	}
	_ = s.Close()
	wg.Wait()
}

// TestHugeHeaderLeavesInFragments sends a list of 40 KiB to a peer whose frames are 16 KiB and that keeps no table.
func TestHugeHeaderLeavesInFragments(t *testing.T) {
	againstClient(t, testConfig(), func(cl *Client, p *rawPeer) {
		p.must(p.fr.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0}))
		synctest.Wait()
		huge := strings.Repeat("&", 40<<10)
		for range 2 {
			go func() {
				if _, err := cl.Connect(p.t.Context(), Request{Authority: "10.0.0.7:80", Header: Header{{"baggage", huge}}}); err != nil {
					t.Error(err)
				}
			}()
			f := next[*http2.HeadersFrame](p)
			id, ended := f.StreamID, f.HeadersEnded()
			block := bytes.Clone(f.HeaderBlockFragment())
			for !ended {
				c := next[*http2.ContinuationFrame](p)
				block, ended = append(block, c.HeaderBlockFragment()...), c.HeadersEnded()
			}
			fields, err := hpack.NewDecoder(0, nil).DecodeFull(block)
			if err != nil || len(fields) != 3 || fields[2].Value != huge {
				t.Fatalf("%d fields, %v", len(fields), err)
			}
			p.headers(id, true, ":status", "200")
		}
		p.must(p.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: 1000}))
		synctest.Wait()
		_, err := cl.Connect(p.t.Context(), Request{Authority: "10.0.0.7:80", Header: Header{{"baggage", huge}}})
		if err == nil || Retryable(err) {
			t.Errorf("a list beyond the peer's limit: %v", err)
		}
	})
}

func TestRequestChecks(t *testing.T) {
	againstClient(t, testConfig(), func(cl *Client, _ *rawPeer) {
		for name, req := range map[string]Request{
			"no port":       {Authority: "10.0.0.7"},
			"space":         {Authority: "a b:80"},
			"upper case":    {Authority: "a:80", Header: Header{{"Baggage", "x"}}},
			"pseudo header": {Authority: "a:80", Header: Header{{":path", "/"}}},
			"line break":    {Authority: "a:80", Header: Header{{"baggage", "x\r\ny: z"}}},
			"connection":    {Authority: "a:80", Header: Header{{"connection", "close"}}},
			"much First":    {Authority: "a:80", First: make([]byte, MaxFirst+1)},
		} {
			if _, err := cl.Connect(t.Context(), req); err == nil || !strings.HasPrefix(err.Error(), "check ") {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

func TestConfigValidate(t *testing.T) {
	ok := testConfig()
	if err := ok.Validate(); err != nil {
		t.Fatal(err)
	}
	for field, change := range map[string]func(*Config){
		"Clock":           func(c *Config) { c.Clock = nil },
		"StreamWindow":    func(c *Config) { c.StreamWindow = -1 },
		"StreamWindowMax": func(c *Config) { c.StreamWindowMax = 1 },
		"ConnWindow":      func(c *Config) { c.ConnWindow = 100 },
		"MaxBuffered":     func(c *Config) { c.MaxBuffered = 100 },
		"MaxFrame":        func(c *Config) { c.MaxFrame = 100 },
		"MaxStreams":      func(c *Config) { c.MaxStreams = -1 },
		"PingTimeout":     func(c *Config) { c.PingTimeout = -1 },
	} {
		c := testConfig()
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}
