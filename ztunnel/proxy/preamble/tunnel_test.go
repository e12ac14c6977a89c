package preamble

import (
	"bufio"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2"

	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/http/h2"
)

// pair is a connection over loopback.
func pair(t *testing.T) (near, far net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if far, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = near.Close(), far.Close() })
	return near, far
}

// TestPOST: what a server reads as the body of the request is what the client wrote, and the body of its answer what the client reads.
func TestPOST(t *testing.T) {
	for name, answer := range map[string]string{
		"chunks": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\n\r\n", "a length": "HTTP/1.1 103 Hints\r\n\r\nHTTP/1.1 201 Made\r\nContent-Length: 7\r\n\r\nabcdefg",
		"the end": "HTTP/1.0 200 OK\r\n\r\nabcdefg",
	} {
		t.Run(name, func(t *testing.T) {
			near, far := pair(t)
			var wg sync.WaitGroup
			defer wg.Wait()
			wg.Go(func() {
				defer far.Close()
				r, err := http.ReadRequest(bufio.NewReader(far))
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.WriteString(far, answer)
				got, err := io.ReadAll(r.Body)
				if r.Method != "POST" || r.RequestURI != "/" || r.Host != "db.example:5432" || string(got) != "hello, world" || err != nil {
					t.Errorf("%s %s of %s, %q, %v", r.Method, r.RequestURI, r.Host, got, err)
				}
			})
			c, err := Connect(near, Target{Host: "db.example", Port: 5432, POST: true})
			if err != nil {
				t.Fatal(err)
			}
			for _, part := range []string{"hello", "", ", world"} {
				if n, err := io.WriteString(c, part); n != len(part) || err != nil {
					t.Errorf("%d, %v", n, err)
				}
			}
			if err := c.(*posted).CloseWrite(); err != nil {
				t.Error(err)
			}
			if got, err := io.ReadAll(c); string(got) != "abcdefg" || err != nil {
				t.Errorf("read %q, %v", got, err)
			}
		})
	}
	for name, answer := range map[string]string{"it answers": "HTTP/1.1 405 No\r\nContent-Length: 0\r\n\r\n", "read its answer": "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n"} {
		near, far := pair(t)
		_, _ = io.WriteString(far, answer)
		if _, err := Connect(near, Target{Host: "a", Port: 1, POST: true}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%q: %v", answer, err)
		}
	}
	near, far := pair(t)
	_, _ = io.WriteString(far, "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nabc")
	c, err := Connect(near, Target{Host: "a", Port: 1, POST: true})
	_ = far.Close()
	if err == nil {
		_, err = io.ReadAll(c)
	}
	if err == nil {
		t.Error("an answer that is broken off is taken for a whole one")
	}
}

// TestHTTP2: both methods over a server's stream, as it sees them, with more than the windows hold, half-closes and a reset.
func TestHTTP2(t *testing.T) {
	big := make([]byte, 3<<20)
	_, _ = rand.Read(big)
	for _, post := range []bool{false, true} {
		near, far := pair(t)
		var wg sync.WaitGroup
		wg.Go(func() {
			(&http2.Server{}).ServeConn(far, &http2.ServeConnOpts{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if want := map[bool]string{false: "CONNECT", true: "POST"}[post]; r.Method != want || r.Host != "[2001:db8::1]:5432" {
					t.Errorf("%s of %s", r.Method, r.Host)
				}
				_ = http.NewResponseController(w).Flush()
				buf := make([]byte, 64<<10)
				for {
					n, err := r.Body.Read(buf)
					_, _ = w.Write(buf[:n])
					_ = http.NewResponseController(w).Flush()
					if err != nil {
						return
					}
				}
			})})
		})
		c, err := Open(near, Target{Host: "2001:db8::1", Port: 5432, POST: post}, false, h2.Config{Clock: clock.System()})
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			if _, err := c.Write(big); err != nil {
				t.Error(err)
			}
			if err := c.CloseWrite(); err != nil {
				t.Error(err)
			}
		})
		if got, err := io.ReadAll(c); len(got) != len(big) || string(got) != string(big) || err != nil {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		_ = c.Close()
		c.Wait()
		wg.Wait()
	}
}

// TestHTTP2Fails: what is no 2xx is an error, and a reset ends both sides.
func TestHTTP2Fails(t *testing.T) {
	serve := func(h http.HandlerFunc) (net.Conn, func()) {
		near, far := pair(t)
		var wg sync.WaitGroup
		wg.Go(func() { (&http2.Server{}).ServeConn(far, &http2.ServeConnOpts{Handler: h}) })
		return near, wg.Wait
	}
	c, wait := serve(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusProxyAuthRequired) })
	if _, err := Open(c, Target{Host: "a", Port: 1}, false, h2.Config{Clock: clock.System()}); err == nil || !strings.Contains(err.Error(), "it answers 407") {
		t.Error(err)
	}
	wait()
	near, far := pair(t)
	_, _ = io.WriteString(far, "HTTP/1.1 400 Bad Request\r\n\r\n")
	if _, err := Open(near, Target{Host: "a", Port: 1}, false, h2.Config{Clock: clock.System()}); err == nil {
		t.Error("a server of HTTP/1.1 is a proxy of HTTP/2")
	}
	if _, err := Open(near, Target{Host: "a b", Port: 1}, false, h2.Config{Clock: clock.System()}); err == nil || !strings.Contains(err.Error(), "not a host") {
		t.Error(err)
	}
	ended := make(chan error, 1)
	c, wait = serve(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		_, err := io.ReadAll(r.Body)
		ended <- err
	})
	s, err := Open(c, Target{Host: "a", Port: 1}, false, h2.Config{Clock: clock.System()})
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() {
		_, err := s.Read(make([]byte, 1))
		read <- err
	}()
	_ = s.SetLinger(0)
	_ = s.Close()
	s.Wait()
	if err := <-read; err == nil || errors.Is(err, io.EOF) {
		t.Error("reading ends by", err)
	}
	if err := <-ended; err == nil {
		t.Error("the server takes the reset for the end")
	}
	wait()
}
