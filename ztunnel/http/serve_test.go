package http

import (
	"strings"
	"testing"
)

const toUp = `{"name":"r","match":{"prefix":"/"},"route":{"cluster":"up"}}`

func TestForward(t *testing.T) {
	for _, loopback := range []bool{false, true} {
		w := newWorld(t)
		w.loopback = loopback
		w.routes("a", toUp)
		w.cluster("up", nil, echo)
		c := w.connect()
		for range 3 {
			a := c.get("GET /x?y=1 HTTP/1.1", "Host: a", "X-Forwarded-Client-Cert: forged", "A: b")
			if a.StatusCode != 200 || a.Header.Get("Server") != "envoy" || a.Header.Get("Date") == "" || a.Header.Get("X-Envoy-Upstream-Service-Time") == "" {
				t.Fatalf("%v %v", a.Status, a.Header)
			}
			for _, want := range []string{"GET /x?y=1 HTTP/1.1\r\n", "host: a\r\n", "A: b\r\n", "x-forwarded-proto: http\r\n", "x-request-id: ", "x-envoy-expected-rq-timeout-ms: 15000\r\n"} {
				if !strings.Contains(a.body, want) {
					t.Errorf("the host did not see %q in %q", want, a.body)
				}
			}
			if strings.Contains(strings.ToLower(a.body), "client-cert") {
				t.Errorf("the host saw a forged field: %q", a.body)
			}
		}
		if w.dials != 1 {
			t.Errorf("%d connections to the host", w.dials)
		}
		a := c.get("POST /x HTTP/1.1", "Host: a", "Content-Length: 3", "", "abc")
		if !strings.HasSuffix(a.body, "\r\n\r\nabc") || a.StatusCode != 200 {
			t.Errorf("%v %q", a.Status, a.body)
		}
		for i, l := range w.log(4) {
			if l != "200 - via_upstream" {
				t.Errorf("line %d: %q", i, l)
			}
		}
		w.close()
	}
}
