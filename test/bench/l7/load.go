package main

import (
	"bufio"
	"bytes"
	"context"
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

// worker asks for as long as more is true and adds what each request took.
type worker func(more func() bool, took func(time.Duration)) error

func runLoad(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("load", flag.ContinueOnError)
	target, kind, path := fs.String("target", "", "address"), fs.String("kind", "h1", "h1, new or h2"), fs.String("path", "/1024", "path")
	conns, streams := fs.Int("conns", 1, "connections"), fs.Int("streams", 1, "streams on each")
	length := fs.Duration("length", time.Second, "of the load")
	if err := fs.Parse(args); err != nil {
		return err
	}
	var workers []worker
	for range *conns {
		switch *kind {
		case "h1":
			workers = append(workers, keep(ctx, *target, *path))
		case "new":
			workers = append(workers, renew(ctx, *target, *path))
		default:
			c, err := dialH2(ctx, *target)
			if err != nil {
				return err
			}
			defer c.Close()
			for range *streams {
				workers = append(workers, multiplex(c, *target, *path))
			}
		}
	}
	return json.NewEncoder(os.Stdout).Encode(drive(workers, *length))
}

// drive runs the workers at once.
func drive(workers []worker, length time.Duration) loaded {
	var mu sync.Mutex
	var all []time.Duration
	var out loaded
	start := time.Now()
	more := func() bool { return time.Since(start) < length }
	var wg sync.WaitGroup
	for _, w := range workers {
		wg.Go(func() {
			var mine []time.Duration
			err := w(more, func(d time.Duration) { mine = append(mine, d) })
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
func keep(ctx context.Context, target, path string) worker {
	return func(more func() bool, took func(time.Duration)) error {
		c, err := dial(ctx, target)
		if err != nil {
			return err
		}
		defer c.Close()
		r, text := bufio.NewReaderSize(c, 64<<10), request(target, path, "")
		for more() {
			at := time.Now()
			if err := ask(c, r, text); err != nil {
				return err
			}
			took(time.Since(at))
		}
		return nil
	}
}

// renew makes a connection for each request.
func renew(ctx context.Context, target, path string) worker {
	return func(more func() bool, took func(time.Duration)) error {
		r, text := bufio.NewReaderSize(nil, 4<<10), request(target, path, "Connection: close\r\n")
		for more() {
			at := time.Now()
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

// multiplex asks again and again on a stream of a connection that others use.
func multiplex(c *h2.Conn, target, path string) worker {
	return func(more func() bool, took func(time.Duration)) error {
		req := &head.Request{}
		req.Reset(nil)
		req.Method, req.Scheme, req.Authority, req.Path = []byte("GET"), []byte("http"), []byte(target), []byte(path)
		req.AddString(head.UserAgent, "bench/1.0")
		req.Add(head.Other, "accept", []byte("*/*"))
		buf := make([]byte, 32<<10)
		for more() {
			at := time.Now()
			if err := askH2(c, req, buf); err != nil {
				return err
			}
			took(time.Since(at))
		}
		return nil
	}
}

func askH2(c *h2.Conn, req *head.Request, buf []byte) error {
	s, err := c.Open(req, true)
	if err != nil {
		return err
	}
	defer s.Close()
	resp, err := s.ReadHead()
	if err != nil {
		return err
	}
	if resp.Status != 200 {
		return fmt.Errorf("answer %d", resp.Status)
	}
	for {
		if _, err := s.Read(buf); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
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
