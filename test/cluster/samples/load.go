package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// loadConfig is what load is asked to do.
type loadConfig struct {
	addr     string        // line echo server
	url      string        // when set, new connections are HTTP GETs of it
	long     int           // connections that stay open
	interval time.Duration // between two messages on a long connection
	rate     int           // new connections a second
	length   time.Duration // how long, 0 until a signal
	timeout  time.Duration // of one connect, and of one answer
	keep     bool          // use connections of -url again
	reopen   bool          // open a long connection again after a failure
	mark     uint          // SO_MARK of every socket, which needs CAP_NET_ADMIN; 0 leaves it alone
}

func (c loadConfig) dialer() *net.Dialer {
	d := &net.Dialer{Timeout: c.timeout}
	if c.mark != 0 {
		d.Control = func(_, _ string, raw syscall.RawConn) error {
			var err error
			return errors.Join(raw.Control(func(fd uintptr) {
				err = os.NewSyscallError("set SO_MARK", syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_MARK, int(c.mark)))
			}), err)
		}
	}
	return d
}

// failure is one thing that went wrong, with its time as milliseconds since 1970, so that it can be laid beside other events.
type failure struct {
	AtMS int64  `json:"atMS"`
	Conn int    `json:"conn"`
	Seq  int    `json:"seq"`
	Op   string `json:"op"` // connect, write, read, check, status
	Err  string `json:"err"`
}

// tally is one half of the report.
type tally struct {
	Started  int       `json:"started"` // connections tried
	OK       int       `json:"ok"`      // answers that were right
	Failed   int       `json:"failed"`
	Failures []failure `json:"failures"` // the first of them, as many as fit into a line of a container's log
	P50MS    float64   `json:"p50MS"`    // of right answers; on new connections with the connect
	P99MS    float64   `json:"p99MS"`
	MaxMS    float64   `json:"maxMS"`
	// From counts right answers by their header X-Version, those of -url alone.
	From map[string]int `json:"from,omitempty"`

	mu    sync.Mutex // protects all fields
	times []float64
}

// report is what load prints; times are milliseconds since 1970.
type report struct {
	StartMS int64  `json:"startMS"`
	EndMS   int64  `json:"endMS"`
	Long    *tally `json:"long"`
	New     *tally `json:"new"`
}

const keptFailures = 1000

// maxLine is how long a report is, in bytes. The container runtime cuts what is longer than 16 KiB in two, and what the process says on
// standard error may come between.
const maxLine = 15 << 10

// line is the report as JSON, without the last of its failures where it would be too long.
func (r *report) line() ([]byte, error) {
	for {
		b, err := json.Marshal(r)
		if err != nil || len(b) <= maxLine || len(r.Long.Failures)+len(r.New.Failures) == 0 {
			return append(b, '\n'), err
		}
		longer := r.Long
		if len(r.New.Failures) > len(longer.Failures) {
			longer = r.New
		}
		longer.Failures = longer.Failures[:len(longer.Failures)*3/4]
	}
}

func (t *tally) start() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.Started++
}

// ok counts a right answer; from is who says to have given it, "" for nobody.
func (t *tally) ok(d time.Duration, from string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.OK++
	if from != "" {
		if t.From == nil {
			t.From = map[string]int{}
		}
		t.From[from]++
	}
	t.times = append(t.times, float64(d.Microseconds())/1000)
}

func (t *tally) fail(conn, seq int, op string, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.Failed++
	if len(t.Failures) < keptFailures {
		t.Failures = append(t.Failures, failure{time.Now().UnixMilli(), conn, seq, op, err.Error()})
	}
}

func (t *tally) finish() {
	t.mu.Lock()
	defer t.mu.Unlock()
	slices.Sort(t.times)
	if n := len(t.times); n > 0 {
		t.P50MS, t.P99MS, t.MaxMS = t.times[n/2], t.times[n*99/100], t.times[n-1]
	}
}

// load holds connections open with numbered lines on them and opens new ones at a steady rate, against a server that answers
// each line with "PREFIX line" (tcp-echo). At the end, or on SIGTERM, it prints one JSON report; it fails when anything failed.
func load(ctx context.Context, out io.Writer, args []string) error {
	var c loadConfig
	flags := flag.NewFlagSet("load", flag.ContinueOnError)
	flags.StringVar(&c.addr, "addr", "", "host:port of a tcp-echo server")
	flags.StringVar(&c.url, "url", "", "URL that new connections get instead of a line to -addr; 200 is right")
	flags.IntVar(&c.long, "long", 0, "connections that stay open")
	flags.DurationVar(&c.interval, "interval", 100*time.Millisecond, "time between messages on a long connection")
	flags.IntVar(&c.rate, "rate", 0, "new connections a second")
	flags.DurationVar(&c.length, "for", 0, "how long; 0 is until SIGTERM")
	flags.DurationVar(&c.timeout, "timeout", 5*time.Second, "limit of a connect and of an answer")
	flags.UintVar(&c.mark, "mark", 0, "SO_MARK of every socket; 0 leaves it alone")
	flags.BoolVar(&c.keep, "keep", false, "use connections of -url again, where nobody uses them")
	flags.BoolVar(&c.reopen, "reopen", true, "open a long connection again after it failed")
	if err := flags.Parse(args); err != nil {
		return fmt.Errorf("parse arguments: %w", err)
	}
	if c.long > 0 && c.addr == "" || c.rate > 0 && c.addr == "" && c.url == "" || c.long+c.rate == 0 || c.long < 0 || c.rate < 0 ||
		c.rate > 10000 || c.interval <= 0 || c.timeout <= 0 {
		return fmt.Errorf("check arguments: -long or -rate (at most 10000), and -addr (or -url for new ones) are needed, times are above 0")
	}
	if c.length > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.length)
		defer cancel()
	}
	rep := report{StartMS: time.Now().UnixMilli(), Long: &tally{Failures: []failure{}}, New: &tally{Failures: []failure{}}}
	var all sync.WaitGroup
	for i := range c.long {
		all.Go(func() { c.keepOpen(ctx, i, rep.Long) })
	}
	all.Go(func() { c.openNew(ctx, rep.New) })
	all.Wait()
	rep.EndMS = time.Now().UnixMilli()
	rep.Long.finish()
	rep.New.finish()
	b, err := rep.line()
	if err == nil {
		_, err = out.Write(b)
	}
	if err != nil {
		return fmt.Errorf("print report: %w", err)
	}
	if n := rep.Long.Failed + rep.New.Failed; n > 0 {
		return fmt.Errorf("%d failures", n)
	}
	return nil
}

func (c loadConfig) keepOpen(ctx context.Context, id int, t *tally) {
	tick := time.NewTicker(c.interval)
	defer tick.Stop()
	for seq := 0; ctx.Err() == nil; {
		t.start()
		seq = c.converse(ctx, id, seq, t, tick.C)
		if !c.reopen {
			return
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// converse sends numbered lines on one connection until it fails or ctx ends, and returns the next number.
func (c loadConfig) converse(ctx context.Context, id, seq int, t *tally, tick <-chan time.Time) int {
	conn, err := c.dialer().Dial("tcp", c.addr)
	if err != nil {
		t.fail(id, seq, "connect", err)
		return seq
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	for ctx.Err() == nil {
		seq++
		begin := time.Now()
		if op, err := c.exchange(conn, r, fmt.Sprintf("long-%d-%d", id, seq)); err != nil {
			t.fail(id, seq, op, err)
			return seq
		}
		t.ok(time.Since(begin), "")
		select {
		case <-ctx.Done():
		case <-tick:
		}
	}
	return seq
}

// exchange sends one line and checks its echo. It returns what it was doing when it failed.
func (c loadConfig) exchange(conn net.Conn, r *bufio.Reader, line string) (string, error) {
	if err := conn.SetDeadline(time.Now().Add(c.timeout)); err != nil {
		return "write", err
	}
	if _, err := io.WriteString(conn, line+"\n"); err != nil {
		return "write", err
	}
	got, err := r.ReadString('\n')
	if err != nil {
		return "read", err
	}
	if !strings.HasSuffix(got, " "+line+"\n") {
		return "check", fmt.Errorf("got %q for %q", got, line)
	}
	return "", nil
}

// openNew opens connections on schedule: a slow one does not delay the next, and what a busy machine was late with is made up for.
func (c loadConfig) openNew(ctx context.Context, t *tally) {
	if c.rate == 0 {
		return
	}
	var all sync.WaitGroup
	defer all.Wait()
	client := &http.Client{Timeout: c.timeout, Transport: &http.Transport{DisableKeepAlives: !c.keep, MaxIdleConnsPerHost: c.rate, DialContext: c.dialer().DialContext}}
	tick := time.NewTicker(time.Second / time.Duration(c.rate))
	defer tick.Stop()
	first := time.Now()
	for n := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for due := int(time.Since(first).Seconds() * float64(c.rate)); n < due; {
			n++
			all.Go(func() { c.openOne(client, n, t) })
		}
	}
}

func (c loadConfig) openOne(client *http.Client, n int, t *tally) {
	t.start()
	begin := time.Now()
	from, op, err := c.once(client, n)
	if err != nil {
		t.fail(n, 0, op, err)
		return
	}
	t.ok(time.Since(begin), from)
}

// once asks one question. It returns who answered, if they say so, and what it was doing when it failed.
func (c loadConfig) once(client *http.Client, n int) (from, op string, err error) {
	if c.url != "" {
		res, err := client.Get(c.url)
		if err != nil {
			return "", "read", err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
		if err != nil {
			return "", "read", err
		}
		if res.StatusCode != http.StatusOK {
			return "", "status", fmt.Errorf("%s: %.200s", res.Status, body)
		}
		return res.Header.Get("X-Version"), "", nil
	}
	conn, err := c.dialer().Dial("tcp", c.addr)
	if err != nil {
		return "", "connect", err
	}
	defer conn.Close()
	op, err = c.exchange(conn, bufio.NewReader(conn), fmt.Sprintf("new-%d", n))
	return "", op, err
}
