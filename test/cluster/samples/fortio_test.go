package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func copyAll(w io.Writer, r io.Reader) (int64, error) { return io.Copy(w, r) }

// loadOf runs "fortio load" and returns what it prints.
func loadOf(t *testing.T, args ...string) string {
	t.Helper()
	c, err := parseFortio(args)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := fortioLoad(t.Context(), c, &fortioLog{out: &out}); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func wantLines(t *testing.T, out string, lines ...string) {
	t.Helper()
	for _, l := range lines {
		if !strings.Contains(out, l+"\n") {
			t.Errorf("no line %q in\n%s", l, out)
		}
	}
}

// TestFortioSockets: a good answer keeps the connection, a bad one costs a new one, and one that was closed meanwhile too.
func TestFortioSockets(t *testing.T) {
	var n atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch i := n.Add(1); {
		case r.URL.Path == "/fail" && i%4 == 0:
			w.WriteHeader(http.StatusServiceUnavailable)
		case r.URL.Path == "/close":
			w.Header().Set("Connection", "close")
		case r.URL.Path == "/teapot":
			w.WriteHeader(http.StatusTeapot)
		}
		fmt.Fprint(w, strings.Repeat("x", 5000)) // more than one read
		if r.URL.Path == "/chunked" {
			w.(http.Flusher).Flush()
			fmt.Fprint(w, "more")
		}
	}))
	defer s.Close()
	out := loadOf(t, "-c", "2", "-qps", "0", "-n", "20", "-loglevel", "Warning", s.URL+"/fail")
	wantLines(t, out, "Code 200 : 15 (75.0 %)", "Code 503 : 5 (25.0 %)")
	if !strings.Contains(out, "Parsed non ok code 503 (HTTP/1.1 503)") || !strings.Contains(out, "All done 20 calls (plus 0 warmup)") {
		t.Errorf("it says\n%s", out)
	}
	// Each failure costs a socket, but one that is a thread's last call.
	if !strings.Contains(out, "Sockets used: 7 (for perfect keepalive, would be 2)") && !strings.Contains(out, "Sockets used: 6 (for") && !strings.Contains(out, "Sockets used: 5 (for") {
		t.Errorf("it says\n%s", out)
	}
	wantLines(t, loadOf(t, "-c", "3", "-qps", "0", "-n", "10", s.URL), "Code 200 : 10 (100.0 %)", "Sockets used: 3 (for perfect keepalive, would be 3)")
	wantLines(t, loadOf(t, "-c", "1", "-qps", "0", "-n", "10", s.URL+"/chunked"), "Code 200 : 10 (100.0 %)", "Sockets used: 1 (for perfect keepalive, would be 1)")
	wantLines(t, loadOf(t, "-c", "1", "-qps", "0", "-n", "10", s.URL+"/teapot"), "Code 418 : 10 (100.0 %)", "Sockets used: 1 (for perfect keepalive, would be 1)")
	wantLines(t, loadOf(t, "-c", "1", "-qps", "0", "-n", "5", s.URL+"/close"), "Code 200 : 5 (100.0 %)", "Sockets used: 5 (for perfect keepalive, would be 1)")
	wantLines(t, loadOf(t, "-c", "1", "-qps", "0", "-n", "5", "-keepalive=false", s.URL), "Code 200 : 5 (100.0 %)", "Sockets used: 5 (for perfect keepalive, would be 1)")
	start := time.Now()
	wantLines(t, loadOf(t, "-c", "2", "-qps", "100", "-n", "10", s.URL), "Code 200 : 10 (100.0 %)")
	if d := time.Since(start); d < 70*time.Millisecond {
		t.Errorf("ten calls at 100 a second took %s", d)
	}
	if out := loadOf(t, "-c", "2", "-qps", "0", "-t", "50ms", s.URL); !strings.Contains(out, "(plus 2 warmup)") {
		t.Errorf("it says\n%s", out)
	}
	wantLines(t, loadOf(t, "-c", "1", "-qps", "0", "-n", "2", "http://127.0.0.1:"+freePort(t)), "Code  -1 : 2 (100.0 %)")
}

// TestFortioIdleClosed: a connection that the server closed between two calls is opened anew, once, without a failure.
func TestFortioIdleClosed(t *testing.T) {
	addr := lineServer(t, func(c net.Conn) {
		if req, err := http.ReadRequest(bufio.NewReader(c)); err == nil && req.Host != "" {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	wantLines(t, loadOf(t, "-c", "1", "-qps", "0", "-n", "5", "http://"+addr+"/"), "Code 200 : 5 (100.0 %)", "Sockets used: 5 (for perfect keepalive, would be 1)")
}

func TestFortioRequest(t *testing.T) {
	c, err := parseFortio([]string{"-H", "end-user: jason", "-H", "Host: other", "-payload", "hi", "-keepalive=false", "-quiet", "httpbin:8000/get?a=1"})
	if err != nil {
		t.Fatal(err)
	}
	want := "POST /get?a=1 HTTP/1.1\r\nHost: other\r\nConnection: close\r\nEnd-User: jason\r\nUser-Agent: fortio.org/fortio-1.3.1\r\nContent-Length: 2\r\n\r\nhi"
	if got := string(c.request()); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, bad := range [][]string{{}, {"a", "b"}, {"https://x"}, {"-c", "0", "x"}, {"-H", "x", "y"}, {"-n", "-1", "x"}, {"http://"}} {
		if _, err := parseFortio(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestFortioEcho(t *testing.T) {
	s := httptest.NewServer(fortioHandler(func() float64 { return 0.5 }))
	defer s.Close()
	for _, c := range []struct {
		path, body string
		code       int
		want       string
	}{
		{"/echo", "hi", 200, "hi"},
		{"/echo?status=503", "", 503, ""},
		{"/echo?status=503:60", "", 503, ""},
		{"/echo?status=503:40", "", 200, ""},
		{"/echo?status=503:30,404:30", "", 404, ""},
		{"/echo?status=9", "", 400, ""},
		{"/echo?size=3&delay=1ms", "", 200, "xxx"},
		{"/debug", "body", 200, "X-B3-Traceid: abc"},
	} {
		res, body := get(t, "POST", s.URL+c.path, c.body)
		if res.StatusCode != c.code || !strings.Contains(body, c.want) {
			t.Errorf("%s: %d %q", c.path, res.StatusCode, body)
		}
	}
	res, _ := get(t, "GET", s.URL+"/echo?header=a:b&close=true", "")
	if res.Header.Get("A") != "b" || !res.Close {
		t.Errorf("headers are %v", res.Header)
	}
}
