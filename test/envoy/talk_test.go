package envoy

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"
)

// asking is the head of a request with these lines behind it.
func asking(line string, fields ...string) string {
	out := "> " + line + " HTTP/1.1\r\nHost: HOST\r\n"
	for _, f := range fields {
		out += f + "\r\n"
	}
	return out + "\r\n"
}

// answering is that of an answer.
func answering(status string, fields ...string) string {
	return strings.Replace(asking(status, fields...), status+" HTTP/1.1\r\nHost: HOST", "HTTP/1.1 "+status, 1)
}

var (
	upgrading  = asking("GET /ws", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: abc", "Sec-WebSocket-Version: 13")
	switches   = answering("101 Switching Protocols", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Accept: x")
	fine       = answering("200 OK", "Content-Length: 2") + "ok"
	asksAgain  = asking("GET /next")
	connecting = asking("CONNECT HOST:443")
	expects    = asking("POST /e", "Expect: 100-continue", "Content-Length: 4")
	goOn       = answering("100 Continue")
)

// steps is a list of them.
func steps(list ...string) []string { return list }

// switching are conversations that become something else than HTTP, or try to.
var switching = []talk{
	{"ws", "", false, steps(upgrading, "< answer", "> ping", "< 4", "> more", "close"), steps("< head", switches, "< 4", "> pong", "< 4", "< end")},
	{"ws-early", "", false, steps(upgrading+"early", "< answer", "< 5", "< end"), steps("< head", switches, "< 5", "> hello", "close")},
	{"ws-host-early", "", false, steps(upgrading, "< answer", "< 5", "> bye", "close"), steps("< head", switches+"hello", "< 3", "< end")},
	{"ws-both-early", "", false, steps(upgrading+"early", "< answer", "< 5", "< end"), steps("< head", switches+"hello", "< 5", "close")},
	{"ws-400", "", false, steps(upgrading, "< answer", "< end"), steps("< head", answering("400 Bad", "Content-Length: 2")+"no", "< end")},
	{"ws-426", "", false, steps(upgrading, "< answer", asksAgain, "< answer", "< end"), steps("< head", answering("426 Upgrade", "Upgrade: h2c", "Content-Length: 0"), "< head", fine, "< end")},
	{"ws-200", "", false, steps(upgrading, "< answer", asksAgain, "< answer", "< end"), steps("< head", fine, "< head", fine, "< end")},
	{"ws-200-chunked", "", false, steps(upgrading, "< answer", "< end"), steps("< head", answering("200 OK", "Transfer-Encoding: chunked")+"2\r\nok\r\n0\r\n\r\n", "< end")},
	{"ws-204", "", false, steps(upgrading, "< answer", "< end"), steps("< head", answering("204 No"), "< end")},
	{"ws-302", "", false, steps(upgrading, "< answer", "< end"), steps("< head", answering("302 Found", "Location: /x", "Content-Length: 0"), "< end")},
	{"ws-403-behind", "", false, steps(upgrading+strings.TrimPrefix(asksAgain, "> "), "< answer", "< end"), steps("< head", answering("403 No", "Content-Length: 0"), "< end")},
	{"ws-503", `"retryPolicy": {"retryOn": "5xx", "numRetries": 2, "retryBackOff": {"baseInterval": "0.001s"}}`, false, steps(upgrading, "< answer", "< end"),
		steps("< head", answering("503 No", "Content-Length: 0"), "< end")},
	{"ws-other", "", false, steps(upgrading, "< answer", "< end"), steps("< head", answering("101 Switch", "Connection: Upgrade", "Upgrade: other"), "> hello", "close")},
	{"ws-bare", "", false, steps(upgrading, "< answer", "< end"), steps("< head", answering("101 Switch"), "> hello", "close")},
	{"ws-length", "", false, steps(upgrading, "< answer", "< end"), steps("< head", answering("101 Switch", "Connection: Upgrade", "Upgrade: websocket", "Content-Length: 2"), "> hello", "close")},
	{"ws-103", "", false, steps(upgrading, "< answer", "< end"), steps("< head", answering("103 Early", "Link: </a>"), switches, "> hello", "close")},
	{"ws-no-answer", "", false, steps(upgrading, "< answer", "< end"), steps("< head", "close")},
	{"ws-nothing", "", false, steps(upgrading, "< answer", "< end"), steps("< head", switches, "close")},
	{"ws-host-half", "", false, steps(upgrading, "< answer", "< 3", "> more", "< end"), steps("< head", switches, "> bye", "shut", "< 4", "< end")},
	{"ws-client-half", "", false, steps(upgrading, "< answer", "> last", "shut", "< end"), steps("< head", switches, "< 4", "< end", "pause", "> after", "close")},
	{"ws-both-half", "", false, steps(upgrading, "< answer", "> last", "shut", "< end"), steps("< head", switches, "> mine", "shut", "< end")},
	{"ws-gone", "", false, steps(upgrading, "< answer", "close"), steps("< head", switches, "< end")},
	{"ws-gone-first", "", false, steps(upgrading, "hear", "close"), steps("< head", "tell", "< end")},
	{"ws-timeout", `"timeout": "2s"`, false, steps(upgrading, "< answer", "pause", "pause", "pause", "pause", "pause", "pause", "> ping", "< 4", "close"), steps("< head", switches, "< 4", "> pong", "< end")},
	{"ws-late", `"timeout": "0.3s"`, false, steps(upgrading, "< answer", "< end"), steps("< head", "< end")},
	{"ws-idle", `"idleTimeout": "0.4s"`, false, steps(upgrading, "< answer", "< end"), steps("< head", switches, "< end")},
	{"ws-case", "", false, steps(asking("GET /ws", "Connection: keep-alive, UPGRADE", "Upgrade: WebSocket"), "< answer", "< end"), steps("< head", switches, "> hello", "close")},
	{"ws-post", "", false, steps(asking("POST /ws", "Connection: Upgrade", "Upgrade: websocket"), "< answer", "< end"), steps("< head", switches, "> hello", "close")},
	{"ws-unnamed", "", false, steps(asking("GET /ws", "Upgrade: websocket"), "< answer", "< end"), steps("< head", fine, "< end")},
	{"ws-no-field", "", false, steps(asking("GET /ws", "Connection: Upgrade"), "< answer", "< end"), steps("< head", fine, "< end")},
	{"ws-two", "", false, steps(asking("GET /ws", "Connection: Upgrade", "Upgrade: websocket, foo"), "< answer", "< end"), steps("< head", fine, "< end")},
	{"ws-length-0", "", false, steps(asking("GET /ws", "Connection: Upgrade", "Upgrade: websocket", "Content-Length: 0"), "< answer", "< end"), steps("< head", switches, "> hello", "close")},
	{"ws-body", "", false, steps(asking("GET /ws", "Connection: Upgrade", "Upgrade: websocket", "Content-Length: 3")+"abc", "< answer", "< end"), steps("< head", switches, "> hello", "close")},
	{"ws-chunked", "", false, steps(asking("GET /ws", "Connection: Upgrade", "Upgrade: websocket", "Transfer-Encoding: chunked")+"0\r\n\r\n", "< answer", "< end"),
		steps("< head", switches, "> hello", "close")},
	{"ws-forbidden", `"upgradeConfigs": [{"upgradeType": "websocket", "enabled": false}]`, false, steps(upgrading, "< answer", "< end"), steps("< head", switches)},
	{"foo", `"upgradeConfigs": [{"upgradeType": "foo"}]`, false, steps(asking("GET /ws", "Connection: Upgrade", "Upgrade: foo"), "< answer", "> ping", "< 4", "close"),
		steps("< head", answering("101 Switch", "Connection: Upgrade", "Upgrade: foo"), "< 4", "> pong", "< end")},
	{"foo-unknown", "", false, steps(asking("GET /ws", "Connection: Upgrade", "Upgrade: foo"), "< answer", "< end"), steps("< head", switches)},
	{"switch-unasked", "", false, steps(asking("GET /ws"), "< answer", "< end"), steps("< head", switches, "> hello", "close")},

	{"connect", "", true, steps(connecting, "< answer", "> ping", "< 4", "> more", "close"), steps("< head", answering("200 OK"), "< 4", "> pong", "< 4", "< end")},
	{"connect-early", "", true, steps(connecting+"early", "< answer", "< 5", "< end"), steps("< head", answering("200 OK"), "< 5", "> hello", "close")},
	{"connect-length", "", true, steps(connecting, "< answer", "< end"), steps("< head", answering("200 OK", "Content-Length: 2"), "> hello", "close")},
	{"connect-chunked", "", true, steps(connecting, "< answer", "< end"), steps("< head", answering("200 OK", "Transfer-Encoding: chunked"), "> 5\r\nhello\r\n0\r\n\r\n", "close")},
	{"connect-201", "", true, steps(connecting, "< answer", "< end"), steps("< head", answering("201 OK"), "> hello", "close")},
	{"connect-204", "", true, steps(connecting, "< answer", "< end"), steps("< head", answering("204 OK"), "> hello", "close")},
	{"connect-407", "", true, steps(connecting, "< answer", "< end"), steps("< head", answering("407 Auth", "Content-Length: 2", "Proxy-Authenticate: Basic")+"no", "< end")},
	{"connect-503", "", true, steps(connecting, "< answer", asksAgain, "< answer", "< end"), steps("< head", answering("503 No", "Content-Length: 2")+"no", "< head", fine, "< end")},
	{"connect-no-answer", "", true, steps(connecting, "< answer", "< end"), steps("< head", "close")},
	{"connect-host-half", "", true, steps(connecting, "< answer", "< 3", "> more", "< end"), steps("< head", answering("200 OK"), "> bye", "shut", "< 4", "< end")},
	{"connect-client-half", "", true, steps(connecting, "< answer", "> last", "shut", "< end"), steps("< head", answering("200 OK"), "< 4", "< end", "pause", "> after", "close")},
	{"connect-unrouted", "", false, steps(connecting, "< answer", "< end"), steps("< head", answering("200 OK"))},
	{"connect-no-port", "", true, steps(asking("CONNECT HOST"), "< answer", "< end"), steps("< head", answering("200 OK"), "> hello", "close")},
	{"connect-path", "", true, steps(asking("CONNECT /x"), "< answer", "< end"), steps("< head", answering("200 OK"), "> hello", "close")},
	{"connect-url", "", true, steps(asking("CONNECT http://HOST/x"), "< answer", "< end"), steps("< head", answering("200 OK"), "> hello", "close")},
	{"connect-body", "", true, steps(asking("CONNECT HOST:443", "Content-Length: 3")+"abc", "< answer", "< end"), steps("< head", answering("200 OK"), "> hello", "close")},
	{"connect-length-0", "", true, steps(asking("CONNECT HOST:443", "Content-Length: 0"), "< answer", "< end"), steps("< head", answering("200 OK"), "> hello", "close")},
	{"connect-chunked-body", "", true, steps(asking("CONNECT HOST:443", "Transfer-Encoding: chunked")+"0\r\n\r\n", "< answer", "< end"), steps("< head", answering("200 OK"), "> hello", "close")},
	{"connect-upgrade", "", true, steps(asking("CONNECT HOST:443", "Connection: Upgrade", "Upgrade: websocket"), "< answer", "< end"), steps("< head", answering("200 OK"), "> hello", "close")},
}

// halves are conversations in which a side ends its direction, hosts answer before they have heard all, or ask to go on first.
var halves = []talk{
	{"shut-after", "", false, steps(asking("GET /a"), "hear", "shut", "< end"), steps("< head", "tell", "pause", "pause", fine, "< end")},
	{"shut-in-body", "", false, steps(asking("POST /a", "Content-Length: 5")+"ab", "hear", "shut", "< end"), steps("< head", "< 2", "tell", "< end")},
	{"shut-in-chunks", "", false, steps(asking("POST /a", "Transfer-Encoding: chunked")+"2\r\nab\r\n", "hear", "shut", "< end"), steps("< head", "< 7", "tell", "< end")},
	{"shut-in-head", "", false, steps("> GET /a HTTP/1.1\r\nHost: HOST\r\n", "shut", "< end"), steps("< head")},
	{"shut-at-once", "", false, steps("shut", "< end"), steps("< head")},
	{"shut-in-answer", "", false, steps(asking("GET /a"), "< start", "shut", "< end"), steps("< head", answering("200 OK", "Content-Length: 4")+"ab", "pause", "pause", "> cd", "< end")},
	{"host-shuts-first", "", false, steps(asking("GET /a"), "< answer", "< end"), steps("< head", "shut", "< end")},
	{"host-shuts-post", "", false, steps(asking("POST /a", "Content-Length: 2")+"ab", "< answer", "< end"), steps("< head", "< body", "shut", "< end")},
	{"host-shuts-behind", "", false, steps(asking("GET /a"), "< answer", "hear", "pause", asksAgain, "< answer", "< end"), steps("< head", fine, "shut", "tell")},
	{"host-shuts-in-answer", "", false, steps(asking("GET /a"), "< answer", "< end"), steps("< head", answering("200 OK", "Content-Length: 4")+"ab", "shut", "< end")},
	{"host-shuts-in-body", "", false, steps(asking("POST /a", "Content-Length: 4")+"ab", "< answer", "< end"), steps("< head", "< 2", "shut", "< end")},
	{"host-ends-in-body", "", false, steps(asking("POST /a", "Content-Length: 4")+"ab", "< answer", "< end"), steps("< head", "< 2", "close")},

	{"expect", "", false, steps(expects, "< answer", "> body", "< answer", asksAgain, "< answer"), steps("< head", "< body", fine, "< head", fine)},
	{"expect-host-too", "", false, steps(expects, "< answer", "> body", "< answer", "< end"), steps("< head", goOn, "< body", fine)},
	{"expect-host-twice", "", false, steps(expects, "< answer", "> body", "< answer", "< end"), steps("< head", goOn, goOn, "< body", fine)},
	{"expect-host-late", "", false, steps(expects, "< answer", "> body", "< answer", "< end"), steps("< head", "< body", goOn, fine)},
	{"expect-refused", "", false, steps(expects, "< answer", "< answer", "< end"), steps("< head", answering("417 No", "Content-Length: 0"), "< end")},
	{"expect-413-close", "", false, steps(expects, "< answer", "< answer", "< end"), steps("< head", answering("413 No", "Connection: close", "Content-Length: 2")+"no", "close")},
	{"expect-refused-body", "", false, steps(expects, "< answer", "< answer", "> body", "< end"), steps("< head", answering("417 No", "Content-Length: 0"), "< end")},
	{"expect-chunked", "", false, steps(asking("POST /e", "Expect: 100-continue", "Transfer-Encoding: chunked"), "< answer", "> 4\r\nbody\r\n0\r\n\r\n", "< answer", "< end"), steps("< head", "< body", fine)},
	{"expect-at-once", "", false, steps(expects+"body", "< answer", "< answer", "< end"), steps("< head", "< body", fine)},
	{"expect-no-body", "", false, steps(asking("GET /e", "Expect: 100-continue"), "< answer", "< answer", "< end"), steps("< head", fine)},
	{"expect-case", "", false, steps(asking("POST /e", "Expect: 100-Continue", "Content-Length: 4"), "< answer", "> body", "< answer", "< end"), steps("< head", "< body", fine)},
	{"expect-other", "", false, steps(asking("POST /e", "Expect: x", "Content-Length: 4")+"body", "< answer", "< end"), steps("< head", "< body", fine)},
	{"expect-two", "", false, steps(asking("POST /e", "Expect: 100-continue, x", "Content-Length: 4")+"body", "< answer", "< end"), steps("< head", "< body", fine)},
	{"expect-nowhere", "", false, steps(strings.Replace(expects, "HOST", "no.where", 1), "< answer", "< answer", "< end"), steps("< head")},
	{"expect-host-ends", "", false, steps(expects, "< answer", "< answer", "< end"), steps("< head", "close")},
	{"continue-unasked", "", false, steps(asking("POST /a", "Content-Length: 4"), "pause", "> body", "< answer", "< end"), steps("< head", goOn, "< body", fine)},

	{"early", "", false, steps(asking("POST /a", "Content-Length: 9")+"part", "< answer", "> later", "< end"), steps("< head", fine, "< end")},
	{"early-chunked", "", false, steps(asking("POST /a", "Transfer-Encoding: chunked")+"4\r\npart\r\n", "< answer", "> 0\r\n\r\n", "< end"), steps("< head", fine, "< end")},
	{"early-close", "", false, steps(asking("POST /a", "Content-Length: 9")+"part", "< answer", "< end"), steps("< head", answering("413 No", "Connection: close", "Content-Length: 2")+"no", "< end")},
	{"early-end", "", false, steps(asking("POST /a", "Content-Length: 9")+"part", "< answer", "< end"), steps("< head", "< 4", fine, "close")},
	{"early-to-the-end", "", false, steps(asking("POST /a", "Content-Length: 9")+"part", "< answer", "< end"), steps("< head", "< 4", answering("200 OK")+"some", "close")},
	{"early-204", "", false, steps(asking("PUT /a", "Content-Length: 9")+"part", "< answer", "< end"), steps("< head", answering("204 No"), "< end")},
	{"early-503", `"retryPolicy": {"retryOn": "5xx", "numRetries": 1, "retryBackOff": {"baseInterval": "0.001s"}}`, false, steps(asking("POST /a", "Content-Length: 9")+"part", "< answer", "< end"),
		steps("< head", answering("503 No", "Content-Length: 0"), "< end")},
	{"duplex", "", false, steps(asking("POST /a", "Content-Length: 8")+"part", "< start", "> rest", "< body", "< end"), steps("< head", "< 4", answering("200 OK", "Content-Length: 4")+"ab", "< 4", "> cd", "< end")},
	{"duplex-chunked", "", false, steps(asking("POST /a", "Transfer-Encoding: chunked")+"4\r\npart\r\n", "< start", "> 4\r\nrest\r\n0\r\n\r\n", "< body", "< end"),
		steps("< head", answering("200 OK", "Transfer-Encoding: chunked")+"2\r\nab\r\n", "< body", "> 2\r\ncd\r\n0\r\n\r\n", "< end")},
	{"early-upload", "", false, steps(asking("POST /a", "Content-Length: 9")+"part", "< start", "> later", "< body", "< end"), steps("< head", answering("200 OK", "Content-Length: 4")+"ab", "< body", "> cd", "< end")},

	{"trailers", "", false, steps(asking("POST /a", "Transfer-Encoding: chunked", "Trailer: x-last")+"4\r\nbody\r\n0\r\nx-last: 1\r\n\r\n", "< answer", asksAgain, "< answer"), steps("< head", "< body", fine, "< head", fine)},
	{"trailers-te", "", false, steps(asking("GET /a", "Connection: TE", "TE: trailers"), "< answer", asksAgain, "< answer"),
		steps("< head", answering("200 OK", "Transfer-Encoding: chunked")+"2\r\nok\r\n0\r\nx-after: 1\r\n\r\n", "< head", fine)},
	{"trailers-of-framing", "", false, steps(asking("POST /a", "Transfer-Encoding: chunked")+"4\r\nbody\r\n0\r\ncontent-length: 9\r\n\r\n", "< answer", asksAgain, "< answer"), steps("< head", "< body", fine, "< head", fine)},
	{"trailers-bad", "", false, steps(asking("POST /a", "Transfer-Encoding: chunked")+"4\r\nbody\r\n", "hear", "> 0\r\nnothing\r\n\r\n", "< answer", "< end"), steps("< head", "< 9", "tell", "< end")},
	{"trailers-blank", "", false, steps(asking("POST /a", "Transfer-Encoding: chunked")+"4\r\nbody\r\n", "hear", "> 0\r\nx-a : 1\r\n\r\n", "< answer", "< end"), steps("< head", "< 9", "tell", "< end")},
	{"trailers-announced", "", false, steps(asking("POST /a", "Transfer-Encoding: chunked", "Trailer: x-last")+"4\r\nbody\r\n0\r\n\r\n", "< answer", "< end"), steps("< head", "< body", fine)},
	{"trailers-alone", "", false, steps(asking("POST /a", "Transfer-Encoding: chunked")+"0\r\nx-last: 1\r\n\r\n", "< answer", "< end"), steps("< head", "< body", fine)},
	{"trailers-host-bad", "", false, steps(asking("GET /a"), "< answer", "< end"), steps("< head", answering("200 OK", "Transfer-Encoding: chunked")+"2\r\nok\r\n", "pause", "> 0\r\nnothing\r\n\r\n", "< end")},
	{"trailers-host-framing", "", false, steps(asking("GET /a"), "< answer", "< end"), steps("< head", answering("200 OK", "Transfer-Encoding: chunked")+"2\r\nok\r\n0\r\ncontent-length: 9\r\n\r\n", "< end")},
}

// listedTalks are those that differ, and the class of docs/envoy.md that they are of.
var listedTalks = map[string]int{"connect-upgrade": 3, "ws-body": 11, "ws-chunked": 11, "connect-body": 11, "connect-chunked-body": 11,
	"ws-host-half": 14, "ws-client-half": 14, "ws-both-half": 14, "connect-host-half": 14, "connect-client-half": 14, "ws-200": 15, "ws-200-chunked": 15, "ws-bare": 15, "switch-unasked": 15}

// talking is the configuration of conversations: a virtual host for each.
func talking(t *testing.T, list []talk) *routev3.RouteConfiguration {
	t.Helper()
	var all []any
	for _, k := range list {
		action := object{}
		if err := json.Unmarshal([]byte("{"+k.route+"}"), &action); err != nil {
			t.Fatal(err)
		}
		action["cluster"] = k.name
		routes := []any{object{"match": object{"prefix": "/"}, "route": action}}
		if k.connect {
			routes = append(routes, object{"match": object{"connectMatcher": object{}}, "route": object{"cluster": k.name, "upgradeConfigs": []any{object{"upgradeType": "CONNECT"}}}})
		}
		all = append(all, object{"name": k.name, "domains": []string{k.name + ".test", k.name + ".test:443"}, "routes": routes})
	}
	text, err := json.Marshal(object{"name": "t", "virtualHosts": all})
	if err != nil {
		t.Fatal(err)
	}
	rc := &routev3.RouteConfiguration{}
	if err := protojson.Unmarshal(text, rc); err != nil {
		t.Fatal(err)
	}
	return rc
}

// heard is what a conversation came to, for both sides.
func (h *talkers) heard(name string, client []string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := strings.Join(client, "\n  ")
	for i, s := range h.noted[name] {
		out += fmt.Sprintf("\n host %d: %s", i, strings.Join(s.all(), "\n  "))
	}
	return out
}

// TestEnvoyAgreesOnConversations: both pass on alike, byte for byte, what is more than a request and its answer over HTTP/1.1: upgrades
// and CONNECT, taken and refused, with bytes that come early; directions that end one by one; Expect; answers before the request's
// end; trailers.
func TestEnvoyAgreesOnConversations(t *testing.T) {
	t.Parallel()
	Require(t)
	list := append(append([]talk{}, switching...), halves...)
	dir, err := os.MkdirTemp("", "talk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	configs := []*routev3.RouteConfiguration{talking(t, list)}
	var hosts [2]*talkers
	var clusters [2][]*clusterv3.Cluster
	for side, sub := range []string{"/e", "/w"} {
		hosts[side] = newTalkers()
		if err := os.Mkdir(dir+sub, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, k := range list {
			clusters[side] = append(clusters[side], echoCluster(k.name, hosts[side].listen(t, dir+sub, k)))
		}
	}
	p, o := StartProxy(t, 1, configs, clusters[0]), startOurs(t, configs, clusters[1])
	clients := make([][2][]string, len(list))
	var wait sync.WaitGroup
	for i, k := range list {
		wait.Go(func() { clients[i][0] = hosts[0].call(p.addrs["t"], k) })
		wait.Go(func() { clients[i][1] = hosts[1].call(o.addrs["t"], k) })
	}
	wait.Wait()
	hosts[0].settle(3 * quiet)
	hosts[1].settle(quiet)
	for i, k := range list {
		compareListed(t, k.name, hosts[0].heard(k.name, clients[i][0]), hosts[1].heard(k.name, clients[i][1]), listedTalks)
	}
	t.Logf("%d conversations", len(list))
}
