package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/http/h2"
	"github.com/undermesh/undermesh/ztunnel/http/head"
)

// loaded is what a load reports, as JSON.
type loaded struct {
	Requests, Errors int
	Elapsed          time.Duration
	P50, P99         time.Duration
	First            string // of the errors
}

// worker asks as next says, with the time from which a request counts and false at the end, and adds what each took.
type worker func(next func() (time.Time, bool), took func(time.Duration)) error

func runLoad(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("load", flag.ContinueOnError)
	target, kind, path := fs.String("target", "", "address"), fs.String("kind", "h1", "h1, new, h2 or grpc"), fs.String("path", "/1024", "path")
	authority := fs.String("authority", "", "that the requests name; default: target")
	conns, streams := fs.Int("conns", 1, "connections"), fs.Int("streams", 1, "streams on each")
	length := fs.Duration("length", time.Second, "of the load")
	rate := fs.Float64("rate", 0, "requests a second of all workers together, however slow the answers are; 0: each asks when it has its answer")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *authority == "" {
		*authority = *target
	}
	var workers []worker
	for range *conns {
		switch *kind {
		case "h1":
			workers = append(workers, keep(ctx, *target, request(*authority, *path, "")))
		case "new":
			workers = append(workers, renew(ctx, *target, request(*authority, *path, "Connection: close\r\n")))
		default:
			c, err := dialH2(ctx, *target)
			if err != nil {
				return err
			}
			defer c.Close()
			for range *streams {
				workers = append(workers, multiplex(c, *authority, *path, *kind == "grpc"))
			}
		}
	}
	return json.NewEncoder(os.Stdout).Encode(drive(workers, *length, *rate))
}

// pace tells a worker when to ask. With a rate a request counts from when it was due: what waits for a late answer is late too.
func pace(start time.Time, length time.Duration, every, first time.Duration) func() (time.Time, bool) {
	if every == 0 {
		return func() (time.Time, bool) {
			now := time.Now()
			return now, now.Sub(start) < length
		}
	}
	due := start.Add(first)
	return func() (time.Time, bool) {
		at := due
		due = due.Add(every)
		if wait := time.Until(at); wait > 0 {
			<-time.After(wait)
		}
		return at, at.Sub(start) < length
	}
}

// drive runs the workers at once, so often a second together; 0: as often as they are answered.
func drive(workers []worker, length time.Duration, rate float64) loaded {
	var mu sync.Mutex
	var all []time.Duration
	var out loaded
	var every time.Duration
	if rate > 0 {
		every = time.Duration(float64(len(workers)) / rate * float64(time.Second))
	}
	start := time.Now()
	var wg sync.WaitGroup
	for i, w := range workers {
		wg.Go(func() {
			var mine []time.Duration
			err := w(pace(start, length, every, every*time.Duration(i)/time.Duration(len(workers))), func(d time.Duration) { mine = append(mine, d) })
			mu.Lock()
			defer mu.Unlock()
			all = append(all, mine...)
			if err != nil {
				out.Errors++
				out.First = err.Error()
			}
		})
	}
	wg.Wait()
	out.Requests, out.Elapsed = len(all), time.Since(start)
	if slices.Sort(all); len(all) > 0 {
		out.P50, out.P99 = all[len(all)/2], all[len(all)*99/100]
	}
	return out
}

func dial(ctx context.Context, target string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", target)
}

func request(target, path, more string) []byte {
	return fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: bench/1.0\r\nAccept: */*\r\n%s\r\n", path, target, more)
}

// keep asks again and again on one connection.
func keep(ctx context.Context, target string, text []byte) worker {
	return func(next func() (time.Time, bool), took func(time.Duration)) error {
		c, err := dial(ctx, target)
		if err != nil {
			return err
		}
		defer c.Close()
		r := bufio.NewReaderSize(c, 64<<10)
		for at, more := next(); more; at, more = next() {
			if err := ask(c, r, text); err != nil {
				return err
			}
			took(time.Since(at))
		}
		return nil
	}
}

// renew makes a connection for each request.
func renew(ctx context.Context, target string, text []byte) worker {
	return func(next func() (time.Time, bool), took func(time.Duration)) error {
		r := bufio.NewReaderSize(nil, 4<<10)
		for at, more := next(); more; at, more = next() {
			c, err := dial(ctx, target)
			if err != nil {
				return err
			}
			r.Reset(c)
			err = ask(c, r, text)
			_ = c.Close()
			if err != nil {
				return err
			}
			took(time.Since(at))
		}
		return nil
	}
}

var lengthField = []byte("content-length:")

// ask sends one request and reads its answer, which has a length.
func ask(c net.Conn, r *bufio.Reader, text []byte) error {
	if _, err := c.Write(text); err != nil {
		return err
	}
	n, first := -1, true
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if first && !bytes.HasPrefix(line, []byte("HTTP/1.1 200")) {
			return fmt.Errorf("answer %q", line)
		}
		first = false
		if len(line) == 2 {
			break
		}
		if len(line) > len(lengthField) && bytes.EqualFold(line[:len(lengthField)], lengthField) {
			if n, err = strconv.Atoi(string(bytes.TrimSpace(line[len(lengthField):]))); err != nil {
				return err
			}
		}
	}
	if n < 0 {
		return errors.New("answer without a length")
	}
	_, err := r.Discard(n)
	return err
}

func dialH2(ctx context.Context, target string) (*h2.Conn, error) {
	nc, err := dial(ctx, target)
	if err != nil {
		return nil, err
	}
	return h2.NewClient(nc, h2.Config{Clock: clock.System()}), nil
}

// multiplex asks again and again on a stream of a connection that others use: GET, or a unary call of gRPC.
func multiplex(c *h2.Conn, authority, path string, grpc bool) worker {
	return func(next func() (time.Time, bool), took func(time.Duration)) error {
		req := &head.Request{}
		req.Reset(nil)
		req.Method, req.Scheme, req.Authority, req.Path = []byte("GET"), []byte("http"), []byte(authority), []byte(path)
		req.AddString(head.UserAgent, "bench/1.0")
		req.Add(head.Other, "accept", []byte("*/*"))
		var message []byte
		if grpc {
			req.Method = []byte("POST")
			req.AddString(head.ContentType, grpcType)
			req.AddString(head.TE, "trailers")
			message = grpcMessage(64)
		}
		buf := make([]byte, 32<<10)
		for at, more := next(); more; at, more = next() {
			if err := askH2(c, req, message, buf); err != nil {
				return err
			}
			took(time.Since(at))
		}
		return nil
	}
}

const grpcType = "application/grpc"

// grpcMessage is one message of n bytes as gRPC frames it.
func grpcMessage(n int) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(n)), filler[:n]...)
}

// askH2 asks with the message of a call, nil for a request without a body, and reads the whole answer.
func askH2(c *h2.Conn, req *head.Request, message, buf []byte) error {
	s, err := c.Open(req, message == nil)
	if err != nil {
		return err
	}
	defer s.Close()
	if message != nil {
		if err := s.WriteEnd(message); err != nil {
			return err
		}
	}
	resp, err := s.ReadHead()
	if err != nil {
		return err
	}
	if resp.Status != 200 {
		return fmt.Errorf("answer %d", resp.Status)
	}
	for {
		if _, err = s.Read(buf); err != nil {
			break
		}
	}
	if err != io.EOF {
		return err
	}
	if message != nil {
		if t := s.Trailers(); t == nil || string(t.Get(head.GRPCStatus)) != "0" {
			return errors.New("answer without grpc-status 0")
		}
	}
	return nil
}

// runIdle opens connections, asks once on each and holds them until its input ends; it writes a line when they are there.
func runIdle(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("idle", flag.ContinueOnError)
	target, conns := fs.String("target", "", "address"), fs.Int("conns", 1000, "connections")
	if err := fs.Parse(args); err != nil {
		return err
	}
	r := bufio.NewReaderSize(nil, 4<<10)
	for range *conns {
		c, err := dial(ctx, *target)
		if err != nil {
			return err
		}
		defer c.Close()
		r.Reset(c)
		if err := ask(c, r, request(*target, "/1024", "")); err != nil {
			return err
		}
	}
	fmt.Println("held")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}
