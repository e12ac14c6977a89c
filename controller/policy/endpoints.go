package policy

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
)

// ClusterEndpoint is one endpoint of a cluster as the caller knows it.
type ClusterEndpoint struct {
	Key      string // tells endpoints apart: a pod made anew under the old name has the same
	Workload *client.Workload
	Port     uint16                // on the workload
	Locality *workloadapi.Locality // nil: not known
	Weight   uint32                // of load among those of its locality and priority
	// LocalityWeight is the share of the locality in its priority where places are weighted, else 0.
	LocalityWeight uint32
	Priority       uint32 // 0 is the first; without gaps
	Healthy        bool   // ready
	Draining       bool   // terminating and still serving: for those whom nobody else serves
}

// Endpoints returns the endpoints of a cluster that Cluster composed for the same caller, in the order of their uids: those of the
// subset that serve the port and that the service lets the caller have.
func (c Caller) Endpoints(spec ClusterSpec) []ClusterEndpoint {
	if spec.Service == nil {
		return nil
	}
	p := picker{svc: spec.Service, key: spec.Service.GetNamespace() + "/" + spec.Service.GetHostname(), port: spec.Port, source: c.Workload}
	var out []ClusterEndpoint
	for _, w := range c.Snapshot.Endpoints(spec.Service) {
		if !spec.Has(w) || !p.offers(w) {
			continue
		}
		ready := p.ready(w)
		out = append(out, ClusterEndpoint{Key: w.GetUid() + ":" + strconv.Itoa(int(p.target(w))), Workload: w, Port: p.target(w),
			Locality: w.GetLocality(), Weight: uint32(p.weight(w)), Healthy: ready, Draining: !ready && w.Terminating})
	}
	return spec.place(out, &p)
}

// Peers are the members of the service, the first by its name, that the caller is behind; nil when where they are means nothing to
// the cluster. The slice is the snapshot's: another one as soon as a member has changed.
func (c Caller) Peers(spec ClusterSpec) []*client.Workload {
	if spec.Cluster.GetCommonLbConfig().GetZoneAwareLbConfig() == nil || c.Workload.GetLocality() == nil || len(c.Workload.GetServices()) == 0 {
		return nil
	}
	namespace, host, _ := strings.Cut(slices.Min(slices.Collect(maps.Keys(c.Workload.GetServices()))), "/")
	return c.Snapshot.Members(namespace, host)
}

// Clients are those that share the endpoints of a cluster with zone aware balancing with the caller, and call as it does: the ready
// pods of its Deployment, or whatever has made it, in its region. The caller is one of them. Without such balancing, or when it is
// not known where the caller is, there is none.
func (c Caller) Clients(spec ClusterSpec) []*client.Workload {
	peers := c.Peers(spec)
	if peers == nil {
		return nil
	}
	out := []*client.Workload{c.Workload}
	for _, w := range peers {
		if w.GetUid() != c.Workload.GetUid() && alike(w, c.Workload) {
			out = append(out, w)
		}
	}
	return out
}

// alike reports whether a ready pod of the caller's owner is in its region.
func alike(w, caller *client.Workload) bool {
	return w.GetStatus() == workloadapi.WorkloadStatus_HEALTHY && w.GetNamespace() == caller.GetNamespace() &&
		w.GetWorkloadType() == caller.GetWorkloadType() && w.GetWorkloadName() == caller.GetWorkloadName() &&
		w.GetLocality().GetRegion() == caller.GetLocality().GetRegion()
}

// Has reports whether a workload behind the service is in the subset.
func (s ClusterSpec) Has(w *client.Workload) bool { return hasLabels(w.Labels, s.Labels) }

// locality is the setting that counts: of the DestinationRule, of the service, of the mesh, where places count unless it says that
// they do not. Failover needs outlier detection (LB-09): nobody is missed otherwise. It completes the cluster.
func (c *composer) locality(svc *client.Service, eff effective, out *clusterv3.Cluster) (*settings.LocalityPolicy, bool) {
	said := c.defaults().Policy.Balancing.GetLocality()
	if own := eff.policy.Balancing.GetLocality(); own != nil {
		said = own
	} else if svc.GetLoadBalancing().GetMode() == workloadapi.LoadBalancing_FAILOVER {
		return nil, true
	}
	switch {
	case said.GetDisabled():
		return nil, false
	case said == nil:
		said = &settings.LocalityPolicy{}
	}
	failover := out.GetOutlierDetection() != nil || said.GetZoneAware() != nil
	switch {
	case said.GetZoneAware() != nil:
		zones := &clusterv3.Cluster_CommonLbConfig_ZoneAwareLbConfig{}
		if n := said.GetZoneAware().GetMinClusterSize(); n > 0 {
			zones.MinClusterSize = wrapperspb.UInt64(n)
		}
		out.CommonLbConfig.LocalityConfigSpecifier = &clusterv3.Cluster_CommonLbConfig_ZoneAwareLbConfig_{ZoneAwareLbConfig: zones}
	case len(said.GetDistribute()) > 0 || failover && len(said.GetFailover())+len(said.GetFailoverPriority()) > 0:
		out.CommonLbConfig.LocalityConfigSpecifier = &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig_{
			LocalityWeightedLbConfig: &clusterv3.Cluster_CommonLbConfig_LocalityWeightedLbConfig{}}
	}
	return said, failover
}

// distribution returns where to the calls of a workload go, nil when that is not said of where it is.
func (s ClusterSpec) distribution(caller *client.Workload) map[string]uint32 {
	for _, d := range s.locality.GetDistribute() {
		if inPlace(d.GetFrom(), bare(caller).GetLocality()) {
			return d.GetTo()
		}
	}
	return nil
}

// inPlace reports whether a locality is in REGION/ZONE/SUBZONE, whose end may be missing or "*".
func inPlace(place string, l *workloadapi.Locality) bool {
	parts := strings.SplitN(place, "/", 3)
	for i, have := range []string{l.GetRegion(), l.GetZone(), l.GetSubzone()} {
		switch {
		case i >= len(parts):
			return true
		case parts[i] != "*" && parts[i] != have && (i == 0 || parts[i] != ""):
			return false
		}
	}
	return true
}

// place gives the endpoints their priorities and the weights of their localities.
func (s ClusterSpec) place(list []ClusterEndpoint, p *picker) []ClusterEndpoint {
	switch to := s.distribution(p.source); {
	case to != nil:
		return distribute(list, to)
	case s.locality == nil && s.failover: // as the service says
		for i := range list {
			list[i].Priority = uint32(len(s.Service.GetLoadBalancing().GetRoutingPreference()) - p.sharedScopes(list[i].Workload))
		}
	case s.failover && len(s.locality.GetDistribute()) == 0:
		s.failOver(list, p.source)
	}
	compact(list)
	if s.Cluster.GetCommonLbConfig().GetLocalityWeightedLbConfig() != nil {
		weighLocalities(list)
	}
	return list
}

// distribute weights the localities, and leaves out those that get nothing.
func distribute(list []ClusterEndpoint, to map[string]uint32) []ClusterEndpoint {
	weighLocalities(list)
	places := slices.SortedFunc(maps.Keys(to), func(a, b string) int { // the narrower first
		return cmp.Or(cmp.Compare(breadth(a), breadth(b)), strings.Compare(a, b))
	})
	taken := map[localityKey]bool{}
	share := map[localityKey]uint32{}
	for _, place := range places {
		sums := map[localityKey]uint32{}
		total := uint64(0)
		for _, e := range list {
			k := keyOf(e)
			if !taken[k] && inPlace(place, e.Locality) && sums[k] == 0 {
				sums[k] = e.LocalityWeight
				total += uint64(e.LocalityWeight)
			}
		}
		for k, sum := range sums {
			taken[k] = true
			share[k] = uint32((uint64(sum)*uint64(to[place]) + total - 1) / total)
		}
	}
	out := list[:0]
	for _, e := range list {
		if e.LocalityWeight = share[keyOf(e)]; e.LocalityWeight > 0 {
			out = append(out, e)
		}
	}
	return out
}

// breadth is how much of a place is left open.
func breadth(place string) int {
	n := 3
	for part := range strings.SplitSeq(place, "/") {
		if part != "*" && part != "" {
			n--
		}
	}
	return n
}

type localityKey struct {
	region, zone, subzone string
	priority              uint32
}

func keyOf(e ClusterEndpoint) localityKey {
	return localityKey{e.Locality.GetRegion(), e.Locality.GetZone(), e.Locality.GetSubzone(), e.Priority}
}

// weighLocalities gives each locality of each priority the sum of its endpoints' weights.
func weighLocalities(list []ClusterEndpoint) {
	sums := map[localityKey]uint64{}
	for _, e := range list {
		sums[keyOf(e)] += uint64(e.Weight)
	}
	for i := range list {
		list[i].LocalityWeight = uint32(min(sums[keyOf(list[i])], math.MaxUint32))
	}
}

// compact renumbers the priorities without gaps.
func compact(list []ClusterEndpoint) {
	used := map[uint32]bool{}
	for _, e := range list {
		used[e.Priority] = true
	}
	rank := map[uint32]uint32{}
	for i, p := range slices.Sorted(maps.Keys(used)) {
		rank[p] = uint32(i)
	}
	for i := range list {
		list[i].Priority = rank[list[i].Priority]
	}
}

// failOver orders by failover priorities first, and by places where these are not said, or regions are as well.
func (s ClusterSpec) failOver(list []ClusterEndpoint, caller *client.Workload) {
	byLabel := s.locality.GetFailoverPriority()
	for i := range list {
		w, rank := list[i].Workload, 0
		if len(byLabel) > 0 {
			rank = labelRank(byLabel, caller, w)
		}
		switch {
		case s.locality.GetZoneAware() != nil:
			rank = 3*rank + regionRank(s.locality.GetFailover(), caller, w)
		case len(byLabel) == 0 || len(s.locality.GetFailover()) > 0:
			rank = 5*rank + placeRank(s.locality.GetFailover(), caller, w)
		}
		list[i].Priority = uint32(rank)
	}
}

// placeRank is 0 in the same place, 1 in the zone, 2 in the region, 3 elsewhere, and 4 where the region fails over to another one.
func placeRank(failover map[string]string, caller, w *client.Workload) int {
	a, b := bare(caller).GetLocality(), w.GetLocality()
	switch {
	case a.GetRegion() != b.GetRegion():
		if to, ok := failover[a.GetRegion()]; ok && to != b.GetRegion() {
			return 4
		}
		return 3
	case a.GetZone() != b.GetZone():
		return 2
	case a.GetSubzone() != b.GetSubzone():
		return 1
	}
	return 0
}

// regionRank leaves the zones of a region to zone aware routing.
func regionRank(failover map[string]string, caller, w *client.Workload) int {
	switch a, b := bare(caller).GetLocality().GetRegion(), w.GetLocality().GetRegion(); {
	case a == b:
		return 0
	case failover[a] != "" && failover[a] == b:
		return 1
	}
	return 2
}

// labelNetwork is the one label whose difference does not end the comparison when it stands first.
const labelNetwork = "topology.istio.io/network"

// labelRank is the better the more of the first labels the endpoint shares with the caller, or has the value of.
func labelRank(priority []string, caller, w *client.Workload) int {
	rank, far := 0, 0
	for i, item := range priority {
		key, want, given := strings.Cut(item, "=")
		if !given {
			want = topology(caller, key)
		}
		if want == topology(w, key) {
			continue
		}
		if i == 0 && priority[0] == labelNetwork {
			far = len(priority)
			continue
		}
		rank = len(priority) - i
		break
	}
	return rank + far
}

// topology is a label of a workload, or what says where it is.
func topology(w *client.Workload, key string) string {
	switch key {
	case "topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region":
		return bare(w).GetLocality().GetRegion()
	case "topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone":
		return bare(w).GetLocality().GetZone()
	case "topology.istio.io/subzone":
		return bare(w).GetLocality().GetSubzone()
	case labelNetwork:
		return bare(w).GetNetwork()
	case "topology.istio.io/cluster":
		return bare(w).GetClusterId()
	case "kubernetes.io/hostname":
		return bare(w).GetNode()
	}
	if w == nil {
		return ""
	}
	return w.Labels[key]
}
