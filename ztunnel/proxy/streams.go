package proxy

import (
	"net"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/controller/policy"
	"github.com/undermesh/undermesh/ztunnel/cluster"
	"github.com/undermesh/undermesh/ztunnel/proxy/calls"
	"github.com/undermesh/undermesh/ztunnel/proxy/sniff"
)

// openStream opens the connection that a client asks for that speaks no HTTP: where a VirtualService leads it by port or server name
// (TC-01…07), to an endpoint by the DestinationRules of the service, or where it was dialled.
func (s *session) openStream(what sniff.Protocol) (up net.Conn, release func(), err error) {
	if c, ok := s.pod.caller(); ok {
		c.AtWorkload = s.atWorkload(c)
		in := policy.StreamInput{Port: s.dst.Port(), Dialled: s.dialledService(c), Source: s.judgedSource(s.dst.Addr()).Addr(), Destination: s.dst.Addr()}
		find := c.TCPRoute
		if what == sniff.TLS {
			in.SNI = sniff.ServerName(s.early)
			find = c.TLSRoute
		}
		if in, to, ok := c.Stream(in, find); ok {
			return s.led(c, in, to)
		}
	}
	return s.asDialled()
}

// atWorkload reports whether the address that was dialled is a workload's, or a pod's of this node that the mesh is to hear of yet.
func (s *session) atWorkload(c policy.Caller) bool {
	return c.Snapshot.WorkloadFor(c.View.Namespace, c.Workload.GetNetwork(), s.dst.Addr()) != nil || s.p.podAt(s.dst.Addr()) != nil
}

// asDialled opens the connection to what has the address that was dialled.
func (s *session) asDialled() (net.Conn, func(), error) {
	r, err := s.route()
	if err != nil {
		return nil, nil, err
	}
	return s.open(r)
}

// led opens the connection to an endpoint of one of the route's clusters.
func (s *session) led(c policy.Caller, in policy.StreamInput, to policy.StreamRoute) (net.Conn, func(), error) {
	if why := to.Refusal(); why != "" {
		return nil, nil, refusedf(reason.NoEndpoint, "%s", why)
	}
	name := s.share(to.Clusters)
	e := s.pod.calls.Cluster(c, name)
	if e == nil && to.Rule == "" && in.Dialled != nil && len(in.Dialled.VIPs) == 0 {
		return s.asDialled() // which refuses what its DestinationRule asks for and cannot be done, and says why
	}
	if e == nil {
		return nil, nil, refusedf(reason.NoEndpoint, "cluster %s of VirtualService %q is of no service and subset that is seen", name, to.Rule)
	}
	s.idle, s.called = e.Spec().Idle, e.Cluster
	if to.Rule == "" && in.Dialled != nil && to.Service == in.Dialled && len(e.Spec().Rules) == 0 && !c.Snapshot.CallDefaults().Policy.Said() {
		s.as(e.Cluster.Spec())
		return s.asDialled() // as kube-proxy would
	}
	h, why := e.Pick(cluster.PickInput{Original: s.dst, Hash: xxhash.Sum64String(in.Source.String()), HasHash: true})
	if why != cluster.Picked {
		return nil, nil, refusedf(reason.NoEndpoint, "cluster %s: %s", name, why)
	}
	return s.toHost(e, h)
}

// share chooses one of the clusters by their weights.
func (s *session) share(list []policy.WeightedCluster) string {
	total := uint64(0)
	for _, w := range list {
		total += uint64(w.Weight)
	}
	n := s.p.cfg.Random() % total
	for _, w := range list {
		if n < uint64(w.Weight) {
			return w.Name
		}
		n -= uint64(w.Weight)
	}
	return list[0].Name // not reached: n is below the sum
}

// toHost opens the connection to a host, within the limits of its cluster.
func (s *session) toHost(e *calls.Cluster, h *cluster.Host) (net.Conn, func(), error) {
	limits := e.Breakers(cluster.Default)
	if !limits.TryConnection(h) {
		return nil, nil, refusedf(reason.Overload, "cluster %s has as many connections as its DestinationRule allows", e.Name())
	}
	spec := e.Cluster.Spec()
	s.as(spec)
	begin := s.p.cfg.Clock.Now()
	up, release, err := s.openHost(e, h)
	if err != nil {
		result := cluster.ConnectFailed
		if s.p.cfg.Clock.Now().Sub(begin) >= s.patience {
			result = cluster.TimedOut
		}
		if r := refusalOf(err); r != nil && blames(r.Reason) {
			h.Report(result, 0)
		}
		limits.DoneConnection(h, false)
		return nil, nil, err
	}
	h.Report(cluster.ConnectedFinal, 0)
	h.Begin()
	old := s.age(spec.HTTP.MaxConnectionDuration, e.Name())
	return up, func() {
		old()
		release()
		h.End()
		limits.DoneConnection(h, false)
	}, nil
}

// age ends the connection after the time; 0: never. The function returned is called when it has ended before.
func (s *session) age(limit time.Duration, name string) (stop func()) {
	if limit <= 0 {
		return func() {}
	}
	t := s.p.cfg.Clock.AfterFunc(limit, func() {
		s.kill(refusedf(reason.ConnectionAge, "cluster %s: a connection lasts %s at most, as its DestinationRule says", name, limit))
	})
	return func() { t.Stop() }
}

// blames reports whether a refusal says something of the host's health.
func blames(why reason.Reason) bool {
	switch why {
	case reason.UpstreamConnect, reason.TLSHandshake, reason.TunnelRejected, reason.UpstreamReset:
		return true
	}
	return false
}
