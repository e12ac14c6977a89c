package hbone

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"time"

	"golang.org/x/net/http2/hpack"

	"github.com/undermesh/undermesh/ztunnel/http/frame"
)

func FuzzServerConn(f *testing.F) {
	mkFrame := func(typ, flags byte, id uint32, p []byte) []byte {
		return append(frame.Append(nil, len(p), typ, flags, id), p...)
	}
	var blk bytes.Buffer
	e := hpack.NewEncoder(&blk)
	_ = e.WriteField(hpack.HeaderField{Name: ":method", Value: "CONNECT"})
	_ = e.WriteField(hpack.HeaderField{Name: ":authority", Value: "10.0.0.7:80"})
	open := append(frame.AppendSettings(nil), mkFrame(frame.Headers, frame.EndHeaders, 1, blk.Bytes())...)
	f.Add(open)
	f.Add(append(bytes.Clone(open), mkFrame(frame.Data, frame.EndStream|frame.Padded, 1, []byte{2, 'a', 0, 0})...))
	f.Add(append(bytes.Clone(open), mkFrame(frame.Settings, 0, 0, binary.BigEndian.AppendUint32([]byte{0, 4}, 5))...))
	f.Add(append(bytes.Clone(open), mkFrame(frame.RST, 0, 1, []byte{0, 0, 0, 8})...))
	f.Add(append(bytes.Clone(open), mkFrame(frame.GoAway, 0, 0, make([]byte, 12))...))
	f.Add(append(frame.AppendSettings(nil), mkFrame(frame.Headers, frame.HasPriority|frame.Padded, 1, []byte{0, 1, 2, 3, 4, 5})...))
	f.Fuzz(func(t *testing.T, in []byte) {
		a, b := bufPipe()
		cfg := testConfig()
		cfg.CloseTimeout = time.Millisecond
		srv := NewServer(b, cfg, echoHandler)
		done := make(chan struct{})
		go func() { defer close(done); _ = srv.Run(context.Background()) }()
		_, _ = a.Write(append([]byte(frame.Preface), in...))
		_ = a.CloseWrite()
		_, _ = io.Copy(io.Discard, a)
		<-done
		srv.c.recv.mu.Lock()
		defer srv.c.recv.mu.Unlock()
		if srv.c.recv.buffered != 0 {
			t.Errorf("%d bytes held after the end", srv.c.recv.buffered)
		}
	})
}

func FuzzHeaderBlock(f *testing.F) {
	b := newBlock()
	f.Add(bytes.Clone(b.encode([]HeaderField{{":method", "CONNECT"}, {":authority", "a:1"}}, Header{{"baggage", "x=y"}})))
	f.Add([]byte{0x82, 0x84})
	f.Fuzz(func(t *testing.T, in []byte) {
		const limit = 1 << 12
		m, err := newBlock().decode(in, limit)
		if err != nil {
			var ce *frame.ConnError
			if !errors.As(err, &ce) || ce.Code != frame.CodeCompression {
				t.Fatalf("error %v", err)
			}
			return
		}
		size := 0
		for _, h := range m.header {
			size += len(h.Name) + len(h.Value) + 32
		}
		if size > limit {
			t.Fatalf("list of %d bytes passed the limit", size)
		}
		if m.malformed == "" && !m.tooLarge && m.header.validate() != nil {
			t.Fatalf("illegal header passed: %v", m.header)
		}
	})
}

// FuzzClientConn feeds a client with whatever a server might say.
func FuzzClientConn(f *testing.F) {
	var blk bytes.Buffer
	e := hpack.NewEncoder(&blk)
	_ = e.WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
	h := append(frame.Append(frame.AppendSettings(nil), blk.Len(), frame.Headers, frame.EndHeaders, 1), blk.Bytes()...)
	f.Add(h)
	f.Add(append(frame.Append(bytes.Clone(h), 2, frame.Data, frame.EndStream, 1), "ok"...))
	f.Add(frame.AppendGoAway(bytes.Clone(h), 0, frame.CodeNo, "x"))
	f.Fuzz(func(t *testing.T, in []byte) {
		a, b := bufPipe()
		cfg := testConfig()
		cfg.CloseTimeout = time.Millisecond
		cl := NewClient(a, cfg)
		go func() { _, _ = io.Copy(io.Discard, b) }()
		got := make(chan struct{})
		go func() {
			defer close(got)
			s, err := cl.Connect(context.Background(), Request{Authority: "a:1"})
			if err == nil {
				_, _ = io.Copy(io.Discard, s)
				_ = s.Close()
			}
		}()
		_, _ = b.Write(in)
		_ = b.CloseWrite()
		<-cl.Done()
		<-got
		b.Close()
		if n := cl.Streams(); n != 0 {
			t.Errorf("%d streams after the end", n)
		}
	})
}
