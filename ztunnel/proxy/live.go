package proxy

import (
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/controller/api/securityapi"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/policy"
)

// liveSet are the connections that a pod's policies let through, or are about to decide about.
type liveSet struct {
	mu    sync.Mutex // protects below
	conns map[*liveConn]struct{}
	// judged with; the next change is skipped when it is the same
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
	if l.conns == nil {
		l.conns = map[*liveConn]struct{}{}
	}
	l.conns[lc] = struct{}{}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.conns, lc)
	}
}

// judgeAgain ends the live connections that the policies now in force do not allow. What is undecided now (the workload or
// one of its policies is not known at the moment) stays as it was judged.
func (p *Proxy) judgeAgain() {
	snap := p.cfg.Snapshot()
	if snap == nil {
		return
	}
	p.mu.Lock()
	pods := make([]*Pod, 0, len(p.all))
	for pod := range p.all {
		pods = append(pods, pod)
	}
	p.mu.Unlock()
	for _, pod := range pods {
		if w := pod.workload(snap); w != nil && snap.PoliciesComplete(w) {
			pod.live.judge(snap.Policies(w), snap.Mesh())
		}
	}
}

func (l *liveSet) judge(policies []*securityapi.Authorization, mesh *settings.MeshSettings) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := trust{mesh.GetTrustDomain(), strings.Join(mesh.GetTrustDomainAliases(), " ")}
	if slices.Equal(policies, l.policies) && now == l.mesh {
		return
	}
	l.policies, l.mesh = slices.Clone(policies), now
	for lc := range l.conns {
		if v := policy.Authorize(policies, mesh, lc.conn); !v.Allow {
			lc.kill(&Refusal{Reason: reason.PolicyChanged, Policy: v.Policy, Rule: v.Rule})
			delete(l.conns, lc)
		}
	}
}
