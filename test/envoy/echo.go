package envoy

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/textproto"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Seen is what an upstream saw of a request.
type Seen struct {
	Cluster, Method, Target, Authority string
	Fields                             []string // "name: value" with the values of a name joined, sorted
	Body                               string
}

// Echo serves, for each cluster, an upstream on a unix socket that answers with its name, and with what it saw as JSON in x-seen.
// The request says more: x-echo-status is the status, x-echo-wait how long the answer takes, and x-echo-field ("name: value; name: value") are fields of the answer.
// It takes nearly any request line, as it is no test of a server. It ends with the test.
func Echo(t testing.TB, dir string, clusters []string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for i, name := range clusters {
		path := filepath.Join(dir, "e"+strconv.Itoa(i))
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		e := &echo{cluster: name, open: map[net.Conn]bool{}}
		e.wait.Go(func() { e.serve(l) })
		t.Cleanup(func() { _ = l.Close(); e.close(); e.wait.Wait() })
		out[name] = path
	}
	return out
}

type echo struct {
	cluster string
	wait    sync.WaitGroup
	mu      sync.Mutex // protects open
	open    map[net.Conn]bool
}

func (e *echo) serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		e.mu.Lock()
		e.open[c] = true
		e.mu.Unlock()
		e.wait.Go(func() {
			r := bufio.NewReader(c)
			for e.answer(r, c) == nil {
			}
			_ = c.Close()
			e.mu.Lock()
			delete(e.open, c)
			e.mu.Unlock()
		})
	}
}

func (e *echo) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for c := range e.open {
		_ = c.Close()
	}
}

// answer serves one request.
func (e *echo) answer(r *bufio.Reader, w io.Writer) error {
	line, err := textproto.NewReader(r).ReadLine()
	if err != nil {
		return err
	}
	method, rest, _ := strings.Cut(line, " ")
	target, _, ok := strings.Cut(rest, " ")
	if !ok {
		return errors.New("bad request line")
	}
	h, err := textproto.NewReader(r).ReadMIMEHeader()
	if err != nil {
		return err
	}
	var from io.Reader = strings.NewReader("")
	if strings.EqualFold(h.Get("Transfer-Encoding"), "chunked") {
		from = httputil.NewChunkedReader(r)
	} else if n, err := strconv.ParseInt(h.Get("Content-Length"), 10, 64); err == nil {
		from = io.LimitReader(r, n)
	}
	body, err := io.ReadAll(from)
	if err != nil {
		return err
	}
	if from, ok := from.(*io.LimitedReader); !ok || from.N > 0 {
		if h.Get("Transfer-Encoding") != "" { // no trailers are sent here
			_, _ = textproto.NewReader(r).ReadLine()
		}
	}
	seen := Seen{Cluster: e.cluster, Method: method, Target: target, Authority: h.Get("Host"), Body: string(body)}
	h.Del("Host")
	seen.Fields = Fields(http.Header(h))
	text, err := json.Marshal(seen)
	if err != nil {
		return err
	}
	if d, err := time.ParseDuration(h.Get("X-Echo-Wait")); err == nil {
		<-time.After(d)
	}
	status, err := strconv.Atoi(h.Get("X-Echo-Status"))
	if err != nil {
		status = http.StatusOK
	}
	out := fmt.Sprintf("HTTP/1.1 %d Echo\r\ncontent-type: text/echo\r\nx-seen: %s\r\n", status, text)
	for _, f := range strings.Split(h.Get("X-Echo-Field"), "; ") {
		if strings.Contains(f, ": ") {
			out += f + "\r\n"
		}
	}
	if status == http.StatusNoContent || status == http.StatusNotModified {
		_, err = io.WriteString(w, out+"\r\n")
		return err
	}
	out += fmt.Sprintf("content-length: %d\r\n\r\n", len(e.cluster))
	if method != http.MethodHead {
		out += e.cluster
	}
	_, err = io.WriteString(w, out)
	return err
}

// Fields are those of h in a form that does not depend on their order or on how several values of a name are divided into
// lines.
func Fields(h http.Header) []string {
	out := []string{}
	for _, n := range slices.Sorted(maps.Keys(h)) {
		by := ","
		if n == "Cookie" {
			by = "; "
		}
		out = append(out, strings.ToLower(n)+": "+strings.Join(h[n], by))
	}
	return out
}
