package proxy

import (
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/policy"
)

// opening is what the path of an upstream was decided on.
type opening struct {
	way
	uid string // of the destination; "": the mesh did not know it
}

// repath looks at all upstreams of the pod, also those that no request is going over.
func (pod *Pod) repath(c policy.Caller) {
	for _, u := range pod.openUpstreams() {
		u.repath(c)
	}
}

// repath sees to it that no request goes over an upstream that would be opened otherwise now: a pool keeps connections for long,
// and a DestinationRule, PeerAuthentication or enrolment that came since has a say in how the next request travels. Requests under
// way go on, unless nothing may be opened there any more.
func (u *upstream) repath(c policy.Caller) {
	now, ok := u.s.pod.pathNow(c, u.opening)
	if ok && !samePath(now, u.opening.path) {
		u.stale.Store(true)
		if now.Kind == policy.Reject {
			u.s.kill(refusedf(reason.PolicyChanged, "the connection would be refused now: %s", now.Reason))
		}
	}
	u.checked.Store(c.Snapshot)
}

// pathNow is the path by the caller's snapshot; false when its end is gone, which is told otherwise.
func (pod *Pod) pathNow(c policy.Caller, o opening) (policy.Path, bool) {
	snap, now := c.Snapshot, o.way
	now.snap, now.source = snap, c.Workload
	var w *client.Workload
	if o.uid != "" {
		if w = snap.WorkloadByUID(o.uid); w == nil {
			return policy.Path{}, false
		}
	} else {
		w = snap.WorkloadFor(c.Workload.GetNamespace(), c.Workload.GetNetwork(), o.addr.Addr())
	}
	if svc := o.svc; svc != nil {
		if now.svc = snap.ServiceByHost(svc.GetNamespace(), svc.GetHostname()); now.svc == nil {
			return policy.Path{}, false
		}
	}
	now.local = pod.p.pod(w)
	return now.pathTo(w), true
}

func samePath(a, b policy.Path) bool {
	return a.Kind == b.Kind && a.Refused == b.Refused && a.TunnelPort == b.TunnelPort && a.Anonymous == b.Anonymous &&
		slices.Equal(a.ServerIdentities, b.ServerIdentities) && proto.Equal(a.Originate, b.Originate)
}

func (pod *Pod) openUpstreams() []*upstream {
	pod.mu.Lock()
	defer pod.mu.Unlock()
	out := make([]*upstream, 0, len(pod.upstreams))
	for u := range pod.upstreams {
		out = append(out, u)
	}
	return out
}

// keep notes that u is open, or with false that it is not any more.
func (pod *Pod) keep(u *upstream, open bool) {
	pod.mu.Lock()
	defer pod.mu.Unlock()
	switch {
	case !open:
		delete(pod.upstreams, u)
	case pod.upstreams == nil:
		pod.upstreams = map[*upstream]struct{}{u: {}}
	default:
		pod.upstreams[u] = struct{}{}
	}
}
