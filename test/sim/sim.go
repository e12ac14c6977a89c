package sim

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/test/sim/memnet"
	"github.com/undermesh/undermesh/ztunnel/proxy"
)

const (
	// Bound is how long after a node has acknowledged a policy something that it forbids may still arrive: what is between
	// ztunnel and the application then.
	Bound = 20 * time.Millisecond
	// Recovery is how long after the last fault the mesh may take to be as its objects say: the longest back-off of a node
	// (15 s), its dial, and a round of connections.
	Recovery = 40 * time.Second
	// hangLimit is how much longer old connections may take to end.
	hangLimit = 60 * time.Second
)

// Options of a history.
type Options struct {
	Seed  uint64
	Nodes int // default 2 or 3, by the seed
	Steps int // of the script; default 45
	// Calm leaves out all but connections to pods and their enrolment and its end: then no connection may break, whatever
	// was enrolled or released under it.
	Calm bool
	// Requests has applications speak HTTP, and the script change VirtualServices and DestinationRules.
	Requests bool
	// play replaces the random script.
	play func(*world, context.Context) error
	// Hooks break things, to show that the checks can fail.
	Hooks Hooks
	// Log receives what controller and ztunnels log; nil: nothing.
	Log *slog.Logger
}

// Hooks replace parts of the simulation. Each may be nil.
type Hooks struct {
	Proxy   func(node string, cfg *proxy.Config)
	Sockets func(proxy.Sockets) proxy.Sockets
	// Steer decides about plain text that arrives at an enrolled pod: it returns the socket that takes it.
	Steer  func(syn memnet.SYN, inbound, application *memnet.Socket) *memnet.Socket
	Record func(kv map[string]string)
	// Number is what an application takes for the number of a request when it answers.
	Number func(uint64) uint64
	// Status is what an application answers in place of a status.
	Status func(int) int
	// Stay leaves a client's connection open with a request that is not answered.
	Stay bool
	// Restart says whether the ztunnel of a node comes back after a crash.
	Restart func(node string) bool
}

// Result of a history.
type Result struct {
	Violations []Violation
	Script     []string // what was done, in order
	Streams    int      // connections that applications made
	Delivered  int      // of them, complete
	Refused    int      // broken before a byte came back
	Broken     int      // broken later
	Requests   int      // of HTTP
	Answered   int      // of them, by an application
	Rejected   int      // of them, by the mesh
	// Outcome has a line for each connection, and how it ended.
	Outcome []string
}

// world is one history.
type world struct {
	opt     Options
	start   time.Time
	rng     *rand.Rand // of the script
	net     *memnet.Network
	secret  secret
	objects *apiServer
	control *controller
	nodes   []*node
	apps    sync.WaitGroup // applications and clients

	before  map[string]string // goroutines
	traffic context.Context   //nolint:containedctx // of applications and clients

	script []string
	tasks  []task
	serial int

	mu           sync.Mutex // protects below; before apiServer.mu
	pods         []*pod     // all that ever were
	hosts        map[*memnet.Host]*pod
	published    map[key]model.Event
	versions     []version
	streams      map[uint64]*stream
	open         int
	requests     map[uint64]*request
	ended        []*stream
	records      map[netip.AddrPort][]record
	openRequests int
	unjudged     map[flow]bool // reached an application before its pod was captured, or lived on when it was not any more

	vmu        sync.Mutex // protects below; innermost
	violations []Violation
}

// Run plays one history. It must be called in a synctest bubble and returns when all that it started has ended; what has not is
// a violation.
func Run(ctx context.Context, opt Options) (*Result, error) {
	if opt.Steps == 0 {
		opt.Steps = 45
	}
	w := &world{
		opt: opt, start: time.Now(), rng: rand.New(rand.NewPCG(opt.Seed, 0)), hosts: map[*memnet.Host]*pod{},
		published: map[key]model.Event{}, versions: []version{{facts: newFacts(), hbone: map[string]bool{}, marks: map[string]mark{}}},
		streams: map[uint64]*stream{}, requests: map[uint64]*request{}, records: map[netip.AddrPort][]record{}, unjudged: map[flow]bool{},
	}
	w.before = goroutines()
	w.net = memnet.New(memnet.Config{Seed: opt.Seed, Tap: w.tap, Loss: w.loss, Segment: 256})
	w.objects = newAPIServer(w.publish)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	traffic, endTraffic := context.WithCancel(ctx)
	defer endTraffic()
	w.traffic = traffic
	if err := w.build(ctx); err != nil {
		return nil, fmt.Errorf("build world: %w", err)
	}
	play := (*world).play
	if opt.Requests {
		play = (*world).playRequests
	}
	if opt.play != nil {
		play = opt.play
	}
	err := play(w, ctx)
	if err == nil {
		err = w.settle(ctx)
	}
	endTraffic()
	w.end()
	w.checkRefusals()
	w.checkContinuity()
	if err != nil {
		return nil, err
	}
	return w.result(), nil
}

// build starts the controller and the nodes with their first pods.
func (w *world) build(ctx context.Context) error {
	n := w.opt.Nodes
	if n == 0 {
		n = 2 + w.rng.IntN(2)
	}
	host, err := w.net.AddHost(controlZone, controllerAddr)
	if err != nil {
		return err
	}
	w.control = &controller{w: w, host: host}
	for i := range n {
		host, err := w.net.AddHost("n"+fmt.Sprint(i), netip.AddrFrom4([4]byte{10, 254, 0, byte(i)}))
		if err != nil {
			return err
		}
		w.nodes = append(w.nodes, &node{
			w: w, name: "n" + fmt.Sprint(i), host: host, rng: rand.New(rand.NewPCG(w.opt.Seed, uint64(1+i))), ours: map[*memnet.Process]bool{},
		})
	}
	for i, ns := range namespaces {
		for j, app := range apps {
			vip := vipOf(i, j)
			w.objects.set(model.KindService, model.Name{Namespace: ns, Name: app}, service(ns, app, vip, w.opt.Requests), nil)
		}
	}
	if err := w.control.start(ctx); err != nil {
		return err
	}
	for _, n := range w.nodes {
		if err := n.start(ctx, nil); err != nil {
			return err
		}
		for range 3 {
			if err := w.addPod(n); err != nil {
				return err
			}
		}
	}
	return nil
}

// loss makes some links to the controller bad, so that what it sends arrives in pieces.
func (w *world) loss(a, b string) float64 {
	if a == controlZone || b == controlZone {
		return float64(w.opt.Seed%4) * 0.1
	}
	return 0
}

// certTTL is short in every third history: certificates rotate, and expire at a node that is cut off for long.
func (w *world) certTTL() time.Duration {
	if w.opt.Seed%3 == 0 && !w.opt.Calm {
		return 12 * time.Second
	}
	return 0
}

// end stops everything and looks for what did not.
func (w *world) end() {
	w.mu.Lock()
	pods := slices.Clone(w.pods)
	w.mu.Unlock()
	for _, p := range pods {
		p.host.Remove()
	}
	for _, n := range w.nodes {
		n.stop()
	}
	w.control.stop()
	w.apps.Wait()
	synctest.Wait()
	if list := leaked(w.before); len(list) > 0 {
		w.violate("leak", "%d goroutines are left, the first is\n%s", len(list), list[0])
	}
}

func (w *world) result() *Result {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := &Result{Violations: w.violations, Script: w.script, Streams: len(w.streams)}
	for id := uint64(1); id <= uint64(len(w.streams)); id++ {
		s := w.streams[id]
		how := "complete"
		switch {
		case s.err == nil:
			r.Delivered++
		case s.echoed == 0:
			how = "refused"
			r.Refused++
		default:
			how = "broken"
			r.Broken++
		}
		r.Outcome = append(r.Outcome, fmt.Sprintf("%d %s -> %s %s", s.id, s.from, s.to, how))
	}
	for _, q := range w.requests {
		r.Requests++
		switch {
		case q.pod != "":
			r.Answered++
		case q.status != 0:
			r.Rejected++
		}
	}
	return r
}

// note writes down what the script does.
func (w *world) note(format string, args ...any) {
	w.script = append(w.script, fmt.Sprintf("%9s ", time.Since(w.start).Round(time.Millisecond))+fmt.Sprintf(format, args...))
}

func (w *world) log(component string) *slog.Logger {
	if w.opt.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return w.opt.Log.With("component", component)
}

// isDeclared reports whether an event is the pod, declared to be HBONE.
func (p *pod) isDeclared(ev model.Event) bool {
	o, ok := ev.Object.(interface {
		GetUID() types.UID
		GetAnnotations() map[string]string
	})
	return ok && string(o.GetUID()) == p.uid && o.GetAnnotations()[api.AnnotationRedirection] == api.RedirectionEnabled
}

func vipOf(ns, app int) netip.Addr { return netip.AddrFrom4([4]byte{10, 96, byte(ns), byte(app + 1)}) }

var _ net.Listener = (*memnet.Listener)(nil)
