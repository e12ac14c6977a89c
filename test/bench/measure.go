package bench

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/undermesh/undermesh/test/bench/load"
	"github.com/undermesh/undermesh/test/netnstest/lab"
)

// work is a kind of load.
type work struct {
	name, title string
	mode        string // of loadgen
	conns       int
	bulk        bool
	unit        string // of throughput
	cpuUnit     string // of the proxies' CPU
}

var works = []work{
	{"bulk1", "Bulk, 1 connection", "bulk", 1, true, "GB/s", "s/GB"},
	{"bulk8", "Bulk, 8 connections", "bulk", 8, true, "GB/s", "s/GB"},
	{"rr1", "Request/response 1 KiB, 1 connection", "rr", 1, false, "req/s", "us/op"},
	{"rr64", "Request/response 1 KiB, 64 connections", "rr", 64, false, "req/s", "us/op"},
	{"connect", "New connections, 8 workers, one 1 KiB request each", "connect", 8, false, "conn/s", "us/conn"},
}

// cell is one measurement.
type cell struct {
	round   int
	work    *work
	side    *side
	rate    float64 // in the work's unit
	p50     float64 // microseconds
	p99     float64
	cpu     float64 // the proxies', in the work's unit
	rssMiB  float64 // of all proxies together, at the end
	errors  int64
	opened  map[string]int64
	paths   map[string]int64
	missing string // why there are no figures
}

func (c *cell) name() string { return c.work.name + "/" + c.side.name() }

// plan is what to run.
type plan struct {
	rounds int
	length time.Duration
	only   *regexp.Regexp // of cell names
	rand   *rand.Rand
}

// measure runs all rounds; within a round and a kind of work the sides take turns in random order.
func (w *world) measure(p plan, progress func(*cell)) []*cell {
	var all []*cell
	sides := slices.Clone(w.sides)
	for round := 1; round <= p.rounds; round++ {
		for i := range works {
			p.rand.Shuffle(len(sides), func(i, j int) { sides[i], sides[j] = sides[j], sides[i] })
			for _, s := range sides {
				c := &cell{round: round, work: &works[i], side: s, missing: s.missing}
				if !p.only.MatchString(c.name()) {
					continue
				}
				if c.missing == "" {
					if err := w.run(c, p.length); err != nil {
						c.missing = err.Error()
					}
				}
				progress(c)
				all = append(all, c)
			}
		}
	}
	return all
}

// warm sends a little on each side, so that tunnels and certificates are there; it waits until a new side works.
func (w *world) warm() {
	for _, s := range w.sides {
		if s.missing != "" {
			continue
		}
		var err error
		for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); {
			if err = w.run(&cell{work: &works[2], side: s}, 50*time.Millisecond); err == nil {
				break
			}
		}
		if err != nil {
			w.tb.Logf("%s does not work: %v", s.name(), err)
		}
	}
}

// run measures one cell.
func (w *world) run(c *cell, length time.Duration) error {
	s := c.side
	port := s.echo
	if c.work.bulk {
		port = s.sink
	}
	pids := pidsOf(s.proxies)
	before, err := usageOf(pids)
	if err != nil {
		return err
	}
	proof := begin(s.nodes)
	out, code := s.client.Run(length+20*time.Second, w.loadgen, c.work.mode,
		"-addr", net.JoinHostPort(s.host, strconv.Itoa(port)), "-conns", strconv.Itoa(c.work.conns), "-for", length.String())
	after, err := usageOf(pids)
	if err != nil {
		return err
	}
	c.opened, c.paths = proof.end()
	var r load.Result
	if code != 0 || json.Unmarshal([]byte(out), &r) != nil {
		return fmt.Errorf("loadgen ended with %d: %s", code, strings.TrimSpace(out))
	}
	c.errors = r.Errors
	amount, scale := float64(r.Ops), 1e6
	if c.work.bulk {
		amount, scale = float64(r.Bytes)/1e9, 1
	}
	if amount == 0 || r.Seconds == 0 {
		return fmt.Errorf("nothing was answered, %d errors: %s", r.Errors, r.FirstError)
	}
	if r.Errors > 0 && c.work.mode != "connect" {
		return fmt.Errorf("%d of %d connections broke: %s", r.Errors, c.work.conns, r.FirstError)
	}
	c.rate, c.p50, c.p99 = amount/r.Seconds, r.P50US, r.P99US
	c.cpu = (after.cpu - before.cpu).Seconds() * scale / amount
	c.rssMiB = float64(after.rss) / (1 << 20)
	return nil
}

// held is what open connections cost.
type held struct {
	side    *side
	conns   int
	kib     float64 // a connection and proxy process
	missing string
}

// hold opens connections on a side and compares the memory of its proxies before and after. It comes before the rounds:
// later the proxies' heaps are larger than they need to be, and the difference tells nothing.
func (w *world) hold(s *side, conns int) held {
	h := held{side: s, conns: conns, missing: s.missing}
	if h.missing != "" {
		return h
	}
	before, err := usageOf(pidsOf(s.proxies))
	if err != nil {
		h.missing = err.Error()
		return h
	}
	p := s.client.Start(w.loadgen, "hold", "-addr", net.JoinHostPort(s.host, strconv.Itoa(s.echo)), "-conns", strconv.Itoa(conns))
	defer p.End(syscall.SIGTERM)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(p.Output(), "held"); <-tick.C {
		if time.Now().After(deadline) || !p.Alive() {
			h.missing = "the connections did not open: " + p.Tail(1)
			return h
		}
	}
	after, err := usageOf(pidsOf(s.proxies))
	if err != nil {
		h.missing = err.Error()
		return h
	}
	h.kib = float64(after.rss-before.rss) / 1024 / float64(conns*len(s.proxies))
	return h
}

func pidsOf(all []*lab.Process) []int {
	var pids []int
	for _, p := range all {
		pids = append(pids, p.PID())
	}
	return pids
}

// proof is the state of the counters before a cell.
type proof struct {
	nodes  []*lab.Node
	opened map[string]int64
	offset []int64
}

func begin(nodes []*lab.Node) *proof {
	p := &proof{nodes: nodes, opened: sumOpened(nodes)}
	for _, n := range nodes {
		_, end := n.Ztunnel.OutputFrom(-1)
		p.offset = append(p.offset, end)
	}
	return p
}

func sumOpened(nodes []*lab.Node) map[string]int64 {
	sums := map[string]int64{}
	for _, n := range nodes {
		add(sums, opened(n.Metrics()))
	}
	return sums
}

func add(sums, more map[string]int64) {
	for k, v := range more {
		sums[k] += v
	}
}

// end gives what was counted since: connections by reporter and security, and log lines by direction and path. Lines of
// connections that ended just now may come later and are then not counted.
func (p *proof) end() (conns, lines map[string]int64) {
	conns, lines = sumOpened(p.nodes), map[string]int64{}
	for k, v := range p.opened {
		conns[k] -= v
	}
	maps.DeleteFunc(conns, func(_ string, n int64) bool { return n == 0 })
	for i, n := range p.nodes {
		log, _ := n.Ztunnel.OutputFrom(p.offset[i])
		add(lines, paths(log))
	}
	return conns, lines
}

// counts writes counters in one line, in the order of their names.
func counts(m map[string]int64) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, fmt.Sprintf("%s %d", k, m[k]))
	}
	return strings.Join(parts, ", ")
}
