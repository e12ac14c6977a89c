package http

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// one is a listener of one connection.
type one struct {
	c    chan net.Conn
	over chan struct{}
	once sync.Once
}

func (l *one) Accept() (net.Conn, error) {
	select {
	case c := <-l.c:
		return c, nil
	case <-l.over:
		return nil, net.ErrClosed
	}
}
func (l *one) Close() error   { l.once.Do(func() { close(l.over) }); return nil }
func (l *one) Addr() net.Addr { return &net.TCPAddr{} }

// noticed tells when it is closed.
type noticed struct {
	net.Conn
	l *one
}

func (n noticed) Close() error {
	_ = n.l.Close()
	return n.Conn.Close()
}

// standard is a host that net/http serves, with HTTP/1.1 and HTTP/2.
func standard(h http.HandlerFunc) func(net.Conn) {
	return func(c net.Conn) {
		l := &one{c: make(chan net.Conn, 1), over: make(chan struct{})}
		l.c <- noticed{c, l}
		s := &http.Server{Handler: h, Protocols: new(http.Protocols)}
		s.Protocols.SetHTTP1(true)
		s.Protocols.SetUnencryptedHTTP2(true)
		_ = s.Serve(l)
		_ = s.Shutdown(context.Background())
	}
}

// standardClient speaks HTTP/2 or HTTP/1.1 over connections to the world.
func (w *world) standardClient(two bool) *http.Client {
	t := &http.Transport{Protocols: new(http.Protocols), DisableCompression: true}
	t.Protocols.SetHTTP1(!two)
	t.Protocols.SetUnencryptedHTTP2(two)
	t.DialContext = func(context.Context, string, string) (net.Conn, error) { return w.connect().Conn, nil }
	w.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func overHTTP2(c *clusterv3.Cluster) {
	c.Http2ProtocolOptions = &corev3.Http2ProtocolOptions{} //nolint:staticcheck // the short form
}

// spoken is the change to a cluster whose hosts speak HTTP/2, or HTTP/1.1: none.
func spoken(two bool) func(*clusterv3.Cluster) {
	if two {
		return overHTTP2
	}
	return nil
}

func TestVersions(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcdef"), 20<<10)
	for _, down := range []bool{false, true} {
		for _, up := range []bool{false, true} {
			t.Run(fmt.Sprintf("from HTTP2 %v to HTTP2 %v", down, up), func(t *testing.T) {
				w := newWorld(t)
				w.loopback = true
				w.routes("a", toUp)
				w.cluster("up", spoken(up), standard(func(rw http.ResponseWriter, r *http.Request) {
					if (r.ProtoMajor == 2) != up {
						t.Errorf("the host sees %s", r.Proto)
					}
					if !up {
						_ = http.NewResponseController(rw).EnableFullDuplex()
					}
					rw.Header().Set("Trailer", "X-After")
					rw.Header().Set("X-Length", fmt.Sprint(r.ContentLength))
					n, err := io.Copy(rw, r.Body)
					if err != nil {
						t.Errorf("body after %d: %v", n, err)
					}
					rw.Header().Set("X-After", r.Trailer.Get("X-Before"))
				}))
				c := w.standardClient(down)
				for _, body := range [][]byte{nil, []byte("abc"), big} {
					for _, length := range []bool{true, false} {
						req, _ := http.NewRequest("POST", "http://a/x", io.MultiReader(bytes.NewReader(body)))
						req.ContentLength = -1
						if length {
							req.ContentLength = int64(len(body))
							if len(body) == 0 {
								req.Body = nil
							}
						} else {
							req.Trailer = http.Header{"X-Before": []string{"t"}}
						}
						resp, err := c.Do(req)
						if err != nil {
							t.Fatal(err)
						}
						got, err := io.ReadAll(resp.Body)
						if err != nil || !bytes.Equal(got, body) || resp.StatusCode != 200 {
							t.Fatalf("%d of %d bytes, status %d, %v", len(got), len(body), resp.StatusCode, err)
						}
						if down && up && !length && resp.Trailer.Get("X-After") != "t" {
							t.Errorf("trailers %v", resp.Trailer)
						}
						if length && resp.Header.Get("X-Length") != fmt.Sprint(len(body)) {
							t.Errorf("the host saw a length of %s, not %d", resp.Header.Get("X-Length"), len(body))
						}
					}
				}
				for _, l := range w.log(6) {
					if l != "200 - via_upstream" {
						t.Errorf("log %q", l)
					}
				}
				if w.dials > 2 { // the client may have an answer before the connection is free
					t.Errorf("%d connections to the host", w.dials)
				}
			})
		}
	}
}

// TestTrailersGoAlong: other tries and copies of a request have its trailers, but for what a client may not say of itself.
func TestTrailersGoAlong(t *testing.T) {
	w := newWorld(t)
	w.loopback = true
	w.routes("a", `{"match":{"prefix":"/"},"route":{"cluster":"up","retryPolicy":{"retryOn":"5xx","numRetries":1,"retryBackOff":{"baseInterval":"0.001s"}},
		"requestMirrorPolicies":[{"cluster":"copy"}]}}`)
	var tries atomic.Int64
	w.cluster("up", overHTTP2, standard(func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if tries.Add(1) == 1 {
			rw.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(rw, r.Trailer.Get("X-After")+r.Trailer.Get("X-Forwarded-Client-Cert"))
	}))
	copies := make(chan string, 1)
	w.cluster("copy", overHTTP2, standard(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		copies <- string(body) + r.Trailer.Get("X-After") + r.Trailer.Get("X-Forwarded-Client-Cert")
	}))
	c := w.standardClient(true)
	for _, body := range []string{"", "abc "} {
		tries.Store(0)
		req, err := http.NewRequestWithContext(t.Context(), "POST", "http://a/x", io.MultiReader(strings.NewReader(body)))
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength, req.Trailer = -1, http.Header{"X-After": []string{"t"}, "X-Forwarded-Client-Cert": []string{"URI=spiffe://another"}}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		if err != nil || string(got) != "t" || tries.Load() != 2 {
			t.Errorf("body %q: the other try of %d had trailers %q, %v", body, tries.Load(), got, err)
		}
		if got := <-copies; got != body+"t" {
			t.Errorf("body %q: the copy was %q", body, got)
		}
	}
}

// TestHostBreaksHTTP2: a host whose bytes are no HTTP/2 is answered for as one whose bytes are no HTTP/1.1.
func TestHostBreaksHTTP2(t *testing.T) {
	w := newWorld(t)
	w.loopback = true
	w.routes("a", toUp)
	w.cluster("up", overHTTP2, func(c net.Conn) {
		_, _ = c.Write([]byte{0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 'x'}) // SETTINGS, and DATA of stream 0
		_, _ = io.Copy(io.Discard, c)
	})
	resp, err := w.standardClient(true).Get("http://a/")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if got, want := w.log(1)[0], "502 UPE upstream_reset_before_response_started{protocol_error}"; got != want {
		t.Errorf("log %q, want %q", got, want)
	}
}

// TestRefusedRetryIsNoOverload: that a breaker refused another try does not say that the host is overloaded.
func TestRefusedRetryIsNoOverload(t *testing.T) {
	w := newWorld(t)
	w.loopback = true
	w.routes("a", `{"match":{"prefix":"/"},"route":{"cluster":"up","retryPolicy":{"retryOn":"5xx","numRetries":1}}}`)
	w.cluster("up", func(c *clusterv3.Cluster) {
		c.CircuitBreakers = &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{MaxRetries: wrapperspb.UInt32(0)}}}
	}, func(c net.Conn) { _ = c.Close() })
	resp, err := w.standardClient(false).Post("http://a/", "", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if got := w.log(1)[0]; !strings.HasPrefix(got, "503 UO,UC ") || resp.Header.Get("X-Envoy-Overloaded") != "" {
		t.Errorf("log %q, fields %v", got, resp.Header)
	}
}

// TestManyStreams: streams of one connection are served side by side.
func TestManyStreams(t *testing.T) {
	w := newWorld(t)
	w.loopback = true
	w.routes("a", toUp)
	var wait sync.WaitGroup
	const n = 20
	wait.Add(n)
	w.cluster("up", overHTTP2, standard(func(rw http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/first" {
			return
		}
		wait.Done()
		wait.Wait() // all are there at once
		_, _ = io.WriteString(rw, r.URL.Path)
	}))
	c := w.standardClient(true)
	resp, err := c.Get("http://a/first") // or the client makes several connections
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			path := fmt.Sprintf("/%d", i)
			resp, err := c.Get("http://a" + path)
			if err != nil {
				t.Error(err)
				return
			}
			b, _ := io.ReadAll(resp.Body)
			if string(b) != path {
				t.Errorf("%q for %s", b, path)
			}
		})
	}
	all.Wait()
	if w.dials != 1 {
		t.Errorf("%d connections", w.dials)
	}
}

// TestGRPCAnswers: what is no answer of a host is one of gRPC for its clients.
func TestGRPCAnswers(t *testing.T) {
	w := newWorld(t)
	w.loopback = true
	w.routes("nohost", `{"match":{"prefix":"/"},"route":{"cluster":"empty"}}`)
	w.routes("fault", `{"match":{"prefix":"/"},"route":{"cluster":"empty"},"typedPerFilterConfig":{"envoy.filters.http.fault":{
		"@type":"type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault","abort":{"httpStatus":555,"percentage":{"numerator":100}}}}}`)
	w.routes("busy", `{"match":{"prefix":"/"},"route":{"cluster":"up"}}`)
	w.cluster("empty", nil)
	w.cluster("up", overHTTP2, standard(func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(503) }))
	c := w.standardClient(true)
	for host, want := range map[string][4]string{
		"none":   {"200", "12", "", "200 NR route_not_found"},
		"nohost": {"200", "14", "no healthy upstream", "200 UH no_healthy_upstream"},
		"fault":  {"200", "2", "fault filter abort", "200 FI fault_filter_abort"},
		"busy":   {"503", "", "", "503 - via_upstream"},
	} {
		req, _ := http.NewRequest("POST", "http://"+host+"/s/m", strings.NewReader("abc"))
		req.Header.Set("Content-Type", "application/grpc")
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		h := resp.Header
		if got := [3]string{fmt.Sprint(resp.StatusCode), h.Get("Grpc-Status"), h.Get("Grpc-Message")}; got != [3]string(want[:3]) {
			t.Errorf("%s: %q %v", host, got, h)
		}
	}
	lines := strings.Join(w.log(4), "\n")
	for _, want := range []string{"200 NR route_not_found", "200 UH no_healthy_upstream", "200 FI fault_filter_abort", "503 - via_upstream"} {
		if !strings.Contains(lines, want) {
			t.Errorf("the log has no %q: %q", want, lines)
		}
	}
}

// TestReset2: a host that resets a stream, and a client that does.
func TestReset2(t *testing.T) {
	w := newWorld(t)
	w.loopback = true
	w.routes("a", toUp)
	gone := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	w.cluster("up", overHTTP2, standard(func(rw http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/slow":
			cancel()
			<-r.Context().Done()
			close(gone)
		case "/late":
			rw.WriteHeader(200)
			_, _ = io.WriteString(rw, "half")
			_ = http.NewResponseController(rw).Flush()
			panic(http.ErrAbortHandler)
		default:
			panic(http.ErrAbortHandler)
		}
	}))
	c := w.standardClient(true)
	resp, err := c.Get("http://a/now")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	w.log(1)
	if resp.StatusCode != 503 || string(b) != resetBefore+"reset reason: remote reset" {
		t.Errorf("%d %q", resp.StatusCode, b)
	}
	if resp, err = c.Get("http://a/late"); err != nil {
		t.Fatal(err)
	}
	b, err = io.ReadAll(resp.Body)
	w.log(2)
	if err == nil || string(b) != "half" {
		t.Errorf("%q %v", b, err)
	}
	req, _ := http.NewRequestWithContext(ctx, "GET", "http://a/slow", nil)
	if _, err := c.Do(req); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	<-gone // the host learns it
	want := []string{"503 UR upstream_reset_before_response_started{remote_reset}", "200 UR upstream_reset_after_response_started{remote_reset}", "0 DC downstream_remote_disconnect"}
	for i, l := range w.log(3) {
		if l != want[i] {
			t.Errorf("log %q, want %q", l, want[i])
		}
	}
}

// TestExpectOverHTTP2: a client that waits before it sends the body hears from us, and the host nothing of that.
func TestExpectOverHTTP2(t *testing.T) {
	for _, up := range []bool{false, true} {
		w := newWorld(t)
		w.loopback = true
		w.routes("a", toUp)
		w.cluster("up", spoken(up), standard(func(rw http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(rw, r.Body)
			_, _ = fmt.Fprintf(rw, "%q", r.Header["Expect"])
		}))
		req, _ := http.NewRequest("POST", "http://a/", strings.NewReader("abc"))
		req.Header.Set("Expect", "100-continue")
		resp, err := w.standardClient(true).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "abc[]" {
			t.Errorf("to HTTP2 %v: the host was told %q, %v", up, b, err)
		}
		_ = resp.Body.Close()
	}
}
