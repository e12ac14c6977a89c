package preamble

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
)

const (
	maxAnswer  = 16 << 10 // bytes of the heads that a proxy answers with
	maxInterim = 8        // answers of 1xx before the one that counts
)

// Connect asks the HTTP/1.1 proxy at the other end of c for host and port, and returns the connection to these once the proxy answers
// 2xx: c itself, unless bytes of the target came with the answer. Every other answer is an error that says it.
func Connect(c net.Conn, host string, port uint16) (net.Conn, error) {
	target := net.JoinHostPort(strings.Trim(host, "[]"), strconv.Itoa(int(port)))
	if host == "" || port == 0 || strings.ContainsFunc(target, notHost) {
		return nil, fmt.Errorf("ask proxy for %.200q: it is not a host and a port", target)
	}
	if _, err := fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", target, target); err != nil {
		return nil, fmt.Errorf("ask proxy for %s: %w", target, err)
	}
	rest, err := readAnswer(c)
	if err != nil {
		return nil, fmt.Errorf("ask proxy for %s: %w", target, err)
	}
	if len(rest) == 0 {
		return c, nil
	}
	return &begun{Conn: c, first: rest}, nil
}

// notHost is for what no host or address has.
func notHost(r rune) bool {
	return r > 'z' || !strings.ContainsRune("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-._:[]", r)
}

// readAnswer returns what came after the head of an answer of 2xx, whose fields say nothing of a body (RFC 9110 §9.3.6).
func readAnswer(c io.Reader) ([]byte, error) {
	in := bufio.NewReaderSize(io.LimitReader(c, maxAnswer), maxAnswer)
	for range maxInterim {
		head, err := http.ReadResponse(in, &http.Request{Method: http.MethodConnect})
		if err != nil {
			return nil, fmt.Errorf("read its answer: %w", err)
		}
		switch { // the body, which Go takes for one, stays unread: it is the target's

		case head.ProtoMajor != 1 || head.StatusCode == http.StatusSwitchingProtocols:
			return nil, fmt.Errorf("it answers %.20q %d", head.Proto, head.StatusCode)
		case head.StatusCode < http.StatusOK:
			continue
		case head.StatusCode >= http.StatusMultipleChoices:
			return nil, fmt.Errorf("it answers %.100q", head.Status)
		}
		rest, err := in.Peek(in.Buffered())
		if err != nil {
			return nil, fmt.Errorf("read its answer: %w", err)
		}
		return rest, nil
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
	if l, ok := b.Conn.(interface{ SetLinger(int) error }); ok {
		return l.SetLinger(seconds)
	}
	return nil
}
