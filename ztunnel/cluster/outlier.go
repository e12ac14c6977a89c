package cluster

import (
	"math"
	"sync/atomic"
	"time"
)

// Result is how a request or connection ended, for outlier detection.
type Result uint8

// The results. A status is that of HTTP; of gRPC the one that its code stands for.
const (
	// Answered is a response with a status.
	Answered Result = iota
	// Connected is a connection that was made, over which requests go: their results follow.
	Connected
	// ConnectedFinal is a connection that was made and is all there is (TCP).
	ConnectedFinal
	// ConnectFailed is a connection that could not be made, or was lost by a fault of the way.
	ConnectFailed
	// TimedOut is a connection or answer that did not come in time. With a status of not 0 that is what counts, unless errors of
	// connecting count on their own.
	TimedOut
	// RequestFailed and RequestDone are the ends of an exchange that is not HTTP.
	RequestFailed
	RequestDone
)

// Statuses that results stand for.
const (
	statusOK             = 200
	statusServerError    = 500
	statusBadGateway     = 502
	statusUnavailable    = 503
	statusGatewayTimeout = 504
)

// monitor is what outlier detection knows of a host.
type monitor struct {
	inRow  [numConsecutive]atomic.Uint32
	remote bucket
	local  bucket

	// Below: protected by Cluster.mu.
	ejected                bool
	ejections              uint32
	backoff                uint32 // by how much the base ejection time is multiplied
	since, returned, delay time.Duration
	wasReturned            bool
}

// bucket counts the results of one interval.
type bucket struct{ total, good atomic.Uint32 }

func (b *bucket) add(good bool) {
	b.total.Add(1)
	if good {
		b.good.Add(1)
	}
}

// Report tells how a request or connection ended. Status is that of Answered, or one that stands for TimedOut; else 0.
func (h *Host) Report(r Result, status int) {
	if r != Connected && (r == ConnectFailed || r == TimedOut || r == RequestFailed || status >= statusServerError) {
		h.failures.Add(1)
	}
	if r == TimedOut {
		h.late.Add(1)
	}
	if r == RequestDone || r == Answered && status < statusServerError {
		h.successes.Add(1)
	}
	c := h.cluster
	st := c.settled()
	o := st.spec.outlier
	if o == nil || h.removed.Load() || st.spec.Kind == OriginalDestination {
		return
	}
	if o.split {
		h.reportSplit(o, r, status)
		return
	}
	switch {
	case r == Connected:
		return
	case status != 0:
	case r == RequestDone || r == ConnectedFinal:
		status = statusOK
	case r == TimedOut:
		status = statusGatewayTimeout
	case r == ConnectFailed:
		status = statusUnavailable
	case r == RequestFailed:
		status = statusServerError
	}
	h.answered(o, status)
}

// reportSplit keeps what connecting gave apart from what the server said.
func (h *Host) reportSplit(o *outlierSpec, r Result, status int) {
	switch r {
	case Connected, ConnectedFinal:
		h.reached(o, true)
	case TimedOut, ConnectFailed:
		h.reached(o, false)
	case Answered:
		h.answered(o, status)
	case RequestFailed:
		h.answered(o, statusUnavailable)
	case RequestDone:
		h.answered(o, statusOK)
		h.reached(o, true)
	}
}

func (h *Host) reached(o *outlierSpec, ok bool) {
	m := &h.monitor
	m.local.add(ok)
	if ok {
		m.inRow[byConsecutiveLocal].Store(0)
	} else {
		h.another(o, byConsecutiveLocal)
	}
}

func (h *Host) answered(o *outlierSpec, status int) {
	m := &h.monitor
	bad := status >= statusServerError && status < statusServerError+100
	m.remote.add(!bad)
	if !bad {
		m.inRow[byConsecutive5xx].Store(0)
		m.inRow[byConsecutiveGateway].Store(0)
		return
	}
	if status == statusBadGateway || status == statusUnavailable || status == statusGatewayTimeout {
		h.another(o, byConsecutiveGateway)
	} else {
		m.inRow[byConsecutiveGateway].Store(0)
	}
	h.another(o, byConsecutive5xx)
}

// another counts one more error in a row.
func (h *Host) another(o *outlierSpec, kind int) {
	if h.monitor.inRow[kind].Add(1) != o.consecutive[kind] {
		return
	}
	c := h.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	st := c.state.Load()
	if st.spec.outlier == nil || h.monitor.ejected || h.removed.Load() {
		return
	}
	c.stats.inc(detected + Stat(kind))
	if kind == byConsecutive5xx {
		c.stats.inc(EjectionsConsecutive5xx)
	}
	if c.ejectLocked(st, h, kind, c.now()) {
		c.downLocked(h)
	}
	h.monitor.inRow[kind].Store(0)
}

// ejectLocked takes a host out, if the share of those that are out allows it and chance enforces it.
func (c *Cluster) ejectLocked(st *state, h *Host, kind int, now time.Duration) bool {
	o, m := st.spec.outlier, &h.monitor
	share := 100 * float64(c.ejected+1) / float64(max(1, len(st.hosts.list)))
	if share > float64(o.maxPercent) && !(o.alwaysOne && c.firstLocked(st, h)) {
		c.stats.inc(EjectionsOverflow)
		return false
	}
	if kind == byConsecutive5xx || kind == bySuccessRate {
		c.stats.inc(EjectionsTotal)
	}
	if !c.chance(o.enforcing[kind]) {
		return false
	}
	c.stats.inc(EjectionsEnforced)
	c.stats.inc(enforced + Stat(kind))
	c.ejected++
	m.ejected, m.since, m.delay = true, now, 0
	m.ejections++
	if o.jitter > 0 {
		m.delay = time.Duration(c.cfg.Rand()%uint64(o.jitter/time.Millisecond+1)) * time.Millisecond
	}
	if time.Duration(m.backoff)*o.base < o.longest+o.base {
		m.backoff++
	}
	return true
}

// firstLocked reports whether h is the first of its priority to be taken out, and not the last host that is left. Envoy counts all
// priorities as one: where a place has one host, nothing would go on to the next place but one.
func (c *Cluster) firstLocked(st *state, h *Host) bool {
	if c.ejected+1 >= len(st.hosts.list) {
		return false
	}
	priority := h.Endpoint().Priority
	for i := range st.slots {
		if other := st.slots[i].Load(); other != nil && other.monitor.ejected && other.Endpoint().Priority == priority {
			return false
		}
	}
	return true
}

func (c *Cluster) chance(percent uint32) bool {
	return percent >= 100 || percent > 0 && c.cfg.Rand()%100 < uint64(percent)
}

// downLocked makes what Pick sees of a host agree with its monitor.
func (c *Cluster) downLocked(h *Host) {
	st := *c.state.Load()
	st.down = st.down.with(h.index, h.monitor.ejected, len(st.hosts.list))
	if c.ejected == 0 {
		st.down = nil
	}
	c.rebuildLocked(&st)
}

// sweep does the interval's work for all intervals that ended up to now.
func (c *Cluster) sweep(now time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := c.state.Load()
	o := st.spec.outlier
	at := time.Duration(c.nextSweep.Load())
	if o == nil || at > now {
		return
	}
	hosts := c.usedLocked(st)
	changed := c.sweepLocked(st, hosts, at)
	// Nothing was counted since: what is left to do is to let hosts return and their backoff fall.
	const enough = 4096
	if n := (now - at) / o.interval; n > enough {
		at += (n - enough) * o.interval
	}
	for at += o.interval; at <= now; at += o.interval {
		if c.returnLocked(o, hosts, at) {
			changed = true
		}
		c.calmLocked(o, hosts, at)
	}
	c.nextSweep.Store(int64(at))
	if !changed {
		return
	}
	next := *c.state.Load()
	next.down = nil
	for _, h := range hosts {
		if h.monitor.ejected {
			next.down = next.down.with(h.index, true, len(next.hosts.list))
		}
	}
	c.rebuildLocked(&next)
}

// usedLocked are the hosts that exist.
func (c *Cluster) usedLocked(st *state) []*Host {
	var out []*Host
	for i := range st.slots {
		if h := st.slots[i].Load(); h != nil {
			out = append(out, h)
		}
	}
	return out
}

// sweepLocked is the end of an interval in which something was counted.
func (c *Cluster) sweepLocked(st *state, hosts []*Host, at time.Duration) bool {
	o := st.spec.outlier
	changed := c.returnLocked(o, hosts, at)
	for _, local := range []bool{false, true} {
		if c.ratesLocked(st, hosts, local, at) {
			changed = true
		}
	}
	c.calmLocked(o, hosts, at)
	return changed
}

// returnLocked lets those hosts return whose time is over.
func (c *Cluster) returnLocked(o *outlierSpec, hosts []*Host, at time.Duration) (changed bool) {
	for _, h := range hosts {
		m := &h.monitor
		if m.ejected && min(o.base*time.Duration(m.backoff), o.longest)+m.delay <= at-m.since {
			c.restoreLocked(h, at)
			changed = true
		}
	}
	return changed
}

func (c *Cluster) restoreLocked(h *Host, at time.Duration) {
	m := &h.monitor
	m.ejected, m.returned, m.wasReturned = false, at, true
	for i := range m.inRow {
		m.inRow[i].Store(0)
	}
	c.ejected--
}

// calmLocked lets the ejection time of hosts that behave fall again.
func (c *Cluster) calmLocked(o *outlierSpec, hosts []*Host, at time.Duration) {
	for _, h := range hosts {
		if m := &h.monitor; !m.ejected && m.wasReturned && at-m.returned >= o.interval && m.backoff > 0 {
			m.backoff--
		}
	}
}

// rate is the success rate of a host in an interval, in percent.
type rate struct {
	host *Host
	good float64
}

// ratesLocked ejects by success rate and failure percentage, and begins new buckets.
func (c *Cluster) ratesLocked(st *state, hosts []*Host, local bool, at time.Duration) (changed bool) {
	o := st.spec.outlier
	var byRate, byFailure []rate
	var sum float64
	for _, h := range hosts {
		b := &h.monitor.remote
		if local {
			b = &h.monitor.local
		}
		total, good := b.total.Swap(0), b.good.Swap(0)
		if total == 0 || h.monitor.ejected {
			continue
		}
		r := rate{h, min(100, float64(good)*100/float64(total))}
		if total >= o.rateVolume {
			byRate, sum = append(byRate, r), sum+r.good
		}
		if total >= o.failureVolume {
			byFailure = append(byFailure, r)
		}
	}
	rateKind, failureKind := bySuccessRate, byFailurePercentage
	if local {
		rateKind, failureKind = byLocalSuccessRate, byLocalFailurePercentage
	}
	eject := func(h *Host, kind int) {
		c.stats.inc(detected + Stat(kind))
		if !h.monitor.ejected && c.ejectLocked(st, h, kind, at) {
			changed = true
		}
	}
	if len(byRate) > 0 && len(byRate) >= int(o.rateHosts) {
		limit := rateThreshold(byRate, sum, o.rateFactor)
		for _, r := range byRate {
			if r.good < limit {
				c.stats.inc(EjectionsSuccessRate)
				eject(r.host, rateKind)
			}
		}
	}
	if len(byFailure) > 0 && len(byFailure) >= int(o.failureHosts) {
		for _, r := range byFailure {
			if 100-r.good >= float64(o.failureThreshold) {
				eject(r.host, failureKind)
			}
		}
	}
	return changed
}

// rateThreshold is the mean less factor times the standard deviation.
func rateThreshold(rates []rate, sum, factor float64) float64 {
	mean := sum / float64(len(rates))
	var variance float64
	for _, r := range rates {
		variance += (r.good - mean) * (r.good - mean)
	}
	return mean - factor*math.Sqrt(variance/float64(len(rates)))
}

// outlierChangedLocked begins to detect, goes on with other settings, or lets all return.
func (c *Cluster) outlierChangedLocked(old *Spec, st *state) {
	now := c.now()
	switch o := st.spec.outlier; {
	case o == nil:
		for _, h := range c.usedLocked(st) {
			if h.monitor.ejected {
				c.restoreLocked(h, now)
			}
		}
		st.down = nil
	case old.outlier == nil || time.Duration(c.nextSweep.Load())-now > o.interval:
		c.nextSweep.Store(int64(now + o.interval))
	}
}
