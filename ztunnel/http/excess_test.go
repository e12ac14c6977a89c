package http

import (
	"net/http"
	"runtime"
	"strings"
	"testing"
)

// TestRulesCannotTakeMemory: who writes a rule does not make the node hold what it multiplies, and a head that was not made as its rules
// say is sent to nobody.
func TestRulesCannotTakeMemory(t *testing.T) {
	many := strings.Repeat("%REQ(x)%", 10_000)
	for _, c := range []struct {
		name, route, want string
		status            int
	}{
		{"request header", `"requestHeadersToAdd":[{"header":{"key":"big","value":"` + many + `"}}],"route":{"cluster":"up"}`, "route_made_head_too_large", 431},
		{"literal", `"requestHeadersToAdd":[{"header":{"key":"big","value":"` + strings.Repeat("v", 70_000) + `"}}],"route":{"cluster":"up"}`, "route_made_head_too_large", 431},
		{"rewrite", `"route":{"cluster":"up","regexRewrite":{"pattern":{"regex":"."},"substitution":"/` + strings.Repeat("a", 10_000) + `"}}`, "route_made_head_too_large", 431},
		{"groups", `"route":{"cluster":"up","regexRewrite":{"pattern":{"regex":".*"},"substitution":"/` + strings.Repeat(`\\0`, 10_000) + `"}}`, "route_made_head_too_large", 431},
		{"answer header", `"responseHeadersToAdd":[{"header":{"key":"big","value":"` + many + `"}}],"route":{"cluster":"up"}`, "route_made_head_too_large", 502},
		{"direct", `"responseHeadersToAdd":[{"header":{"key":"big","value":"` + many + `"}}],"directResponse":{"status":200}`, "direct_response", 200},
		{"control", `"requestHeadersToAdd":[{"header":{"key":"big","value":"%REQ(x)%%REQ(x)%%REQ(x)%"}}],"route":{"cluster":"up"}`, "via_upstream", 200},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.routes("a", `{"match":{"prefix":"/"},`+c.route+`}`)
			w.cluster("up", nil, answers(ok))
			var before, after runtime.MemStats
			conn := w.connect()
			runtime.ReadMemStats(&before)
			conn.send("GET /" + strings.Repeat("a", 20_000) + " HTTP/1.1\r\nHost: a\r\nx: " + strings.Repeat("v", 20_000) + "\r\n\r\n")
			resp := conn.read("GET")
			runtime.ReadMemStats(&after)
			if l := w.log(1)[0]; resp.StatusCode != c.status || resp.Header.Get("big") != "" || !strings.HasSuffix(l, " "+c.want) {
				t.Errorf("status %d, log %q", resp.StatusCode, l)
			}
			if n := (after.TotalAlloc - before.TotalAlloc) >> 20; n > 256 { // the race detector makes regular expressions forget their memory
				t.Errorf("%d MiB were made", n)
			}
		})
	}
}

// TestRegexesHaveABudget: a request that meets more of regular expressions than a node can bear is not matched, and not with what
// comes after them either.
func TestRegexesHaveABudget(t *testing.T) {
	w := newWorld(t)
	costly := `{"match":{"safeRegex":{"regex":"/(a?a?a?a?a?a?a?a?){400}b"}},"route":{"cluster":"up"}},`
	w.routes("a", strings.Repeat(costly, 50)+`{"match":{"prefix":"/"},"route":{"cluster":"up"}}`)
	w.cluster("up", nil, answers(ok))
	if resp := w.connect().get("GET /"+strings.Repeat("a", 20_000)+" HTTP/1.1", "Host: a"); resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("status %d", resp.StatusCode)
	}
	if l := w.log(1)[0]; l != "431 - route_match_too_costly" {
		t.Errorf("log %q", l)
	}
	if resp := w.connect().get("GET /c HTTP/1.1", "Host: a"); resp.StatusCode != 200 {
		t.Errorf("control: status %d", resp.StatusCode)
	}
}
