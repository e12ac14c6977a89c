package sim

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/test/sim/memnet"
)

var (
	namespaces = []string{"foo", "bar"}
	apps       = []string{"web", "job"}
	accounts   = []string{"x", "y"}
)

// task is something that the script does later.
type task struct {
	at time.Time
	do func(context.Context) error
}

// later puts off do; the final phase does at once what is left.
func (w *world) later(d time.Duration, do func(context.Context) error) {
	w.tasks = append(w.tasks, task{time.Now().Add(d), do})
	slices.SortStableFunc(w.tasks, func(a, b task) int { return a.at.Compare(b.at) })
}

// between draws a duration.
func (w *world) between(low, high time.Duration) time.Duration {
	return low + time.Duration(w.rng.Int64N(int64(high-low)))
}

func pick[T any](w *world, list []T) T { return list[w.rng.IntN(len(list))] }

// play performs the script.
func (w *world) play(ctx context.Context) error {
	if !pause(ctx, 3*time.Second) { // the mesh comes up
		return context.Cause(ctx)
	}
	for range w.opt.Steps {
		next := time.Now().Add(w.between(0, 900*time.Millisecond))
		for len(w.tasks) > 0 && !w.tasks[0].at.After(next) {
			if err := w.runTask(ctx); err != nil {
				return err
			}
		}
		if d := time.Until(next); d > 0 && !pause(ctx, d) {
			return context.Cause(ctx)
		}
		if err := w.step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) runTask(ctx context.Context) error {
	t := w.tasks[0]
	w.tasks = w.tasks[1:]
	if d := time.Until(t.at); d > 0 && !pause(ctx, d) {
		return context.Cause(ctx)
	}
	return t.do(ctx)
}

// step does one thing.
func (w *world) step(ctx context.Context) error {
	n := w.rng.IntN(100)
	if w.opt.Calm {
		return w.calmStep(n)
	}
	switch {
	case n < 52:
		for range 1 + w.rng.IntN(4) {
			w.connect()
		}
	case n < 62:
		w.changePolicy()
	case n < 66: // several at once, and connections while nodes have some of them
		for range 2 + w.rng.IntN(4) {
			w.changePolicy()
		}
		for i := range 6 {
			w.later(time.Duration(i)*60*time.Millisecond, func(context.Context) error {
				w.connect()
				return nil
			})
		}
	case n < 73:
		w.changePeers()
	case n < 79:
		return w.addPod(pick(w, w.nodes))
	case n < 83:
		w.deletePod()
	case n < 85:
		return w.moveIn()
	case n < 88:
		w.crashNode()
	case n < 91:
		w.crashController()
	case n < 97:
		w.cut()
	default:
		kind := pick(w, []model.Kind{model.KindPod, model.KindAuthorizationPolicy, model.KindPeerAuthentication})
		d := w.between(0, 3*time.Second)
		w.note("changes of %s take %s from now on", kind, d.Round(time.Millisecond))
		w.objects.setLag(kind, d)
	}
	return nil
}

// calmStep does one thing that no connection may notice.
func (w *world) calmStep(n int) error {
	if n >= 70 {
		return w.moveIn()
	}
	for range 1 + w.rng.IntN(4) {
		w.connect()
	}
	return nil
}

// living are the pods that live, oldest first.
func (w *world) living() []*pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(w.pods), func(p *pod) bool { return !p.died.IsZero() })
}

// addPod starts a pod. Its address may have been another's a moment ago.
func (w *world) addPod(n *node) error {
	pods := w.living()
	var free []netip.Addr
	for i := range 5 {
		a := netip.AddrFrom4([4]byte{10, 0, byte(slices.Index(w.nodes, n)), byte(i + 1)})
		if !slices.ContainsFunc(pods, func(p *pod) bool { return p.ip == a }) {
			free = append(free, a)
		}
	}
	if len(free) == 0 {
		return nil
	}
	w.serial++
	p := &pod{
		w: w, ns: pick(w, namespaces), app: pick(w, apps), ip: pick(w, free), node: n, born: time.Now(),
		uid: fmt.Sprintf("uid-%d", w.serial),
	}
	p.name = fmt.Sprintf("%s-%d", p.app, w.serial)
	if w.opt.Requests {
		p.version = pick(w, podVersions)
	}
	p.who = account{p.ns, pick(w, accounts)}
	if err := p.bring(); err != nil {
		return err
	}
	w.mu.Lock()
	w.pods = append(w.pods, p)
	w.hosts[p.host] = p
	w.mu.Unlock()
	enrol := w.rng.IntN(6) > 0
	w.note("pod %s of %s at %s on %s begins, enrolled %t", p, p.who.name, p.ip, n.name, enrol)
	if enrol { // captured in both directions before its first process
		if err := p.prepare(); err != nil {
			return err
		}
		p.inbound.Store(true)
		p.outbound.Store(true)
		if zt := n.running(); zt != nil {
			zt.add(p)
		}
	}
	w.objects.set(model.KindPod, p.model(), p.object(false), nil)
	if enrol {
		w.annotate(p, true)
	}
	return nil
}

// annotate tells the controller, some time later, whether the pod is captured.
func (w *world) annotate(p *pod, on bool) {
	w.later(w.between(time.Millisecond, 400*time.Millisecond), func(context.Context) error {
		if p.died.IsZero() {
			w.objects.set(model.KindPod, p.model(), p.object(on), nil)
		}
		return nil
	})
}

// moveIn brings a living pod into the mesh, or takes it out, in the order of the agent: a pod comes in inbound first and outbound
// last; it leaves when the mesh has been told, outbound first.
func (w *world) moveIn() error {
	p := pick(w, w.living())
	if p.moving {
		return nil
	}
	p.moving = true
	if !p.enrolled {
		w.note("pod %s is enrolled", p)
		if err := p.prepare(); err != nil {
			return err
		}
		if zt := p.node.running(); zt != nil {
			zt.add(p)
		}
		p.inbound.Store(true)
		w.annotate(p, true)
		w.later(500*time.Millisecond, func(context.Context) error {
			p.outbound.Store(true)
			p.moving = false
			return nil
		})
		return nil
	}
	w.note("pod %s leaves the mesh", p)
	w.annotate(p, false)
	w.later(5*time.Second, func(context.Context) error {
		p.outbound.Store(false)
		return nil
	})
	w.later(5500*time.Millisecond, func(context.Context) error {
		p.inbound.Store(false)
		return nil
	})
	w.later(6*time.Second, func(context.Context) error {
		if !p.died.IsZero() {
			return nil
		}
		p.enrolled = false
		if zt := p.node.running(); zt != nil {
			zt.remove(p)
		}
		for _, s := range []*memnet.Socket{p.in, p.out, p.tunnel} {
			s.Close()
		}
		p.moving = false
		return nil
	})
	return nil
}

func (w *world) deletePod() {
	pods := w.living()
	if len(pods) < 4 {
		return
	}
	p := pick(w, pods)
	w.note("pod %s ends", p)
	w.mu.Lock()
	p.died = time.Now()
	w.mu.Unlock()
	p.host.Remove()
	if zt := p.node.running(); zt != nil {
		zt.remove(p)
	}
	w.later(w.between(time.Millisecond, 600*time.Millisecond), func(context.Context) error {
		w.objects.set(model.KindPod, p.model(), nil, nil)
		return nil
	})
}

// connect starts one connection between two pods, or to a service.
func (w *world) connect() {
	pods := w.living()
	from, to := pick(w, pods), pick(w, pods)
	addr := to.ip
	if from.outbound.Load() && !w.opt.Calm && w.rng.IntN(4) == 0 {
		addr = vipOf(w.rng.IntN(len(namespaces)), w.rng.IntN(len(apps)))
	}
	s := w.newStream(from, netip.AddrPortFrom(addr, pick(w, appPorts)))
	for range 1 + w.rng.IntN(25) {
		s.chunks = append(s.chunks, 1+w.rng.IntN(3000))
	}
	switch w.rng.IntN(8) {
	case 0:
		s.chunks = append(s.chunks, 200_000+w.rng.IntN(400_000))
	case 1, 2, 3, 4:
		s.gap = w.between(time.Millisecond, 400*time.Millisecond)
	}
	if w.rng.IntN(4) == 0 && !w.opt.Calm {
		s.quirk, s.at = quirk(1+w.rng.IntN(3)), w.rng.IntN(s.total())
	}
	w.note("%v: %d bytes in %d chunks, gap %s, %s", s, s.total(), len(s.chunks), s.gap.Round(time.Millisecond), s.quirk)
	w.launch(s)
}

func (w *world) newStream(from *pod, to netip.AddrPort) *stream {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := &stream{w: w, id: uint64(len(w.streams) + 1), from: from, to: to, begin: time.Now()}
	w.streams[s.id] = s
	w.open++
	return s
}

func (w *world) launch(s *stream) { w.apps.Go(func() { s.run(w.traffic) }) }

func (w *world) randomScope() scope {
	switch w.rng.IntN(5) {
	case 0:
		return scope{ns: api.DefaultRootNamespace}
	case 1:
		return scope{ns: pick(w, namespaces)}
	}
	return scope{pick(w, namespaces), pick(w, apps)}
}

// changePolicy creates, replaces or deletes an AuthorizationPolicy.
func (w *world) changePolicy() {
	a := authz{scope: w.randomScope(), deny: w.rng.IntN(2) == 0}
	n := model.Name{Namespace: a.ns, Name: fmt.Sprintf("p%d", w.rng.IntN(3))}
	if w.rng.IntN(3) == 0 {
		w.note("AuthorizationPolicy %s is deleted", n)
		w.objects.set(model.KindAuthorizationPolicy, n, nil, func(f *facts) { delete(f.authz, n) })
		return
	}
	for range w.rng.IntN(3) {
		var r rule
		if w.rng.IntN(3) > 0 {
			for range 1 + w.rng.IntN(2) {
				r.principals = append(r.principals, account{pick(w, namespaces), pick(w, accounts)})
			}
		}
		if w.rng.IntN(4) == 0 {
			r.namespaces = []string{pick(w, namespaces)}
		}
		if w.rng.IntN(3) == 0 {
			r.ports = []uint16{pick(w, appPorts)}
		}
		a.rules = append(a.rules, r)
	}
	w.note("AuthorizationPolicy %s is %+v", n, a)
	w.objects.set(model.KindAuthorizationPolicy, n, a.object(n), func(f *facts) {
		if f.authz == nil {
			f.authz = map[model.Name]authz{}
		}
		f.authz[n] = a
	})
}

// changePeers creates, replaces or deletes a PeerAuthentication; there is one for each scope.
func (w *world) changePeers() {
	a := peers{scope: w.randomScope(), strict: w.rng.IntN(3) > 0}
	n := model.Name{Namespace: a.ns, Name: "default" + a.app}
	if w.rng.IntN(4) == 0 {
		w.note("PeerAuthentication %s is deleted", n)
		w.objects.set(model.KindPeerAuthentication, n, nil, func(f *facts) { delete(f.peers, n) })
		return
	}
	w.note("PeerAuthentication %s is %+v", n, a)
	w.objects.set(model.KindPeerAuthentication, n, a.object(n), func(f *facts) {
		if f.peers == nil {
			f.peers = map[model.Name]peers{}
		}
		f.peers[n] = a
	})
}

func (w *world) crashNode() {
	n := pick(w, w.nodes)
	if n.running() == nil {
		return
	}
	w.note("ztunnel of %s is killed", n.name)
	n.stop()
	if f := w.opt.Hooks.Restart; f != nil && !f(n.name) {
		return
	}
	w.later(w.between(time.Millisecond, 4*time.Second), func(ctx context.Context) error {
		w.note("ztunnel of %s starts", n.name)
		var mine []*pod
		for _, p := range w.living() {
			if p.node == n && p.enrolled {
				mine = append(mine, p)
			}
		}
		return n.start(ctx, mine)
	})
}

func (w *world) crashController() {
	if w.control.proc == nil {
		return
	}
	w.note("controller is killed")
	w.control.stop()
	w.later(w.between(10*time.Millisecond, 8*time.Second), func(ctx context.Context) error {
		w.note("controller starts")
		return w.control.start(ctx)
	})
}

// cut parts two nodes, or a node and the controller, for a while.
func (w *world) cut() {
	a, b := pick(w, w.nodes).name, controlZone
	if w.rng.IntN(2) == 0 {
		b = pick(w, w.nodes).name
	}
	if a == b {
		return
	}
	d := w.between(50*time.Millisecond, 6*time.Second)
	if w.rng.IntN(4) == 0 {
		d = w.between(15*time.Second, 45*time.Second)
	}
	w.note("%s and %s are parted for %s", a, b, d.Round(time.Millisecond))
	w.net.Cut(a, b)
	w.later(d, func(context.Context) error {
		w.note("%s and %s are joined", a, b)
		w.net.Heal(a, b)
		return nil
	})
}
