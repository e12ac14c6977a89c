package h2

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2/hpack"

	"github.com/undermesh/undermesh/ztunnel/http/frame"
	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// encode is x/net's encoder, which uses its dynamic table and Huffman codes.
func encode(e *hpack.Encoder, buf *bytes.Buffer, kv ...string) []byte {
	buf.Reset()
	for i := 0; i < len(kv); i += 2 {
		_ = e.WriteField(hpack.HeaderField{Name: kv[i], Value: kv[i+1]})
	}
	return bytes.Clone(buf.Bytes())
}

// FuzzDecode compares our decoder with x/net's over two blocks of one connection: the same error or not, the same fields.
func FuzzDecode(f *testing.F) {
	var buf bytes.Buffer
	e := hpack.NewEncoder(&buf)
	one := encode(e, &buf, ":method", "GET", ":path", "/a/b", "cookie", "x=y", "x-long", strings.Repeat("ab\x01\xff", 300))
	f.Add(one, encode(e, &buf, ":method", "GET", ":path", "/a/b", "x-long", strings.Repeat("ab\x01\xff", 300), "te", "trailers"))
	f.Add([]byte{0x20, 0x82, 0x3f, 0xe1, 0x1f}, []byte{0x3f, 0xe1, 0x1f, 0x84})
	f.Add([]byte{0x40, 0x81, 0xff, 0x01, 'a', 0xbe}, []byte{0xbe, 0x7e, 0x01, 'b', 0xbe, 0xbf})
	f.Add(bytes.Repeat([]byte{0x40, 0x01, 'a', 0x7f, 0x20}, 3), []byte{0x00, 0x84, 0xff, 0xff, 0xff, 0xff, 0x00})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		ours := decoder{table: table{max: frame.DefaultTable, limit: frame.DefaultTable}, maxList: 1 << 30, maxFields: 1 << 30}
		theirs := hpack.NewDecoder(frame.DefaultTable, nil)
		l := &list{}
		for _, block := range [][]byte{a, b} {
			var want []string
			theirs.SetEmitFunc(func(f hpack.HeaderField) {
				if m := metaOf([]byte(f.Name)); !m.bad && m.pseudo == none && legalValue([]byte(f.Value)) {
					want = append(want, f.Name+": "+f.Value)
				}
			})
			_, err := theirs.Write(block)
			if err == nil {
				err = theirs.Close()
			}
			var fields head.Fields
			l.fields = &fields
			own := ours.decode(block, l)
			if own != nil || err != nil {
				// x/net lets a size update stand behind fields while its table is empty, and only one before them otherwise
				resize := own != nil && strings.Contains(own.Error(), "size update") || err != nil && strings.Contains(err.Error(), "size update")
				if (own == nil) != (err == nil) && !resize {
					t.Fatalf("ours: %v, x/net: %v", own, err)
				}
				return
			}
			got := strings.Split(strings.TrimSuffix(string(fields.AppendLines(nil)), "\r\n"), "\r\n")
			if fields.Len() == 0 {
				got = nil
			}
			if strings.Join(got, "|") != strings.Join(want, "|") {
				t.Fatalf("ours: %q\nx/net: %q", got, want)
			}
			if ours.size > ours.max || len(ours.buf) > 2*frame.DefaultTable {
				t.Fatalf("table of %d bytes, its text of %d", ours.size, len(ours.buf))
			}
		}
	})
}

func whole(typ, flags byte, id uint32, p []byte) []byte {
	return append(frame.Append(nil, len(p), typ, flags, id), p...)
}

// FuzzServerConn feeds a server that echoes with whatever a client might say. Nothing is held after the end, every head that
// passed is legal, and what the server says is HTTP/2.
func FuzzServerConn(f *testing.F) {
	var buf bytes.Buffer
	block := encode(hpack.NewEncoder(&buf), &buf, plain...)
	open := append(frame.AppendSettings(nil), whole(frame.Headers, frame.EndHeaders, 1, block)...)
	add := func(parts ...[]byte) { f.Add(append(bytes.Clone(open), bytes.Join(parts, nil)...)) }
	add()
	add(whole(frame.Data, frame.EndStream|frame.Padded, 1, []byte{2, 'a', 0, 0}))
	add(whole(frame.Settings, 0, 0, binary.BigEndian.AppendUint32([]byte{0, 4}, 5)))
	add(whole(frame.RST, 0, 1, []byte{0, 0, 0, 8}), whole(frame.Data, 0, 1, []byte("x")))
	add(whole(frame.GoAway, 0, 0, make([]byte, 12)))
	add(whole(frame.Headers, frame.EndHeaders|frame.EndStream, 1, []byte{0, 1, 'a', 1, 'b'}))
	add(whole(frame.Headers, frame.HasPriority|frame.Padded, 3, []byte{0, 1, 2, 3, 4, 5}), whole(frame.Continuation, frame.EndHeaders, 3, block))
	add(whole(frame.Window, 0, 1, []byte{0, 0, 1, 0}), whole(frame.Ping, 0, 0, make([]byte, 8)), whole(frame.Priority, 0, 1, []byte{0, 0, 0, 1, 0}))
	f.Fuzz(func(t *testing.T, in []byte) {
		a, b := net.Pipe()
		cfg := testConfig()
		cfg.CloseTimeout = time.Millisecond
		c := NewServer(b, cfg, func(s *Stream) {
			checkRequest(t, s.Request())
			goEcho(s)
		})
		done := make(chan struct{})
		go func() { defer close(done); _ = c.Serve(context.Background(), nil) }()
		go func() {
			_, _ = a.Write(append([]byte(frame.Preface), in...))
			_ = a.Close()
		}()
		_, _ = io.Copy(io.Discard, a)
		<-done
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.streams) != 0 || c.active != 0 {
			t.Errorf("%d streams, %d active after the end", len(c.streams), c.active)
		}
	})
}

// checkRequest refuses what could become another request when it is written as HTTP/1.
func checkRequest(t *testing.T, r *head.Request) {
	line := string(r.Method) + " " + string(r.Path) + " " + string(r.Authority) + "\r\n"
	if strings.Count(line, " ") != 2 || strings.ContainsAny(line[:len(line)-2], "\r\n\x00") || len(r.Method) == 0 {
		t.Errorf("request line %q", line)
	}
	for i := range r.Len() {
		id, name, value, _ := r.At(i)
		if id == head.Host || id == head.TransferEncoding || id == head.Connection || id == head.Upgrade ||
			bytes.ContainsAny(value, "\r\n\x00") || metaOf(name).bad || metaOf(name).pseudo != none {
			t.Errorf("field %q: %q", name, value)
		}
	}
}

// FuzzClientConn feeds a client with whatever a server might say.
func FuzzClientConn(f *testing.F) {
	var buf bytes.Buffer
	e := hpack.NewEncoder(&buf)
	h := append(frame.AppendSettings(nil), whole(frame.Headers, frame.EndHeaders, 1, encode(e, &buf, ":status", "200", "a", "b"))...)
	f.Add(h)
	f.Add(append(bytes.Clone(h), whole(frame.Data, frame.EndStream, 1, []byte("ok"))...))
	f.Add(frame.AppendGoAway(bytes.Clone(h), 0, frame.CodeNo, "x"))
	f.Add(append(bytes.Clone(h), whole(frame.Headers, frame.EndHeaders|frame.EndStream, 1, encode(e, &buf, "a", "b"))...))
	f.Add(frame.AppendRST(bytes.Clone(h), 1, frame.CodeRefused))
	f.Fuzz(func(t *testing.T, in []byte) {
		a, b := net.Pipe()
		cfg := testConfig()
		cfg.CloseTimeout = time.Millisecond
		go func() { _, _ = io.Copy(io.Discard, b) }()
		c := NewClient(a, cfg)
		got := make(chan struct{})
		go func() {
			defer close(got)
			s, err := c.Open(get("a", "/"), false)
			if err != nil {
				return
			}
			defer s.Close()
			_ = s.WriteEnd([]byte("body"))
			for {
				r, err := s.ReadHead()
				if err != nil {
					return
				}
				if r.Status < 100 || r.Status > 999 || r.Status == 101 {
					t.Errorf("status %d", r.Status)
				}
				if r.Status >= 200 {
					break
				}
			}
			n, err := io.Copy(io.Discard, s)
			if want := s.expect; err == nil && want > 0 {
				t.Errorf("%d bytes, %d more were announced", n, want)
			}
		}()
		_, _ = b.Write(in)
		_ = b.Close()
		<-c.Done()
		<-got
		if n := c.Streams(); n != 0 {
			t.Errorf("%d streams after the end", n)
		}
		var ce *frame.ConnError
		if err := c.Err(); err == nil || errors.As(err, &ce) && !ce.Remote && ce.Reason == "" {
			t.Errorf("ended with %v", err)
		}
	})
}

// benchBlocks are a request that fills the dynamic table, and the same again.
func benchBlocks() [2][]byte {
	var buf bytes.Buffer
	e := hpack.NewEncoder(&buf)
	kv := append(plain[:8:8], "user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "accept", "text/html,application/xhtml+xml",
		"accept-language", "en-US,en;q=0.5", "accept-encoding", "gzip, deflate, br", "x-request-id", "5e0f9c5a-7a1c-4f6e-9d59-1f6c2c6f8f10")
	return [2][]byte{encode(e, &buf, kv...), encode(e, &buf, kv...)}
}
