package proxy

import (
	"bufio"
	"bytes"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"
)

// What is remembered of the redirects of one pod. kubelet follows at most 10 of them, at once.
const (
	maxRedirects = 16
	redirectLife = 10 * time.Second
)

// redirects are the requests that kubelet makes because the application answered a declared probe with a redirect to
// itself (kubelet follows those that keep the host name). The zero value is ready for use.
type redirects struct {
	mu    sync.Mutex
	until map[Probe]time.Time
}

func (r *redirects) follow(p Probe, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for old, until := range r.until {
		if until.Before(now) {
			delete(r.until, old)
		}
	}
	if r.until == nil {
		r.until = map[Probe]time.Time{}
	}
	if _, known := r.until[p]; known || len(r.until) < maxRedirects {
		r.until[p] = now.Add(redirectLife)
	}
}

func (r *redirects) expects(p Probe, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	until, ok := r.until[p]
	return ok && !until.Before(now)
}

// asDeclared returns the host of a request that says nothing but what kubelet adds of itself. Any pod can make kubelet ask
// for a declared path with headers of its choice, and an application may put these into a redirect: such an answer
// must not open another path.
func asDeclared(head []byte) (host string, ok bool) {
	lines := strings.Split(strings.TrimSuffix(string(head), "\r\n\r\n"), "\r\n")
	for _, line := range lines[1:] {
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch name = strings.ToLower(name); {
		case name == "host" && host == "":
			host = value
		case name == "user-agent" && strings.HasPrefix(value, "kube-"), name == "accept" && value == "*/*",
			name == "connection" && value == "close", name == "referer":
		default:
			return "", false
		}
	}
	return host, host != ""
}

// target returns what a client asks for next that got the answer whose first bytes are head; "" when it would not ask the
// same address again.
func nextTarget(host, asked string, head []byte) string {
	addr, err := netip.ParseAddrPort(host)
	if err != nil {
		a, err := netip.ParseAddr(strings.Trim(host, "[]"))
		if err != nil {
			return ""
		}
		addr = netip.AddrPortFrom(a, 80)
	}
	resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(head)), &http.Request{Method: http.MethodGet})
	if err != nil {
		return ""
	}
	switch _ = resp.Body.Close(); resp.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
	default:
		return ""
	}
	base, err := url.Parse("http://" + addr.String() + asked)
	if err != nil {
		return ""
	}
	to, err := base.Parse(resp.Header.Get("Location"))
	if err != nil || to.Scheme != "http" || to.User != nil {
		return ""
	}
	switch to.Host {
	case addr.String():
	case host:
	default:
		return ""
	}
	return to.RequestURI()
}

// answer is the application's side of a probe. It looks at the head of what the application says first.
type answer struct {
	side
	learn func(head []byte)
	head  []byte
}

// Read implements net.Conn.
func (a *answer) Read(p []byte) (int, error) {
	n, err := a.Conn.Read(p)
	if a.learn == nil {
		return n, err
	}
	a.head = append(a.head, p[:min(n, maxProbeHead-len(a.head))]...)
	if end := bytes.Index(a.head, []byte("\r\n\r\n")); end >= 0 {
		a.learn(a.head[:end+4]) // before the client sees it
		a.learn, a.head = nil, nil
	} else if len(a.head) == maxProbeHead || err != nil {
		a.learn, a.head = nil, nil
	}
	return n, err
}

// side is one side of a connection whose reads are looked at.
type side struct{ net.Conn }

// CloseWrite passes a half-close on.
func (c side) CloseWrite() error { closeWrite(c.Conn); return nil }

// SetLinger makes the close a reset.
func (c side) SetLinger(sec int) error {
	if l, ok := c.Conn.(interface{ SetLinger(int) error }); ok {
		return l.SetLinger(sec)
	}
	return nil
}
