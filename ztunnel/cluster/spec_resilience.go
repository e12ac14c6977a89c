package cluster

import (
	"math"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// outlierSpec says when a host is taken out for a while. Percentages are in 0 to 100; a threshold of 0 is never reached.
type outlierSpec struct {
	interval, base, longest, jitter time.Duration
	split                           bool // errors of connecting count on their own
	maxPercent                      uint32
	alwaysOne                       bool
	consecutive                     [numConsecutive]uint32
	enforcing                       [numEjections]uint32
	rateHosts, rateVolume           uint32
	rateFactor                      float64 // of the standard deviation
	failureThreshold                uint32
	failureHosts, failureVolume     uint32
}

// The kinds of ejections. The first three are those of errors in a row.
const (
	byConsecutive5xx = iota
	byConsecutiveGateway
	byConsecutiveLocal
	bySuccessRate
	byLocalSuccessRate
	byFailurePercentage
	byLocalFailurePercentage
	numEjections
	numConsecutive = byConsecutiveLocal + 1
)

// Defaults of Envoy.
const (
	defaultOutlierInterval = 10 * time.Second
	defaultBaseEjection    = 30 * time.Second
	defaultMaxEjection     = 300 * time.Second
)

func (p *parser) outlier(o *clusterv3.OutlierDetection) *outlierSpec {
	if o == nil {
		return nil
	}
	p.supported("outlier_detection.", o, map[protoreflect.Name]bool{"monitors": true, "detect_degraded_hosts": true})
	s := &outlierSpec{
		interval:  p.duration("outlier_detection.interval", o.GetInterval(), defaultOutlierInterval),
		base:      p.duration("outlier_detection.base_ejection_time", o.GetBaseEjectionTime(), defaultBaseEjection),
		jitter:    p.duration("outlier_detection.max_ejection_time_jitter", o.GetMaxEjectionTimeJitter(), 0),
		split:     o.GetSplitExternalLocalOriginErrors(),
		alwaysOne: o.GetAlwaysEjectOneHost().GetValue(),

		maxPercent: p.share("max_ejection_percent", o.GetMaxEjectionPercent(), 10),
		consecutive: [numConsecutive]uint32{
			byConsecutive5xx:     number(o.GetConsecutive_5Xx(), 5),
			byConsecutiveGateway: number(o.GetConsecutiveGatewayFailure(), 5),
			byConsecutiveLocal:   number(o.GetConsecutiveLocalOriginFailure(), 5),
		},
		enforcing: [numEjections]uint32{
			byConsecutive5xx:         p.share("enforcing_consecutive_5xx", o.GetEnforcingConsecutive_5Xx(), 100),
			byConsecutiveGateway:     p.share("enforcing_consecutive_gateway_failure", o.GetEnforcingConsecutiveGatewayFailure(), 0),
			byConsecutiveLocal:       p.share("enforcing_consecutive_local_origin_failure", o.GetEnforcingConsecutiveLocalOriginFailure(), 100),
			bySuccessRate:            p.share("enforcing_success_rate", o.GetEnforcingSuccessRate(), 100),
			byLocalSuccessRate:       p.share("enforcing_local_origin_success_rate", o.GetEnforcingLocalOriginSuccessRate(), 100),
			byFailurePercentage:      p.share("enforcing_failure_percentage", o.GetEnforcingFailurePercentage(), 0),
			byLocalFailurePercentage: p.share("enforcing_failure_percentage_local_origin", o.GetEnforcingFailurePercentageLocalOrigin(), 0),
		},
		rateHosts: number(o.GetSuccessRateMinimumHosts(), 5), rateVolume: number(o.GetSuccessRateRequestVolume(), 100),
		rateFactor:       float64(number(o.GetSuccessRateStdevFactor(), 1900)) / 1000,
		failureThreshold: p.share("failure_percentage_threshold", o.GetFailurePercentageThreshold(), 85),
		failureHosts:     number(o.GetFailurePercentageMinimumHosts(), 5), failureVolume: number(o.GetFailurePercentageRequestVolume(), 50),
	}
	s.longest = p.duration("outlier_detection.max_ejection_time", o.GetMaxEjectionTime(), max(defaultMaxEjection, s.base))
	switch {
	case s.interval == 0:
		p.fail("outlier_detection.interval", "must be more than 0")
	case s.base == 0 && o.GetBaseEjectionTime() != nil:
		p.fail("outlier_detection.base_ejection_time", "must be more than 0")
	case s.longest < s.base:
		p.fail("outlier_detection.max_ejection_time", "is less than base_ejection_time")
	}
	return s
}

// share is a percentage of outlier detection.
func (p *parser) share(field string, v *wrapperspb.UInt32Value, def uint32) uint32 {
	if v.GetValue() > 100 {
		p.fail("outlier_detection."+field, "must be at most 100")
	}
	return number(v, def)
}

func number(v *wrapperspb.UInt32Value, def uint32) uint32 {
	if v == nil {
		return def
	}
	return v.GetValue()
}

// Priority is the class of a request, for which limits are counted apart.
type Priority uint8

// The priorities of requests.
const (
	Default Priority = iota
	High
	numPriorities
)

// breakerSpec are the limits of one priority. math.MaxUint32 is in effect none.
type breakerSpec struct {
	limits         [numResources]uint32
	perHost        uint32 // connections to one host
	budgetPercent  float64
	budgetMin      uint32
	hasBudget      bool
	trackRemaining bool
}

// resource is what a breaker counts.
type resource uint8

const (
	connections resource = iota
	pending
	requests
	retries
	numResources
)

// Defaults of Envoy.
const (
	defaultLimit      = 1024
	defaultRetries    = 3
	defaultBudget     = 20
	defaultBudgetMin  = 3
	noLimit           = math.MaxUint32
	thresholdsField   = "circuit_breakers.thresholds"
	perHostThresholds = "circuit_breakers.per_host_thresholds"
)

func (p *parser) breakers(c *clusterv3.CircuitBreakers, out *[numPriorities]breakerSpec) {
	for i := range out {
		out[i] = breakerSpec{limits: [numResources]uint32{defaultLimit, defaultLimit, defaultLimit, defaultRetries}, perHost: noLimit}
	}
	if c != nil {
		p.supported("circuit_breakers.", c, nil)
	}
	var seen, seenHost [numPriorities]bool
	for _, t := range c.GetThresholds() {
		pri := p.priority(thresholdsField, t.GetPriority())
		if seen[pri] { // Envoy takes the first of a priority
			continue
		}
		seen[pri] = true
		p.supported(thresholdsField+".", t, map[protoreflect.Name]bool{"max_connection_pools": true})
		b := &out[pri]
		b.limits = [numResources]uint32{
			connections: number(t.GetMaxConnections(), defaultLimit), pending: number(t.GetMaxPendingRequests(), defaultLimit),
			requests: number(t.GetMaxRequests(), defaultLimit), retries: number(t.GetMaxRetries(), defaultRetries),
		}
		b.trackRemaining = t.GetTrackRemaining()
		if r := t.GetRetryBudget(); r != nil {
			p.supported(thresholdsField+".retry_budget.", r, map[protoreflect.Name]bool{"budget_interval": true})
			b.hasBudget = true
			b.budgetPercent = p.percent(thresholdsField+".retry_budget.budget_percent", r.GetBudgetPercent(), defaultBudget)
			b.budgetMin = number(r.GetMinRetryConcurrency(), defaultBudgetMin)
		}
	}
	for _, t := range c.GetPerHostThresholds() {
		pri := p.priority(perHostThresholds, t.GetPriority())
		if seenHost[pri] {
			continue
		}
		seenHost[pri] = true
		p.supported(perHostThresholds+".", t, map[protoreflect.Name]bool{
			"max_pending_requests": true, "max_requests": true, "max_retries": true, "retry_budget": true, "track_remaining": true,
			"max_connection_pools": true,
		})
		out[pri].perHost = number(t.GetMaxConnections(), noLimit)
	}
}

func (p *parser) priority(field string, r corev3.RoutingPriority) Priority {
	switch r {
	case corev3.RoutingPriority_DEFAULT:
		return Default
	case corev3.RoutingPriority_HIGH:
		return High
	}
	p.fail(field+".priority", "is not known: %v", r)
	return Default
}
