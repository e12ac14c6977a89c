package proxy

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/controller/api/securityapi"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/policy"
)

// liveSet are the connections that a pod's policies let through, or are about to decide about. Each is in one of the two maps:
// those in judged are allowed by policies and mesh, those in fresh were let through by some snapshot that the watch on the mesh
// may never have seen, since changes coalesce.
type liveSet struct {
	mu       sync.Mutex // protects below
	fresh    map[*liveConn]struct{}
	judged   map[*liveConn]struct{}
	policies []*securityapi.Authorization
	mesh     trust
}

// trust is what policies depend on besides themselves; the mesh's settings change with every generation.
type trust struct{ domain, aliases string }

type liveConn struct {
	conn policy.Connection
	kill context.CancelCauseFunc
}

// add watches a connection; the function returned ends that. kill is called with a *Refusal when it is no longer allowed.
func (l *liveSet) add(c policy.Connection, kill context.CancelCauseFunc) (stop func()) {
	lc := &liveConn{conn: c, kill: kill}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fresh == nil {
		l.fresh, l.judged = map[*liveConn]struct{}{}, map[*liveConn]struct{}{}
	}
	l.fresh[lc] = struct{}{}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.fresh, lc)
		delete(l.judged, lc)
	}
}

// judgeAgain ends the live connections that the policies now in force do not allow. What is undecided now (the workload or
// one of its policies is not known at the moment) stays as it was judged.
func (p *Proxy) judgeAgain() {
	snap := p.cfg.Snapshot()
	if snap == nil {
		return
	}
	for _, pod := range p.everyPod() {
		pod.judgeAgain(snap)
	}
}

func (pod *Pod) judgeAgain(snap *client.Snapshot) {
	l := &pod.live
	l.mu.Lock()
	defer l.mu.Unlock()
	w := pod.workload(snap)
	if w == nil || !snap.PoliciesComplete(w) {
		return
	}
	policies, mesh := snap.Policies(w), snap.Mesh()
	now := trust{mesh.GetTrustDomain(), strings.Join(mesh.GetTrustDomainAliases(), " ")}
	if changed := !slices.Equal(policies, l.policies) || now != l.mesh; changed {
		l.policies, l.mesh = policies, now
		maps.Copy(l.fresh, l.judged)
		clear(l.judged)
	}
	for lc := range l.fresh {
		v := policy.Authorize(policies, mesh, lc.conn)
		if !v.Allow && pod.allowsNow(snap, lc.conn) {
			continue // let in by a newer snapshot; the watch comes to that one next
		}
		delete(l.fresh, lc)
		if v.Allow {
			l.judged[lc] = struct{}{}
		} else {
			lc.kill(&Refusal{Reason: reason.PolicyChanged, Policy: v.Policy, Rule: v.Rule})
		}
	}
}

// allowsNow reports whether there is a snapshot after old that lets c in.
func (pod *Pod) allowsNow(old *client.Snapshot, c policy.Connection) bool {
	snap := pod.p.cfg.Snapshot()
	if snap == old {
		return false
	}
	w := pod.workload(snap)
	return w != nil && snap.PoliciesComplete(w) && policy.Authorize(snap.Policies(w), snap.Mesh(), c).Allow
}
