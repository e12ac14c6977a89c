package nodes

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/undermesh/undermesh/test/bench/process"
	"github.com/undermesh/undermesh/test/netnstest/lab"
)

// mix is what the soak asks at once, at both places; each load begins anew every segment, so that connections come and go.
var mix = []work{
	{"h1", "h1", "/1024", 16, 1, 300},
	{"new", "new", "/1024", 4, 1, 60},
	{"1MiB", "h1", "/1048576", 2, 1, 10},
	{"h2", "h2", "/1024", 2, 8, 300},
	{"grpc", "grpc", "/1024", 2, 8, 300},
}

const (
	segments = 20  // of a soak
	samples  = 120 // about
	churn    = 500 * time.Millisecond
	warming  = 0.25 // of a soak is left out: pools and heaps grow to what the load needs
)

// sample is what one ztunnel's worker held at a time.
type sample struct {
	at                              time.Duration // since the start
	rss, heap, goroutines, descript float64       // KiB, KiB after a collection, number, number
}

// soak is a long run.
type soak struct {
	w     *world
	lab   *lab.Lab
	start time.Time

	mu       sync.Mutex // protects below
	requests map[string]int
	failures map[string]string // the first of each load
	failed   int
	changes  int
	samples  map[string][]sample // by node
}

// runSoak asks and changes the configuration for so long.
func runSoak(tb testing.TB, tool string, length time.Duration) *soak {
	tb.Helper()
	l := lab.New(tb, lab.Config{})
	s := &soak{w: &world{tb: tb, tool: tool}, lab: l, requests: map[string]int{}, failures: map[string]string{}, samples: map[string][]sample{}}
	s.w.mesh(l)
	s.w.warm()
	s.start = time.Now()
	ctx, stop := context.WithTimeout(context.Background(), length)
	defer stop()
	var wg sync.WaitGroup
	for _, side := range s.w.sides {
		for _, k := range mix {
			wg.Go(func() { s.load(ctx, k, side, length/segments) })
		}
	}
	every := max(time.Second, length/samples)
	for _, n := range l.Nodes {
		wg.Go(func() { s.watch(ctx, n, every) })
	}
	s.change(ctx)
	wg.Wait()
	return s
}

// load asks one segment after the other until ctx ends.
func (s *soak) load(ctx context.Context, k work, at *side, segment time.Duration) {
	end, _ := ctx.Deadline()
	for left := time.Until(end); left > time.Second; left = time.Until(end) {
		a, err := s.w.ask(k, at, min(left, segment))
		if err == nil && a.Errors > 0 {
			err = fmt.Errorf("%d workers ended: %s", a.Errors, a.First)
		}
		s.mu.Lock()
		name := k.name + "/" + at.place
		s.requests[name] += a.Requests
		if err != nil {
			s.failed++
			if s.failures[name] == "" {
				s.failures[name] = fmt.Sprintf("after %v: %v", time.Since(s.start).Round(time.Second), err)
			}
		}
		s.mu.Unlock()
	}
}

// change gives the services other routes and rules again and again, and lets a service and its rule come and go.
func (s *soak) change(ctx context.Context) {
	tick := time.NewTicker(churn)
	defer tick.Stop()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			s.mu.Lock()
			s.changes = n - 1
			s.mu.Unlock()
			return
		case <-tick.C:
		}
		name := "web-" + []string{same, other}[n%2]
		switch n % 4 {
		case 0, 1:
			s.lab.Apply("vs-"+name[4:], virtualService(name, routes+n%3, n))
		case 2:
			s.lab.Apply("dr", fmt.Sprintf("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: web, namespace: %s}\nspec:\n  host: %s\n  trafficPolicy: {connectionPool: {http: {maxRetries: %d}}}\n", namespace, name, n%7+1))
			s.lab.Apply("svc-extra", service("extra", fmt.Sprintf("%s%d", virtualIP, 100+n%100)))
		default:
			s.lab.Delete("dr")
			s.lab.Delete("svc-extra")
		}
	}
}

// watch samples a node's ztunnel until ctx ends, and drops its log.
func (s *soak) watch(ctx context.Context, n *lab.Node, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		one, err := s.sample(n)
		s.mu.Lock()
		if err != nil {
			s.failed++
			s.failures["sample of "+n.Name] = err.Error()
		} else {
			s.samples[n.Name] = append(s.samples[n.Name], one)
		}
		s.mu.Unlock()
		_ = n.Ztunnel.Forget() // the next one may
	}
}

// sample asks ztunnel to collect, and reads what is left.
func (s *soak) sample(n *lab.Node) (sample, error) {
	text, err := n.Admin("/debug/pprof/heap?gc=1&debug=1")
	if err != nil {
		return sample{}, err
	}
	heap, err := after(text, "# HeapAlloc = ")
	if err != nil {
		return sample{}, err
	}
	if text, err = n.Admin("/debug/pprof/goroutine?debug=1"); err != nil {
		return sample{}, err
	}
	goroutines, err := after(text, "goroutine profile: total ")
	if err != nil {
		return sample{}, err
	}
	pids := process.Family(n.Ztunnel.PID())
	worker := pids[len(pids)-1]
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", worker))
	if err != nil {
		return sample{}, fmt.Errorf("count descriptors: %w", err)
	}
	return sample{time.Since(s.start), process.RSS([]int{worker}), heap / 1024, goroutines, float64(len(files))}, nil
}

// after reads the number that follows a text.
func after(text, what string) (float64, error) {
	_, rest, ok := strings.Cut(text, what)
	if !ok {
		return 0, fmt.Errorf("no %q in the answer", what)
	}
	line, _, _ := strings.Cut(rest, "\n")
	v, err := strconv.ParseFloat(strings.TrimSpace(line), 64)
	if err != nil {
		return 0, fmt.Errorf("read %q: %w", what, err)
	}
	return v, nil
}
