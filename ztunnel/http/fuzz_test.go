package http

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// FuzzCanonical: a canonical path is canonical, has no dot segment, and its query is not touched.
func FuzzCanonical(f *testing.F) {
	for _, s := range []string{"/a/./b/../c?d/../e", "/%2e%2e/a", "//a\\..\\b", "/a%2f..%5cb", "/%00", "/..", "/a/%7E\"{}"} {
		for how := range PathsDecodeMerge + 1 {
			f.Add([]byte(s), uint8(how))
		}
	}
	f.Fuzz(func(t *testing.T, path []byte, mode uint8) {
		how := Paths(mode % uint8(PathsDecodeMerge+1))
		if len(path) == 0 || path[0] != '/' {
			return
		}
		before := bytes.Clone(path)
		out, ok := canonical(nil, path, how)
		if !bytes.Equal(path, before) {
			t.Fatalf("%q became %q", before, path)
		}
		if !ok {
			return
		}
		if len(out) == 0 || out[0] != '/' {
			t.Fatalf("%q became %q", path, out)
		}
		_, query, asked := bytes.Cut(path, []byte("?"))
		bare, kept, has := bytes.Cut(out, []byte("?"))
		if asked != has || !bytes.Equal(query, kept) {
			t.Fatalf("the query of %q became that of %q", path, out)
		}
		if how == PathsNone {
			return
		}
		for seg := range bytes.SplitSeq(bare, []byte("/")) {
			if s := string(seg); s == "." || s == ".." {
				t.Fatalf("%q became %q", path, out)
			}
		}
		if again, ok := canonical(nil, out, how); !ok || !bytes.Equal(again, out) && how != PathsDecodeMerge {
			t.Fatalf("%q became %q, and that %q", path, out, again)
		}
	})
}

// FuzzServe: whatever a client sends and a host answers, the client gets well formed answers or the end of the connection, and
// nothing stays behind.
func FuzzServe(f *testing.F) {
	f.Add([]byte(get+get), []byte(ok))
	f.Add([]byte("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"+get), []byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"))
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nabc"), []byte("HTTP/1.1 101 S\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nx"))
	f.Add([]byte("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"), []byte("HTTP/1.1 100 C\r\n\r\nHTTP/1.0 200 OK\r\n\r\nx"))
	f.Add([]byte(preface+"\x00\x00\x00\x04\x00\x00\x00\x00\x00"), []byte(""))
	f.Fuzz(func(t *testing.T, request, response []byte) {
		w := newWorld(t)
		w.routes("a", toUp)
		w.cluster("up", nil, func(c net.Conn) {
			_, _ = c.Read(make([]byte, 64<<10))
			_, _ = c.Write(response)
		})
		c := w.connect()
		go func() { // pipes do not buffer
			_, _ = c.Write(request)
			<-time.After(20 * time.Millisecond)
			_ = c.Close()
		}()
		method, _, _ := bytes.Cut(bytes.TrimLeft(request, "\r\n"), []byte(" "))
		if !bytes.HasPrefix(request, []byte("PRI")) {
			a, err := http.ReadResponse(c.r, &http.Request{Method: string(method)})
			if err == nil && a.StatusCode >= 200 {
				_, _ = io.Copy(io.Discard, a.Body)
			} else if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("the answer is malformed: %v", err)
			}
		}
		_, _ = io.Copy(io.Discard, bufio.NewReader(c.r))
		<-c.end
		w.close()
		if s := w.flow.Workload.Stats(); s.ActiveRequests != 0 || s.ActiveConnections != 0 || s.HeldBytes != 0 || s.Panics != 0 {
			t.Errorf("%+v", s)
		}
	})
}
