package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// echoed is how the echo server describes a request, and who answers it.
type echoed struct {
	Service  string            `json:"service"`
	Version  string            `json:"version"`
	Instance string            `json:"instance"`
	Port     string            `json:"port"`
	Proto    string            `json:"proto"`
	Method   string            `json:"method"`
	Host     string            `json:"host"`
	Path     string            `json:"path"` // with the query
	Headers  map[string]string `json:"headers"`
	Body     string            `json:"body,omitempty"`
	Remote   string            `json:"remote"` // who opened the connection
	Seq      int64             `json:"seq"`    // requests of this instance so far
}

// echoServer answers every request on HTTP/1.1 and HTTP/2 (with prior knowledge) with what it was asked: JSON, or by gRPC and
// WebSocket, if those were spoken, the message. The query may ask for status=CODE, for status=CODE on the instance or version
// only=NAME, for delay=DURATION, for fail=N (503, by gRPC 14, until the header X-Envoy-Attempt-Count is above N) and size=BYTES.
type echoServer struct {
	service, version, instance string
	log                        io.Writer // a line of JSON a request
	seq                        atomic.Int64
}

// echoDelay is the longest that a request may ask for: longer than the timeout that proxies have when nobody sets one.
const echoDelay = 20 * time.Second

// echo serves the ports that are its arguments (8080 without any); those after "tls:" over TLS, with a certificate of the version's
// name. SERVICE_NAME and SERVICE_VERSION say who answers. With ON_TERM=exit it ends at SIGTERM with what it was doing undone, as
// programs do that do not handle the signal.
func echo(ctx context.Context, args []string) error {
	if len(args) == 0 {
		args = []string{"8080"}
	}
	if os.Getenv("ON_TERM") == "exit" {
		defer context.AfterFunc(ctx, func() { os.Exit(143) })()
	}
	pod, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("read host name: %w", err)
	}
	s := &echoServer{service: os.Getenv("SERVICE_NAME"), version: cmp.Or(os.Getenv("SERVICE_VERSION"), "unknown"), instance: pod, log: os.Stdout}
	ca, err := newSitesTLS(time.Now)
	if err != nil {
		return err
	}
	var servers []func(context.Context) error
	for _, port := range args {
		if port, secure := strings.CutPrefix(port, "tls:"); secure {
			config := &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
				return ca.certificate(&tls.ClientHelloInfo{ServerName: s.version})
			}}
			servers = append(servers, func(ctx context.Context) error {
				return serveTLS(ctx, ":"+port, config, s.handler(port))
			})
			continue
		}
		servers = append(servers, func(ctx context.Context) error { return serve(ctx, ":"+port, s.handler(port)) })
	}
	return both(ctx, servers...)
}

func (s *echoServer) handler(port string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Version", s.version)
		switch {
		case strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc"):
			s.grpc(w, r)
		case strings.EqualFold(r.Header.Get("Upgrade"), "websocket"):
			s.websocket(w, r)
		default:
			s.plain(w, r, port)
		}
	})
}

func (s *echoServer) plain(w http.ResponseWriter, r *http.Request, port string) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	v := echoed{s.service, s.version, s.instance, port, r.Proto, r.Method, r.Host, r.URL.RequestURI(), headers(r), text(body), r.RemoteAddr, s.seq.Add(1)}
	if line, err := json.Marshal(v); err == nil {
		fmt.Fprintf(s.log, "%s\n", line)
	}
	q := r.URL.Query()
	if d, err := time.ParseDuration(q.Get("delay")); err == nil && s.asked(q.Get("only")) {
		t := time.NewTimer(min(d, echoDelay))
		defer t.Stop()
		select {
		case <-t.C:
		case <-r.Context().Done():
			return
		}
	}
	status := http.StatusOK
	if n, err := strconv.Atoi(q.Get("status")); err == nil && n >= 200 && n <= 599 && s.asked(q.Get("only")) {
		status = n
	}
	if failsNow(r) {
		status = http.StatusServiceUnavailable
	}
	if n, err := strconv.Atoi(q.Get("size")); err == nil && n >= 0 {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, strings.Repeat("x", min(n, maxBody))) // the client may be gone
		return
	}
	answer(w, status, v)
}

// asked tells whether this instance or version is meant; everyone is by "".
func (s *echoServer) asked(only string) bool {
	return only == "" || only == s.version || only == s.instance
}

// failsNow tells whether a request that asks for its first tries to fail is one of those.
func failsNow(r *http.Request) bool {
	fails, err := strconv.Atoi(r.URL.Query().Get("fail"))
	if err != nil {
		return false
	}
	try, err := strconv.Atoi(r.Header.Get("X-Envoy-Attempt-Count"))
	return err != nil || try <= fails
}

// grpc sends every message back, with the version in front, and ends with status OK; the path's last element, if it is a number,
// is the status instead.
func (s *echoServer) grpc(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "application/grpc")
	if failsNow(r) { // with the status in the head, as servers answer that have nothing to say
		h.Set("Grpc-Status", "14")
		w.WriteHeader(http.StatusOK)
		return
	}
	h.Set("Trailer", "Grpc-Status, Grpc-Message")
	w.WriteHeader(http.StatusOK)
	code := "0"
	if last := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]; last != "" {
		if _, err := strconv.ParseUint(last, 10, 8); err == nil {
			code = last
		}
	}
	for code == "0" {
		message, err := readFrame(r.Body)
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = writeFrame(w, append([]byte(s.version+" "), message...))
		}
		if err == nil {
			err = http.NewResponseController(w).Flush()
		}
		if err != nil {
			code = "13"
		}
	}
	h.Set("Grpc-Status", code)
	h.Set("Grpc-Message", map[bool]string{true: "", false: "as asked"}[code == "0"])
}

// readFrame reads one message of gRPC; io.EOF is its end.
func readFrame(r io.Reader) ([]byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if head[0] != 0 || n > maxBody {
		return nil, fmt.Errorf("message of %d bytes, compressed %d", n, head[0])
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return b, err
}

func writeFrame(w io.Writer, b []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...))
	return err
}

// webSocketGUID is the constant of RFC 6455.
const webSocketGUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

func webSocketAccept(key string) string {
	sum := sha1.Sum([]byte(key + webSocketGUID))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// websocket sends every text and binary message back, the version in front.
func (s *echoServer) websocket(w http.ResponseWriter, r *http.Request) {
	key := r.Header.Get("Sec-WebSocket-Key")
	if key == "" {
		http.Error(w, "no Sec-WebSocket-Key", http.StatusBadRequest)
		return
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	defer conn.Close()
	fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX-Version: %s\r\nSec-WebSocket-Accept: %s\r\n\r\n", s.version, webSocketAccept(key))
	if rw.Flush() != nil {
		return
	}
	for {
		op, payload, err := readMessage(rw.Reader)
		if err != nil {
			return
		}
		switch op {
		case 1, 2:
			err = writeMessage(conn, op, append([]byte(s.version+" "), payload...), nil)
		case 8:
			_ = writeMessage(conn, 8, payload, nil) // the client closes
			return
		case 9:
			err = writeMessage(conn, 10, payload, nil)
		}
		if err != nil {
			return
		}
	}
}

// readMessage reads one unfragmented message of at most 64 KiB.
func readMessage(r *bufio.Reader) (op byte, payload []byte, err error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := int(head[1] & 0x7f)
	switch n {
	case 126:
		var long [2]byte
		if _, err := io.ReadFull(r, long[:]); err != nil {
			return 0, nil, err
		}
		n = int(binary.BigEndian.Uint16(long[:]))
	case 127:
		return 0, nil, errors.New("message is too long")
	}
	if head[0]&0x80 == 0 {
		return 0, nil, errors.New("message is fragmented")
	}
	var mask [4]byte
	if head[1]&0x80 != 0 {
		if _, err := io.ReadFull(r, mask[:]); err != nil {
			return 0, nil, err
		}
	}
	payload = make([]byte, n)
	if _, err := io.ReadFull(r, payload); err != nil {
		return 0, nil, err
	}
	for i := range payload {
		payload[i] ^= mask[i%4]
	}
	return head[0] & 0xf, payload, nil
}

// writeMessage writes one message; clients give a mask of four bytes.
func writeMessage(w io.Writer, op byte, payload, mask []byte) error {
	b := []byte{0x80 | op}
	flag := byte(0)
	if mask != nil {
		flag = 0x80
	}
	if len(payload) < 126 {
		b = append(b, flag|byte(len(payload)))
	} else {
		b = append(b, flag|126)
		b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
	}
	b = append(b, mask...)
	for i, c := range payload {
		if mask != nil {
			c ^= mask[i%4]
		}
		b = append(b, c)
	}
	_, err := w.Write(b)
	return err
}
