package calls

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"

	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/policy"
	"github.com/undermesh/undermesh/ztunnel/cluster"
)

// Endpoint is the Value of the endpoints of a cluster of a service. It stays the same while the endpoint is.
type Endpoint struct {
	UID  string // of the workload, in every snapshot
	Port uint16
}

// Cluster is a cluster of a pod.
type Cluster struct {
	*cluster.Cluster
	shared *Shared
	name   string
	used   atomic.Int64 // Unix seconds

	mu      sync.Mutex // protects below
	snap    *client.Snapshot
	caller  *client.Workload
	spec    policy.ClusterSpec
	members []*client.Workload
	peers   []*client.Workload // of the caller, where it matters where they are
	only    *Endpoint          // nil: it may be any
	gone    bool
}

// Cluster returns the cluster of that name with the endpoints of the caller's snapshot, nil when nothing stands for the name.
func (t *Table) Cluster(c policy.Caller, name string) *Cluster {
	t.mu.RLock()
	e := t.clusters[name]
	t.mu.RUnlock()
	if e == nil {
		if e = t.newCluster(c, name); e == nil {
			return nil
		}
	}
	if now := t.shared.now(); e.used.Load() != now {
		e.used.Store(now)
	}
	if !e.refresh(c) {
		t.remove(e)
		return nil
	}
	if spec := e.Spec(); held(spec) {
		if at, ok := t.pin(c, spec.Service, spec.Port); ok {
			e.hold(c, at)
		}
	}
	return e
}

// held reports whether the pod's calls of the cluster stay at one endpoint, as kube-proxy has it, and no DestinationRule says where
// they go instead.
func held(spec policy.ClusterSpec) bool {
	return spec.Service != nil && spec.Service.Settings.GetClientIpAffinity() != nil && len(spec.Rules) == 0
}

// hold leaves the cluster one endpoint.
func (e *Cluster) hold(c policy.Caller, at Endpoint) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if now := e.Hosts(); e.gone || now.Len() == 1 && now.Endpoint(0).Value == at {
		return
	}
	e.only = &at
	e.Update(e.Cluster.Spec(), e.hosts(c, e.shared.cfg.Clock.Now()))
}

// Of returns the cluster of the pod that c is, nil when it is none any more.
func (t *Table) Of(c *cluster.Cluster) *Cluster {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if e := t.clusters[c.Name()]; e != nil && e.Cluster == c {
		return e
	}
	return nil
}

func (t *Table) newCluster(c policy.Caller, name string) *Cluster {
	spec, ok := c.Cluster(name)
	if !ok {
		return nil
	}
	compiled, err := t.shared.compile(spec)
	if err != nil {
		t.shared.report("cluster cannot be served", name, err)
		return nil
	}
	e := &Cluster{shared: t.shared, name: name, snap: c.Snapshot, caller: c.Workload, spec: spec,
		members: c.Snapshot.Endpoints(spec.Service), peers: c.Peers(spec)}
	t.mu.Lock()
	defer t.mu.Unlock()
	if other := t.clusters[name]; other != nil { // meanwhile
		return other
	}
	if len(t.clusters) >= maxClusters {
		return nil
	}
	e.Cluster = cluster.New(cluster.Config{Clock: t.shared.cfg.Clock, Rand: t.shared.cfg.Rand}, compiled, e.hosts(c, time.Time{}))
	t.clusters[name] = e
	return e
}

func (s *Shared) compile(spec policy.ClusterSpec) (*cluster.Spec, error) {
	return s.specs.get(spec.Cluster, func() (*cluster.Spec, error) { return cluster.Compile(spec.Cluster) })
}

func (t *Table) remove(e *Cluster) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.clusters[e.name] == e {
		delete(t.clusters, e.name)
	}
}

// Spec is what the cluster was composed of, as of the last call of Table.Cluster.
func (e *Cluster) Spec() policy.ClusterSpec {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.spec
}

// refresh brings the cluster to the caller's snapshot; false when nothing stands for its name any more. Its hosts are told then.
func (e *Cluster) refresh(c policy.Caller) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.gone || e.snap == c.Snapshot {
		return !e.gone
	}
	compiled := e.Cluster.Spec()
	fresh := e.caller != c.Workload
	if !e.spec.Inputs.Hold(c) {
		spec, ok := c.Cluster(e.name)
		if ok {
			var err error
			if compiled, err = e.shared.compile(spec); err != nil {
				e.shared.report("cluster cannot be served", e.name, err)
				ok = false
			}
		}
		if !ok {
			e.gone = true
			e.Update(e.Cluster.Spec(), cluster.NewHosts(nil))
			return false
		}
		e.spec, fresh = spec, true
	}
	members, peers := c.Snapshot.Endpoints(e.spec.Service), c.Peers(e.spec)
	if !held(e.spec) && e.only != nil {
		e.only, fresh = nil, true
	}
	fresh = fresh || !same(members, e.members) || !same(peers, e.peers)
	e.snap, e.caller, e.members, e.peers = c.Snapshot, c.Workload, members, peers
	hosts := e.Hosts()
	if fresh {
		hosts = e.hosts(c, e.shared.cfg.Clock.Now())
	}
	e.Update(compiled, hosts)
	return true
}

// same reports whether two lists of a snapshot are one.
func same(a, b []*client.Workload) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// hosts lists the endpoints as the caller has them; those that are new to the cluster joined at now.
func (e *Cluster) hosts(c policy.Caller, now time.Time) *cluster.Hosts {
	var since map[string]time.Time
	if e.Cluster != nil && slowStart(e.spec.Cluster) {
		since = map[string]time.Time{}
		for i := range e.Hosts().Len() {
			x := e.Hosts().Endpoint(i)
			since[x.Key] = x.Since
		}
	}
	all := c.Endpoints(e.spec)
	list := make([]cluster.Endpoint, 0, len(all))
	for _, x := range all {
		if e.only != nil && *e.only != (Endpoint{x.Workload.GetUid(), x.Port}) {
			continue
		}
		out := cluster.Endpoint{
			Key: x.Key, Hostname: x.Workload.GetHostname(), Weight: x.Weight, LocalityWeight: x.LocalityWeight, Priority: x.Priority,
			Locality: PlaceOf(x.Locality), Healthy: x.Healthy, Draining: x.Draining, Value: Endpoint{x.Workload.GetUid(), x.Port},
		}
		if a := AddrOf(x.Workload, c.Workload); a.IsValid() {
			out.Addr = netip.AddrPortFrom(a, x.Port)
		}
		if since != nil {
			if was, known := since[x.Key]; known {
				out.Since = was
			} else {
				out.Since = now
			}
		}
		list = append(list, out)
	}
	return e.shared.lists.Hosts(OriginOf(c.Clients(e.spec)), list)
}

// OriginOf is where the clients are, the first of which is the caller; the zero value for none.
func OriginOf(clients []*client.Workload) cluster.Origin {
	if len(clients) == 0 {
		return cluster.Origin{}
	}
	places := make([]cluster.Locality, 0, len(clients))
	for _, w := range clients {
		places = append(places, PlaceOf(w.GetLocality()))
	}
	return cluster.NewOrigin(places[0], places)
}

// PlaceOf is a locality as clusters know it.
func PlaceOf(l *workloadapi.Locality) cluster.Locality {
	return cluster.Locality{Region: l.GetRegion(), Zone: l.GetZone(), SubZone: l.GetSubzone()}
}

func slowStart(c *clusterv3.Cluster) bool {
	return c.GetRoundRobinLbConfig().GetSlowStartConfig() != nil || c.GetLeastRequestLbConfig().GetSlowStartConfig() != nil
}

// AddrOf is the address of w that the caller dials: of its own first family if w has one; zero when w has none.
func AddrOf(w, caller *client.Workload) netip.Addr {
	if len(w.Addrs) == 0 {
		return netip.Addr{}
	}
	if caller != nil && len(caller.Addrs) > 0 {
		for _, a := range w.Addrs {
			if a.Is4() == caller.Addrs[0].Is4() {
				return a
			}
		}
	}
	return w.Addrs[0]
}

// Sweep brings the clusters that are in use to the caller's snapshot, so that connections to endpoints that are gone end, and
// forgets what was not used for an hour.
func (t *Table) Sweep(c policy.Caller) {
	old := t.shared.now() - int64(Idle/time.Second)
	t.mu.Lock()
	list := make([]*Cluster, 0, len(t.clusters))
	for name, e := range t.clusters {
		if e.used.Load() < old && e.quiet() {
			delete(t.clusters, name)
			continue
		}
		list = append(list, e)
	}
	for target, h := range t.hosts {
		if h.used.Load() < old {
			t.dropLocked(target)
		}
	}
	for port, a := range t.arrivals {
		if a.used.Load() < old && a.cluster.Get(cluster.CxActive) == 0 {
			delete(t.arrivals, port)
		}
	}
	t.mu.Unlock()
	for _, e := range list {
		if !e.refresh(c) {
			t.remove(e)
		}
	}
}

// quiet reports that nothing is under way.
func (e *Cluster) quiet() bool {
	for s := range e.Status {
		if s.Active > 0 || s.Connections > 0 {
			return false
		}
	}
	return true
}

// Clusters calls yield with each cluster of the pod, those of its own ports too, in no order.
func (t *Table) Clusters(yield func(*cluster.Cluster) bool) {
	t.mu.RLock()
	list := make([]*cluster.Cluster, 0, len(t.clusters)+len(t.arrivals))
	for _, e := range t.clusters {
		list = append(list, e.Cluster)
	}
	for _, a := range t.arrivals {
		list = append(list, a.cluster)
	}
	t.mu.RUnlock()
	for _, e := range list {
		if !yield(e) {
			return
		}
	}
}

// Close tells all hosts that they are of no more use: idle connections to them end.
func (t *Table) Close() {
	t.mu.Lock()
	list := t.clusters
	t.clusters = map[string]*Cluster{}
	t.mu.Unlock()
	for _, e := range list {
		e.mu.Lock()
		e.gone = true
		e.Update(e.Cluster.Spec(), cluster.NewHosts(nil))
		e.mu.Unlock()
	}
}
