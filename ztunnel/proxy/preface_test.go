package proxy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/http/h2"
	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// listener accepts the connections of a server outside, which the test serves.
func (w *world) listener(t *testing.T, addr string) (accepted func() net.Conn) {
	l := w.net.listen(netip.MustParseAddrPort(addr))
	t.Cleanup(func() { _ = l.Close() })
	return func() net.Conn {
		t.Helper()
		select {
		case c := <-l.ch:
			t.Cleanup(func() { _ = c.Close() })
			return patient(c.(*memConn))
		case <-time.After(time.Minute):
			t.Fatal("nobody connects")
			return nil
		}
	}
}

// ruled is a DestinationRule of the host.
func ruled(host string, p *settings.CallPolicy) client.Resource {
	return client.Resource{Message: &settings.CallRule{Namespace: "foo", Name: "rule", Host: host, Policies: &settings.CallPolicies{Host: p}}}
}

// reads returns the next n bytes.
func reads(t *testing.T, r io.Reader, n int) string {
	t.Helper()
	b := make([]byte, n)
	if n, err := io.ReadFull(r, b); err != nil {
		t.Fatalf("read %q, %v", b[:n], err)
	}
	return string(b)
}

func write(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

// TestPROXYProtocol: each connection to the server begins with a header that says who calls.
func TestPROXYProtocol(t *testing.T) {
	external(t, nil, func(t *testing.T, w *world, a *testPod, _ *fakeNames) {
		w.apply(declared(t, "foo", "one.example", &settings.ServiceSettings{External: true}, []string{"198.51.100.1/32"}, 80, 8080, "192.0.2.1")...)
		accepted := w.listener(t, "192.0.2.1:8080")
		stream := func(what, header string) {
			t.Helper()
			c := a.connect("198.51.100.1:80")
			defer c.Close()
			write(t, c, "\x00hello")
			server := accepted()
			want(t, what, reads(t, server, len(header)+6), header+"\x00hello")
			write(t, server, "answer")
			want(t, what, reads(t, c, 6), "answer")
		}
		requests := func(what, header string) {
			t.Helper()
			c := a.connect("198.51.100.1:80")
			defer c.Close()
			var server net.Conn
			for range 2 { // over one connection
				const get = "GET / HTTP/1.1\r\n"
				write(t, c, get+"Host: one.example\r\n\r\n")
				if server == nil {
					server = accepted()
					want(t, what, reads(t, server, len(header)), header)
				}
				in := bufio.NewReader(server)
				if line, err := in.ReadString('\n'); err != nil || line != get {
					t.Fatalf("%s: the server reads %q, %v", what, line, err)
				}
				for line := ""; line != "\r\n"; {
					line, _ = in.ReadString('\n')
				}
				write(t, server, "HTTP/1.1 204 No Content\r\n\r\n")
				want(t, what, reads(t, c, 12), "HTTP/1.1 204")
				for out := bufio.NewReaderSize(c, 16); ; {
					line, err := out.ReadString('\n')
					if line == "\r\n" || err != nil {
						break
					}
				}
			}
		}
		stream("control: without the DestinationRule", "")
		requests("control: requests without the DestinationRule", "")
		w.apply(ruled("one.example", &settings.CallPolicy{ProxyProtocol: 1}))
		stream("V1", "PROXY TCP4 10.0.0.1 198.51.100.1 33333 80\r\n")
		requests("V1, requests", "PROXY TCP4 10.0.0.1 192.0.2.1 33333 8080\r\n")
		w.apply(ruled("one.example", &settings.CallPolicy{ProxyProtocol: 2}))
		const binary = "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\x0a\x00\x00\x01"
		stream("V2", binary+"\xc6\x33\x64\x01\x82\x35\x00\x50")
		requests("V2, requests", binary+"\xc0\x00\x02\x01\x82\x35\x1f\x90")
	})
}

// TestTunnel: connections of TCP and TLS that a route leads to a proxy ask it for the target.
func TestTunnel(t *testing.T) {
	external(t, nil, func(t *testing.T, w *world, a *testPod, _ *fakeNames) {
		set := &settings.ServiceSettings{External: true, AppProtocols: map[uint32]string{443: "tls"}}
		w.apply(declared(t, "foo", "site.example", set, []string{"198.51.100.1/32"}, 443, 443, "192.0.2.9")...)
		w.apply(declared(t, "foo", "proxy.example", &settings.ServiceSettings{External: true}, []string{"198.51.100.2/32"}, 3128, 3128, "192.0.2.1")...)
		w.apply(client.Resource{Message: &settings.RouteRule{Namespace: "foo", Name: "tls", Hosts: []string{"site.example"}, Tls: []*settings.StreamRule{
			leads("outbound|3128||proxy.example", &settings.StreamMatch{SniHosts: []string{"site.example"}})}}})
		accepted := w.listener(t, "192.0.2.1:3128")
		tunnel := &settings.Tunnel{Protocol: "CONNECT", TargetHost: "other.example", TargetPort: 8443}
		rule := func() { w.apply(ruled("proxy.example", &settings.CallPolicy{Tunnel: tunnel})) }
		const connect = "CONNECT other.example:8443 HTTP/1.1\r\nHost: other.example:8443\r\n\r\n"
		first := string(hello(t, "site.example"))
		open := func() net.Conn {
			t.Helper()
			c := a.connect("198.51.100.1:443")
			t.Cleanup(func() { _ = c.Close() })
			write(t, c, first)
			return c
		}
		open()
		want(t, "control: without the DestinationRule", reads(t, accepted(), len(first)), first)
		rule()
		for _, with := range []string{"", "greeting"} {
			c := open()
			proxy := accepted()
			want(t, "the proxy is asked first", reads(t, proxy, len(connect)), connect)
			write(t, proxy, "HTTP/1.1 200 Connection established\r\n\r\n"+with)
			want(t, "the client's bytes follow", reads(t, proxy, len(first)), first)
			write(t, proxy, "answer")
			want(t, "the target's come back", reads(t, c, len(with)+6), with+"answer")
			_ = proxy.(*memConn).CloseWrite()
			if n, err := c.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("after the target's end: %d, %v", n, err)
			}
		}
		gone := func(what string, c net.Conn) {
			t.Helper()
			if _, err := io.ReadAll(c); err == nil || !strings.Contains(err.Error(), "reset") {
				t.Errorf("%s: %v, want a reset", what, err)
			}
		}
		c := open()
		proxy := accepted()
		reads(t, proxy, len(connect))
		write(t, proxy, "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
		gone("407", c)
		w.wantLog("reason=upstream_connect", "407 Proxy Authentication Required")
		c = open()
		begin := time.Now()
		reads(t, accepted(), len(connect))
		gone("a proxy that is silent", c)
		if took := time.Since(begin); took > 11*time.Second {
			t.Errorf("a silent proxy was waited for for %s", took)
		}
		tunnel.Protocol = "POST"
		rule()
		c, proxy = open(), accepted()
		const post = "POST / HTTP/1.1\r\nHost: other.example:8443\r\nTransfer-Encoding: chunked\r\n\r\n"
		want(t, "the proxy is asked by POST", reads(t, proxy, len(post)), post)
		write(t, proxy, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
		body := fmt.Sprintf("%x\r\n%s\r\n", len(first), first)
		want(t, "the client's bytes are its body", reads(t, proxy, len(body)), body)
		write(t, proxy, "6\r\nanswer\r\n0\r\n\r\n")
		if b, err := io.ReadAll(c); string(b) != "answer" || err != nil {
			t.Errorf("the answer's body is %q, %v", b, err)
		}
		dialled := w.net.dialled(3128)
		tunnel.Protocol = "GET"
		rule()
		gone("GET", open())
		w.wantLog("reason=policy_unenforceable", "through a tunnel by")
		tunnel.Protocol = ""
		rule()
		c = a.connect("198.51.100.2:3128")
		defer c.Close()
		write(t, c, "GET / HTTP/1.1\r\nHost: proxy.example\r\n\r\n")
		want(t, "a request to the host", reads(t, c, 12), "HTTP/1.1 503")
		if n := w.net.dialled(3128); n != dialled {
			t.Errorf("%d connections are made that are refused", n-dialled)
		}
	})
}

// TestTunnelOverHTTP2: a proxy whose port declares HTTP/2 is asked over a stream.
func TestTunnelOverHTTP2(t *testing.T) {
	external(t, nil, func(t *testing.T, w *world, a *testPod, _ *fakeNames) {
		set := &settings.ServiceSettings{External: true, AppProtocols: map[uint32]string{3128: "http2"}}
		w.apply(declared(t, "foo", "db.example", &settings.ServiceSettings{External: true, AppProtocols: map[uint32]string{5432: "tcp"}}, []string{"198.51.100.1/32"}, 5432, 5432, "192.0.2.9")...)
		w.apply(declared(t, "foo", "proxy.example", set, []string{"198.51.100.2/32"}, 3128, 3128, "192.0.2.1")...)
		w.apply(client.Resource{Message: &settings.RouteRule{Namespace: "foo", Name: "tcp", Hosts: []string{"db.example"}, Tcp: []*settings.StreamRule{
			leads("outbound|3128||proxy.example", &settings.StreamMatch{})}}})
		accepted := w.listener(t, "192.0.2.1:3128")
		for _, protocol := range []string{"CONNECT", "POST"} {
			w.apply(ruled("proxy.example", &settings.CallPolicy{Tunnel: &settings.Tunnel{Protocol: protocol, TargetHost: "other.example", TargetPort: 8443}}))
			c := a.connect("198.51.100.1:5432")
			write(t, c, "hello")
			done := make(chan string, 1)
			server := accepted()
			conn := h2.NewServer(server, h2.Config{Clock: clock.System()}, func(s *h2.Stream) {
				s.Go(func(s *h2.Stream) {
					r := s.Request()
					asked := fmt.Sprintf("%s %s", r.Method, r.Authority)
					if err := errors.Join(s.WriteHead(&head.Response{Status: 200, Body: -1}, false), s.Flush()); err != nil {
						t.Error(err)
					}
					b, err := io.ReadAll(s)
					done <- fmt.Sprintf("%s %s %v", asked, b, err)
					if err := s.WriteEnd([]byte("answer")); err != nil {
						t.Error(err)
					}
				})
			})
			go func() { _ = conn.Serve(t.Context(), nil) }()
			_ = c.(interface{ CloseWrite() error }).CloseWrite()
			want(t, "the proxy is asked", <-done, protocol+" other.example:8443 hello <nil>")
			if b, err := io.ReadAll(c); string(b) != "answer" || err != nil {
				t.Errorf("%s: the answer is %q, %v", protocol, b, err)
			}
			_ = c.Close()
		}
	})
}
