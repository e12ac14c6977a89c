package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"

	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/http/h2"
	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// runServer answers "/N" with N bytes: HTTP/1.1 on one address, h2c on another.
func runServer(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("server", flag.ContinueOnError)
	one, two := fs.String("h1", "", "address"), fs.String("h2", "", "address")
	if err := fs.Parse(args); err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	for addr, serve := range map[string]func(net.Conn){*one: serveH1, *two: func(c net.Conn) {
		_ = h2.NewServer(c, h2.Config{Clock: clock.System()}, func(s *h2.Stream) { s.Go(answerH2) }).Serve(ctx, nil)
	}} {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		context.AfterFunc(ctx, func() { _ = l.Close() })
		wg.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				wg.Go(func() {
					stop := context.AfterFunc(ctx, func() { _ = c.Close() })
					defer stop()
					defer c.Close()
					serve(c)
				})
			}
		})
	}
	return nil
}

var filler = make([]byte, 1<<20)

// size is the N of "/N", at most a MiB.
func size(path string) int {
	n, _ := strconv.Atoi(strings.TrimPrefix(path, "/")) // 0 for any other
	return max(0, min(n, len(filler)))
}

func serveH1(c net.Conn) {
	r := bufio.NewReaderSize(c, 16<<10)
	var out []byte
	for {
		n, first := 0, true
		for {
			line, err := r.ReadSlice('\n')
			if err != nil {
				return
			}
			if first {
				if f := strings.Fields(string(line)); len(f) == 3 {
					n = size(f[1])
				}
				first = false
			}
			if len(line) == 2 {
				break
			}
		}
		out = fmt.Appendf(out[:0], "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n", n)
		if n <= 64<<10 {
			out = append(out, filler[:n]...)
			n = 0
		}
		if _, err := c.Write(out); err != nil {
			return
		}
		if n > 0 {
			if _, err := c.Write(filler[:n]); err != nil {
				return
			}
		}
	}
}

var heads = sync.Pool{New: func() any { return &head.Response{} }}

func answerH2(s *h2.Stream) {
	r := heads.Get().(*head.Response)
	defer heads.Put(r)
	r.Reset(nil)
	n := size(string(s.Request().Path))
	r.Status = 200
	if string(s.Request().Get(head.ContentType)) == grpcType {
		answerGRPC(s, r, n)
		return
	}
	r.AddString(head.ContentType, "text/plain")
	r.Add(head.ContentLength, "content-length", strconv.AppendInt(nil, int64(n), 10))
	if s.WriteHead(r, false) == nil {
		_ = s.WriteEnd(filler[:n])
	}
}

// answerGRPC answers a unary call, of which it reads the message, by one of n bytes.
func answerGRPC(s *h2.Stream, r *head.Response, n int) {
	var buf [256]byte
	for {
		if _, err := s.Read(buf[:]); err == io.EOF {
			break
		} else if err != nil {
			return
		}
	}
	r.AddString(head.ContentType, grpcType)
	if s.WriteHead(r, false) != nil {
		return
	}
	if _, err := s.Write(grpcMessage(n)); err != nil {
		return
	}
	r.Reset(nil)
	r.AddString(head.GRPCStatus, "0")
	_ = s.WriteTrailers(&r.Fields)
}
