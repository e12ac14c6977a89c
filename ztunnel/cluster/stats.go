package cluster

import (
	"fmt"
	"sync/atomic"
)

// Stat is a counter or gauge of a cluster, under Envoy's name.
type Stat uint8

// The statistics. Those of connections, pending requests and the balancing are counted here; the others by who proxies.
const (
	CxTotal Stat = iota
	CxActive
	CxHTTP1
	CxHTTP2
	CxConnectFail
	CxConnectTimeout
	CxOverflow
	CxDestroy
	CxDestroyLocal
	CxDestroyRemote
	CxDestroyWithActiveRq
	CxDestroyLocalWithActiveRq
	CxDestroyRemoteWithActiveRq
	CxIdleTimeout
	CxMaxRequests
	CxNoneHealthy
	CxProtocolError
	RqTotal
	RqActive
	RqPendingTotal
	RqPendingActive
	RqPendingOverflow
	RqPendingFailureEject
	RqCancelled
	RqTimeout
	RqPerTryTimeout
	RqMaxDuration
	RqRxReset
	RqTxReset
	RqRetry
	RqRetrySuccess
	RqRetryOverflow
	RqRetryLimitExceeded
	RqRetryBackoffExponential
	RetryOrShadowAbandoned
	MembershipChange
	LbHealthyPanic
	LbZoneTooSmall
	LbZoneDirect
	LbZoneSampled
	LbZoneCross
	OriginalDstInvalid
	EjectionsTotal
	EjectionsEnforced
	EjectionsOverflow
	EjectionsConsecutive5xx
	EjectionsSuccessRate
	detected
	enforced = detected + numEjections
	numStats = enforced + numEjections
)

var statNames = [numStats]string{
	CxTotal: "upstream_cx_total", CxActive: "upstream_cx_active", CxHTTP1: "upstream_cx_http1_total", CxHTTP2: "upstream_cx_http2_total",
	CxConnectFail: "upstream_cx_connect_fail", CxConnectTimeout: "upstream_cx_connect_timeout", CxOverflow: "upstream_cx_overflow",
	CxDestroy: "upstream_cx_destroy", CxDestroyLocal: "upstream_cx_destroy_local", CxDestroyRemote: "upstream_cx_destroy_remote",
	CxDestroyWithActiveRq:       "upstream_cx_destroy_with_active_rq",
	CxDestroyLocalWithActiveRq:  "upstream_cx_destroy_local_with_active_rq",
	CxDestroyRemoteWithActiveRq: "upstream_cx_destroy_remote_with_active_rq",
	CxIdleTimeout:               "upstream_cx_idle_timeout",
	CxMaxRequests:               "upstream_cx_max_requests", CxNoneHealthy: "upstream_cx_none_healthy", CxProtocolError: "upstream_cx_protocol_error",
	RqTotal: "upstream_rq_total", RqActive: "upstream_rq_active", RqPendingTotal: "upstream_rq_pending_total",
	RqPendingActive: "upstream_rq_pending_active", RqPendingOverflow: "upstream_rq_pending_overflow",
	RqPendingFailureEject: "upstream_rq_pending_failure_eject", RqCancelled: "upstream_rq_cancelled",
	RqTimeout: "upstream_rq_timeout", RqPerTryTimeout: "upstream_rq_per_try_timeout", RqMaxDuration: "upstream_rq_max_duration_reached",
	RqRxReset: "upstream_rq_rx_reset", RqTxReset: "upstream_rq_tx_reset",
	RqRetry: "upstream_rq_retry", RqRetrySuccess: "upstream_rq_retry_success", RqRetryOverflow: "upstream_rq_retry_overflow",
	RqRetryLimitExceeded:      "upstream_rq_retry_limit_exceeded",
	RqRetryBackoffExponential: "upstream_rq_retry_backoff_exponential",
	RetryOrShadowAbandoned:    "retry_or_shadow_abandoned",
	MembershipChange:          "membership_change", LbHealthyPanic: "lb_healthy_panic", OriginalDstInvalid: "original_dst_host_invalid",
	LbZoneTooSmall: "lb_zone_cluster_too_small", LbZoneDirect: "lb_zone_routing_all_directly", LbZoneSampled: "lb_zone_routing_sampled",
	LbZoneCross:    "lb_zone_routing_cross_zone",
	EjectionsTotal: "outlier_detection.ejections_total", EjectionsEnforced: "outlier_detection.ejections_enforced_total",
	EjectionsOverflow:       "outlier_detection.ejections_overflow",
	EjectionsConsecutive5xx: "outlier_detection.ejections_consecutive_5xx", EjectionsSuccessRate: "outlier_detection.ejections_success_rate",
	detected + byConsecutive5xx:         "outlier_detection.ejections_detected_consecutive_5xx",
	detected + byConsecutiveGateway:     "outlier_detection.ejections_detected_consecutive_gateway_failure",
	detected + byConsecutiveLocal:       "outlier_detection.ejections_detected_consecutive_local_origin_failure",
	detected + bySuccessRate:            "outlier_detection.ejections_detected_success_rate",
	detected + byLocalSuccessRate:       "outlier_detection.ejections_detected_local_origin_success_rate",
	detected + byFailurePercentage:      "outlier_detection.ejections_detected_failure_percentage",
	detected + byLocalFailurePercentage: "outlier_detection.ejections_detected_local_origin_failure_percentage",
	enforced + byConsecutive5xx:         "outlier_detection.ejections_enforced_consecutive_5xx",
	enforced + byConsecutiveGateway:     "outlier_detection.ejections_enforced_consecutive_gateway_failure",
	enforced + byConsecutiveLocal:       "outlier_detection.ejections_enforced_consecutive_local_origin_failure",
	enforced + bySuccessRate:            "outlier_detection.ejections_enforced_success_rate",
	enforced + byLocalSuccessRate:       "outlier_detection.ejections_enforced_local_origin_success_rate",
	enforced + byFailurePercentage:      "outlier_detection.ejections_enforced_failure_percentage",
	enforced + byLocalFailurePercentage: "outlier_detection.ejections_enforced_local_origin_failure_percentage",
}

func (s Stat) String() string {
	if s < numStats {
		return statNames[s]
	}
	return fmt.Sprintf("Stat(%d)", uint8(s))
}

// counters are the statistics of a cluster, and those of statuses, which are there once one of their hundred was seen.
type counters struct {
	n         [numStats]atomic.Uint64
	completed atomic.Uint64
	classes   [5]atomic.Pointer[[100]atomic.Uint64] // 1xx to 5xx
}

func (c *counters) inc(s Stat) { c.n[s].Add(1) }
func (c *counters) dec(s Stat) { c.n[s].Add(^uint64(0)) }

// Inc counts one more.
func (c *Cluster) Inc(s Stat) { c.stats.inc(s) }

// Dec takes one from a gauge: CxActive.
func (c *Cluster) Dec(s Stat) { c.stats.dec(s) }

// Get returns a statistic.
func (c *Cluster) Get(s Stat) uint64 { return c.stats.n[s].Load() }

// CountStatus counts a response by its status: upstream_rq_completed, upstream_rq_2xx, upstream_rq_200. Those outside 100 to 599
// count as completed only.
func (c *Cluster) CountStatus(status int) {
	c.stats.completed.Add(1)
	class := status/100 - 1
	if status < 100 || class >= len(c.stats.classes) {
		return
	}
	p := &c.stats.classes[class]
	list := p.Load()
	if list == nil {
		p.CompareAndSwap(nil, new([100]atomic.Uint64))
		list = p.Load()
	}
	list[status%100].Add(1)
}

// Stats yields all statistics under Envoy's names, without its prefix "cluster.NAME.".
func (c *Cluster) Stats(yield func(name string, v uint64) bool) {
	st := c.settled()
	for s := range c.stats.n {
		if !yield(statNames[s], c.stats.n[s].Load()) {
			return
		}
	}
	if !c.statuses(yield) {
		return
	}
	c.mu.Lock()
	ejected, total, healthy := c.ejected, st.view.total, st.view.healthy
	if c.original != nil {
		total += len(c.original.hosts)
		healthy += len(c.original.hosts)
	}
	c.mu.Unlock()
	if !yield("outlier_detection.ejections_active", uint64(ejected)) || !yield("membership_total", uint64(total)) ||
		!yield("membership_healthy", uint64(healthy)) {
		return
	}
	for i := range c.breakers {
		if !c.breakers[i].gauges(st, yield) {
			return
		}
	}
}

func (c *Cluster) statuses(yield func(string, uint64) bool) bool {
	if !yield("upstream_rq_completed", c.stats.completed.Load()) {
		return false
	}
	for i := range c.stats.classes {
		list := c.stats.classes[i].Load()
		if list == nil {
			continue
		}
		sum := uint64(0)
		for j := range list {
			n := list[j].Load()
			if sum += n; n > 0 && !yield(fmt.Sprintf("upstream_rq_%d", (i+1)*100+j), n) {
				return false
			}
		}
		if !yield(fmt.Sprintf("upstream_rq_%dxx", i+1), sum) {
			return false
		}
	}
	return true
}
