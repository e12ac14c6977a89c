package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

func get(t *testing.T, method, url, body string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("x-b3-traceid", "abc")
	req.Header.Set("User-Agent", "curl/7.35.0")
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}

func TestHTTPBin(t *testing.T) {
	var log bytes.Buffer
	s := httptest.NewServer(accessLog(&log, httpbinHandler()))
	defer s.Close()
	for _, c := range []struct {
		method, path, body string
		code               int
		want               string // regular expression for the body
	}{
		{"GET", "/status/418", "", 418, `-=\[ teapot \]=-`},
		{"GET", "/status/503", "", 503, `^$`},
		{"GET", "/status/204", "", 204, `^$`},
		{"GET", "/status/500:0,201:1", "", 201, `^$`},
		{"GET", "/status/abc", "", 400, ``},
		{"GET", "/status/42", "", 400, ``},
		{"GET", "/headers", "", 200, `"X-B3-Traceid": "abc"`},
		{"GET", "/ip", "", 200, `^{\n  "origin": "127.0.0.1"\n}\n$`},
		{"GET", "/get?a=1&b=2&b=3", "", 200, `(?s)"a": "1".*"b": \[\s*"2",\s*"3"`},
		{"POST", "/get", "", 405, ``},
		{"GET", "/post", "", 405, ``},
		{"POST", "/post", `{"k":1}`, 200, `(?s)"data": "{\\"k\\":1}".*"json": {\s*"k": 1`},
		{"PUT", "/anything/x", "d", 200, `(?s)"method": "PUT".*"url": "http://[^"]*/anything/x"`},
		{"GET", "/delay/0.01", "", 200, `"url"`},
		{"GET", "/delay/-1", "", 404, ``},
		{"GET", "/nothing", "", 404, ``},
	} {
		res, body := get(t, c.method, s.URL+c.path, c.body)
		if res.StatusCode != c.code || !regexp.MustCompile(c.want).MatchString(body) {
			t.Errorf("%s %s: got %d %q, want %d %s", c.method, c.path, res.StatusCode, body, c.code, c.want)
		}
		if h := res.Header; !strings.HasPrefix(h.Get("Server"), "gunicorn/") || h.Get("Access-Control-Allow-Origin") != "*" ||
			h.Get("Access-Control-Allow-Credentials") != "true" {
			t.Errorf("%s %s: headers are %v", c.method, c.path, res.Header)
		}
	}
	if len(teapot) != 135 {
		t.Errorf("the teapot has %d bytes, not 135", len(teapot))
	}
	s.Close() // all lines are written when no request is under way
	line := regexp.MustCompile(`(?m)^127\.0\.0\.1 - - \[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] "GET /status/418 HTTP/1\.1" 418 135 "-" "curl/7\.35\.0"$`)
	if !line.Match(log.Bytes()) {
		t.Errorf("no line as gunicorn writes it in:\n%s", log.String())
	}
}

// lineServer answers each line through reply and returns its address.
func lineServer(t *testing.T, handle func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- accept(ctx, l, handle) }()
	t.Cleanup(func() { cancel(); l.Close(); <-done })
	return l.Addr().String()
}

// freePort returns a port that nobody has. It is none of those that clients get: who dials such a port before anyone listens on it
// may reach itself.
func freePort(t *testing.T) string {
	t.Helper()
	for range 100 {
		port := strconv.Itoa(10000 + rand.IntN(20000))
		l, err := net.Listen("tcp", ":"+port)
		if err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("there is no free port")
	return ""
}

func TestTCPEcho(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ports := []string{freePort(t), freePort(t)}
	ended := make(chan error, 1)
	go func() { ended <- tcpEcho(ctx, []string{strings.Join(ports, ","), "one"}) }()
	for _, port := range ports {
		conn := dial(t, "127.0.0.1:"+port)
		defer conn.Close()
		fmt.Fprint(conn, "world\nagain\n")
		r := bufio.NewReader(conn)
		for _, want := range []string{"one world\n", "one again\n"} {
			if got, err := r.ReadString('\n'); err != nil || got != want {
				t.Errorf("got %q, %v; want %q", got, err, want)
			}
		}
	}
	cancel() // with connections open
	if err := <-ended; err != nil {
		t.Error(err)
	}
	taken, err := net.Listen("tcp", ":"+ports[1])
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if err := tcpEcho(t.Context(), []string{strings.Join(ports, ","), "one"}); err == nil {
		t.Error("a port that is taken is no error")
	}
	if err := tcpEcho(t.Context(), []string{"9000"}); err == nil {
		t.Error("a missing prefix is accepted")
	}
}

// dial tries until the server listens.
func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			return conn
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// TestLoadSeesFailures: a load tool that reports none, whatever the server does, would make every test that uses it pass.
func TestLoadSeesFailures(t *testing.T) {
	echo := func(c net.Conn) {
		r := bufio.NewReader(c)
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			fmt.Fprint(c, "hello ", line)
		}
	}
	for _, c := range []struct {
		name   string
		handle func(net.Conn)
		op     string // of the failures, "" for none
	}{
		{"right answers", echo, ""},
		{"closes at once", func(net.Conn) {}, "read"},
		{"other answer", func(c net.Conn) { fmt.Fprint(c, "hello other\n"); _, _ = io.Copy(io.Discard, c) }, "check"},
		{"no answer", func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }, "read"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			args := []string{"-addr", lineServer(t, c.handle), "-long", "2", "-rate", "20", "-interval", "20ms", "-for", "300ms", "-timeout", "100ms"}
			err := load(t.Context(), &out, args)
			var r report
			if err := json.Unmarshal(out.Bytes(), &r); err != nil {
				t.Fatal(err)
			}
			if c.op == "" {
				if err != nil || r.Long.Failed+r.New.Failed != 0 || r.Long.OK < 4 || r.New.OK < 2 || r.Long.Started != 2 {
					t.Errorf("got %v, %s", err, out.String())
				}
				return
			}
			if err == nil || r.Long.Failed == 0 || r.New.Failed == 0 || r.Long.OK+r.New.OK > 0 {
				t.Fatalf("got %v, %s", err, out.String())
			}
			for _, f := range append(r.Long.Failures, r.New.Failures...) {
				if f.Op != c.op && f.Op != "write" {
					t.Errorf("failure is %+v, want op %s", f, c.op)
				}
			}
		})
	}
}

// TestReportFitsALine of a container's log, whatever failed.
func TestReportFitsALine(t *testing.T) {
	r := report{Long: &tally{}, New: &tally{}}
	for i := range keptFailures {
		r.Long.fail(i, 0, "read", errors.New(strings.Repeat("x", 150)))
		r.New.fail(i, 0, "status", errors.New(strings.Repeat("y", 300)))
	}
	b, err := r.line()
	var back report
	if err != nil || len(b) > maxLine+1 || json.Unmarshal(b, &back) != nil || len(back.Long.Failures) < 10 || len(back.New.Failures) < 10 || back.New.Failed != keptFailures {
		t.Errorf("%d bytes, %v, %d and %d failures", len(b), err, len(back.Long.Failures), len(back.New.Failures))
	}
}

func TestLoadRefusesBadArguments(t *testing.T) {
	for _, args := range [][]string{{}, {"-addr", "x:1"}, {"-long", "1"}, {"-rate", "1"}, {"-rate", "-1", "-addr", "x:1"}, {"-bogus"}} {
		if err := load(t.Context(), io.Discard, args); err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("arguments %q are accepted", args)
		}
	}
}
