package h2

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// BenchmarkRequests is one request and its answer of 64 bytes over loopback, both roles in this process: n connections with
// m streams each.
func BenchmarkRequests(b *testing.B) {
	for _, c := range [][2]int{{1, 1}, {1, 64}, {8, 64}} {
		b.Run(fmt.Sprintf("%dx%d", c[0], c[1]), func(b *testing.B) { benchRequests(b, c[0], c[1]) })
	}
}

func benchRequests(b *testing.B, conns, streams int) {
	body := make([]byte, 64)
	heads := sync.Pool{New: func() any { return &head.Response{} }}
	addr := serve(b, testConfig(), func(s *Stream) {
		s.Go(func(s *Stream) {
			r := heads.Get().(*head.Response)
			defer heads.Put(r)
			r.Reset(nil)
			r.Status = 200
			r.AddString(head.ContentType, "text/plain")
			_ = s.WriteHead(r, false)
			_ = s.WriteEnd(body)
		})
	})
	var all []*Conn
	for range conns {
		var d net.Dialer
		nc, err := d.DialContext(context.Background(), "tcp", addr)
		if err != nil {
			b.Fatal(err)
		}
		c := NewClient(nc, testConfig())
		defer c.Close()
		all = append(all, c)
	}
	left := make(chan struct{}, b.N)
	for range b.N {
		left <- struct{}{}
	}
	close(left)
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for i := range conns * streams {
		wg.Go(func() {
			req := get("host", "/some/path")
			req.Add(head.UserAgent, "user-agent", []byte("bench/1.0"))
			req.Add(head.Other, "accept", []byte("*/*"))
			buf := make([]byte, 1024)
			for range left {
				s, err := all[i%conns].Open(req, true)
				if err != nil {
					b.Error(err)
					return
				}
				if _, err := s.ReadHead(); err != nil {
					b.Error(err)
				}
				for err = nil; err != io.EOF; {
					if _, err = s.Read(buf); err != nil && err != io.EOF {
						b.Error(err)
						break
					}
				}
				s.Close()
			}
		})
	}
	wg.Wait()
}

// BenchmarkDecode is the header block of a request as browsers and x/net send it: Huffman codes, fields of the table.
func BenchmarkDecode(b *testing.B) {
	blocks := benchBlocks()
	d := decoder{table: table{max: 4096, limit: 4096}, maxList: 60 << 10, maxFields: 100}
	var fields head.Fields
	l := &list{fields: &fields}
	if err := d.decode(blocks[0], l); err != nil {
		b.Fatal(err)
	}
	for i, name := range []string{"literals", "indexed"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := d.decode(blocks[i], l); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
