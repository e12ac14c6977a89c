package preamble

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strconv"
	"strings"
)

const (
	maxAnswer  = 16 << 10 // bytes of the heads that a proxy answers with
	maxInterim = 8        // answers of 1xx before the one that counts
)

// Target is what a proxy is asked for.
type Target struct {
	Host string
	Port uint16
	POST bool // the proxy is asked by POST, whose body and answer's body are the bytes of the tunnel, in place of CONNECT
}

// authority is an error for what is not a host and a port: it would be a request of its own.
func (t Target) authority() (string, error) {
	out := net.JoinHostPort(strings.Trim(t.Host, "[]"), strconv.Itoa(int(t.Port)))
	if t.Host == "" || t.Port == 0 || strings.ContainsFunc(out, notHost) {
		return "", fmt.Errorf("ask proxy for %.200q: it is not a host and a port", out)
	}
	return out, nil
}

// Connect asks the HTTP/1.1 proxy at the other end of c for the target, and returns the connection to it once the proxy answers
// 2xx: by CONNECT c itself, unless bytes of the target came with the answer. Every other answer is an error that says it.
func Connect(c net.Conn, t Target) (net.Conn, error) {
	target, err := t.authority()
	if err != nil {
		return nil, err
	}
	format, read := "CONNECT %[1]s HTTP/1.1\r\nHost: %[1]s\r\n\r\n", readAnswer
	if t.POST {
		format, read = "POST / HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n", readPosted
	}
	if _, err := fmt.Fprintf(c, format, target); err != nil {
		return nil, fmt.Errorf("ask proxy for %s: %w", target, err)
	}
	out, err := read(c)
	if err != nil {
		return nil, fmt.Errorf("ask proxy for %s: %w", target, err)
	}
	return out, nil
}

// notHost is for what no host or address has.
func notHost(r rune) bool {
	return r > 'z' || !strings.ContainsRune("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-._:[]", r)
}

// readAnswer returns the connection behind the head of an answer of 2xx, whose fields say nothing of a body (RFC 9110 §9.3.6).
func readAnswer(c net.Conn) (net.Conn, error) {
	in := bufio.NewReaderSize(&io.LimitedReader{R: c, N: maxAnswer}, maxAnswer)
	if _, err := readHead(in, http.MethodConnect); err != nil { // what Go takes for a body is the target's
		return nil, err
	}
	rest, err := in.Peek(in.Buffered())
	switch {
	case err != nil:
		return nil, fmt.Errorf("read its answer: %w", err)
	case len(rest) == 0:
		return c, nil
	}
	return &begun{Conn: c, first: rest}, nil
}

// readPosted returns the connection whose bytes are the bodies of a POST and of its answer of 2xx.
func readPosted(c net.Conn) (net.Conn, error) {
	limit := &io.LimitedReader{R: c, N: maxAnswer}
	head, err := readHead(bufio.NewReaderSize(limit, maxAnswer), http.MethodPost)
	if err != nil {
		return nil, err
	}
	limit.N = math.MaxInt64
	return &posted{Conn: c, in: head.Body}, nil
}

// readHead reads the head of an answer of 2xx, after those of 1xx.
func readHead(in *bufio.Reader, method string) (*http.Response, error) {
	for range maxInterim {
		head, err := http.ReadResponse(in, &http.Request{Method: method})
		if err != nil {
			return nil, fmt.Errorf("read its answer: %w", err)
		}
		switch {
		case head.ProtoMajor != 1 || head.StatusCode == http.StatusSwitchingProtocols:
			return nil, fmt.Errorf("it answers %.20q %d", head.Proto, head.StatusCode)
		case head.StatusCode < http.StatusOK:
			continue
		case head.StatusCode >= http.StatusMultipleChoices:
			return nil, fmt.Errorf("it answers %.100q", head.Status)
		}
		return head, nil
	}
	return nil, fmt.Errorf("it answers %d times without an end", maxInterim)
}

// begun is a connection of which bytes were read already.
type begun struct {
	net.Conn
	first []byte
}

// Read implements net.Conn.
func (b *begun) Read(p []byte) (int, error) {
	if len(b.first) > 0 {
		n := copy(p, b.first)
		b.first = b.first[n:]
		return n, nil
	}
	return b.Conn.Read(p)
}

// CloseWrite passes a half-close on.
func (b *begun) CloseWrite() error {
	if cw, ok := b.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return b.Close()
}

// SetLinger makes the next Close a reset, where the connection can be reset.
func (b *begun) SetLinger(seconds int) error {
	return setLinger(b.Conn, seconds)
}
