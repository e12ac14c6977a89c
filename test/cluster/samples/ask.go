package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// question is one thing that ask does, N times.
type question struct {
	// URL has the scheme http, https, grpc, ws, tcp or tls.
	URL     string            `json:"url"`
	Method  string            `json:"method,omitempty"`  // GET when empty
	Headers map[string]string `json:"headers,omitempty"` // Host is the authority
	Body    string            `json:"body,omitempty"`    // of grpc and ws the message, of tcp and tls the line
	HTTP2   bool              `json:"http2,omitempty"`   // with prior knowledge
	SNI     string            `json:"sni,omitempty"`     // instead of the URL's host
	Dial    string            `json:"dial,omitempty"`    // host:port instead of the URL's
	N       int               `json:"n,omitempty"`       // 1 when 0
	C       int               `json:"c,omitempty"`       // at once, 1 when 0
	Keep    bool              `json:"keep,omitempty"`    // use connections again
	Timeout int               `json:"timeoutMS,omitempty"`
	Again   int               `json:"againMS,omitempty"` // of tcp and tls: the line is sent again after so long, and the second answer counts
}

// said is one answer. Error is set when there was none.
type said struct {
	Status   int               `json:"status"`
	Headers  map[string]string `json:"headers,omitempty"`
	Trailers map[string]string `json:"trailers,omitempty"`
	Proto    string            `json:"proto,omitempty"`
	Body     string            `json:"body,omitempty"` // its first 8 KiB
	Peer     string            `json:"peer,omitempty"` // common name of the server's certificate
	MS       float64           `json:"ms"`
	Error    string            `json:"error,omitempty"`
}

const askedBody = 8 << 10

// ask reads a list of questions from in and writes the list of the lists of answers.
func ask(ctx context.Context, in io.Reader, out io.Writer) error {
	var all []question
	if err := json.NewDecoder(in).Decode(&all); err != nil {
		return fmt.Errorf("parse questions: %w", err)
	}
	answers := make([][]said, len(all))
	for i, q := range all {
		answers[i] = q.repeat(ctx)
	}
	if err := json.NewEncoder(out).Encode(answers); err != nil {
		return fmt.Errorf("write answers: %w", err)
	}
	return nil
}

// repeat asks N times, C at once; each of those has its own client.
func (q question) repeat(ctx context.Context) []said {
	n, threads := max(1, q.N), max(1, q.C)
	out := make([]said, n)
	var all sync.WaitGroup
	for t := range threads {
		all.Go(func() {
			client := q.client()
			defer client.CloseIdleConnections()
			for i := t; i < n; i += threads {
				out[i] = q.once(ctx, client)
			}
		})
	}
	all.Wait()
	return out
}

func (q question) dialer() func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if q.Dial != "" {
			addr = q.Dial
		}
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
}

// tlsConfig trusts every server: what it proves is part of the answer.
func (q question) tlsConfig() *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, ServerName: q.SNI}
}

func (q question) client() *http.Client {
	t := &http.Transport{DialContext: q.dialer(), DisableKeepAlives: !q.Keep, DisableCompression: true, TLSClientConfig: q.tlsConfig(), Protocols: &http.Protocols{}}
	if q.HTTP2 || strings.HasPrefix(q.URL, "grpc:") {
		t.Protocols.SetUnencryptedHTTP2(true)
		t.Protocols.SetHTTP2(true)
	} else {
		t.Protocols.SetHTTP1(true)
	}
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// once asks and waits for the answer.
func (q question) once(ctx context.Context, client *http.Client) said {
	timeout := 10 * time.Second
	if q.Timeout > 0 {
		timeout = time.Duration(q.Timeout) * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	start := time.Now()
	var a said
	var err error
	switch scheme, _, _ := strings.Cut(q.URL, ":"); scheme {
	case "ws":
		err = q.webSocket(ctx, &a)
	case "tcp", "tls":
		err = q.line(ctx, scheme, &a)
	default:
		err = q.http(ctx, client, &a)
	}
	a.MS = float64(time.Since(start).Microseconds()) / 1000
	if err != nil {
		a.Error = err.Error()
	}
	return a
}

func first(h http.Header) map[string]string {
	out := map[string]string{}
	for k, v := range h {
		out[strings.ToLower(k)] = strings.Join(v, ",")
	}
	return out
}

func (q question) request(ctx context.Context, url string, body io.Reader) (*http.Request, error) {
	method := q.Method
	if method == "" {
		method = http.MethodGet
	}
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "ask")
	for k, v := range q.Headers {
		if strings.EqualFold(k, "host") {
			req.Host = v
			continue
		}
		req.Header.Set(k, v)
	}
	return req, nil
}

func (q question) http(ctx context.Context, client *http.Client, a *said) error {
	url, body := q.URL, []byte(q.Body)
	rest, grpc := strings.CutPrefix(url, "grpc:")
	if grpc {
		var frame bytes.Buffer
		if err := writeFrame(&frame, body); err != nil {
			return err
		}
		url, body, q.Method = "http:"+rest, frame.Bytes(), http.MethodPost
	}
	req, err := q.request(ctx, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if grpc {
		req.Header.Set("Content-Type", "application/grpc")
		req.Header.Set("Te", "trailers")
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, askedBody))
	if err == nil {
		_, err = io.Copy(io.Discard, res.Body)
	}
	a.Status, a.Proto, a.Headers, a.Trailers = res.StatusCode, res.Proto, first(res.Header), first(res.Trailer)
	if grpc && len(b) >= 5 {
		b = b[5:]
	}
	a.Body = string(b)
	if res.TLS != nil && len(res.TLS.PeerCertificates) > 0 {
		a.Peer = res.TLS.PeerCertificates[0].Subject.CommonName
	}
	return err
}

// webSocket opens one, sends the body and takes the answer.
func (q question) webSocket(ctx context.Context, a *said) error {
	rest := strings.TrimPrefix(q.URL, "ws:")
	var nonce [16]byte
	if _, err := rand.Read(nonce[:]); err != nil {
		return err
	}
	key := base64.StdEncoding.EncodeToString(nonce[:])
	req, err := q.request(ctx, "http:"+rest, nil)
	if err != nil {
		return err
	}
	for k, v := range map[string]string{"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": key} {
		req.Header.Set(k, v)
	}
	addr := req.URL.Host
	if req.URL.Port() == "" {
		addr = net.JoinHostPort(addr, "80")
	}
	conn, err := q.dialer()(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := req.Write(conn); err != nil {
		return err
	}
	in := bufio.NewReader(conn)
	res, err := http.ReadResponse(in, req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	a.Status, a.Proto, a.Headers = res.StatusCode, res.Proto, first(res.Header)
	if res.StatusCode != http.StatusSwitchingProtocols {
		b, err := io.ReadAll(io.LimitReader(res.Body, askedBody))
		a.Body = string(b)
		return err
	}
	if res.Header.Get("Sec-WebSocket-Accept") != webSocketAccept(key) {
		return fmt.Errorf("the answer to the handshake is wrong")
	}
	if err := writeMessage(conn, 1, []byte(q.Body), nonce[:4]); err != nil {
		return err
	}
	_, b, err := readMessage(in)
	a.Body = string(b)
	return err
}

// line sends one line over TCP or TLS and takes one back.
func (q question) line(ctx context.Context, scheme string, a *said) error {
	_, rest, _ := strings.Cut(q.URL, "://")
	addr, _, _ := strings.Cut(rest, "/")
	conn, err := q.dialer()(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if scheme == "tls" {
		config := q.tlsConfig()
		if config.ServerName == "" {
			config.ServerName, _, _ = strings.Cut(addr, ":")
		}
		client := tls.Client(conn, config)
		if err := client.HandshakeContext(ctx); err != nil {
			return err
		}
		a.Peer = client.ConnectionState().PeerCertificates[0].Subject.CommonName
		conn = client
	}
	in := bufio.NewReader(io.LimitReader(conn, askedBody))
	say := func() error {
		if _, err := io.WriteString(conn, q.Body+"\n"); err != nil {
			return err
		}
		line, err := in.ReadString('\n')
		a.Body = strings.TrimSuffix(line, "\n")
		return err
	}
	if err := say(); err != nil || q.Again == 0 {
		return err
	}
	select {
	case <-time.After(time.Duration(q.Again) * time.Millisecond):
	case <-ctx.Done():
		return ctx.Err()
	}
	return say()
}
