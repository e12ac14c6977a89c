package hbone

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"testing"

	"golang.org/x/net/http2"
)

// netHTTP2Server serves CONNECT by x/net/http2 on b: /echo semantics, "x-status" answers with that status.
func netHTTP2Server(t testing.TB, b net.Conn) {
	t.Helper()
	srv := &http2.Server{MaxReadFrameSize: 1 << 20, MaxUploadBufferPerConnection: 16 << 20, MaxUploadBufferPerStream: 4 << 20}
	done := make(chan struct{})
	go func() {
		defer close(done)
		srv.ServeConn(b, &http2.ServeConnOpts{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method != http.MethodConnect || r.Host != "10.0.0.7:80" {
				w.WriteHeader(http.StatusBadRequest)
				return
			}
			if r.Header.Get("x-deny") != "" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			w.WriteHeader(http.StatusOK)
			rc := http.NewResponseController(w)
			_ = rc.Flush()
			buf := make([]byte, 64<<10)
			for {
				n, err := r.Body.Read(buf)
				if n > 0 {
					_, _ = w.Write(buf[:n])
					_ = rc.Flush()
				}
				if err != nil {
					return
				}
			}
		})})
	}()
	t.Cleanup(func() { b.Close(); <-done })
}

func TestOurClientWithNetHTTP2Server(t *testing.T) {
	a, b := tlsPair(t)
	netHTTP2Server(t, b)
	cl := NewClient(a, testConfig())
	t.Cleanup(func() { cl.Close() })
	var se *StatusError
	_, err := cl.Connect(t.Context(), Request{Authority: "10.0.0.7:80", Header: Header{{"x-deny", "1"}}})
	if !errors.As(err, &se) || se.Code != 401 {
		t.Errorf("denied CONNECT: %v", err)
	}
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() { bulkOne(t, cl, uint64(i), 2<<20+i) })
	}
	wg.Wait()
}

// netHTTP2Client returns a client of x/net/http2 over a.
func netHTTP2Client(t testing.TB, a net.Conn) *http2.ClientConn {
	t.Helper()
	tr := &http2.Transport{MaxReadFrameSize: 1 << 20}
	cc, err := tr.NewClientConn(a)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close() })
	return cc
}

func netConnect(cc *http2.ClientConn, authority string, hdr http.Header) (*http.Response, *io.PipeWriter, error) {
	pr, pw := io.Pipe()
	resp, err := cc.RoundTrip(&http.Request{
		Method: http.MethodConnect, URL: &url.URL{Scheme: "https", Host: authority}, Host: authority, Header: hdr, Body: pr,
	})
	return resp, pw, err
}

func TestNetHTTP2ClientWithOurServer(t *testing.T) {
	a, b := tlsPair(t)
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		done <- Serve(ctx, b, testConfig(), func(ctx context.Context, r *ServerRequest) {
			if r.Header.Get("x-deny") != "" {
				r.Reject(401, Header{{"x-reason", "rbac"}})
				return
			}
			echoHandler(ctx, r)
		})
	}()
	cc := netHTTP2Client(t, a)
	resp, pw, err := netConnect(cc, "10.0.0.7:80", http.Header{"X-Deny": {"1"}})
	if err != nil || resp.StatusCode != 401 || resp.Header.Get("x-reason") != "rbac" {
		t.Fatalf("denied: %v %v", resp, err)
	}
	resp.Body.Close()
	pw.Close()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			resp, pw, err := netConnect(cc, "10.0.0.7:80", nil)
			if err != nil || resp.StatusCode != 200 {
				t.Errorf("CONNECT: %v %v", resp, err)
				return
			}
			const size = 3 << 20
			go func() {
				_, _ = pw.Write(make([]byte, size))
				_ = pw.Close()
			}()
			if n, err := io.Copy(io.Discard, resp.Body); n != size || err != nil {
				t.Errorf("echo: %d bytes, %v", n, err)
			}
			_ = resp.Body.Close()
		})
	}
	wg.Wait()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// relayPair is a whole tunnel: app <-> Relay <-> TLS <-> Relay <-> upstream.
func relayPair(t *testing.T) (app, up *net.TCPConn, errs chan error) {
	t.Helper()
	a, b := tlsPair(t)
	near, up := tcpPair(t)
	errs = make(chan error, 2)
	cl := startPair(t, a, b, testConfig(), testConfig(), func(ctx context.Context, r *ServerRequest) {
		s, err := r.Accept(Header{{"baggage", "back"}})
		if err == nil {
			_, err = Relay(ctx, s, near)
		}
		errs <- err
	})
	s, err := cl.Connect(t.Context(), Request{Authority: "10.0.0.7:80"})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.ResponseHeader().Get("baggage"); got != "back" {
		t.Errorf("response baggage %q", got)
	}
	app, mine := tcpPair(t)
	go func() {
		_, err := Relay(t.Context(), s, mine)
		errs <- err
	}()
	return app, up, errs
}

func TestResetTravels(t *testing.T) {
	for name, pick := range map[string]func(app, up *net.TCPConn) (from, to *net.TCPConn){
		"from client":   func(app, up *net.TCPConn) (from, to *net.TCPConn) { return app, up },
		"from upstream": func(app, up *net.TCPConn) (from, to *net.TCPConn) { return up, app },
	} {
		t.Run(name, func(t *testing.T) {
			app, up, errs := relayPair(t)
			from, to := pick(app, up)
			if _, err := from.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(to, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			_ = from.SetLinger(0)
			_ = from.Close()
			if _, err := to.Read(make([]byte, 1)); !isConnReset(err) {
				t.Errorf("the other end reads %v, want a reset", err)
			}
			for range 2 {
				if err := <-errs; err == nil {
					t.Error("Relay returned nil for a reset")
				}
			}
		})
	}
}

func isConnReset(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Err.Error() == "read: connection reset by peer"
}

func TestHalfCloseTravels(t *testing.T) {
	app, up, errs := relayPair(t)
	_ = app.CloseWrite()
	if n, err := up.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("upstream reads %d, %v after a half-close", n, err)
	}
	if _, err := up.Write([]byte("late answer")); err != nil {
		t.Fatal(err)
	}
	_ = up.CloseWrite()
	if got, err := io.ReadAll(app); string(got) != "late answer" || err != nil {
		t.Fatalf("client reads %q, %v", got, err)
	}
	for range 2 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

// TestTunnelLossResets cuts the tunnel under a relay: both applications see a reset, not an EOF.
func TestTunnelLossResets(t *testing.T) {
	a, b := tlsPair(t)
	near, up := tcpPair(t)
	cl := startPair(t, a, b, testConfig(), testConfig(), func(ctx context.Context, r *ServerRequest) {
		if s, err := r.Accept(nil); err == nil {
			_, _ = Relay(ctx, s, near)
		}
	})
	s, err := cl.Connect(t.Context(), Request{Authority: "10.0.0.7:80"})
	if err != nil {
		t.Fatal(err)
	}
	app, mine := tcpPair(t)
	relayed := make(chan error, 1)
	go func() {
		_, err := Relay(t.Context(), s, mine)
		relayed <- err
	}()
	_, _ = app.Write([]byte("x"))
	_, _ = io.ReadFull(up, make([]byte, 1))
	_ = a.NetConn().Close()
	for name, c := range map[string]*net.TCPConn{"client": app, "upstream": up} {
		if _, err := c.Read(make([]byte, 1)); !isConnReset(err) {
			t.Errorf("%s reads %v, want a reset", name, err)
		}
	}
	if err := <-relayed; err == nil {
		t.Error("Relay returned nil for a lost tunnel")
	}
}

func TestRelayEndsWithContext(t *testing.T) {
	a, b := tlsPair(t)
	cl := startPair(t, a, b, testConfig(), testConfig(), echoHandler)
	s, err := cl.Connect(t.Context(), Request{Authority: "10.0.0.7:80"})
	if err != nil {
		t.Fatal(err)
	}
	app, mine := tcpPair(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	relayed := make(chan error, 1)
	go func() {
		_, err := Relay(ctx, s, mine)
		relayed <- err
	}()
	why := errors.New("policy changed")
	cancel(why)
	if err := <-relayed; !errors.Is(err, why) {
		t.Errorf("Relay returned %v", err)
	}
	if _, err := app.Read(make([]byte, 1)); !isConnReset(err) {
		t.Errorf("client reads %v, want a reset", err)
	}
}

// netRelay is the server side of a tunnel as one would write it on x/net/http2.
func netRelay(ups []*net.TCPConn) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		up := ups[index(r.Header.Get("x-i"))]
		w.WriteHeader(http.StatusOK)
		rc := http.NewResponseController(w)
		_ = rc.Flush()
		var wg sync.WaitGroup
		wg.Go(func() {
			_, _ = io.CopyBuffer(struct{ io.Writer }{up}, r.Body, make([]byte, 64<<10))
			_ = up.Close()
		})
		buf := make([]byte, 64<<10)
		for {
			n, err := up.Read(buf)
			if n > 0 {
				_, _ = w.Write(buf[:n])
				_ = rc.Flush()
			}
			if err != nil {
				break
			}
		}
		_ = r.Body.Close()
		wg.Wait()
	})
}
