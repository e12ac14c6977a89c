package h1

import (
	"bufio"
	"bytes"
	"errors"
	"net/http"
	"testing"

	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// FuzzParseRequest: what is accepted is read by net/http as the same message, is the same when it is written and read again, and
// a prefix of it is never accepted nor refused.
func FuzzParseRequest(f *testing.F) {
	for _, c := range refusals {
		f.Add([]byte(c.in))
	}
	f.Add([]byte(raw("GET /a?b HTTP/1.1", "Host: x:80", "A: b")))
	f.Add([]byte(raw("POST http://x/ HTTP/1.1", "Host: y", "Transfer-Encoding: chunked", "Connection: close, b", "B: c", "TE: trailers")))
	f.Add([]byte(raw("CONNECT y:443 HTTP/1.1", "Host: x")))
	f.Fuzz(func(t *testing.T, in []byte) {
		var r head.Request
		n, err := ParseRequest(in, &r, Limits{})
		if err != nil {
			var e *Error
			if !errors.As(err, &e) && !errors.Is(err, ErrMore) {
				t.Fatalf("error %v", err)
			}
			return
		}
		if got, err := ParseRequest(in[:n-1], &head.Request{}, Limits{}); !errors.Is(err, ErrMore) {
			t.Fatalf("without its last byte: %d, %v", got, err)
		}
		out := AppendRequest(nil, &r)
		var again head.Request
		if m, err := ParseRequest(out, &again, Limits{Bytes: 1 << 20, Fields: 200}); err != nil || m != len(out) {
			t.Fatalf("written as %q: %v", out, err)
		}
		if !bytes.Equal(again.Method, r.Method) || !bytes.Equal(again.Path, r.Path) || !bytes.Equal(again.Authority, r.Authority) ||
			again.Body != r.Body || !bytes.Equal(again.Protocol, r.Protocol) || (again.Close != r.Close && len(r.Protocol) == 0) {
			t.Fatalf("%+v became %+v", r, again)
		}
		std, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(out)))
		if err != nil {
			return // net/http refuses more in some places, such as escapes in paths
		}
		length := std.ContentLength
		if len(std.TransferEncoding) > 0 {
			length = -1
		}
		if std.Method != string(r.Method) || std.Host != string(r.Authority) && len(r.Path) > 0 && r.Path[0] == '/' && string(r.Path[:min(2, len(r.Path))]) != "//" || length != r.Body {
			t.Fatalf("net/http reads %q as %+v", out, std)
		}
	})
}

// FuzzParseResponse: what is accepted is the same when it is written and read again, and net/http finds the same body.
func FuzzParseResponse(f *testing.F) {
	f.Add([]byte(raw("HTTP/1.1 200 OK", "Content-Length: 3")), false)
	f.Add([]byte(raw("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", "Connection: close")), false)
	f.Add([]byte(raw("HTTP/1.0 304 Not Modified", "Content-Length: 3")), true)
	f.Add([]byte(raw("HTTP/1.1 101 S", "Connection: upgrade", "Upgrade: websocket")), false)
	f.Fuzz(func(t *testing.T, in []byte, toHead bool) {
		var r head.Response
		n, framing, err := ParseResponse(in, &r, toHead, Limits{})
		if err != nil {
			return
		}
		if n > len(in) || r.Status < 100 || r.Status > 999 {
			t.Fatalf("used %d of %d: %+v", n, len(in), r)
		}
		request := &http.Request{Method: http.MethodGet}
		if toHead {
			request.Method = http.MethodHead
		}
		std, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(in[:n])), request)
		if err != nil {
			return
		}
		if framing == Length && std.ContentLength != r.Body || framing == Chunked && len(std.TransferEncoding) != 1 {
			t.Fatalf("net/http reads a body of %d %q, not %d (%d)", std.ContentLength, std.TransferEncoding, r.Body, framing)
		}
	})
}

// FuzzChunks: however the body is cut, the same data comes out or the same refusal, and net/http's reader finds the same data.
func FuzzChunks(f *testing.F) {
	f.Add([]byte("3\r\nabc\r\n0\r\n\r\nGET"), uint8(3))
	f.Add([]byte("3;a=b\r\nabc\r\nA\r\n0123456789\r\n0\r\nA: b\r\n\r\n"), uint8(7))
	f.Add([]byte("0x3\r\nabc\r\n"), uint8(1))
	f.Fuzz(func(t *testing.T, in []byte, n uint8) {
		data, rest, err := decode(string(in), len(in)+1)
		cut, cutRest, cutErr := decode(string(in), int(n)+1)
		if (err == nil) != (cutErr == nil) || err == nil && (data != cut || rest != cutRest) {
			t.Fatalf("whole %q %d %v, cut %q %d %v", data, rest, err, cut, cutRest, cutErr)
		}
		if err != nil {
			return
		}
		text := append([]byte("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"), in[:len(in)-rest]...)
		std, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(text)))
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if _, err := b.ReadFrom(std.Body); err == nil && b.String() != data {
			t.Fatalf("net/http reads %q, not %q", b.String(), data)
		}
	})
}
