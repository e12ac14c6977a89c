package proxy

import (
	"net/netip"

	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/ztunnel/cluster"
	"github.com/undermesh/undermesh/ztunnel/http"
)

// Connections to a pod are in its own statistics, whichever way they come: those of HTTP are counted by the engine that serves them,
// by that of the caller where one pass does both sides' work, and the others here.

// arrive counts a connection to the pod's application that carries no requests; the function returned counts its end.
func (pod *Pod) arrive(at netip.AddrPort) (leave func()) {
	c := pod.calls.Arrivals(at.Port())
	h := c.Original(at)
	limits := c.Breakers(cluster.Default)
	limits.TryConnection(h) // there is no limit
	h.Begin()
	return func() {
		h.End()
		limits.DoneConnection(h, false)
	}
}

// missed counts a connection to the pod's application that could not be made; err is why.
func (pod *Pod) missed(at netip.AddrPort, err error) {
	if r := refusalOf(err); r != nil && r.Reason == reason.UpstreamConnect {
		pod.calls.Arrivals(at.Port()).Inc(cluster.CxConnectFail)
	}
}

// callee is the pod at the end of a leg that requests of another one go over.
func (s *session) callee(r *way) *http.Callee {
	return &http.Callee{Listener: r.local.tenant.Listener(http.Inbound, r.addr.Port()), Host: r.local.calls.Arrivals(r.addr.Port()).Original(r.addr)}
}
