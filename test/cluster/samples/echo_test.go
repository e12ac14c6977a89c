package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// echoing starts an echo server as the sample does, HTTP/2 included.
func echoing(t *testing.T) string {
	t.Helper()
	e := &echoServer{service: "reviews", version: "v2", instance: "pod", log: io.Discard}
	s := httptest.NewUnstartedServer(e.handler("8080"))
	s.Config.Protocols = &http.Protocols{}
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// asked asks one question.
func asked(t *testing.T, q question) []said {
	t.Helper()
	in, err := json.Marshal([]question{q})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := ask(t.Context(), bytes.NewReader(in), &out); err != nil {
		t.Fatal(err)
	}
	var all [][]said
	if err := json.Unmarshal(out.Bytes(), &all); err != nil || len(all) != 1 {
		t.Fatalf("%v in %s", err, out.String())
	}
	return all[0]
}

func TestAskEcho(t *testing.T) {
	addr := echoing(t)
	for _, c := range []struct {
		q      question
		status int
		want   string
	}{
		{question{URL: "http://ADDR/a?b=c", Headers: map[string]string{"Host": "reviews", "End-User": "jason"}}, 200, `"host":"reviews","path":"/a?b=c"`},
		{question{URL: "http://ADDR/", Headers: map[string]string{"End-User": "jason"}}, 200, `"End-User":"jason"`},
		{question{URL: "http://ADDR/", Method: "POST", Body: "hi"}, 200, `"body":"hi"`},
		{question{URL: "http://ADDR/", HTTP2: true}, 200, `"proto":"HTTP/2.0"`},
		{question{URL: "http://ADDR/?status=503"}, 503, `"version":"v2"`},
		{question{URL: "http://ADDR/?status=503&only=v1"}, 200, `"version":"v2"`},
		{question{URL: "http://ADDR/?status=503&only=pod"}, 503, `"version":"v2"`},
		{question{URL: "http://ADDR/?size=7&delay=1ms"}, 200, `xxxxxxx`},
		{question{URL: "http://ADDR/?fail=1"}, 503, `"v2"`},
		{question{URL: "http://ADDR/?fail=1", Headers: map[string]string{"x-envoy-attempt-count": "2"}}, 200, `"v2"`},
		{question{URL: "grpc://ADDR/echo.Echo/Say", Body: "hi"}, 200, `v2 hi`},
		{question{URL: "ws://ADDR/chat", Body: "hi"}, 101, `v2 hi`},
		{question{URL: "ws://ADDR/chat", Body: strings.Repeat("x", 300)}, 101, `v2 xxx`},
		{question{URL: "http://nowhere.example/", Dial: "ADDR"}, 200, `"host":"nowhere.example"`},
	} {
		c.q.URL, c.q.Dial = strings.Replace(c.q.URL, "ADDR", addr, 1), strings.Replace(c.q.Dial, "ADDR", addr, 1)
		got := asked(t, c.q)
		if len(got) != 1 || got[0].Status != c.status || !strings.Contains(got[0].Body, c.want) || got[0].Error != "" || got[0].Headers["x-version"] != "v2" {
			t.Errorf("%+v: got %+v", c.q, got)
		}
	}
	if got := asked(t, question{URL: "http://" + addr, N: 20, C: 4, Keep: true}); len(got) != 20 || got[7].Status != 200 {
		t.Errorf("twenty give %+v", got)
	}
	for code, trailer := range map[string]string{"/echo.Echo/Say": "0", "/echo.Echo/5": "5"} {
		if got := asked(t, question{URL: "grpc://" + addr + code}); got[0].Trailers["grpc-status"] != trailer {
			t.Errorf("%s: got %+v", code, got)
		}
	}
	for path, status := range map[string]string{"/echo.Echo/Say?fail=1": "14", "/echo.Echo/Say": ""} {
		if got := asked(t, question{URL: "grpc://" + addr + path}); got[0].Headers["grpc-status"] != status {
			t.Errorf("%s: got %+v", path, got)
		}
	}
	tcp := lineServer(t, mongoConn)
	if got := asked(t, question{URL: "tcp://" + tcp, Body: "other"}); got[0].Body != "{}" || got[0].Error != "" {
		t.Errorf("tcp: got %+v", got)
	}
	if got := asked(t, question{URL: "http://127.0.0.1:" + freePort(t)}); got[0].Error == "" {
		t.Errorf("nobody answers: %+v", got)
	}
	if got := asked(t, question{URL: "http://" + addr + "/?delay=5s", Timeout: 50}); got[0].Error == "" || got[0].MS > 3000 {
		t.Errorf("a timeout: %+v", got)
	}
	if err := ask(t.Context(), strings.NewReader("{"), &bytes.Buffer{}); err == nil {
		t.Error("what is no list is accepted")
	}
}

// TestEchoPorts: a port is plain or, after "tls:", has a certificate of the version's name.
func TestEchoPorts(t *testing.T) {
	t.Setenv("SERVICE_VERSION", "v7")
	ctx, cancel := context.WithCancel(t.Context())
	plain, secure := freePort(t), freePort(t)
	ended := make(chan error, 1)
	go func() { ended <- echo(ctx, []string{plain, "tls:" + secure}) }()
	dial(t, "127.0.0.1:"+plain).Close()
	dial(t, "127.0.0.1:"+secure).Close()
	if got := asked(t, question{URL: "http://127.0.0.1:" + plain}); got[0].Headers["x-version"] != "v7" {
		t.Errorf("plain: %+v", got)
	}
	if got := asked(t, question{URL: "https://127.0.0.1:" + secure, SNI: "any.example.org"}); got[0].Peer != "v7" || got[0].Status != 200 {
		t.Errorf("TLS: %+v", got)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestWebSocketHandshake(t *testing.T) {
	if got := webSocketAccept("dGhlIHNhbXBsZSBub25jZQ=="); got != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" { // RFC 6455, 1.3
		t.Errorf("got %s", got)
	}
	s := &echoServer{version: "v1"}
	w := httptest.NewRecorder()
	r := httptest.NewRequest("GET", "/", nil)
	r.Header.Set("Upgrade", "websocket")
	if s.handler("1").ServeHTTP(w, r); w.Code != http.StatusBadRequest {
		t.Errorf("without a key: %s", fmt.Sprint(w.Code))
	}
}
