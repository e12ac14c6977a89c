package http

import (
	"strconv"
	"sync/atomic"
	"time"

	"github.com/undermesh/undermesh/ztunnel/cluster"
)

// maxListeners bounds the ports of a workload that have statistics of their own; the others have some together, as port 0.
const maxListeners = 256

// Listener is the statistics of a workload's connections of one direction and port, as Envoy's connection manager keeps them. A
// request costs two additions. All methods are safe for concurrent use.
type Listener struct {
	key  listenerKey
	used atomic.Int64 // Unix seconds

	begun [HTTP2 + 1]atomic.Uint64 // requests
	ended [6]atomic.Uint64         // by the class of the answer's status; 0: without an answer
	n     [numListenerStats]atomic.Uint64
}

type listenerKey struct {
	direction Direction
	port      uint16
}

// listenerStat is one of the statistics that are counted as what they are named after; see listenerNames.
type listenerStat uint8

const (
	cxTotal listenerStat = iota
	cxActive
	cxHTTP1
	cxHTTP1Active
	cxHTTP2
	cxHTTP2Active
	cxIdleTimeout
	cxDrainClose
	cxOverloadReject
	cxProtocolError
	cxUpgrades
	cxUpgradesActive
	rqRxReset
	rqTxReset
	rqTimeout
	rqHeaderTimeout
	rqIdleTimeout
	rqMaxDuration
	rqOverloadClose
	rqBadPath
	rqNonRelativePath
	rqRefusedUpgrade
	noRoute
	noCluster
	rqDirect
	rqRedirect
	faultDelays
	faultAborts
	numListenerStats
)

var listenerNames = [numListenerStats]string{
	cxTotal: "downstream_cx_total", cxActive: "downstream_cx_active", cxHTTP1: "downstream_cx_http1_total", cxHTTP1Active: "downstream_cx_http1_active",
	cxHTTP2: "downstream_cx_http2_total", cxHTTP2Active: "downstream_cx_http2_active", cxIdleTimeout: "downstream_cx_idle_timeout",
	cxDrainClose: "downstream_cx_drain_close", cxOverloadReject: "downstream_cx_overload_reject", cxProtocolError: "downstream_cx_protocol_error",
	cxUpgrades: "downstream_cx_upgrades_total", cxUpgradesActive: "downstream_cx_upgrades_active",
	rqRxReset: "downstream_rq_rx_reset", rqTxReset: "downstream_rq_tx_reset", rqTimeout: "downstream_rq_timeout",
	rqHeaderTimeout: "downstream_rq_header_timeout", rqIdleTimeout: "downstream_rq_idle_timeout", rqMaxDuration: "downstream_rq_max_duration_reached",
	rqOverloadClose: "downstream_rq_overload_close", rqBadPath: "downstream_rq_failed_path_normalization",
	rqNonRelativePath: "downstream_rq_non_relative_path", rqRefusedUpgrade: "downstream_rq_ws_on_non_ws_route",
	noRoute: "no_route", noCluster: "no_cluster", rqDirect: "rq_direct_response", rqRedirect: "rq_redirect",
	faultDelays: "fault.delays_injected", faultAborts: "fault.aborts_injected",
}

// Listener returns the statistics of the workload's connections of a direction and port; of its own port where it is called.
func (t *Tenant) Listener(d Direction, port uint16) *Listener {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := listenerKey{d, port}
	l := t.listeners[key]
	if l == nil && len(t.listeners) >= maxListeners {
		key.port = 0
		l = t.listeners[key]
	}
	if l == nil {
		l = &Listener{key: key}
		t.listeners[key] = l
	}
	return l
}

// Listeners calls yield with each of the workload's, in no order.
func (t *Tenant) Listeners(yield func(*Listener) bool) {
	t.mu.Lock()
	list := make([]*Listener, 0, len(t.listeners))
	for _, l := range t.listeners {
		list = append(list, l)
	}
	t.mu.Unlock()
	for _, l := range list {
		if !yield(l) {
			return
		}
	}
}

// Forget drops the statistics of ports that have no connection and had none since the time.
func (t *Tenant) Forget(since time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key, l := range t.listeners {
		if l.n[cxActive].Load() == 0 && l.used.Load() < since.Unix() {
			delete(t.listeners, key)
		}
	}
}

// Prefix is Envoy's stat prefix of the connections as Istio configures it.
func (l *Listener) Prefix() string {
	side := "outbound"
	if l.key.direction == Inbound {
		side = "inbound"
	}
	return side + "_0.0.0.0_" + strconv.Itoa(int(l.key.port))
}

// Stats yields all statistics under Envoy's names, without its prefix "http.PREFIX;.". Those that go down too end in "_active".
func (l *Listener) Stats(yield func(name string, v uint64) bool) {
	var ended, completed uint64
	for class := range l.ended { // before those that have begun: what is active is never below zero
		n := l.ended[class].Load()
		if ended += n; class == 0 {
			continue
		}
		if completed += n; !yield("downstream_rq_"+strconv.Itoa(class)+"xx", n) {
			return
		}
	}
	one, two := l.begun[HTTP1].Load(), l.begun[HTTP2].Load()
	if !yield("downstream_rq_completed", completed) || !yield("downstream_rq_total", one+two) || !yield("downstream_rq_http1_total", one) ||
		!yield("downstream_rq_http2_total", two) || !yield("downstream_rq_active", one+two-ended) {
		return
	}
	for s := range l.n {
		if !yield(listenerNames[s], l.n[s].Load()) {
			return
		}
	}
}

func (l *Listener) inc(s listenerStat) { l.n[s].Add(1) }
func (l *Listener) dec(s listenerStat) { l.n[s].Add(^uint64(0)) }

// opened counts a connection.
func (l *Listener) opened(now time.Time) {
	l.used.Store(now.Unix())
	l.inc(cxTotal)
	l.inc(cxActive)
}

// speaks counts what a connection is spoken in, once that is known.
func (l *Listener) speaks(p Protocol) {
	if p == HTTP2 {
		l.inc(cxHTTP2)
		l.inc(cxHTTP2Active)
	} else {
		l.inc(cxHTTP1)
		l.inc(cxHTTP1Active)
	}
}

// closed counts the end of a connection, spoken in p; 0: nobody said anything.
func (l *Listener) closed(p Protocol) {
	l.dec(cxActive)
	switch p {
	case HTTP1:
		l.dec(cxHTTP1Active)
	case HTTP2:
		l.dec(cxHTTP2Active)
	}
}

// end counts the end of a request by the status of its answer; 0: there was none.
func (l *Listener) end(status int) {
	class := status / 100
	if status < 100 || class >= len(l.ended) {
		class = 0
	}
	l.ended[class].Add(1)
}

// flagStats and detailStats are the statistics that follow from how a request ended.
var (
	flagStats = [...]listenerStat{
		NoRoute: noRoute, NoClusterFound: noCluster, DelayInjected: faultDelays, FaultInjected: faultAborts, StreamIdleTimeout: rqIdleTimeout,
		DownstreamProtocolError: cxProtocolError, DownstreamConnectionTermination: rqRxReset, DownstreamRemoteReset: rqRxReset,
	}
	detailStats = map[string]listenerStat{
		"request_overall_timeout": rqTimeout, "request_header_timeout": rqHeaderTimeout, "max_duration_timeout": rqMaxDuration,
		"overload": rqOverloadClose, "path_normalization_failed": rqBadPath, "absolute_path_rejected": rqNonRelativePath, "upgrade_failed": rqRefusedUpgrade,
	}
)

// explain counts why a request ended as it did, beyond its status.
func (l *Listener) explain(e *Entry, broken bool) {
	for _, f := range e.Flags.list[:e.Flags.n] {
		if int(f) < len(flagStats) && flagStats[f] != 0 {
			l.inc(flagStats[f])
		}
	}
	if broken && !e.Flags.Has(DownstreamConnectionTermination) {
		l.inc(rqTxReset)
	}
	switch s, ok := detailStats[e.Details]; {
	case ok:
		l.inc(s)
	case e.Details != "direct_response":
	case e.Route.Direct != nil:
		l.inc(rqDirect)
	default:
		l.inc(rqRedirect)
	}
}

// Callee is the workload at the other end of a connection whose node's part is done here: what comes over the connection counts for
// it as if it had come to its own proxy.
type Callee struct {
	Listener *Listener
	Host     *cluster.Host // of the cluster that stands for the application

	protocol atomic.Uint32
}

// Opened counts the connection, and Closed its end.
func (c *Callee) Opened(now time.Time) {
	c.Listener.opened(now)
	c.Host.Cluster().Breakers(cluster.Default).TryConnection(c.Host) // there is no limit
}

// Closed is the counterpart of Opened.
func (c *Callee) Closed() {
	c.Listener.closed(Protocol(c.protocol.Load()))
	c.Host.Cluster().Breakers(cluster.Default).DoneConnection(c.Host, false)
}

// speaks counts what the connection is spoken in.
func (c *Callee) speaks(p Protocol, s cluster.Stat) {
	if c == nil {
		return
	}
	c.protocol.Store(uint32(p))
	c.Listener.speaks(p)
	c.Host.Cluster().Inc(s)
}

// begin counts a request that is sent over the connection.
func (c *Callee) begin(p Protocol) {
	if c == nil {
		return
	}
	c.Listener.begun[p].Add(1)
	c.Host.Begin()
	c.Host.Cluster().Inc(cluster.RqTotal)
	c.Host.Cluster().Inc(cluster.RqActive)
}

// end counts the end of a request by the status of the answer; 0: the request was given up before there was one.
func (c *Callee) end(status int) {
	if c == nil {
		return
	}
	c.Listener.end(status)
	c.Host.End()
	of := c.Host.Cluster()
	of.Dec(cluster.RqActive)
	if status == 0 {
		c.Listener.inc(rqRxReset)
		of.Inc(cluster.RqTxReset)
		return
	}
	of.CountStatus(status)
	c.Host.Report(cluster.Answered, status)
}
