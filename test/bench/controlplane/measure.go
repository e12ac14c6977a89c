package main

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
)

// cell is what was measured of one size with one number of clients in one round.
type cell struct {
	round   int
	side    string // whose controller it is: "" for this program's
	size    size
	clients int
	missing string // why there are no figures

	start           time.Duration // of the controller's process to readiness
	wire, whole     time.Duration // full sync: of the responses; until a node's client has its snapshot; medians
	resources       int64
	bytes           int64         // of the first responses together
	foreign         int64         // of those to a client of Istio's
	join            time.Duration // until the last of the clients that were added had everything
	rss, peak       int64         // bytes, with all clients; the peak since the process began
	p50, p99, last  time.Duration // event to snapshot at one client; last: p99 of the slowest client
	cpu             time.Duration // of the controller per 1,000 changes that came one at a time
	stormLasted     time.Duration // from its first event to its last: 1 s, or more where CPUs are short
	stormStates     int64         // pushes to a client in the storm, the most of all clients
	stormResponses  int64         // and responses
	stormSettled    time.Duration // after its first event
	stormCPU        time.Duration
	stormCollection uint32 // garbage collections in the storm
}

// side is a controller that is measured: this program's, or that of an earlier build of this program.
type side struct{ name, program string }

// load is how much is measured.
type load struct {
	syncs, changes, storm int
	least, fan            int           // fewer changes, but not fewer than least, when they make more than fan pushes
	limit                 time.Duration // for everything that is waited for
	rest                  time.Duration // after a storm: for a while the controller pushes at a storm's pace
}

// bench is one controller with its clients.
type bench struct {
	w     *world
	c     *controller
	swarm *child // all clients but one
	load  load
	seed  maphash.Seed
	full  *client.Client
	next  int // pod to change

	ctx    context.Context //nolint:containedctx // of the clients
	cancel context.CancelFunc
	wg     sync.WaitGroup
	failed chan error
}

// measure runs one size with growing numbers of clients.
func measure(ctx context.Context, round int, by side, sz size, counts []int, ld load) (cells []*cell, err error) {
	w, err := newWorld(sz)
	if err != nil {
		return nil, err
	}
	c, err := start(ctx, w, by.program)
	if err != nil {
		return nil, err
	}
	defer c.stop()
	b := &bench{w: w, c: c, load: ld, seed: maphash.MakeSeed(), failed: make(chan error, 1)}
	if b.swarm, err = startChild(ctx, "", c.dir, swarmFile, swarmEnv+"="+c.XDS); err != nil {
		return nil, fmt.Errorf("start clients: %w", err)
	}
	defer b.swarm.stop()
	b.ctx, b.cancel = context.WithCancel(ctx)
	defer b.wg.Wait()
	defer b.cancel()
	base := cell{round: round, side: by.name, size: sz, start: c.took}
	if err := b.syncs(&base); err != nil {
		return nil, err
	}
	for i, n := range counts {
		if err := b.rest(i > 0); err != nil {
			return cells, err
		}
		out := base
		out.clients = n
		if err := b.cell(&out); err != nil {
			out.missing = err.Error()
			return append(cells, &out), nil
		}
		show(&out)
		cells = append(cells, &out)
	}
	last := cell{round: round, size: sz}
	if err := b.foreignSync(&last); err != nil {
		return cells, err
	}
	for _, c := range cells {
		c.foreign = last.foreign
	}
	return cells, nil
}

func (b *bench) cell(out *cell) error {
	if err := b.grow(out); err != nil {
		return err
	}
	if err := b.changes(out); err != nil {
		return err
	}
	if err := b.storm(out); err != nil {
		return err
	}
	var err error
	out.rss, out.peak, err = b.c.memory()
	return err
}

// rest waits until a storm is forgotten, if there was one.
func (b *bench) rest(stormed bool) error {
	if !stormed {
		return nil
	}
	timer := time.NewTimer(b.load.rest)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-b.ctx.Done():
		return b.ctx.Err()
	}
}

func (b *bench) dial() (*thin, error) {
	dial, err := dialer(b.c.dir, b.c.XDS)
	if err != nil {
		return nil, err
	}
	return newThin(1, b.seed, dial(0)), nil
}

// syncs measures full syncs to one client, one after the other, each over a connection of its own.
func (b *bench) syncs(out *cell) error {
	var wire, whole []time.Duration
	for range b.load.syncs {
		t, took, err := b.thinSync()
		if err != nil {
			return err
		}
		wire = append(wire, took)
		out.resources, out.bytes = t.resources.Load(), t.bytes.Load()
		if took, err = b.fullSync(t.dial); err != nil {
			return err
		}
		whole = append(whole, took)
	}
	if out.resources != int64(b.w.size.resources()) {
		return fmt.Errorf("a full sync has %d resources, want %d", out.resources, b.w.size.resources())
	}
	out.wire, out.whole = quantile(wire, 0.5), quantile(whole, 0.5)
	return nil
}

// foreignSync measures what a client of Istio's is sent. It comes last: what it needs stays in the controller's memory.
func (b *bench) foreignSync(out *cell) error {
	t, _, err := b.thinSync(func(t *thin) { t.features = nil })
	if err == nil {
		out.foreign = t.bytes.Load()
	}
	return err
}

func (b *bench) thinSync(edit ...func(*thin)) (*thin, time.Duration, error) {
	t, err := b.dial()
	if err != nil {
		return nil, 0, err
	}
	for _, e := range edit {
		e(t)
	}
	ctx, cancel := context.WithCancel(b.ctx)
	begin, done := time.Now(), make(chan error, 1)
	go func() { done <- t.run(ctx) }()
	err = b.wait(t.synced, done)
	took := time.Since(begin)
	cancel()
	if err != nil {
		return nil, 0, err
	}
	<-done
	return t, took, nil
}

func (b *bench) fullSync(dial dialFunc) (time.Duration, error) {
	ctx, cancel := context.WithCancel(b.ctx)
	c := newClient(0, dial)
	changed, stop := c.Watch()
	defer stop()
	begin, done := time.Now(), make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	err := b.wait(changed, done)
	took := time.Since(begin)
	cancel()
	if err != nil {
		return 0, err
	}
	return took, <-done
}

// wait returns nil when ch is ready.
func (b *bench) wait(ch <-chan struct{}, failed <-chan error) error {
	limit := time.NewTimer(b.load.limit)
	defer limit.Stop()
	select {
	case <-ch:
		return nil
	case err := <-failed:
		return errors.Join(errors.New("a client ended"), err)
	case <-limit.C:
		return fmt.Errorf("nothing came for %s", b.load.limit)
	case <-b.ctx.Done():
		return b.ctx.Err()
	}
}

func (b *bench) spawn(run func(context.Context) error) {
	b.wg.Go(func() {
		if err := run(b.ctx); err != nil && b.ctx.Err() == nil {
			select {
			case b.failed <- err:
			default:
			}
		}
	})
}

// grow adds clients, all at once, until there are as many as the cell wants: one that keeps everything, the others thin.
func (b *bench) grow(out *cell) error {
	if b.full == nil {
		first, err := b.dial()
		if err != nil {
			return err
		}
		b.full = newClient(0, first.dial)
		changed, stop := b.full.Watch()
		defer stop()
		b.spawn(b.full.Run)
		if err := b.wait(changed, b.failed); err != nil {
			return err
		}
	}
	var g grown
	if err := b.tell("/grow?n="+strconv.Itoa(out.clients-1), &g); err != nil {
		return err
	}
	out.join = g.Took
	return nil
}

// tell asks the swarm, for as long as anything is waited for.
func (b *bench) tell(path string, out any) error {
	ctx, cancel := context.WithTimeout(b.ctx, b.load.limit)
	defer cancel()
	if err := b.swarm.ask(ctx, path, out); err != nil {
		return fmt.Errorf("clients: %w", err)
	}
	return nil
}

// change flips one pod and waits until every client has it; it returns how long the full client and the last one took.
func (b *bench) change() (full, last time.Duration, err error) {
	b.next = (b.next + 7919) % len(b.w.pods)
	changed, stop := b.full.Watch()
	defer stop()
	begin := time.Now()
	p, err := b.w.flip(b.next)
	if err != nil {
		return 0, 0, err
	}
	for !b.has(p) {
		if err := b.wait(changed, b.failed); err != nil {
			return 0, 0, err
		}
	}
	full = time.Since(begin)
	var all arrived
	if err := b.tell("/arrived?generation="+strconv.FormatUint(b.full.Snapshot().Generation(), 10), &all); err != nil {
		return 0, 0, err
	}
	return full, max(full, time.Duration(all.Last-begin.UnixNano())), nil
}

// has reports whether the full client's snapshot shows the pod as it is.
func (b *bench) has(p *corev1.Pod) bool {
	want := workloadapi.WorkloadStatus_HEALTHY
	if p.Status.Conditions[0].Status != corev1.ConditionTrue {
		want = workloadapi.WorkloadStatus_UNHEALTHY
	}
	w := b.full.Snapshot().WorkloadByName(p.Namespace, p.Name)
	return w != nil && w.GetStatus() == want && w.GetCanonicalRevision() == p.Labels["version"]
}

// apart is how far single changes are apart at least: more than the controller waits between two pushes, so that none is
// a storm.
const apart = 75 * time.Millisecond

// changes measures single changes, the next one when every client has the last.
func (b *bench) changes(out *cell) error {
	before, err := b.c.usage(b.ctx)
	if err != nil {
		return err
	}
	var full, last []time.Duration
	tick := time.NewTicker(apart)
	defer tick.Stop()
	n := min(b.load.changes, max(b.load.least, b.load.fan/out.clients))
	for range n {
		<-tick.C
		f, l, err := b.change()
		if err != nil {
			return err
		}
		full, last = append(full, f), append(last, l)
	}
	after, err := b.c.usage(b.ctx)
	if err != nil {
		return err
	}
	out.p50, out.p99, out.last = quantile(full, 0.5), quantile(full, 0.99), quantile(last, 0.99)
	out.cpu = (after.CPU - before.CPU) * 1000 / time.Duration(n)
	return nil
}

// storm spreads many changes of different pods over a second and counts what reaches the clients.
func (b *bench) storm(out *cell) error {
	before, err := b.c.usage(b.ctx)
	if err != nil {
		return err
	}
	if err := b.tell("/mark", nil); err != nil {
		return err
	}
	const steps = 100
	tick := time.NewTicker(time.Second / steps)
	defer tick.Stop()
	changed, stop := b.full.Watch()
	defer stop()
	begin := time.Now()
	for sent := range b.load.storm - 1 {
		if sent%max(1, b.load.storm/steps) == 0 {
			<-tick.C
		}
		b.next = (b.next + 7919) % len(b.w.pods)
		if _, err := b.w.flip(b.next); err != nil {
			return err
		}
	}
	p, err := b.w.mark(b.next) // readiness alone comes back: a client that has it may have the storm before it
	if err != nil {
		return err
	}
	out.stormLasted = time.Since(begin)
	for !b.has(p) {
		if err := b.wait(changed, b.failed); err != nil {
			return err
		}
	}
	if err := b.tell("/arrived?generation="+strconv.FormatUint(b.full.Snapshot().Generation(), 10), &arrived{}); err != nil {
		return err
	}
	out.stormSettled = time.Since(begin)
	after, err := b.c.usage(b.ctx)
	if err != nil {
		return err
	}
	var n counted
	if err := b.tell("/counts", &n); err != nil {
		return err
	}
	out.stormStates, out.stormResponses = n.States, n.Responses
	out.stormCPU, out.stormCollection = after.CPU-before.CPU, after.Count-before.Count
	return nil
}

// quantile of a list that is not empty; 0.99 of few is the largest.
func quantile(list []time.Duration, q float64) time.Duration {
	s := slices.Sorted(slices.Values(list))
	return s[min(len(s)-1, int(q*float64(len(s))))]
}
