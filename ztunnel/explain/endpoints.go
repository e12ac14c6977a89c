package explain

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/controller/policy"
	"github.com/undermesh/undermesh/ztunnel/clock"
	"github.com/undermesh/undermesh/ztunnel/cluster"
	"github.com/undermesh/undermesh/ztunnel/http/route"
	"github.com/undermesh/undermesh/ztunnel/proxy/calls"
)

// listed is how many endpoints of a cluster a Decision has.
const listed = 64

// cluster says what is behind the name for a request with the hash.
func (d *decider) cluster(name string, hash route.Hash) Cluster {
	out := Cluster{Name: name}
	spec, ok := d.caller.Cluster(name)
	if !ok {
		out.Missing = "nothing stands for the cluster " + name
		return out
	}
	out.Rules = spec.Rules
	compiled, err := cluster.Compile(spec.Cluster)
	if err != nil {
		out.Missing = "the cluster cannot be served: " + err.Error()
		return out
	}
	if name == api.BlackHoleCluster {
		out.Missing = "the outbound policy is REGISTRY_ONLY"
		return out
	}
	if compiled.Kind == cluster.OriginalDestination {
		out.Balancing, out.Total = "to the address that was dialled", 1
		out.Endpoints = []Endpoint{d.original(spec)}
		return out
	}
	out.Balancing = spec.Cluster.GetLbPolicy().String()
	out.Hashed = hash.Set && (compiled.Policy == cluster.RingHash || compiled.Policy == cluster.Maglev)
	out.Endpoints, out.Total = d.endpoints(spec, compiled, hash)
	return out
}

// original is the endpoint of a cluster that leads to where the pod dials.
func (d *decider) original(spec policy.ClusterSpec) Endpoint {
	out := Endpoint{Address: "the address that DNS gives the pod", Health: healthy, Share: 100}
	if !d.ask.addr.IsValid() {
		return out
	}
	out.Address = d.ask.addr.String()
	w := d.Snapshot.WorkloadFor(d.caller.Workload.GetNamespace(), d.caller.Workload.GetNetwork(), d.ask.addr.Addr())
	q := policy.PathQuery{Destination: w, Service: d.dialled, ServicePort: spec.Port, Address: d.ask.addr}
	if q.Service == nil && spec.Subset != "" && spec.Serves(w) {
		q.Behind, q.Subset = spec.Service, spec.Subset
	}
	d.way(&out, q)
	return out
}

// The states of an endpoint.
const (
	healthy   = "healthy"
	unhealthy = "unhealthy"
	draining  = "draining"
	ejected   = "ejected" // by outlier detection
)

func (d *decider) endpoints(spec policy.ClusterSpec, compiled *cluster.Spec, hash route.Hash) ([]Endpoint, int) {
	all := d.caller.Endpoints(spec)
	hosts := make([]cluster.Endpoint, 0, len(all))
	byKey := map[string]Endpoint{}
	workloads := map[string]*client.Workload{}
	for _, e := range all {
		out := Endpoint{Workload: e.Workload.GetNamespace() + "/" + e.Workload.GetName(), Priority: e.Priority, Health: healthy,
			Locality: placeOf(e.Locality), Address: onPort(e.Workload.GetHostname(), e.Port)}
		host := cluster.Endpoint{Key: e.Key, Hostname: e.Workload.GetHostname(), Weight: e.Weight, LocalityWeight: e.LocalityWeight,
			Priority: e.Priority, Healthy: e.Healthy, Draining: e.Draining, Locality: calls.PlaceOf(e.Locality)}
		if a := calls.AddrOf(e.Workload, d.caller.Workload); a.IsValid() {
			host.Addr = netip.AddrPortFrom(a, e.Port)
			out.Address = host.Addr.String()
		}
		switch {
		case e.Draining:
			out.Health = draining
		case !e.Healthy:
			out.Health = unhealthy
		case slices.Contains(d.Ejected[spec.Cluster.GetName()], e.Key):
			out.Health, host.Healthy = ejected, false // balancing takes both the same way
		}
		hosts, byKey[e.Key], workloads[e.Key] = append(hosts, host), out, e.Workload
	}
	shares := sharesOf(compiled, cluster.NewHostsFrom(calls.OriginOf(d.caller.Clients(spec)), hosts), hash)
	keys := make([]string, 0, len(byKey))
	for key := range byKey {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b string) int { return cmp.Or(cmp.Compare(shares[b], shares[a]), cmp.Compare(a, b)) })
	var out []Endpoint
	for _, key := range keys[:min(len(keys), listed)] {
		e := byKey[key]
		e.Share = shares[key]
		at, err := netip.ParseAddrPort(e.Address)
		if err == nil {
			d.way(&e, policy.PathQuery{Destination: workloads[key], Service: spec.Service, ServicePort: spec.Port, Subset: spec.Subset, Address: at})
		} else {
			e.Path, e.PathWhy = policy.Passthrough.String(), "to an address that DNS has for the name"
		}
		out = append(out, e)
	}
	return out, len(all)
}

// frozen is a clock that stands still.
type frozen struct{}

// Now implements clock.Clock.
func (frozen) Now() time.Time { return time.Unix(1_000_000_000, 0) }

// AfterFunc implements clock.Clock: nothing comes to pass.
func (frozen) AfterFunc(time.Duration, func()) clock.Timer { return never{} }

type never struct{}

// Stop implements clock.Timer.
func (never) Stop() bool { return true }

// Reset implements clock.Timer.
func (never) Reset(time.Duration) bool { return true }

// sharesOf balances many requests as the node would, if nothing was under way, and returns in percent where they go. What is kept
// together by a hash goes to one place.
func sharesOf(spec *cluster.Spec, hosts *cluster.Hosts, hash route.Hash) map[string]float64 {
	out := map[string]float64{}
	times := min(max(1000, 50*hosts.Len()), 20_000)
	in := cluster.PickInput{}
	if hash.Set && (spec.Policy == cluster.RingHash || spec.Policy == cluster.Maglev) {
		in.Hash, in.HasHash, times = hash.Value, true, 1
	}
	c := cluster.New(cluster.Config{Clock: frozen{}, Rand: rand.New(rand.NewPCG(1, 2)).Uint64}, spec, hosts)
	counts := map[string]int{}
	for range times {
		h, _ := c.Pick(in)
		if h == nil {
			return out
		}
		counts[h.Endpoint().Key]++
	}
	for key, n := range counts {
		out[key] = percent(uint64(n), uint64(times))
	}
	return out
}

// way says how an endpoint is reached and what judges the connection there.
func (d *decider) way(out *Endpoint, q policy.PathQuery) {
	dst := q.Destination
	q.Snapshot, q.Source, q.Captured = d.Snapshot, d.caller.Workload, true
	q.Local = dst != nil && dst.GetNode() != "" && dst.GetNode() == q.Source.GetNode() && dst.GetTunnelProtocol() == workloadapi.TunnelProtocol_HBONE
	p := policy.PathFor(q)
	out.Path, out.PathWhy = p.Kind.String(), p.Reason
	if dst != nil && out.Workload == "" {
		out.Workload = dst.GetNamespace() + "/" + dst.GetName()
	}
	if p.Kind == policy.Reject {
		out.Reason = p.Refused.String()
	}
	if p.Kind == policy.Reject || dst == nil || dst.GetTunnelProtocol() != workloadapi.TunnelProtocol_HBONE {
		return
	}
	c := policy.Connection{Source: d.in.Source, Destination: q.Address}
	if p.Kind != policy.Passthrough {
		c.Peer = q.Source.Identity
	}
	v := policy.Authorize(d.Snapshot.Policies(dst), d.Snapshot.Mesh(), c)
	if !d.Snapshot.PoliciesComplete(dst) {
		v = policy.Verdict{Reason: reason.NotReady}
	}
	out.Allowed, out.Policy = &v.Allow, v.Policy
	if !v.Allow {
		out.Reason = v.Reason.String()
	}
}

func placeOf(l *workloadapi.Locality) string {
	if l == nil {
		return ""
	}
	return strings.TrimRight(l.GetRegion()+"/"+l.GetZone()+"/"+l.GetSubzone(), "/")
}
