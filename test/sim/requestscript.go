package sim

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/test/sim/memnet"
)

// outside is a host that is in no registry.
const outside = "shop.example.test"

// playRequests performs the script of a history of HTTP.
func (w *world) playRequests(ctx context.Context) error {
	if !pause(ctx, 3*time.Second) { // the mesh comes up
		return context.Cause(ctx)
	}
	for range 4 {
		w.changeRoutes()
		w.changeRules()
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
		if err := w.requestStep(); err != nil {
			return err
		}
	}
	return nil
}

// requestStep does one thing.
func (w *world) requestStep() error {
	switch n := w.rng.IntN(100); {
	case n < 45:
		for range 1 + w.rng.IntN(4) {
			w.request()
		}
	case n < 58:
		w.changeRoutes()
	case n < 66:
		w.changeRules()
	case n < 69:
		w.changePolicy()
	case n < 73:
		w.changePeers()
	case n < 79:
		return w.addPod(pick(w, w.nodes))
	case n < 84:
		w.deletePod()
	case n < 88:
		w.sicken()
	case n < 91:
		w.crashNode()
	case n < 93:
		w.crashController()
	case n < 97:
		w.cut()
	default:
		kind := pick(w, []model.Kind{model.KindPod, model.KindVirtualService, model.KindDestinationRule, model.KindPeerAuthentication})
		d := w.between(0, 3*time.Second)
		w.note("changes of %s take %s from now on", kind, d.Round(time.Millisecond))
		w.objects.setLag(kind, d)
	}
	return nil
}

// sicken lets a pod answer with an error for a while.
func (w *world) sicken() {
	p, status, d := pick(w, w.living()), pick(w, []int32{500, 502, 503}), w.between(100*time.Millisecond, 5*time.Second)
	w.note("pod %s answers %d for %s", p, status, d.Round(time.Millisecond))
	p.ill.Store(status)
	w.later(d, func(context.Context) error {
		p.ill.Store(0)
		return nil
	})
}

// request sends a few requests on one connection.
func (w *world) request() {
	pods := w.living()
	q, to := w.randomQuestion(pick(w, pods), pick(w, pods))
	var list []*request
	for range 1 + w.rng.IntN(5) {
		r := w.newRequest(q, to)
		r.path, r.user = pick(w, []string{"/", "/a", "/a/b", "/c"}), pick(w, []string{"", "jason", "tom"})
		r.method, r.size = pick(w, []string{"GET", "POST"}), pick(w, []int{0, 10, 3000, 40_000})
		r.act = pick(w, []string{"", "", "", "", "503", "500", "404", "reset", "20ms", "3s"})
		list = append(list, r)
		w.note("%v: %d bytes", r, r.size)
	}
	gap, together := time.Duration(0), w.rng.IntN(4) == 0
	if w.rng.IntN(2) == 0 {
		gap = w.between(time.Millisecond, 2*time.Second)
	}
	w.apps.Go(func() { w.ask(w.traffic, list, gap, together) })
}

// randomQuestion draws whom a pod calls.
func (w *world) randomQuestion(from, other *pod) (question, netip.AddrPort) {
	q := question{from: from, port: pick(w, appPorts), path: "/"}
	if w.rng.IntN(6) == 0 || !from.outbound.Load() { // by its address; who is not in the mesh has no other way
		q.authority = other.ip.String()
		return q, netip.AddrPortFrom(other.ip, q.port)
	}
	ns, app := w.rng.IntN(len(namespaces)), w.rng.IntN(len(apps))
	q.dialled = called{namespaces[ns], apps[app]}
	switch w.rng.IntN(8) {
	case 0:
		q.authority = called{pick(w, namespaces), pick(w, apps)}.host() // another one, perhaps
	case 1:
		q.authority = pick(w, []string{outside, "nobody.test"})
	case 2:
		q.authority = fmt.Sprintf("%s:%d", q.dialled.host(), q.port)
	default:
		q.authority = q.dialled.host()
		if q.dialled.ns == from.ns {
			q.authority = pick(w, []string{q.dialled.app, q.authority})
		}
	}
	return q, netip.AddrPortFrom(vipOf(ns, app), q.port)
}

func (w *world) newRequest(q question, to netip.AddrPort) *request {
	w.mu.Lock()
	defer w.mu.Unlock()
	r := &request{question: q, w: w, id: uint64(len(w.requests) + 1), to: to, method: "GET", begin: time.Now(), plain: map[*memnet.Host]bool{}}
	w.requests[r.id] = r
	w.openRequests++
	return r
}

// changeRoutes creates, replaces or deletes the VirtualService of a service, of a namespace or of a host outside.
func (w *world) changeRoutes() {
	c := called{pick(w, namespaces), pick(w, apps)}
	n, v := model.Name{Namespace: c.ns, Name: "to-" + c.app}, routing{created: time.Now(), hosts: []string{c.host()}}
	switch w.rng.IntN(8) {
	case 0:
		n.Name, v.hosts = "all", []string{"*." + c.ns + clusterDomain}
	case 1:
		n.Name, v.hosts = "outside", []string{outside}
	}
	if w.rng.IntN(6) == 0 {
		w.note("VirtualService %s is deleted", n)
		w.objects.set(model.KindVirtualService, n, nil, func(f *facts) { delete(f.routes, n) })
		return
	}
	for range 1 + w.rng.IntN(3) {
		v.rules = append(v.rules, w.randomRule(c))
	}
	w.note("VirtualService %s for %v is %+v", n, v.hosts, v.rules)
	w.objects.set(model.KindVirtualService, n, v.object(n), func(f *facts) { f.routes[n] = v })
}

func (w *world) randomRule(c called) routeRule {
	r := routeRule{prefix: pick(w, []string{"", "", "/a", "/c"})}
	if w.rng.IntN(4) == 0 {
		r.user = pick(w, []string{"jason", "tom"})
	}
	if w.rng.IntN(6) == 0 {
		r.app = pick(w, apps)
	}
	if w.rng.IntN(6) == 0 {
		r.port = pick(w, appPorts)
	}
	to := func() destination {
		d := destination{called: c, subset: pick(w, []string{"", "v1", "v2"})}
		if w.rng.IntN(5) == 0 {
			d.called = called{pick(w, namespaces), pick(w, apps)}
		}
		return d
	}
	for range 1 + w.rng.IntN(3) {
		d := to()
		d.weight = pick(w, []int{0, 10, 30, 60})
		r.to = append(r.to, d)
	}
	r.to[0].weight += 20
	if w.rng.IntN(5) == 0 {
		d := to()
		r.mirror = &d
	}
	if w.rng.IntN(8) == 0 {
		r.abort = pick(w, []int{20, 100})
	}
	if w.rng.IntN(6) == 0 {
		r.delay = w.between(time.Millisecond, 500*time.Millisecond)
	}
	if w.rng.IntN(3) == 0 {
		r.timeout = w.between(200*time.Millisecond, 4*time.Second)
	}
	if w.rng.IntN(3) == 0 {
		r.again = again{said: true, attempts: w.rng.IntN(4)}
		if r.again.attempts > 0 {
			r.again.on = pick(w, []string{"5xx", "503", "reset", "connect-failure"})
		}
	}
	return r
}

// changeRules creates, replaces or deletes the DestinationRule of a service.
func (w *world) changeRules() {
	c := called{pick(w, namespaces), pick(w, apps)}
	n := model.Name{Namespace: c.ns, Name: c.app}
	if w.rng.IntN(6) == 0 {
		w.note("DestinationRule %s is deleted", n)
		w.objects.set(model.KindDestinationRule, n, nil, func(f *facts) { delete(f.rules, c) })
		return
	}
	b := balancing{policy: w.randomPolicy()}
	for _, v := range podVersions {
		if w.rng.IntN(6) > 0 {
			b.subsets = append(b.subsets, v)
		}
	}
	w.note("DestinationRule %s has %q: %v", n, b.subsets, b.policy)
	w.objects.set(model.KindDestinationRule, n, b.object(n, c), func(f *facts) { f.rules[c] = b })
}
