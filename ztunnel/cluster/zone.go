package cluster

import (
	"math"
	"slices"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Origin says where the clients are that share a cluster's endpoints with the source workload, which is one of them: what zone
// aware balancing goes by. The zero value is a workload that knows of no place: all endpoints are alike to it.
type Origin struct {
	Local  Locality // of the source workload
	places []clients
}

// clients are how many there are in a place.
type clients struct {
	at    Locality
	count uint64
}

// NewOrigin is the origin of a workload at local, one of the clients at the places.
func NewOrigin(local Locality, places []Locality) Origin {
	counts := map[Locality]uint64{}
	for _, p := range places {
		counts[p]++
	}
	o := Origin{Local: local}
	for at, n := range counts {
		o.places = append(o.places, clients{at, n})
	}
	slices.SortFunc(o.places, func(a, b clients) int { return a.at.compare(b.at) })
	return o
}

func (o Origin) equal(p Origin) bool { return o.Local == p.Local && slices.Equal(o.places, p.places) }

// count is how many clients there are at the place, and in all.
func (o Origin) count(at Locality) (here, all uint64) {
	for _, c := range o.places {
		all += c.count
		if c.at == at {
			here = c.count
		}
	}
	return here, all
}

// defaultMinClusterSize is Envoy's.
const defaultMinClusterSize = 6

// zoneSpec is zone aware balancing: each place serves its own clients as far as no endpoint gets more than the others for it.
type zoneSpec struct {
	minClusterSize uint64 // available endpoints of the first priority; default 6
}

// zoneAware is nil without.
func (p *parser) zoneAware(z *clusterv3.Cluster_CommonLbConfig_ZoneAwareLbConfig) *zoneSpec {
	if z == nil {
		return nil
	}
	const field = "common_lb_config.zone_aware_lb_config."
	p.supported(field, z, map[protoreflect.Name]bool{"fail_traffic_on_panic": true})
	if r := z.GetRoutingEnabled(); r != nil && r.GetValue() != 100 {
		p.fail(field+"routing_enabled", "is not supported below 100")
	}
	out := &zoneSpec{minClusterSize: defaultMinClusterSize}
	if n := z.GetMinClusterSize(); n != nil {
		out.minClusterSize = n.GetValue()
	}
	return out
}

// zoned is how zone aware balancing has shared a level out.
type zoned struct {
	local  uint32 // index of the place of the source workload; math.MaxUint32 for none
	direct bool   // it gets all
}

// wholeShare is what shares of clients and of endpoints are counted in, as Envoy does.
const wholeShare = 10_000

// fillZones splits the first level into its places, weighted so that the requests of all clients together burden the endpoints alike,
// and as many as can be stay in their place. Without effect when the endpoints or the clients are in one place, or too few.
func (b viewer) fillZones(l *level, in []uint32, v *view) {
	here, all := b.hosts.origin.count(b.hosts.origin.Local)
	if here == 0 || len(b.hosts.origin.places) < 2 || b.hosts.list[in[0]].Locality == b.hosts.list[in[len(in)-1]].Locality {
		return
	}
	if uint64(len(in)) < b.spec.balance.zone.minClusterSize {
		v.small = true
		return
	}
	z := &zoned{local: math.MaxUint32}
	keep, spare := uint64(0), uint64(0) // of wholeShare: what the own place can take of its clients; what the others have left
	var places []members
	var weights []uint64
	for start := 0; start < len(in); {
		at := b.hosts.list[in[start]].Locality
		n := slices.IndexFunc(in[start:], func(i uint32) bool { return b.hosts.list[i].Locality != at })
		if n < 0 {
			n = len(in) - start
		}
		clients, _ := b.hosts.origin.count(at)
		theirs, ours := clients*wholeShare/all, uint64(n)*wholeShare/uint64(len(in))
		w := uint64(0)
		switch {
		case at != b.hosts.origin.Local:
			w = ours - min(ours, theirs)
			spare += w
		case ours >= theirs:
			z.direct, z.local = true, uint32(len(places))
		default:
			keep, z.local = ours*wholeShare/theirs, uint32(len(places))
		}
		places, weights = append(places, newMembers(in[start:start+n:start+n], b.weight)), append(weights, w)
		start += n
	}
	b.shareOut(l, z, places, weights, keep, spare)
}

// shareOut weighs the places: the own one by keep, the others by their weights, whose sum is spare.
func (b viewer) shareOut(l *level, z *zoned, places []members, weights []uint64, keep, spare uint64) {
	var list []uint32
	for i := range weights {
		switch at := uint32(i); {
		case z.direct:
			weights[i] = 0
			if at == z.local {
				weights[i] = 1
			}
		case spare == 0: // rounding left nothing
			weights[i] = wholeShare - keep
			if at == z.local {
				weights[i] += keep * uint64(len(places))
			}
		case at == z.local:
			weights[i] = keep * spare
		default:
			weights[i] *= wholeShare - keep
		}
		if weights[i] > 0 {
			list = append(list, uint32(i))
		}
	}
	l.zone, l.places = z, places
	l.place = newMembers(list, func(i uint32) uint64 { return weights[i] })
}

// took counts to which place a choice went.
func (c *Cluster) took(z *zoned, place uint32) {
	switch {
	case z.direct:
		c.stats.inc(LbZoneDirect)
	case place == z.local:
		c.stats.inc(LbZoneSampled)
	default:
		c.stats.inc(LbZoneCross)
	}
}
