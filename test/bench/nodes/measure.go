package nodes

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/undermesh/undermesh/test/bench/process"
	"github.com/undermesh/undermesh/test/netnstest/lab"
)

var cpus = runtime.NumCPU()

// work is a kind of load.
type work struct {
	name, kind, path string
	conns, streams   int
	rate             float64 // requests a second; 0: as many as are answered
}

var works = []work{
	{"h1-c1", "h1", "/1024", 1, 1, 0},
	{"h1-c64", "h1", "/1024", 64, 1, 0},
	{"h1-c512", "h1", "/1024", 512, 1, 0},
	{"h1-new64", "new", "/1024", 64, 1, 0},
	{"h1-1MiB-c8", "h1", "/1048576", 8, 1, 0},
	{"h2-1x64", "h2", "/1024", 1, 64, 0},
	{"h2-8x64", "h2", "/1024", 8, 64, 0},
	{"grpc-8x64", "grpc", "/1024", 8, 64, 0},
}

// takes leaves out the sides that only say how much a hop costs, where another load has said it.
func (k work) takes(s *side) bool {
	return s.name != noMesh && s.name != envoy2 || k.name == "h1-c1" || k.name == "h1-c64"
}

// cell is one measurement.
type cell struct {
	work, place, side string
	cpu               []float64 // microseconds a request, of each proxy
	rate              float64   // requests a second
	p50, p99          float64   // microseconds
	rss               float64   // MiB, of all proxies, at the end
	lines             float64   // of ztunnels' logs, a request
	missing           string    // why there are no figures
}

func (c *cell) sum() (us float64) {
	for _, one := range c.cpu {
		us += one
	}
	return us
}

// source is the CPU of the client's proxy.
func (c *cell) source() float64 {
	if len(c.cpu) == 0 {
		return 0
	}
	return c.cpu[0]
}

// measure runs all rounds; within a round and a kind of work the sides take turns in random order.
func (w *world) measure(rounds int, length time.Duration, only *regexp.Regexp) []*cell {
	var all []*cell
	for round := 1; round <= rounds; round++ {
		for _, k := range works {
			for _, i := range rand.Perm(len(w.sides)) {
				s := w.sides[i]
				c := &cell{work: k.name, place: s.place, side: s.name}
				if !k.takes(s) || !only.MatchString(c.work+"/"+c.place+"/"+c.side) {
					continue
				}
				if err := w.run(c, k, s, length); err != nil {
					c.missing = err.Error()
				}
				fmt.Printf("%d %-11s %-5s %-12s %6.1f us %7.0f req/s p99 %7.0f us %.2f lines %s\n", round, c.work, c.place, c.side, c.sum(), c.rate, c.p99, c.lines, c.missing)
				all = append(all, c)
			}
		}
	}
	return all
}

// answers is what the load tool reports.
type answers struct {
	Requests, Errors int
	Elapsed          time.Duration
	P50, P99         time.Duration
	First            string
}

// arguments are those of the load tool.
func (k work) arguments(s *side, length time.Duration) []string {
	target := s.h1
	if k.kind == "h2" || k.kind == "grpc" {
		target = s.h2
	}
	return []string{"load", "-target", target, "-authority", "web-" + s.place + "." + namespace, "-kind", k.kind, "-path", k.path, "-conns", strconv.Itoa(k.conns),
		"-streams", strconv.Itoa(k.streams), "-length", length.String(), "-rate", strconv.FormatFloat(k.rate, 'f', -1, 64)}
}

// ask runs the load tool in the client's pod.
func (w *world) ask(k work, s *side, length time.Duration) (answers, error) {
	args := append([]string{w.tool}, k.arguments(s, length)...)
	if w.pinned && cpus > 1 {
		args = append([]string{"env", "GOMAXPROCS=1", "taskset", "-c", "1"}, args...)
	}
	out, code := s.client.Run(length+30*time.Second, args[0], args[1:]...)
	return parse(out, code)
}

// parse reads what the load tool wrote.
func parse(out string, code int) (answers, error) {
	var a answers
	if err := json.Unmarshal([]byte(out), &a); err != nil || code != 0 {
		return a, fmt.Errorf("load ended with %d: %s", code, strings.TrimSpace(out))
	}
	if a.Requests == 0 {
		return a, fmt.Errorf("nothing was answered, %d errors: %s", a.Errors, a.First)
	}
	return a, nil
}

// run measures one cell.
func (w *world) run(c *cell, k work, s *side, length time.Duration) error {
	for _, p := range s.nodes {
		if err := p.Forget(); err != nil {
			return err
		}
	}
	before, err := usage(s.proxies)
	if err != nil {
		return err
	}
	a, err := w.ask(k, s, length)
	if err != nil {
		return err
	}
	after, err := usage(s.proxies)
	if err != nil {
		return err
	}
	if a.Errors > 0 {
		return fmt.Errorf("%d of the load's workers ended: %s", a.Errors, a.First)
	}
	for i := range after {
		c.cpu = append(c.cpu, float64((after[i]-before[i]).Nanoseconds())/1000/float64(a.Requests))
		c.rss += process.RSS(s.proxies[i]) / 1024
	}
	c.rate = float64(a.Requests) / a.Elapsed.Seconds()
	c.p50, c.p99 = float64(a.P50.Nanoseconds())/1000, float64(a.P99.Nanoseconds())/1000
	c.lines = float64(logged(s.nodes)) / float64(a.Requests)
	return nil
}

func usage(proxies [][]int) ([]time.Duration, error) {
	var all []time.Duration
	for _, pids := range proxies {
		cpu, err := process.CPU(pids)
		if err != nil {
			return nil, err
		}
		all = append(all, cpu)
	}
	return all, nil
}

// logged counts the requests in ztunnels' logs.
func logged(nodes []*lab.Process) (n int) {
	for _, p := range nodes {
		n += strings.Count(p.Output(), `"request complete"`)
	}
	return n
}

// warm asks a little on each side until it works.
func (w *world) warm() {
	w.tb.Helper()
	for _, s := range w.sides {
		for _, k := range []work{works[0], works[len(works)-1]} {
			var err error
			for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
				if err = w.run(&cell{}, k, s, 50*time.Millisecond); err == nil {
					break
				}
			}
			if err != nil {
				w.tb.Logf("%s/%s/%s does not work: %v", k.name, s.place, s.name, err)
			}
		}
	}
}
