package sniff

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

func TestDetect(t *testing.T) {
	long := "GET /" + strings.Repeat("a", MaxBytes)
	for in, want := range map[string]struct {
		p    Protocol
		sure bool
	}{
		"":                            {TCP, false},
		"G":                           {TCP, false},
		"GET":                         {TCP, false},
		"GET / HTTP":                  {TCP, false},
		"GET / HTTP/1.1\r\n":          {HTTP1, true},
		"GET / HTTP/1.0\nHost: a":     {HTTP1, true},
		"M-SEARCH * HTTP/1.1\r\n":     {HTTP1, true},
		"CONNECT a:443 HTTP/1.1\r\n":  {HTTP1, true},
		"GET http://a/ HTTP/1.1\r\nX": {HTTP1, true},
		"GET key\r\n":                 {TCP, true}, // Redis
		// what some server takes for HTTP
		"GET  / HTTP/1.1\r\n":      {HTTP1, true},
		" GET\t/ HTTP/1.1 \r\n":    {HTTP1, true},
		"GET /a b HTTP/1.1\r\n":    {HTTP1, true},
		"GET / HTTP/2.0\r\n":       {HTTP1, true},
		"get / HTTP/1.1\r\n":       {HTTP1, true},
		"\r\n":                     {TCP, false},
		"\r\n\nGET / HTTP/1.1\r\n": {HTTP1, true},
		"GET /\x00":                {TCP, true},  // no text
		"PRI * HTTP/2.0\r\n":       {TCP, false}, // so far
		preface:                    {HTTP2, true},
		preface + "\x00\x00":       {HTTP2, true},
		"PRI * HTTP/1.1\r\n":       {HTTP1, true},
		"PRI * HTTP/2.0\r\n\r\nXX": {HTTP1, true},
		"SSH-2.0-x\r\n":            {TCP, true},
		"\x16":                     {TLS, false},
		"\x16\x03\x01\x00\x00":     {TCP, true},
		"\x16\x02":                 {TCP, true},
		"\x00":                     {TCP, true},
		strings.Repeat("A", 33):    {TCP, false},
		long:                       {TCP, true},
		long[:100]:                 {TCP, false},
	} {
		if p, sure := Detect([]byte(in)); p != want.p || sure != want.sure {
			t.Errorf("%.40q is %v, sure %v; want %v, %v", in, p, sure, want.p, want.sure)
		}
	}
}

// hello is what crypto/tls sends first.
func hello(t testing.TB, cfg *tls.Config) []byte {
	t.Helper()
	near, far := net.Pipe()
	go func() { _ = tls.Client(near, cfg).Handshake(); _ = near.Close() }()
	defer far.Close()
	b := make([]byte, 0, MaxHello)
	for {
		n, err := far.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if whole, bad := WholeHello(b); whole || bad != nil || err != nil {
			return b
		}
	}
}

// split cuts the one record of a hello into records of n bytes.
func split(hello []byte, n int) (out []byte) {
	for b := hello[recordHeader:]; len(b) > 0; {
		part := b[:min(n, len(b))]
		out = append(append(out, typeHandshake, 3, 1, byte(len(part)>>8), byte(len(part))), part...)
		b = b[len(part):]
	}
	return out
}

func TestServerName(t *testing.T) {
	for name, want := range map[string]string{
		"en.Wikipedia.org": "en.wikipedia.org", "": "", "a.b.": "a.b", "10.0.0.1": "", // RFC 6066: no addresses
	} {
		b := hello(t, &tls.Config{ServerName: name, InsecureSkipVerify: true}) //nolint:gosec // nobody is verified
		if got := ServerName(b); got != want {
			t.Errorf("name of a hello for %q is %q", name, got)
		}
		if got := ServerName(split(b, 7)); got != want {
			t.Errorf("name of a hello for %q in small records is %q", name, got)
		}
		if p, sure := Detect(b); p != TLS || !sure {
			t.Errorf("a hello is %v, sure %v", p, sure)
		}
		for n := range b {
			if got := ServerName(b[:n]); got != "" {
				t.Errorf("%d of %d bytes name %q", n, len(b), got)
			}
			if p, sure := Detect(b[:n]); n > 0 && (p != TLS || sure) {
				t.Errorf("%d of %d bytes are %v, sure %v", n, len(b), p, sure)
			}
		}
	}
}

// answer is the server's view of a hello: what crypto/tls finds in it.
func answer(b []byte) (name string, err error) {
	found := errors.New("found")
	srv := tls.Server(&bytesConn{r: bytes.NewReader(b)}, &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) { //nolint:gosec // no handshake happens
		name = h.ServerName
		return nil, found
	}})
	if err = srv.Handshake(); errors.Is(err, found) {
		err = nil
	}
	return name, err
}

type bytesConn struct {
	net.Conn
	r io.Reader
}

func (c *bytesConn) Read(p []byte) (int, error)      { return c.r.Read(p) }
func (c *bytesConn) Write(p []byte) (int, error)     { return len(p), nil }
func (c *bytesConn) Close() error                    { return nil }
func (c *bytesConn) SetDeadline(time.Time) error     { return nil }
func (c *bytesConn) SetReadDeadline(time.Time) error { return nil }
func (c *bytesConn) RemoteAddr() net.Addr            { return &net.TCPAddr{} }
func (c *bytesConn) LocalAddr() net.Addr             { return &net.TCPAddr{} }

// FuzzServerName: what crypto/tls takes for a hello names the same server here, so that nobody is routed by one name and served by
// another.
func FuzzServerName(f *testing.F) {
	for _, name := range []string{"a.example", "", "x"} {
		b := hello(f, &tls.Config{ServerName: name, InsecureSkipVerify: true}) //nolint:gosec // nobody is verified
		f.Add(b)
		f.Add(split(b, 40))
		f.Add(append(b, "more"...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got := ServerName(b)
		p, sure := Detect(b)
		if again, _ := Detect(b[:len(b)/2]); !sure && p == HTTP2 || p == HTTP1 && again == TLS {
			t.Errorf("%q is %v, its first half %v", b, p, again)
		}
		name, err := answer(b)
		if err != nil || len(b) >= MaxHello {
			return
		}
		if want := hostname([]byte(name)); got != want {
			t.Errorf("%q names %q, to crypto/tls %q", b, got, name)
		}
	})
}

// FuzzDetect: more bytes never change what is sure.
func FuzzDetect(f *testing.F) {
	for _, s := range []string{"GET / HTTP/1.1\r\nHost: a\r\n\r\n", preface + "\x00", "\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", "SSH-2.0-a\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > MaxBytes/2 {
			return
		}
		last, was := TCP, false
		for n := range len(b) + 1 {
			p, sure := Detect(b[:n])
			if was && (p != last || !sure) {
				// records after a hello are the client's business
				if last == TLS {
					return
				}
				t.Fatalf("%q was surely %v and is %v, sure %v, with %d bytes", b, last, p, sure, n)
			}
			last, was = p, sure
		}
	})
}

func FuzzWholeHello(f *testing.F) {
	hello := append([]byte{1, 0, 0, 3}, "abc"...)
	one := append([]byte{22, 3, 1, 0, byte(len(hello))}, hello...)
	f.Add(one)
	f.Add(append([]byte{22, 3, 1, 0, 1, 1, 22, 3, 1, 0, byte(len(hello) - 1)}, hello[1:]...))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add(append([]byte{22, 3, 1, 0x40, 0, 1, 0, 0x80, 0}, make([]byte, 100)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		done, bad := false, false
		for n := range len(b) + 1 { // what has been decided stays so
			whole, err := WholeHello(b[:n])
			if whole && err != nil || done && !whole && n < MaxHello || bad && err == nil {
				t.Fatalf("%d bytes: %v, %v after %v, %v", n, whole, err, done, bad)
			}
			done, bad = whole, err != nil
		}
		if len(b) >= MaxHello && !bad {
			t.Errorf("%d bytes were taken", len(b))
		}
	})
}

func TestNotHello(t *testing.T) {
	b := hello(t, &tls.Config{ServerName: "a.example"}) //nolint:gosec // nobody is verified
	if whole, err := WholeHello(split(b, 1)); !whole || err != nil {
		t.Errorf("in records of a byte: %v, %v", whole, err)
	}
	for name, b := range map[string]string{
		"http": "GET", "old TLS": "\x80\x2e\x01", "alert": "\x15\x03\x01\x00\x02", "server hello": "\x16\x03\x01\x00\x04\x02",
		"too long": "\x16\x03\x01\x40\x00\x01\x01\x00\x00", "empty record": "\x16\x03\x01\x00\x00", "flood": string(make([]byte, MaxHello)),
	} {
		if _, err := WholeHello([]byte(b)); !errors.Is(err, ErrNotHello) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
