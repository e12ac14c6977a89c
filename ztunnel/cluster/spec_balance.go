package cluster

import (
	"math"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// balanceSpec is how hosts are chosen.
type balanceSpec struct {
	panicPercent     float64   // of healthy hosts, below which all hosts of a priority count; default 50
	overprovisioning uint32    // percent; default 140
	byLocality       bool      // localities are chosen by their weights
	zone             *zoneSpec // nil: places count for nothing by themselves
	weightedHealth   bool      // the health of a priority is that of its weights, not of its number of hosts
	hashHostname     bool

	choices    uint32  // LeastRequest: hosts that are compared; default 2
	activeBias float64 // LeastRequest, weights differ: how much active requests count; default 1
	slowStart  *slowStartSpec

	ringMin, ringMax uint64 // RingHash: entries; defaults 1024 and 8 Mi
	murmur           bool   // RingHash: hash function MURMUR_HASH_2 in place of xxHash
	tableSize        uint64 // Maglev: entries, a prime; default 65537
}

type slowStartSpec struct {
	window     time.Duration
	aggression float64 // default 1: linear
	min        float64 // share of the weight to begin with; default 0.1
}

// Defaults and bounds of Envoy, apart from maxRing: its default 8 Mi entries would be 128 MiB for one cluster, so that not more
// than 1 Mi are ever made here.
const (
	defaultPanicPercent     = 50
	defaultOverprovisioning = 140
	defaultChoices          = 2
	defaultRingMin          = 1024
	defaultRingMax          = 8 << 20
	maxRing                 = 1 << 20
	defaultTableSize        = 65537
	maxTableSize            = 5000011
)

func (p *parser) balance(c *clusterv3.Cluster, policy Policy) balanceSpec {
	cc := c.GetCommonLbConfig()
	b := balanceSpec{
		panicPercent:     p.percent("common_lb_config.healthy_panic_threshold", cc.GetHealthyPanicThreshold(), defaultPanicPercent),
		overprovisioning: defaultOverprovisioning,
		byLocality:       cc.GetLocalityWeightedLbConfig() != nil,
		zone:             p.zoneAware(cc.GetZoneAwareLbConfig()),
		hashHostname:     cc.GetConsistentHashingLbConfig().GetUseHostnameForHashing(),
		choices:          defaultChoices, activeBias: 1,
		ringMin: defaultRingMin, ringMax: defaultRingMax, tableSize: defaultTableSize,
	}
	if cc.GetConsistentHashingLbConfig().GetHashBalanceFactor() != nil {
		p.fail("common_lb_config.consistent_hashing_lb_config.hash_balance_factor", "is not supported")
	}
	a := c.GetLoadAssignment().GetPolicy()
	if f := a.GetOverprovisioningFactor(); f != nil {
		if b.overprovisioning = f.GetValue(); f.GetValue() == 0 {
			p.fail("load_assignment.policy.overprovisioning_factor", "must be more than 0")
		}
	}
	b.weightedHealth = a.GetWeightedPriorityHealth()
	if a != nil {
		p.supported("load_assignment.policy.", a, map[protoreflect.Name]bool{"drop_overloads": true, "endpoint_stale_after": true})
	}
	switch policy {
	case RoundRobin:
		b.slowStart = p.slowStart("round_robin_lb_config.slow_start_config", c.GetRoundRobinLbConfig().GetSlowStartConfig())
	case LeastRequest:
		p.leastRequest(c.GetLeastRequestLbConfig(), &b)
	case RingHash:
		p.ring(c.GetRingHashLbConfig(), &b)
	case Maglev:
		if v := c.GetMaglevLbConfig().GetTableSize(); v != nil {
			if b.tableSize = v.GetValue(); v.GetValue() < 3 || v.GetValue() > maxTableSize || !prime(v.GetValue()) {
				p.fail("maglev_lb_config.table_size", "must be a prime of at most %d", maxTableSize)
				b.tableSize = defaultTableSize
			}
		}
	case clusterProvided:
		o := c.GetOriginalDstLbConfig()
		if o != nil {
			p.supported("original_dst_lb_config.", o, map[protoreflect.Name]bool{
				"use_http_header": true, "http_header_name": true, "metadata_key": true, "upstream_port_override": true,
			})
		}
	}
	return b
}

func (p *parser) leastRequest(l *clusterv3.Cluster_LeastRequestLbConfig, b *balanceSpec) {
	b.slowStart = p.slowStart("least_request_lb_config.slow_start_config", l.GetSlowStartConfig())
	if v := l.GetChoiceCount(); v != nil {
		if b.choices = v.GetValue(); v.GetValue() < 2 {
			p.fail("least_request_lb_config.choice_count", "must be 2 or more")
		}
	}
	if v := l.GetActiveRequestBias(); v != nil {
		b.activeBias = v.GetDefaultValue()
		if math.IsNaN(b.activeBias) || b.activeBias < 0 || b.activeBias > 100 {
			p.fail("least_request_lb_config.active_request_bias", "must be in 0 to 100")
		}
	}
}

func (p *parser) ring(r *clusterv3.Cluster_RingHashLbConfig, b *balanceSpec) {
	if v := r.GetMinimumRingSize(); v != nil {
		b.ringMin = v.GetValue()
	}
	if v := r.GetMaximumRingSize(); v != nil {
		b.ringMax = v.GetValue()
	}
	switch {
	case b.ringMin > defaultRingMax:
		p.fail("ring_hash_lb_config.minimum_ring_size", "must be at most %d", defaultRingMax)
	case b.ringMax > defaultRingMax || b.ringMax == 0:
		p.fail("ring_hash_lb_config.maximum_ring_size", "must be in 1 to %d", defaultRingMax)
	case b.ringMin > b.ringMax:
		p.fail("ring_hash_lb_config", "minimum_ring_size %d is more than maximum_ring_size %d", b.ringMin, b.ringMax)
	}
	b.ringMin, b.ringMax = min(b.ringMin, maxRing), min(b.ringMax, maxRing)
	b.murmur = r.GetHashFunction() == clusterv3.Cluster_RingHashLbConfig_MURMUR_HASH_2
	if f := r.GetHashFunction(); f != clusterv3.Cluster_RingHashLbConfig_XX_HASH && !b.murmur {
		p.fail("ring_hash_lb_config.hash_function", "is not known: %v", f)
	}
}

func (p *parser) slowStart(field string, s *clusterv3.Cluster_SlowStartConfig) *slowStartSpec {
	window := p.duration(field+".slow_start_window", s.GetSlowStartWindow(), 0)
	if window == 0 {
		return nil
	}
	out := &slowStartSpec{
		window: window, aggression: 1,
		min: p.percent(field+".min_weight_percent", s.GetMinWeightPercent(), 10) / 100,
	}
	if a := s.GetAggression(); a != nil {
		out.aggression = p.above0(field+".aggression", a)
	}
	return out
}

func (p *parser) above0(field string, d *corev3.RuntimeDouble) float64 {
	v := d.GetDefaultValue()
	if math.IsNaN(v) || math.IsInf(v, 0) || v <= 0 {
		p.fail(field, "must be more than 0")
		return 1
	}
	return v
}

// percent checks that v is in 0 to 100; nil is def.
func (p *parser) percent(field string, v *typev3.Percent, def float64) float64 {
	if v == nil {
		return def
	}
	if f := v.GetValue(); math.IsNaN(f) || f < 0 || f > 100 {
		p.fail(field, "must be in 0 to 100")
		return def
	}
	return v.GetValue()
}

func prime(n uint64) bool {
	if n < 4 {
		return n > 1
	}
	if n%2 == 0 {
		return false
	}
	for d := uint64(3); d*d <= n; d += 2 {
		if n%d == 0 {
			return false
		}
	}
	return true
}
