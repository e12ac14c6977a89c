package h2

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/http/head"
)

func testConfig() Config { return Config{Clock: clock.System(), CloseTimeout: 50 * time.Millisecond} }

// serve runs accept behind a listener on loopback and returns its address.
func serve(t testing.TB, cfg Config, accept func(*Stream)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { _ = NewServer(nc, cfg, accept).Serve(ctx, nil) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		stop()
		wg.Wait()
	})
	return l.Addr().String()
}

// xnetClient is x/net's client over clear text.
func xnetClient(t testing.TB) *http.Client {
	tr := &http2.Transport{AllowHTTP: true, DialTLSContext: func(ctx context.Context, network, addr string, _ *tls.Config) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, addr)
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// xnetServer is x/net's server over clear text; it returns a connection to it.
func xnetServer(t testing.TB, h http.Handler) net.Conn {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer nc.Close()
				(&http2.Server{}).ServeConn(nc, &http2.ServeConnOpts{Handler: h})
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return nc
}

// echo answers with the request's body and trailers, and says in its head what it saw.
func echo(s *Stream) {
	r := s.Request()
	var resp head.Response
	resp.Reset(nil)
	resp.Status = 200
	resp.Add(head.Other, "x-saw", fmt.Appendf(nil, "%s %s %s %s", r.Method, r.Scheme, r.Authority, r.Path))
	if v := r.Get(head.Cookie); v != nil {
		resp.Add(head.Other, "X-Cookie", v)
	}
	if s.WriteHead(&resp, false) != nil {
		return
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := s.Read(buf)
		if n > 0 {
			if _, err := s.Write(buf[:n]); err != nil {
				return
			}
		}
		if err == io.EOF {
			break
		} else if err != nil {
			return
		}
		if s.Buffered() == 0 && s.Flush() != nil {
			return
		}
	}
	if t := s.Trailers(); t != nil {
		_ = s.WriteTrailers(t)
		return
	}
	_ = s.WriteEnd(nil)
}

func goEcho(s *Stream) { s.Go(echo) }

func TestServerWithXnetClient(t *testing.T) {
	addr := serve(t, testConfig(), goEcho)
	cl := xnetClient(t)
	large := make([]byte, 3<<20)
	_, _ = rand.Read(large)
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			body := large[:1+i*i*i*40]
			req, _ := http.NewRequestWithContext(t.Context(), "POST", fmt.Sprintf("http://%s/p/%d?q=1", addr, i), bytes.NewReader(body))
			req.Header.Add("Cookie", "a=1; b=2")
			req.Trailer = http.Header{"X-Sum": {fmt.Sprint(i)}}
			resp, err := cl.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			got, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || !bytes.Equal(got, body) {
				t.Errorf("body %d of %d bytes came back as %d, %v", i, len(body), len(got), err)
			}
			if want := fmt.Sprintf("POST http %s /p/%d?q=1", addr, i); resp.Header.Get("X-Saw") != want || resp.Header.Get("X-Cookie") != "a=1; b=2" {
				t.Errorf("head %v", resp.Header)
			}
			if resp.Trailer.Get("X-Sum") != fmt.Sprint(i) {
				t.Errorf("trailers %v", resp.Trailer)
			}
		})
	}
	wg.Wait()
}

// get is a request of the method GET.
func get(authority, path string) *head.Request {
	r := &head.Request{}
	r.Reset(nil)
	r.Method, r.Scheme, r.Authority, r.Path = []byte("GET"), []byte("http"), []byte(authority), []byte(path)
	return r
}

func TestClientWithXnetServer(t *testing.T) {
	nc := xnetServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</style>")
		w.WriteHeader(103)
		w.Header().Set("X-Saw", r.Method+" "+r.Host+" "+r.URL.RequestURI()+" "+r.Header.Get("X-A"))
		w.Header().Set("Trailer", "X-Sum")
		_, _ = io.Copy(w, r.Body)
		w.Header().Set("X-Sum", r.Trailer.Get("X-Sum"))
	}))
	c := NewClient(nc, testConfig())
	defer c.Close()
	large := make([]byte, 3<<20)
	_, _ = rand.Read(large)
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			body := large[:1+i*i*i*40]
			r := get("host", fmt.Sprintf("/p/%d", i))
			r.Method = []byte("POST")
			r.Add(head.Other, "x-a", []byte("b"))
			r.AddString(head.Trailer, "x-sum")
			s, err := c.Open(r, false)
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			var up sync.WaitGroup
			up.Go(func() {
				var tr head.Fields
				tr.Reset(nil)
				tr.Add(head.Other, "x-sum", fmt.Append(nil, i))
				_, err := s.Write(body)
				if err := errors.Join(err, s.WriteTrailers(&tr)); err != nil {
					t.Error(err)
				}
			})
			defer up.Wait()
			resp, err := s.ReadHead()
			if err != nil || resp.Status != 103 {
				t.Errorf("first head: %v, %v", resp, err)
				return
			}
			if resp, err = s.ReadHead(); err != nil || resp.Status != 200 {
				t.Errorf("second head: %v, %v", resp, err)
				return
			}
			if v, _ := resp.Find("x-saw"); string(v) != fmt.Sprintf("POST host /p/%d b", i) {
				t.Errorf("server saw %q", v)
			}
			got, err := io.ReadAll(s)
			if err != nil || !bytes.Equal(got, body) {
				t.Errorf("body %d of %d bytes came back as %d, %v", i, len(body), len(got), err)
			}
			if tr := s.Trailers(); tr == nil {
				t.Errorf("no trailers")
			} else if v, _ := tr.Find("x-sum"); string(v) != fmt.Sprint(i) {
				t.Errorf("trailer %q", v)
			}
		})
	}
	wg.Wait()
}

func TestOverOtherConns(t *testing.T) {
	ts := httptest.NewUnstartedServer(nil)
	ts.Close()
	a, b := net.Pipe()
	done := make(chan error, 1)
	go func() { done <- NewServer(b, testConfig(), goEcho).Serve(t.Context(), nil) }()
	c := NewClient(a, testConfig())
	s, err := c.Open(get("host", "/"), false)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Repeat("abc", 100_000)
	go func() {
		_, _ = io.WriteString(s, text)
		_ = s.WriteEnd(nil)
	}()
	if _, err := s.ReadHead(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(s); err != nil || string(got) != text {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	s.Close()
	c.Close()
	if err := <-done; err == nil {
		t.Error("server ended without an error")
	}
}

// ok is the head of a response of 200.
func ok() *head.Response { return &head.Response{Status: 200} }
