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
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	cluster "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"golang.org/x/net/http2"
)

// Seen is what an upstream saw of a request.
type Seen struct {
	Cluster, Method, Target, Authority string
	Fields                             []string // "name: value" with the values of a name joined, sorted
	Body                               string
	Trailers                           []string `json:",omitempty"`
	Two                                bool     `json:",omitempty"` // over HTTP/2
}

// Echoes are upstreams that answer with the name of their cluster, and with what they saw as JSON in x-seen. The request says
// more: x-echo-status is the status, x-echo-field and x-echo-trailer ("name: value; name: value") are fields and trailers of the
// answer, x-echo-wait how long it takes, and x-echo-do what goes wrong (see mishap). They speak HTTP/1.1 and HTTP/2 as they are spoken to, and take nearly
// any request, as they are no test of a server.
type Echoes struct {
	wait    sync.WaitGroup
	steps   map[mishap][]step
	mu      sync.Mutex // protects below
	open    map[net.Conn]bool
	arrived map[string][]Seen // by x-case
	when    map[string][]time.Time
}

// newEchoes makes upstreams that end with the test.
func newEchoes(t testing.TB) *Echoes {
	e := &Echoes{steps: steps2(), open: map[net.Conn]bool{}, arrived: map[string][]Seen{}, when: map[string][]time.Time{}}
	t.Cleanup(func() { e.close(); e.wait.Wait() })
	return e
}

// Echo serves an upstream on a unix socket for each cluster, and makes the clusters that lead there.
func Echo(t testing.TB, names []string, form func(name, path string) *cluster.Cluster) (*Echoes, []*cluster.Cluster) {
	t.Helper()
	dir, err := os.MkdirTemp("", "echo") // short: a unix socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	e := newEchoes(t)
	var specs []*cluster.Cluster
	for i, name := range names {
		path := filepath.Join(dir, strconv.Itoa(i))
		e.listen(t, "unix", path, name)
		specs = append(specs, form(name, path))
	}
	return e, specs
}

// listen serves one upstream and returns its address.
func (e *Echoes) listen(t testing.TB, network, addr, cluster string) net.Addr {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	e.wait.Go(func() { e.serve(l, cluster) })
	t.Cleanup(func() { _ = l.Close() })
	return l.Addr()
}

func (e *Echoes) serve(l net.Listener, cluster string) {
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
			if start, err := r.Peek(len(http2.ClientPreface)); err == nil && string(start) == http2.ClientPreface {
				e.serve2(r, c, cluster)
			} else {
				for e.answer(r, c, cluster) == nil {
				}
			}
			_ = c.Close()
			e.mu.Lock()
			delete(e.open, c)
			e.mu.Unlock()
		})
	}
}

func (e *Echoes) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for c := range e.open {
		_ = c.Close()
	}
}

// Arrived is what came of a request.
func (e *Echoes) Arrived(number string) []Seen {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.arrived[number])
}

// Times are when it came.
func (e *Echoes) Times(number string) []time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.when[number])
}

// asked is a request as it came to an upstream.
type asked struct {
	Seen
	header http.Header
}

// said is the answer to it.
type said struct {
	status                 int
	fields, trailers       []string // "name: value"
	body                   string
	mishap                 mishap
	steps                  []step // of the mishap over HTTP/2; nil: it has none
	bodyless, keptToItself bool   // the status has no body; the method is HEAD
}

// say notes a request and makes its answer.
func (e *Echoes) say(q asked) (said, error) {
	q.Fields = Fields(q.header)
	text, err := json.Marshal(q.Seen)
	if err != nil {
		return said{}, err
	}
	number := q.header.Get("X-Case")
	e.mu.Lock()
	e.arrived[number], e.when[number] = append(e.arrived[number], q.Seen), append(e.when[number], time.Now())
	e.mu.Unlock()
	if d, err := time.ParseDuration(q.header.Get("X-Echo-Wait")); err == nil {
		<-time.After(d)
	}
	a := said{body: q.Cluster, fields: []string{"content-type: text/echo", "x-seen: " + string(text)}, keptToItself: q.Method == http.MethodHead}
	if a.status, err = strconv.Atoi(q.header.Get("X-Echo-Status")); err != nil {
		a.status = http.StatusOK
	}
	a.bodyless = a.status == http.StatusNoContent || a.status == http.StatusNotModified
	a.fields = append(a.fields, list(q.header.Get("X-Echo-Field"))...)
	a.trailers = list(q.header.Get("X-Echo-Trailer"))
	if a.mishap, err = mishapOf(q.header); err != nil {
		return a, err
	}
	a.steps = e.steps[a.mishap]
	return a, a.answer()
}

// list reads "name: value; name: value".
func list(text string) (out []string) {
	for _, f := range strings.Split(text, "; ") {
		if strings.Contains(f, ": ") {
			out = append(out, f)
		}
	}
	return out
}

// head1 reads the head of a request of HTTP/1.1.
func head1(r *bufio.Reader, cluster string) (q asked, err error) {
	line, err := textproto.NewReader(r).ReadLine()
	if err != nil {
		return q, err
	}
	method, rest, _ := strings.Cut(line, " ")
	target, _, ok := strings.Cut(rest, " ")
	if !ok {
		return q, errors.New("bad request line")
	}
	h, err := textproto.NewReader(r).ReadMIMEHeader()
	if err != nil {
		return q, err
	}
	q.header = http.Header(h)
	q.Seen = Seen{Cluster: cluster, Method: method, Target: target, Authority: h.Get("Host")}
	h.Del("Host")
	return q, nil
}

// body1 reads the rest of it.
func (q *asked) body1(r *bufio.Reader) error {
	h := q.header
	chunked := strings.EqualFold(h.Get("Transfer-Encoding"), "chunked")
	var from io.Reader = strings.NewReader("")
	if chunked {
		from = httputil.NewChunkedReader(r)
	} else if n, err := strconv.ParseInt(h.Get("Content-Length"), 10, 64); err == nil {
		from = io.LimitReader(r, n)
	}
	body, err := io.ReadAll(from)
	if err != nil {
		return err
	}
	q.Body = string(body)
	if chunked {
		trailer, err := textproto.NewReader(r).ReadMIMEHeader()
		if err != nil {
			return err
		}
		if len(trailer) > 0 {
			q.Trailers = Fields(http.Header(trailer))
		}
	}
	return nil
}

// answer serves one request of HTTP/1.1.
func (e *Echoes) answer(r *bufio.Reader, w net.Conn, cluster string) error {
	q, err := head1(r, cluster)
	if err != nil {
		return err
	}
	early, err := mishapOf(q.header)
	if err != nil {
		return err
	}
	if early.early() {
		if err := e.answer1(q, w); err != nil {
			return err
		}
	}
	if err := q.body1(r); err != nil || early.early() {
		return err
	}
	return e.answer1(q, w)
}

func (e *Echoes) answer1(q asked, w net.Conn) error {
	a, err := e.say(q)
	if err != nil {
		return err
	}
	if a.mishap != none {
		return a.fail1(w)
	}
	_, err = io.WriteString(w, a.text1())
	return err
}

// text1 is the answer in HTTP/1.1.
func (a said) text1() string {
	out := fmt.Sprintf("HTTP/1.1 %d Echo\r\n%s\r\n", a.status, strings.Join(a.fields, "\r\n"))
	switch {
	case a.bodyless:
		return out + "\r\n"
	case a.keptToItself:
		return out + fmt.Sprintf("content-length: %d\r\n\r\n", len(a.body))
	case len(a.trailers) == 0:
		return out + fmt.Sprintf("content-length: %d\r\n\r\n%s", len(a.body), a.body)
	}
	return out + fmt.Sprintf("transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n%s\r\n\r\n", len(a.body), a.body, strings.Join(a.trailers, "\r\n"))
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
