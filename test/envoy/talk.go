package envoy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// talk is a conversation of HTTP/1.1 through a proxy, in the words of the client and of the host. A step is what is written ("> text"; HOST is
// replaced by the authority), what is read ("< 5": so many bytes; "< end": all there is; of clients "< answer", or "< start" and "< body"; of hosts
// "< head" and "< body"), or "shut" (the end of one direction), "close", "pause"; at "hear" a client waits for the host's "tell".
type talk struct {
	name         string
	route        string // what its route says beside the cluster
	connect      bool   // CONNECT has a route
	client, host []string
}

const (
	quiet     = 1500 * time.Millisecond // "< end" takes a connection without a byte so long for open
	talkLimit = 15 * time.Second
	pause     = 400 * time.Millisecond
)

// speaker is one side of a conversation, which notes what it reads.
type speaker struct {
	conn   net.Conn
	r      *bufio.Reader
	host   string // authority
	method string // of the last request
	resp   *http.Response
	asked  asked
	over   chan struct{} // closed at the end
	told   chan struct{} // by the host
	mu     sync.Mutex    // protects noted
	noted  []string
}

func (s *speaker) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noted = append(s.noted, fmt.Sprintf(format, args...))
}

// all is what it has noted so far.
func (s *speaker) all() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.noted)
}

// run takes the steps; what fails is noted and ends it.
func (s *speaker) run(steps []string) {
	defer close(s.over)
	defer s.conn.Close()
	if err := s.conn.SetDeadline(time.Now().Add(talkLimit)); err != nil {
		s.note("%v", err)
		return
	}
	for _, step := range steps {
		if err := s.step(step); err != nil {
			s.note("%s: %s", strings.Fields(step)[0], ending(err))
			return
		}
	}
}

// ending is an error without what tells two proxies apart.
func ending(err error) string {
	var ne net.Error
	switch {
	case errors.As(err, &ne) && ne.Timeout():
		return "nothing comes"
	case broken(err), errors.Is(err, net.ErrClosed), strings.Contains(err.Error(), "broken pipe"):
		return "ended"
	}
	return err.Error()
}

func (s *speaker) step(step string) error {
	if text, ok := strings.CutPrefix(step, "> "); ok {
		s.method, _, _ = strings.Cut(text, " ")
		_, err := io.WriteString(s.conn, strings.ReplaceAll(text, "HOST", s.host))
		return err
	}
	switch step {
	case "shut":
		return s.conn.(interface{ CloseWrite() error }).CloseWrite()
	case "close":
		return s.conn.Close()
	case "pause":
		<-time.After(pause)
		return nil
	case "tell":
		s.told <- struct{}{}
		return nil
	case "hear":
		select {
		case <-s.told:
			return nil
		case <-time.After(talkLimit):
			return errors.New("the host does not come so far")
		}
	case "< end":
		return s.end()
	case "< head":
		var err error
		if s.asked, err = head1(s.r, ""); err == nil {
			a := s.asked
			if strings.Contains(strings.ToLower(a.header.Get("Connection")), "upgrade") {
				a.header.Set("Connection", "upgrade") // docs/envoy.md, 8
			}
			s.note("%s %s %s %q", a.Method, a.Target, a.Authority, without(Fields(a.header), "x-request-id", "x-envoy-internal", "x-envoy-expected-rq-timeout-ms"))
		}
		return err
	case "< body":
		return s.body()
	case "< start":
		return s.start()
	case "< answer":
		if err := s.start(); err != nil || s.resp.StatusCode < 200 || s.tunnel() {
			return err
		}
		return s.body()
	}
	n, err := strconv.Atoi(strings.TrimPrefix(step, "< "))
	if err != nil {
		return err
	}
	b := make([]byte, n)
	n, err = io.ReadFull(s.r, b)
	s.note("%q", b[:n])
	return err
}

// tunnel reports whether the answer makes the connection one, as CONNECT does.
func (s *speaker) tunnel() bool { return s.method == http.MethodConnect && s.resp.StatusCode/100 == 2 }

// start reads the head of an answer.
func (s *speaker) start() (err error) {
	if s.resp, err = http.ReadResponse(s.r, &http.Request{Method: s.method}); err == nil {
		for _, f := range volatile {
			s.resp.Header.Del(f)
		}
		if s.tunnel() {
			s.resp.Close = false // it means nothing there
		}
		s.note("%d %q close=%v", s.resp.StatusCode, Fields(s.resp.Header), s.resp.Close)
	}
	return err
}

// body reads that of the answer, or of the request.
func (s *speaker) body() error {
	if s.resp == nil {
		err := s.asked.body1(s.r)
		s.note("%q %q", s.asked.Body, s.asked.Trailers)
		return err
	}
	b, err := io.ReadAll(s.resp.Body)
	s.note("%q %q", b, Fields(s.resp.Trailer))
	return err
}

// end reads until nothing comes.
func (s *speaker) end() error {
	if err := s.conn.SetReadDeadline(time.Now().Add(quiet)); err != nil {
		return err
	}
	b, err := io.ReadAll(s.r)
	is := "ended"
	if err != nil {
		is = ending(err)
	}
	s.note("%q %s", b, is)
	return s.conn.SetReadDeadline(time.Now().Add(talkLimit))
}

// talkers are the hosts of conversations, one each on a unix socket; what they noted is kept by conversation, for each connection.
type talkers struct {
	wait  sync.WaitGroup
	mu    sync.Mutex // protects below
	noted map[string][]*speaker
	told  map[string]chan struct{}
}

func newTalkers() *talkers {
	return &talkers{noted: map[string][]*speaker{}, told: map[string]chan struct{}{}}
}

// listen serves the host of a conversation and returns its path.
func (h *talkers) listen(t testing.TB, dir string, k talk) string {
	t.Helper()
	path := filepath.Join(dir, k.name)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	told := make(chan struct{}, 16)
	h.told[k.name] = told
	h.wait.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s := &speaker{conn: conn, r: bufio.NewReader(conn), over: make(chan struct{}), told: told}
			h.mu.Lock()
			h.noted[k.name] = append(h.noted[k.name], s)
			h.mu.Unlock()
			h.wait.Go(func() { s.run(k.host) })
		}
	})
	return path
}

// call takes the client's part.
func (h *talkers) call(to netip.AddrPort, k talk) []string {
	conn, err := net.Dial("tcp", to.String())
	if err != nil {
		return []string{err.Error()}
	}
	s := &speaker{conn: conn, r: bufio.NewReader(conn), host: k.name + ".test", over: make(chan struct{}), told: h.told[k.name]}
	s.run(k.client)
	return s.all()
}

// settle waits for the hosts to end, so long at most.
func (h *talkers) settle(limit time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for _, list := range h.noted {
		for _, s := range list {
			select {
			case <-s.over:
			case <-timer.C:
				return
			}
		}
	}
}
