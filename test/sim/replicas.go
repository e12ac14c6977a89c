package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/securityapi"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/xds"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// ReplicaOptions of a history of the control plane: several replicas, each with a view of the objects that comes late and
// sometimes very late, and nodes that follow one of them at a time.
type ReplicaOptions struct {
	Seed  uint64
	Steps int // default 120
	// Torn makes replicas apply a change in two halves, to show that the checks can fail.
	Torn bool
	// Forgetful replicas do not ask nodes what they have seen, to show the same.
	Forgetful bool
}

// mesh is what the objects compile to at one time. Every state differs from every other.
type mesh struct {
	resources map[xds.Key]proto.Message
	digest    string
	version   int // of the API server's store
	life      int // which counts the restores of that store
}

// plane is one history.
type plane struct {
	opt ReplicaOptions
	rng *rand.Rand

	mu         sync.Mutex // protects below
	truth      []mesh
	index      map[string]int // digest -> position in truth
	replicas   []*replica
	violations []string
}

// replica is one controller: its own log, its own count of generations, its own lag.
type replica struct {
	id     int
	at     int // position in the truth of what it serves
	stuck  time.Time
	store  *xds.Store
	server *grpc.Server // nil: it is down
	listen *bufconn.Listener
	life   int // counts starts
	number uint64
	served int // version of what it serves, or is about to; protected by plane.mu
}

// follower is a node.
type follower struct {
	p      *plane
	name   string
	client *client.Client

	mu    sync.Mutex // protects below
	cut   bool
	conns map[net.Conn]struct{}
	from  string // replica and life that the newest connection leads to
	seen  int    // position of the last snapshot
}

const pods = 6

// RunReplicas plays one history. It must be called in a synctest bubble; it returns what went wrong.
func RunReplicas(ctx context.Context, opt ReplicaOptions) []string {
	if opt.Steps == 0 {
		opt.Steps = 120
	}
	p := &plane{opt: opt, rng: rand.New(rand.NewPCG(opt.Seed, 1)), index: map[string]int{}}
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	p.change(nil)
	for i := range 2 + p.rng.IntN(2) {
		p.replicas = append(p.replicas, &replica{id: i})
		p.start(i)
	}
	defer func() {
		for i := range p.replicas {
			p.stop(i)
		}
	}()
	var nodes []*follower
	for i := range 3 {
		f := p.follow(i)
		nodes = append(nodes, f)
		running.Go(func() { _ = f.client.Run(ctx) })
		running.Go(func() { f.watch(ctx) })
	}
	for range opt.Steps {
		p.step(nodes)
		sleepFor(ctx, time.Duration(p.rng.IntN(400))*time.Millisecond)
	}
	p.heal(nodes)
	sleepFor(ctx, time.Minute) // the longest back-off of a node, and some pushes
	last := p.truth[len(p.truth)-1].digest
	for _, f := range nodes {
		if s := f.client.Snapshot(); s == nil || digest(s) != last {
			p.violate("%s does not converge: it has %d of %d", f.name, f.seen, len(p.truth)-1)
		}
	}
	return p.violations
}

func sleepFor(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func (p *plane) violate(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.violations = append(p.violations, fmt.Sprintf(format, args...))
}

// step does one random thing.
func (p *plane) step(nodes []*follower) {
	switch n := p.rng.IntN(100); {
	case n < 45:
		p.change(&p.truth[len(p.truth)-1])
	case n < 75:
		p.catchUp(p.rng.IntN(len(p.replicas)), p.rng.IntN(2) == 0)
	case n < 76 && len(p.truth) > 10:
		p.restore()
	case n < 80:
		r := p.replicas[p.rng.IntN(len(p.replicas))]
		p.stick(r, time.Now().Add(time.Duration(p.rng.IntN(20))*time.Second)) // its watches say nothing
	case n < 87:
		if i := p.rng.IntN(len(p.replicas)); p.replicas[i].server == nil {
			p.start(i)
		} else {
			p.stop(i)
		}
	default:
		f := nodes[p.rng.IntN(len(nodes))]
		f.part(!f.cut)
	}
}

// heal ends all faults and lets every replica see everything.
func (p *plane) heal(nodes []*follower) {
	for i, r := range p.replicas {
		if p.stick(r, time.Time{}); r.server == nil {
			p.start(i)
		}
		p.catchUp(i, false)
	}
	for _, f := range nodes {
		f.part(false)
	}
}

// change adds a state: each pod is guarded by one policy that denies, of the namespace or by name, and now and then it
// changes from the one to the other, gets another name, or pods come and go.
func (p *plane) change(old *mesh) {
	next := mesh{resources: map[xds.Key]proto.Message{}, version: 1}
	if old != nil {
		next.version, next.life = old.version+1, old.life
	}
	guard, scope := fmt.Sprintf("guard-%d", p.rng.IntN(3)), securityapi.Scope_NAMESPACE
	if p.rng.IntN(2) == 0 {
		scope = securityapi.Scope_WORKLOAD_SELECTOR
	}
	if old != nil && p.rng.IntN(3) > 0 { // the policy stays as it is
		for k, m := range old.resources {
			if a, ok := m.(*securityapi.Authorization); ok {
				guard, scope = strings.TrimPrefix(k.Name, "foo/"), a.GetScope()
			}
		}
	}
	next.resources[xds.Key{Type: api.AuthorizationType, Name: "foo/" + guard}] = &securityapi.Authorization{
		Namespace: "foo", Name: guard, Scope: scope, Action: securityapi.Action_DENY}
	for i := range pods {
		if i > 0 && p.rng.IntN(5) == 0 {
			continue
		}
		w := &workloadapi.Workload{Uid: fmt.Sprintf("K//Pod/foo/p%d", i), ClusterId: "K", Namespace: "foo", Name: fmt.Sprintf("p%d", i)}
		if i == 0 {
			w.Node = fmt.Sprintf("state-%d", len(p.truth)) // no two states are the same
		}
		if scope == securityapi.Scope_WORKLOAD_SELECTOR {
			w.AuthorizationPolicies = []string{"foo/" + guard}
		}
		next.resources[xds.Key{Type: api.AddressType, Name: w.Uid}] = &workloadapi.Address{Type: &workloadapi.Address_Workload{Workload: w}}
	}
	var all []client.Resource
	for k, m := range next.resources {
		all = append(all, client.Resource{Name: k.Name, Message: m})
	}
	s, err := client.NewSnapshot(all...)
	if err != nil {
		panic("the history is wrong: " + err.Error())
	}
	next.digest = digest(s)
	p.add(next)
}

func (p *plane) add(next mesh) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.index[next.digest] = len(p.truth)
	p.truth = append(p.truth, next)
}

// restore makes an earlier state the newest one, with the version that it had: the API server is restored from a backup.
func (p *plane) restore() {
	now := p.truth[len(p.truth)-1]
	back := p.truth[len(p.truth)-1-p.rng.IntN(8)]
	p.change(&mesh{resources: back.resources, version: back.version - 1, life: now.life + 1})
}

// replicaHistory is what the replica r knows of the API server.
type replicaHistory struct {
	p *plane
	r *replica
}

// Seen implements xds.History.
func (h replicaHistory) Seen() string {
	h.p.mu.Lock()
	defer h.p.mu.Unlock()
	return strconv.Itoa(h.r.served)
}

// Reach implements xds.History as watch.History does: it waits for what comes by itself, then looks at the API server.
func (h replicaHistory) Reach(ctx context.Context, seen string) error {
	v, err := strconv.Atoi(seen)
	if err != nil {
		return err
	}
	for begin := time.Now(); time.Since(begin) < 10*time.Second; sleepFor(ctx, 100*time.Millisecond) {
		h.p.mu.Lock()
		newest, now, reads := h.p.truth[len(h.p.truth)-1], h.r.at, !time.Now().Before(h.r.stuck)
		h.p.mu.Unlock()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case now >= 0 && h.p.truthAt(now).version >= v:
			return nil
		case reads && newest.version < v && time.Since(begin) > 2*time.Second:
			return nil // the API server itself is older
		}
	}
	return fmt.Errorf("version %d: %w", v, errBehind)
}

var errBehind = errors.New("this replica has not seen it")

func (p *plane) truthAt(i int) mesh {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.truth[i]
}

// digest is all that matters of a snapshot.
func digest(s *client.Snapshot) string {
	var b strings.Builder
	for _, w := range s.Workloads() {
		fmt.Fprintf(&b, "%s %s %v:", w.GetUid(), w.GetNode(), w.GetAuthorizationPolicies())
		for _, a := range s.Policies(w) {
			fmt.Fprintf(&b, " %s/%s %s", a.GetNamespace(), a.GetName(), a.GetScope())
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// start lists all objects, as they are now, and serves.
func (p *plane) start(i int) {
	r := p.replicas[i]
	r.number = uint64(p.rng.IntN(100)) // counts of replicas mean nothing to each other
	r.store = xds.NewStore(xds.StoreConfig{Clock: clock.System()})
	srv := grpc.NewServer()
	cfg := xds.Config{Store: r.store, Clock: clock.System(), Types: []string{api.AuthorizationType, api.AddressType}}
	if !p.opt.Forgetful {
		cfg.History = replicaHistory{p, r}
	}
	xds.NewServer(cfg).Register(srv)
	lis := bufconn.Listen(64 << 10)
	go func() { _ = srv.Serve(lis) }() // until Stop
	stuck := r.stuck
	p.mu.Lock()
	r.life++
	r.server, r.listen, r.at, r.stuck = srv, lis, -1, time.Time{}
	p.mu.Unlock()
	p.catchUp(i, false)
	p.stick(r, stuck)
}

// stick keeps a replica from hearing of changes until then.
func (p *plane) stick(r *replica, until time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	r.stuck = until
}

func (p *plane) stop(i int) {
	p.mu.Lock()
	srv := p.replicas[i].server
	p.replicas[i].server = nil
	p.mu.Unlock()
	if srv != nil {
		srv.Stop()
	}
}

// catchUp applies what the replica has not seen, or some of it, as one change, however many states that are.
func (p *plane) catchUp(i int, lags bool) {
	r := p.replicas[i]
	to := len(p.truth) - 1
	if r.server == nil || time.Now().Before(r.stuck) || r.at == to {
		return
	}
	if lags && r.at >= 0 {
		to = r.at + 1 + p.rng.IntN(to-r.at)
	}
	old := map[xds.Key]proto.Message{}
	if r.at >= 0 {
		old = p.truth[r.at].resources
	}
	var up []xds.Resource
	var gone []xds.Key
	for k, m := range p.truth[to].resources {
		if b, ok := old[k]; !ok || !proto.Equal(b, m) {
			up = append(up, xds.Resource{Type: k.Type, Name: k.Name, Message: m})
		}
	}
	for k := range old {
		if p.truth[to].resources[k] == nil {
			gone = append(gone, k)
		}
	}
	slices.SortFunc(up, func(a, b xds.Resource) int { return strings.Compare(a.Type+a.Name, b.Type+b.Name) })
	r.number++
	p.mu.Lock()
	r.served = p.truth[to].version // what nodes are told may be ahead of what is served
	p.mu.Unlock()
	var err error
	if p.opt.Torn {
		err = r.store.Apply(r.number, nil, gone)
		<-time.NewTimer(200 * time.Millisecond).C
	}
	if err = errors.Join(err, r.store.Apply(r.number, up, gone)); err != nil {
		p.violate("replica %d: %v", i, err)
	}
	p.mu.Lock()
	r.at = to
	p.mu.Unlock()
}

func (p *plane) follow(i int) *follower {
	f := &follower{p: p, name: fmt.Sprintf("node%d", i), conns: map[net.Conn]struct{}{}, seen: -1}
	pick := rand.New(rand.NewPCG(p.opt.Seed, uint64(100+i)))
	f.client = client.New(client.Config{NodeID: f.name, Clock: clock.System(), Rand: rand.New(rand.NewPCG(p.opt.Seed, uint64(200+i))),
		Types: []string{api.AuthorizationType, api.AddressType},
		Dial: func(context.Context) (*grpc.ClientConn, error) {
			p.mu.Lock()
			r := p.replicas[pick.IntN(len(p.replicas))]
			up, lis, from := r.server != nil, r.listen, fmt.Sprintf("%d/%d", r.id, r.life)
			p.mu.Unlock()
			if !up {
				return nil, errors.New("the replica is down")
			}
			return grpc.NewClient("passthrough:///replica", grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return f.dial(ctx, lis, from) }))
		}})
	return f
}

func (f *follower) dial(ctx context.Context, lis *bufconn.Listener, from string) (net.Conn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cut {
		return nil, errors.New("no way to the replica")
	}
	c, err := lis.DialContext(ctx)
	if err == nil {
		f.conns[c], f.from = struct{}{}, from
	}
	return c, err
}

// part cuts the node off from all replicas, or ends that.
func (f *follower) part(cut bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cut = cut; cut {
		for c := range maps.Keys(f.conns) {
			c.Close()
		}
		clear(f.conns)
	}
}

// watch checks every state that the node goes by: it is one that the objects had, no pod is without its guard, and none is
// older than the one before, whichever replica it is from, unless the API server was restored between the two.
func (f *follower) watch(ctx context.Context) {
	changed, stop := f.client.Watch()
	defer stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
		s := f.client.Snapshot()
		for _, w := range s.Workloads() {
			if !s.PoliciesComplete(w) || len(s.Policies(w)) != 1 {
				f.p.violate("%s: pod %s goes without its policy", f.name, w.GetName())
			}
		}
		f.p.mu.Lock()
		at, known := f.p.index[digest(s)]
		f.p.mu.Unlock()
		f.mu.Lock()
		from := f.from
		f.mu.Unlock()
		if !known {
			f.p.violate("%s goes by a state that never was:\n%s", f.name, digest(s))
			continue
		}
		if at < f.seen && f.p.truthAt(at).life == f.p.truthAt(f.seen).life {
			f.p.violate("%s: replica %s took it back from state %d to %d", f.name, from, f.seen, at)
		}
		f.seen = at
	}
}
