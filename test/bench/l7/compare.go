package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/undermesh/undermesh/test/bench/dated"
	"github.com/undermesh/undermesh/test/bench/process"
)

// work is a kind of load through the proxies of one variant.
type work struct {
	name, kind, path string
	conns, streams   int
	on               variant
}

// variant is a configuration: both sides speak HTTP/1.1 or h2c, and the last of so many routes matches.
type variant struct {
	http2  bool
	routes int
}

// usual is what most of the cells have.
const usual = 50

var works = []work{
	{"h1-c1", "h1", "/1024", 1, 1, variant{false, usual}},
	{"h1-c64", "h1", "/1024", 64, 1, variant{false, usual}},
	{"h1-c64-5000routes", "h1", "/1024", 64, 1, variant{false, 5000}},
	{"h1-c512", "h1", "/1024", 512, 1, variant{false, usual}},
	{"h1-new64", "new", "/1024", 64, 1, variant{false, usual}},
	{"h1-1MiB-c8", "h1", "/1048576", 8, 1, variant{false, usual}},
	{"h2-1x64", "h2", "/1024", 1, 64, variant{true, usual}},
	{"h2-8x64", "h2", "/1024", 8, 64, variant{true, usual}},
	{"grpc-8x64-1route", "grpc", "/1024", 8, 64, variant{true, 1}},
	{"grpc-8x64", "grpc", "/1024", 8, 64, variant{true, usual}},
	{"grpc-8x64-5000routes", "grpc", "/1024", 8, 64, variant{true, 5000}},
}

// cell is one measurement.
type cell struct {
	work, peer string
	cpu        float64 // of the proxy, microseconds a request
	rate       float64 // requests a second
	p50, p99   float64 // microseconds
	rss        float64 // MiB, at the end
	missing    string  // why there are no figures
}

// bench is the run of everything.
type bench struct {
	self, dir string
	peers     []*contender
	server    *exec.Cmd
	h1, h2    int
	idle      map[string]float64 // KiB for each idle connection, by peer
}

func compare(ctx context.Context, args []string) (err error) {
	fs := flag.NewFlagSet("l7", flag.ContinueOnError)
	envoy, out := fs.String("envoy", "", "Envoy's binary"), fs.String("out", "", "directory of the report; empty: standard output only")
	rounds, length := fs.Int("rounds", 5, "rounds"), fs.Duration("length", time.Second, "of a cell")
	only := fs.String("cells", ".", "regular expression of cells, as h1-c64/ours")
	idle := fs.Int("idle", 1000, "idle connections; 0: not measured")
	if err := fs.Parse(args); err != nil {
		return err
	}
	match, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	b := &bench{idle: map[string]float64{}}
	defer func() { err = errors.Join(err, b.stop()) }()
	if err := b.start(*envoy); err != nil {
		return err
	}
	for _, p := range b.peers {
		if *idle > 0 && p.variant == (variant{false, usual}) { // first: what a load leaves behind would hide it
			if err := b.measureIdle(ctx, p, *idle); err != nil {
				return err
			}
		}
	}
	var all []*cell
	for round := 1; round <= *rounds; round++ {
		for _, w := range works {
			order := rand.Perm(len(b.peers))
			for _, i := range order {
				p := b.peers[i]
				if p.variant != w.on || !match.MatchString(w.name+"/"+p.name) {
					continue
				}
				c := b.measure(ctx, w, p, *length)
				fmt.Fprintf(os.Stderr, "%d %s/%s %.1f us %.0f req/s %s\n", round, c.work, c.peer, c.cpu, c.rate, c.missing)
				all = append(all, c)
			}
		}
	}
	text := b.report(all, *rounds, *length)
	fmt.Print(text)
	if *out == "" {
		return nil
	}
	_, err = dated.Write(*out, "l7-", time.Now(), text)
	return err
}

func local(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }

func freePort() (int, error) {
	l, err := net.Listen("tcp", local(0))
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// start runs the server and all proxies, and waits until each of them listens.
func (b *bench) start(envoy string) (err error) {
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp("", "l7"); err != nil {
		return err
	}
	var ports [2]int
	for i := range ports {
		if ports[i], err = freePort(); err != nil {
			return err
		}
	}
	b.h1, b.h2 = ports[0], ports[1]
	if b.peers, err = contenders(b.self, envoy, b.dir, b.h1, b.h2); err != nil {
		return err
	}
	b.server = exec.Command(b.self, "server", "-h1", local(b.h1), "-h2", local(b.h2))
	if err := launch(b.server, 1); err != nil {
		return err
	}
	for _, p := range b.peers {
		if err := launch(p.cmd, 0); err != nil {
			return fmt.Errorf("start %s: %w", p.name, err)
		}
	}
	for _, port := range append([]int{b.h1, b.h2}, portsOf(b.peers)...) {
		if err := await(port); err != nil {
			return err
		}
	}
	return nil
}

func portsOf(peers []*contender) (ports []int) {
	for _, p := range peers {
		ports = append(ports, p.port)
	}
	return ports
}

// launch starts a process on one CPU, where there are several, with one thread of Go.
func launch(cmd *exec.Cmd, cpu int) error {
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	if cmd.Stderr == nil {
		cmd.Stderr = os.Stderr
	}
	runtime.LockOSThread() // a child has the CPUs of the thread that starts it
	defer runtime.UnlockOSThread()
	var before unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return fmt.Errorf("read CPUs: %w", err)
	}
	if runtime.NumCPU() > 1 {
		var one unix.CPUSet
		one.Set(cpu)
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			return fmt.Errorf("choose CPU %d: %w", cpu, err)
		}
		defer func() { _ = unix.SchedSetaffinity(0, &before) }() // it was so
	}
	return cmd.Start()
}

func await(port int) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); ; <-tick.C {
		c, err := net.Dial("tcp", local(port))
		if err == nil {
			return c.Close()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("wait for port %d: %w", port, err)
		}
	}
}

func (b *bench) stop() error {
	for _, p := range append(b.peers, &contender{cmd: b.server}) {
		if p.cmd != nil && p.cmd.Process != nil {
			_ = p.cmd.Process.Kill()
			_ = p.cmd.Wait() // it was killed
		}
	}
	if b.dir == "" {
		return nil
	}
	return os.RemoveAll(b.dir)
}

// measure runs one cell.
func (b *bench) measure(ctx context.Context, w work, p *contender, length time.Duration) *cell {
	c := &cell{work: w.name, peer: p.name}
	pids := process.Family(p.cmd.Process.Pid)
	before, err := process.CPU(pids)
	if err != nil {
		c.missing = err.Error()
		return c
	}
	ctx, cancel := context.WithTimeout(ctx, length+30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, b.self, "load", "-target", local(p.port), "-kind", w.kind, "-path", w.path,
		"-conns", strconv.Itoa(w.conns), "-streams", strconv.Itoa(w.streams), "-length", length.String())
	var out bytes.Buffer
	cmd.Stdout = &out
	if err = launch(cmd, 1); err == nil {
		err = cmd.Wait()
	}
	var l loaded
	if err == nil {
		err = json.Unmarshal(out.Bytes(), &l)
	}
	after, err2 := process.CPU(pids)
	switch {
	case errors.Join(err, err2) != nil:
		c.missing = errors.Join(err, err2).Error()
	case l.Errors > 0 || l.Requests == 0:
		c.missing = fmt.Sprintf("%d errors: %s", l.Errors, l.First)
	default:
		c.cpu = float64((after - before).Nanoseconds()) / 1000 / float64(l.Requests)
		c.rate = float64(l.Requests) / l.Elapsed.Seconds()
		c.p50, c.p99 = float64(l.P50.Nanoseconds())/1000, float64(l.P99.Nanoseconds())/1000
		c.rss = process.RSS(pids) / 1024
	}
	return c
}

// measureIdle tells what a proxy holds for a connection that is open and asks nothing.
func (b *bench) measureIdle(ctx context.Context, p *contender, n int) error {
	pids := process.Family(p.cmd.Process.Pid)
	before := process.RSS(pids)
	cmd := exec.CommandContext(ctx, b.self, "idle", "-target", local(p.port), "-conns", strconv.Itoa(n))
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := launch(cmd, 1); err != nil {
		return err
	}
	if _, err = bufio.NewReader(out).ReadString('\n'); err == nil {
		b.idle[p.name] = max(0, process.RSS(pids)-before) / float64(n)
	}
	return errors.Join(err, in.Close(), cmd.Wait())
}
