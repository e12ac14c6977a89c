package envoy

import (
	"fmt"
	"slices"
	"strings"
)

// call is one request.
type call struct {
	Method, Target, Authority string
	Fields                    []string // "name: value"
	Body                      string
	Trailers                  []string // of HTTP/2; nil: none
	Held                      bool     // the end of the body does not come
	Alone                     bool     // no other goes over its connection
}

func (c call) String() string {
	return fmt.Sprintf("%s %s host=%q %q body=%.10q %q", c.Method, c.Target, c.Authority, c.Fields, c.Body, c.Trailers)
}

func (g *generator) call() call {
	c := call{Method: pick(g, "GET", "GET", "GET", "POST", "OPTIONS", "HEAD", "PUT"), Target: pick(g, paths...), Authority: pick(g, hostsG...)}
	if g.chance(3) {
		c.Target += pick(g, "/", "x", "/users", "/b", "?q=1", "?q=1&page=a", "?page=true&q=a", "?Q", "?a=b?q=1", "?&q=&q=1")
	}
	for _, n := range names {
		for k := 0; k < 2 && g.chance(3+3*k); k++ {
			c.Fields = append(c.Fields, n+": "+pick(g, values[n]...))
		}
	}
	add := func(n int, name string, values ...string) {
		if g.chance(n) {
			c.Fields = append(c.Fields, name+": "+pick(g, values...))
		}
	}
	add(3, "origin", "http://o.test", "http://x", "HTTP://O.TEST")
	add(3, "access-control-request-method", "GET", "PUT")
	add(5, "access-control-request-headers", "x-a")
	add(8, "access-control-request-private-network", "true", "false")
	add(3, "x-cluster", append(slices.Clone(clusterNames), "unknown", "")...)
	add(10, "x-forwarded-host", "before.test", "a.test")
	add(10, "x-envoy-upstream-rq-timeout-ms", "2500", "x", "0")
	add(10, "x-envoy-upstream-rq-per-try-timeout-ms", "1000", "90000")
	add(10, "x-envoy-max-retries", "2", "0")
	add(10, "x-envoy-retry-on", "5xx", "bogus")
	add(10, "grpc-timeout", "9S", "30M", "9100m", "9999H", "x")
	add(6, "x-echo-status", "201", "404", "503", "409")
	add(3, "x-echo-field", "x-up: 1", "x-up: 1; x-up: 2; x-a: resp", "x-b: resp", "access-control-allow-origin: upstream")
	if c.Method == "POST" || c.Method == "PUT" {
		c.Body = pick(g, "", "body", strings.Repeat("b", 3000))
	}
	if g.two {
		g.more(&c)
	}
	return c
}

// more makes a request one that only HTTP/2 carries, sometimes.
func (g *generator) more(c *call) {
	if g.chance(3) {
		c.Method, c.Body = "POST", pick(g, "\x00\x00\x00\x00\x03abc", "")
		c.Fields = append(without(c.Fields, "content-type"), "content-type: "+pick(g, "application/grpc", "application/grpc+proto"), "te: trailers")
		c.Fields = append(c.Fields, "x-echo-trailer: "+pick(g, "grpc-status: 0", "grpc-status: 14; grpc-message: down", "grpc-status: 13; x-up: t"))
	} else if g.chance(4) {
		c.Fields = append(c.Fields, "x-echo-trailer: "+pick(g, "x-after: 1", "x-after: 1; x-after: 2", "x-up: t"))
	}
	if c.Method != "GET" && c.Method != "HEAD" && g.chance(4) {
		c.Trailers = []string{"x-last: " + pick(g, "1", "", "a b")}
	}
}
