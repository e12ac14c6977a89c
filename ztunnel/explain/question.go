package explain

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"

	engine "github.com/undermesh/undermesh/ztunnel/http"
	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// Question is a request that a pod could make.
type Question struct {
	Namespace string   `json:"namespace"`
	Pod       string   `json:"pod"`
	Method    string   `json:"method"`
	URL       string   `json:"url"`               // http:// or https://
	Headers   []string `json:"headers,omitempty"` // "name: value"; Host overrides the URL's
	Address   string   `json:"address,omitempty"` // IP:PORT that is dialled; "": where the name of the URL leads to
}

// asked is a Question that was read.
type asked struct {
	req  *head.Request
	tls  bool           // the pod speaks TLS itself: nothing of the request is seen
	sni  string         // of that
	host string         // of the URL, without brackets
	port uint16         // that is dialled
	addr netip.AddrPort // that is dialled; zero: where host leads to
}

// Bounds of a question, in bytes and fields.
const (
	maxURL     = 8 << 10
	maxHeaders = 200
)

// read checks a question. Its errors name what is wrong.
func (q Question) read() (asked, error) {
	if len(q.URL) > maxURL {
		return asked{}, fmt.Errorf("url: longer than %d bytes", maxURL)
	}
	u, err := url.Parse(q.URL)
	switch {
	case err != nil:
		return asked{}, fmt.Errorf("url: %w", err)
	case u.Scheme != "http" && u.Scheme != "https":
		return asked{}, fmt.Errorf("url %q: the scheme is neither http nor https", q.URL)
	case u.Hostname() == "":
		return asked{}, fmt.Errorf("url %q: no host", q.URL)
	}
	a := asked{tls: u.Scheme == "https", sni: u.Hostname(), host: u.Hostname(), port: 80}
	if a.tls {
		a.port = 443
	}
	if p := u.Port(); p != "" {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return asked{}, fmt.Errorf("url: %q is not a port", p)
		}
		a.port = uint16(n)
	}
	if a.addr, err = q.dialled(a); err != nil {
		return asked{}, err
	}
	if a.req, err = q.head(u); err != nil {
		return asked{}, err
	}
	return a, nil
}

// dialled is the address that the question names, in its own field or in the URL.
func (q Question) dialled(a asked) (netip.AddrPort, error) {
	if q.Address != "" {
		at, err := netip.ParseAddrPort(q.Address)
		if err != nil {
			return at, fmt.Errorf("address: %w", err)
		}
		return netip.AddrPortFrom(at.Addr().Unmap(), at.Port()), nil
	}
	if ip, err := netip.ParseAddr(a.host); err == nil {
		return netip.AddrPortFrom(ip.Unmap(), a.port), nil
	}
	return netip.AddrPort{}, nil
}

// head is the request as the proxy has it after the codec.
func (q Question) head(u *url.URL) (*head.Request, error) {
	method := q.Method // its case counts
	if method == "" {
		method = http.MethodGet
	}
	if !httpguts.ValidHeaderFieldName(method) {
		return nil, fmt.Errorf("method: %q is not one", q.Method)
	}
	r := &head.Request{}
	r.Reset(nil)
	r.Method, r.Scheme, r.Major, r.Minor = []byte(method), []byte("http"), 1, 1
	r.Authority = []byte(u.Host)
	if len(q.Headers) > maxHeaders {
		return nil, fmt.Errorf("headers: more than %d", maxHeaders)
	}
	for _, h := range q.Headers {
		name, value, ok := strings.Cut(h, ":")
		value = strings.Trim(value, " \t")
		switch {
		case !ok:
			return nil, fmt.Errorf("header %q: want NAME: VALUE", h)
		case !httpguts.ValidHeaderFieldName(name):
			return nil, fmt.Errorf("header %q: the name is none", h)
		case !httpguts.ValidHeaderFieldValue(value):
			return nil, fmt.Errorf("header %q: the value is none", h)
		case strings.EqualFold(name, "host"):
			r.Authority = []byte(value)
			continue
		}
		r.Add(head.IDOf([]byte(name)), name, []byte(value))
	}
	path, ok := engine.CanonicalPath([]byte(u.RequestURI()), engine.PathsBase)
	if !ok {
		return nil, errors.New("url: the proxy refuses its path")
	}
	r.Path = path
	return r, nil
}

// onPort is the address with the port, as an authority has it.
func onPort(host string, port uint16) string { return net.JoinHostPort(host, strconv.Itoa(int(port))) }
