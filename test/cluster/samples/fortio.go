package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// fortioAgent is who fortio says it is.
const fortioAgent = "fortio.org/fortio-1.3.1"

// fortioConfig is what "fortio load" and "fortio curl" are asked to do.
type fortioConfig struct {
	target    *url.URL
	header    http.Header
	host      string // instead of the URL's
	payload   string
	threads   int
	calls     int           // 0: as many as fit into length
	rate      float64       // calls a second of all threads together, 0: no limit
	length    time.Duration // 0: until a signal
	timeout   time.Duration // of one call
	keepalive bool
	quiet     bool
}

// headerFlag collects "Name: value" options.
type headerFlag struct{ c *fortioConfig }

func (f headerFlag) String() string { return "" }

func (f headerFlag) Set(s string) error {
	name, value, ok := strings.Cut(s, ":")
	if !ok {
		return fmt.Errorf("header %q has no colon", s)
	}
	if value = strings.TrimSpace(value); strings.EqualFold(name, "host") {
		f.c.host = value
		return nil
	}
	f.c.header.Add(name, value)
	return nil
}

func parseFortio(args []string) (*fortioConfig, error) {
	c := &fortioConfig{header: http.Header{"User-Agent": {fortioAgent}}}
	flags := flag.NewFlagSet("fortio", flag.ContinueOnError)
	flags.IntVar(&c.threads, "c", 4, "number of connections")
	flags.IntVar(&c.calls, "n", 0, "number of calls; 0 for as many as fit into -t")
	flags.Float64Var(&c.rate, "qps", 8, "calls a second; 0 for no wait")
	flags.DurationVar(&c.length, "t", 5*time.Second, "how long; 0 until a signal")
	flags.DurationVar(&c.timeout, "timeout", 3*time.Second, "of one call")
	flags.BoolVar(&c.keepalive, "keepalive", true, "use connections again")
	flags.Var(headerFlag{c}, "H", "header `Name: value`; may be repeated")
	flags.StringVar(&c.payload, "payload", "", "body; makes the call a POST")
	flags.BoolVar(&c.quiet, "quiet", false, "no log")
	level := flags.String("loglevel", "Info", "what to log: Info, or Warning and above")
	for _, ignored := range []string{"p", "r", "gomaxprocs", "labels"} {
		flags.String(ignored, "", "ignored")
	}
	for _, ignored := range []string{"a", "allow-initial-errors", "nocatchup", "uniform", "jitter", "stdclient"} {
		flags.Bool(ignored, false, "ignored")
	}
	if err := flags.Parse(args); err != nil {
		return nil, fmt.Errorf("parse arguments: %w", err)
	}
	if flags.NArg() != 1 {
		return nil, errors.New("give one URL")
	}
	text := flags.Arg(0)
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	var err error
	if c.target, err = url.Parse(text); err != nil {
		return nil, fmt.Errorf("parse URL: %w", err)
	}
	if c.target.Scheme != "http" || c.target.Host == "" {
		return nil, fmt.Errorf("URL %s: only http is supported", text)
	}
	if c.threads < 1 || c.calls < 0 || c.rate < 0 || c.timeout <= 0 {
		return nil, errors.New("-c and -timeout must be positive, -n and -qps not negative")
	}
	c.quiet = c.quiet || strings.EqualFold(*level, "error")
	return c, nil
}

// request is what is sent, the same each time.
func (c *fortioConfig) request() []byte {
	var b strings.Builder
	method := http.MethodGet
	if c.payload != "" {
		method = http.MethodPost
	}
	host := c.host
	if host == "" {
		host = c.target.Host
	}
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n", method, c.target.RequestURI(), host)
	if !c.keepalive {
		b.WriteString("Connection: close\r\n")
	}
	_ = c.header.Write(&b) // a Builder takes everything
	if c.payload != "" {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", len(c.payload))
	}
	b.WriteString("\r\n" + c.payload)
	return []byte(b.String())
}

// caller is one thread's client, as fortio's fast one: it keeps a connection as long as the answers are good. After any other code
// than 2xx and 418 it closes it without having read the body, so each failure costs a socket.
type caller struct {
	config  *fortioConfig
	request []byte
	log     *fortioLog
	conn    net.Conn
	in      *bufio.Reader
	sockets int
}

// fetched is one answer. code is -1 when there was none.
type fetched struct {
	code         int
	header, body int // bytes
	took         time.Duration
}

// fetch calls once. A connection that was used before may turn out to be closed; then, once, a new one is tried. echo receives
// what comes in, when it is not nil.
func (c *caller) fetch(ctx context.Context, echo io.Writer) fetched {
	start := time.Now()
	for {
		reused := c.conn != nil
		if !reused {
			c.sockets++
			host, port := c.config.target.Hostname(), c.config.target.Port()
			if port == "" {
				port = "80"
			}
			conn, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(host, port))
			if err != nil {
				c.log.say("E", "Unable to connect to %s : %v", c.config.target.Host, err)
				return fetched{code: -1, took: time.Since(start)}
			}
			c.conn, c.in = conn, bufio.NewReader(conn)
		}
		f, again, err := c.exchange(ctx, echo)
		if again && reused {
			c.close()
			continue
		}
		if err != nil {
			c.log.say("E", "Read error %s : %v", c.config.target.Host, err)
			c.close()
			f.code = -1
		}
		f.took = time.Since(start)
		return f
	}
}

func (c *caller) close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

// exchange writes the request and reads the answer. again tells that not one byte came.
func (c *caller) exchange(ctx context.Context, echo io.Writer) (f fetched, again bool, err error) {
	conn := c.conn
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := conn.SetDeadline(time.Now().Add(c.config.timeout)); err != nil {
		return f, true, fmt.Errorf("set deadline: %w", err)
	}
	if _, err := conn.Write(c.request); err != nil {
		return f, true, fmt.Errorf("write request: %w", err)
	}
	if _, err := c.in.Peek(1); err != nil {
		return f, true, fmt.Errorf("read answer: %w", err)
	}
	count := &counter{r: c.in, copy: echo}
	head := textproto.NewReader(bufio.NewReaderSize(oneByte{count}, 16))
	line, err := head.ReadLine()
	if err != nil {
		return f, false, fmt.Errorf("read status: %w", err)
	}
	if _, err := fmt.Sscanf(line, "HTTP/1.1 %d", &f.code); err != nil {
		return f, false, fmt.Errorf("status line %q: %w", line, err)
	}
	good := f.code >= 200 && f.code <= 299 || f.code == http.StatusTeapot
	if !good {
		c.log.say("W", "Parsed non ok code %d (%s)", f.code, line[:len("HTTP/1.1 503")])
		defer c.close()
		if echo == nil {
			f.body = len(line) + 2 + c.in.Buffered()
			return f, false, nil
		}
	}
	fields, err := head.ReadMIMEHeader()
	if err != nil {
		return f, false, fmt.Errorf("read headers: %w", err)
	}
	f.header = count.n
	keep, err := readBody(count, http.Header(fields), f.code)
	f.body = count.n
	if !keep || !c.config.keepalive {
		c.close()
	}
	return f, false, err
}

// readBody reads to the end of the body, and tells whether the connection can be used again.
func readBody(r io.Reader, h http.Header, code int) (keep bool, err error) {
	keep = !strings.EqualFold(h.Get("Connection"), "close")
	length := h.Get("Content-Length")
	switch {
	case code == http.StatusNoContent || code == http.StatusNotModified:
	case length != "":
		var n int64
		if _, err := fmt.Sscan(length, &n); err != nil || n < 0 {
			return false, fmt.Errorf("content length %q", length)
		}
		_, err = io.CopyN(io.Discard, r, n)
	case strings.EqualFold(h.Get("Transfer-Encoding"), "chunked"):
		err = readChunks(r)
	default:
		_, err = io.Copy(io.Discard, r)
		keep = false
	}
	if err != nil {
		return false, fmt.Errorf("read body: %w", err)
	}
	return keep, nil
}

func readChunks(r io.Reader) error {
	in := textproto.NewReader(bufio.NewReaderSize(oneByte{r}, 16))
	for {
		line, err := in.ReadLine()
		if err != nil {
			return err
		}
		var n int64
		if _, err := fmt.Sscanf(line, "%x", &n); err != nil || n < 0 {
			return fmt.Errorf("size of chunk is %q", line)
		}
		if n > 0 {
			if _, err := io.CopyN(io.Discard, r, n); err != nil {
				return err
			}
		}
		if line, err = in.ReadLine(); err != nil || line != "" {
			return fmt.Errorf("after chunk: %q, %w", line, err)
		}
		if n == 0 {
			return nil
		}
	}
}

// counter counts and copies what is read through it.
type counter struct {
	r    io.Reader
	copy io.Writer
	n    int
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += n
	if c.copy != nil {
		_, _ = c.copy.Write(p[:n]) // nobody to tell when standard output is gone
	}
	return n, err
}

// oneByte keeps a buffered reader from reading more than it needs.
type oneByte struct{ r io.Reader }

func (o oneByte) Read(p []byte) (int, error) { return o.r.Read(p[:1]) }

// fortioLog writes as fortio's logger does.
type fortioLog struct {
	out   io.Writer
	quiet bool
	mu    sync.Mutex // protects out
}

func (l *fortioLog) say(level, format string, args ...any) {
	if l.quiet {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.out, "%s %s http_client.go> %s\n", time.Now().Format("15:04:05"), level, fmt.Sprintf(format, args...))
}

// fortio is the load tester of the documents: "load" and "curl" call, "server" answers, which is also what it does without arguments.
func fortio(ctx context.Context, args []string) error {
	command := "server"
	if len(args) > 0 {
		command, args = args[0], args[1:]
	}
	if command == "server" {
		return fortioServer(ctx)
	}
	c, err := parseFortio(args)
	if err != nil {
		return err
	}
	log := &fortioLog{out: os.Stderr, quiet: c.quiet}
	switch command {
	case "curl":
		one := &caller{config: c, request: c.request(), log: log}
		defer one.close()
		if f := one.fetch(ctx, os.Stdout); f.code < 200 || f.code > 299 {
			return fmt.Errorf("error status %d", f.code)
		}
		return nil
	case "load":
		return fortioLoad(ctx, c, log)
	}
	return fmt.Errorf("no command %q; there are curl, load and server", command)
}

// fortioLoad calls from all threads at once and prints what came of it.
func fortioLoad(ctx context.Context, c *fortioConfig, log *fortioLog) error {
	each := make([]int, c.threads) // calls of each thread, when they are counted
	for i := range each {
		each[i] = c.calls / c.threads
		if i < c.calls%c.threads {
			each[i]++
		}
	}
	fmt.Fprintf(log.out, "Fortio 1.3.1 running at %g queries per second, %d threads: %s\n", c.rate, c.threads, c.target)
	callers := make([]*caller, c.threads)
	results := make([][]fetched, c.threads)
	warm := 0
	for i := range callers {
		callers[i] = &caller{config: c, request: c.request(), log: log}
		defer callers[i].close()
		if c.calls == 0 { // a run by the clock begins with one call of each thread that is not counted
			warm++
			if f := callers[i].fetch(ctx, nil); f.code != http.StatusOK {
				return fmt.Errorf("error %d for %s: aborting", f.code, c.target)
			}
		}
	}
	end := ctx
	if c.calls == 0 && c.length > 0 {
		var cancel context.CancelFunc
		end, cancel = context.WithTimeout(ctx, c.length)
		defer cancel()
	}
	start := time.Now()
	var all sync.WaitGroup
	for i, one := range callers {
		all.Go(func() { results[i] = one.repeat(ctx, end, each[i], c.calls > 0) })
	}
	all.Wait()
	took := time.Since(start)
	sockets := 0
	for _, one := range callers {
		sockets += one.sockets
	}
	printLoad(log.out, slices.Concat(results...), c.threads, sockets, warm, took)
	return nil
}

// repeat calls n times, or until end when calls are not counted, at the thread's share of the rate.
func (c *caller) repeat(ctx, end context.Context, n int, counted bool) []fetched {
	var out []fetched
	var tick <-chan time.Time
	if c.config.rate > 0 {
		t := time.NewTicker(max(1, time.Duration(float64(time.Second)*float64(c.config.threads)/c.config.rate)))
		defer t.Stop()
		tick = t.C
	}
	for i := 0; (!counted || i < n) && end.Err() == nil; i++ {
		if i > 0 && tick != nil {
			select {
			case <-tick:
			case <-end.Done():
				return out
			}
		}
		out = append(out, c.fetch(ctx, nil))
	}
	return out
}

// summary is how fortio sums up numbers.
func summary(values []float64) string {
	low, high, sum, squares := math.Inf(1), math.Inf(-1), 0.0, 0.0
	for _, v := range values {
		low, high, sum, squares = min(low, v), max(high, v), sum+v, squares+v*v
	}
	n := float64(len(values))
	if n == 0 {
		return "count 0"
	}
	return fmt.Sprintf("count %.0f avg %.8g +/- %.4g min %g max %g sum %.9g", n, sum/n, math.Sqrt(max(0, squares/n-sum/n*sum/n)), low, high, sum)
}

func printLoad(w io.Writer, all []fetched, threads, sockets, warm int, took time.Duration) {
	codes := map[int]int{}
	var times, heads, sizes []float64
	for _, f := range all {
		codes[f.code]++
		times = append(times, f.took.Seconds())
		heads, sizes = append(heads, float64(f.header)), append(sizes, float64(f.body))
	}
	fmt.Fprintf(w, "Ended after %s : %d calls. qps=%.5g\n", took, len(all), float64(len(all))/took.Seconds())
	fmt.Fprintf(w, "Aggregated Function Time : %s\n", summary(times))
	slices.Sort(times)
	for _, p := range []float64{50, 75, 90, 99, 99.9} {
		if len(times) > 0 {
			fmt.Fprintf(w, "# target %g%% %.6g\n", p, times[min(len(times)-1, int(p/100*float64(len(times))))])
		}
	}
	fmt.Fprintf(w, "Sockets used: %d (for perfect keepalive, would be %d)\n", sockets, threads)
	for _, code := range slices.Sorted(maps.Keys(codes)) {
		fmt.Fprintf(w, "Code %3d : %d (%.1f %%)\n", code, codes[code], 100*float64(codes[code])/float64(len(all)))
	}
	fmt.Fprintf(w, "Response Header Sizes : %s\n", summary(heads))
	fmt.Fprintf(w, "Response Body/Total Sizes : %s\n", summary(sizes))
	mean := 0.0
	for _, t := range times {
		mean += t * 1000 / float64(len(times))
	}
	fmt.Fprintf(w, "All done %d calls (plus %d warmup) %.3f ms avg, %.1f qps\n", len(all), warm, mean, float64(len(all))/took.Seconds())
}
