package sim

import (
	"crypto/sha256"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/test/sim/memnet"
)

// confirmed says from when on a node had the versions of one kind of objects, by time; protected by world.mu.
type confirmed []confirmation

// before is the version that a node had for certain at t.
func (c confirmed) before(t time.Time) int {
	first := 0
	for _, x := range c {
		if x.at.Before(t) {
			first = x.version
		}
	}
	return first
}

// last is the newest version.
func (c confirmed) last() int {
	if len(c) == 0 {
		return 0
	}
	return c[len(c)-1].version
}

// marksOfCalls digest the VirtualServices and the DestinationRules of a snapshot.
func marksOfCalls(snap *client.Snapshot) (routes, rules mark) {
	var ofRoutes, ofRules []string
	for r := range snap.Resources {
		var list *[]string
		switch r.Message.(type) {
		case *settings.RouteRule:
			list = &ofRoutes
		case *settings.CallRule:
			list = &ofRules
		default:
			continue
		}
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(r.Message)
		if err != nil {
			continue // it was unmarshalled
		}
		*list = append(*list, string(b))
	}
	digest := func(list []string) mark {
		slices.Sort(list)
		return sha256.Sum256(fmt.Appendf(nil, "%q", list))
	}
	return digest(ofRoutes), digest(ofRules)
}

// confirmCallsLocked notes which VirtualServices and DestinationRules a node has.
func (w *world) confirmCallsLocked(n *node, snap *client.Snapshot) {
	routes, rules := marksOfCalls(snap)
	note := func(c *confirmed, is func(version) bool) {
		first := c.last()
		for i := first; i < len(w.versions); i++ {
			if w.versions[i].marks != nil && is(w.versions[i]) {
				if i != first || len(*c) == 0 {
					*c = append(*c, confirmation{time.Now(), i})
				}
				return
			}
		}
	}
	note(&n.routes, func(v version) bool { return v.routeMark == routes })
	note(&n.rules, func(v version) bool { return v.ruleMark == rules })
}

// servedBy notes that the application of p has read the head of a request, and judges that.
func (w *world) servedBy(r *request, p *pod, port uint16, syn memnet.SYN, isCopy bool) *serving {
	s := &serving{pod: p}
	w.mu.Lock()
	var last *serving
	if !isCopy {
		if len(r.served) > 0 {
			last = r.served[len(r.served)-1]
		}
		r.served = append(r.served, s)
	}
	n := len(r.served) - 1
	led, may := false, last == nil
	if r.captured {
		for _, v := range w.versions[min(r.routes, len(w.versions)-1):] {
			said := v.facts.decide(r.question)
			led = led || port == r.port && w.leadsLocked(said, r, p, isCopy)
			may = may || said.rule.again.allows(r.method, n, last)
		}
	} else {
		led = p.ip == r.to.Addr() && port == r.to.Port()
		may = may || again{said: true}.allows(r.method, n, last) // by the node of p alone
	}
	w.mu.Unlock()
	if !led {
		w.violate("route", "%v: read by %s (%s) port %d, copy %t, where no rule leads since version %d of %d", r, p, p.version, port, isCopy, r.routes, len(w.versions))
	}
	if !may {
		w.violate("twice", "%v: read by %s as the %d. time, after %s, which answered %d (%t)", r, p, n+1, last.pod, last.status, last.answered)
	}
	w.delivered(r, p, port, syn)
	return s
}

// leadsLocked reports whether a verdict leads a request, or its copy, to p.
func (w *world) leadsLocked(v verdict, r *request, p *pod, isCopy bool) bool {
	if v.through {
		return p.ip == r.to.Addr() && !isCopy
	}
	to := v.rule.to
	if isCopy {
		if v.rule.mirror == nil {
			return false
		}
		to = []destination{*v.rule.mirror}
	}
	for _, d := range to {
		if d.weight == 0 && !isCopy {
			continue
		}
		for _, x := range w.versions[min(r.rules, len(w.versions)-1):] {
			if d.holds(p, x.facts.rules) {
				return true
			}
		}
	}
	return false
}
