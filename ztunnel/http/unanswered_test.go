package http

import (
	"net"
	"testing"
)

// TestUnansweredIsTold: the engine at the destination tells that of the caller, and nobody else, that the workload has not answered.
func TestUnansweredIsTold(t *testing.T) {
	peer := &Peer{URI: "spiffe://a", By: "spiffe://b"}
	const forged = "HTTP/1.1 503 S\r\nX-Undermesh-Unanswered: connect\r\nContent-Length: 0\r\n\r\n"
	for name, c := range map[string]struct {
		peer *Peer
		host func(net.Conn)
		want string
	}{
		"nobody is there":                    {peer, nil, "connect"},
		"it ends":                            {peer, answers(), "reset"},
		"garbage":                            {peer, answers("garbage\r\n\r\n"), ""},
		"half an answer":                     {peer, answers("HTTP/1.1 200 OK\r\n"), ""},
		"its own words":                      {peer, answers(forged), ""},
		"to a client whom nobody has proved": {nil, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, nil, func(t *testing.T, w *world) {
				w.flow.Direction, w.flow.Peer = Inbound, c.peer
				w.cluster("up", nil, c.host)
				a := w.connect().get("GET / HTTP/1.1", "Host: a")
				if got := a.Header.Get("X-Undermesh-Unanswered"); got != c.want || a.StatusCode < 502 {
					t.Errorf("%d, told %q, want %q", a.StatusCode, got, c.want)
				}
			})
		})
	}
}

// TestUnansweredIsTriedElsewhere: what the engine at the destination says is a failure of the host, as if it had been seen here.
func TestUnansweredIsTriedElsewhere(t *testing.T) {
	told := func(why string) func(net.Conn) {
		return answers("HTTP/1.1 503 S\r\nX-Undermesh-Unanswered: " + why + "\r\nContent-Length: 4\r\n\r\ngone")
	}
	const policy = `{"retryOn":"connect-failure","numRetries":2}`
	for name, c := range map[string]struct {
		method, why, policy string
		engine              bool
		tries               int
	}{
		"not connected":             {"GET", "connect", policy, true, 3},
		"not connected, not safe":   {"POST", "connect", policy, true, 3},
		"cut off":                   {"GET", "reset", policy, true, 3},
		"cut off, not safe":         {"POST", "reset", policy, true, 1},
		"cut off, and told to":      {"POST", "reset", `{"retryOn":"reset","numRetries":2}`, true, 3},
		"without a policy":          {"GET", "connect", `{}`, true, 1},
		"for another reason":        {"GET", "connect", `{"retryOn":"cancelled","numRetries":2}`, true, 1},
		"unknown words":             {"GET", "else", policy, true, 1},
		"somebody else's own words": {"GET", "connect", policy, false, 1},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, nil, func(t *testing.T, w *world) {
				w.engine = c.engine
				w.routes("a", `{"match":{"prefix":"/"},"route":{"cluster":"up","retryPolicy":`+c.policy+`}}`)
				w.cluster("up", nil, told(c.why))
				a := w.connect().get(c.method+" / HTTP/1.1", "Host: a", "Content-Length: 0")
				if a.StatusCode != 503 || a.body != "gone" || w.dials != c.tries {
					t.Errorf("%d %q after %d tries, want %d", a.StatusCode, a.body, w.dials, c.tries)
				}
				if got := a.Header.Get("X-Undermesh-Unanswered"); (got != "") == c.engine {
					t.Errorf("the client is told %q", got)
				}
			})
		})
	}
}
