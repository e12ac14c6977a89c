package admin

import (
	"fmt"
	"iter"
	"strings"

	"github.com/undermesh/undermesh/ztunnel/cluster"
	"github.com/undermesh/undermesh/ztunnel/http"
)

// ClusterStats are the statistics of a cluster as Stat has them.
func ClusterStats(c *cluster.Cluster) iter.Seq[Stat] {
	return func(yield func(Stat) bool) {
		of := c.Name()
		for name, v := range c.Stats {
			if !yield(Stat{Scope: ScopeCluster, Of: of, Name: name, Value: v, Gauge: gauge(name)}) {
				return
			}
		}
	}
}

// ListenerStats are the statistics of the connections of one port as Stat has them.
func ListenerStats(l *http.Listener) iter.Seq[Stat] {
	return func(yield func(Stat) bool) {
		of := l.Prefix()
		for name, v := range l.Stats {
			if !yield(Stat{Scope: ScopeHTTP, Of: of, Name: name, Value: v, Gauge: strings.HasSuffix(name, "_active")}) {
				return
			}
		}
	}
}

// gauge tells which of a cluster's statistics go down too.
func gauge(name string) bool {
	return strings.HasSuffix(name, "_active") || strings.HasPrefix(name, "circuit_breakers.") ||
		name == "membership_total" || name == "membership_healthy"
}

// ClusterLines describe a cluster and its endpoints as Envoy's /clusters does. Envoy has counters of a host of its own kind;
// rq_error counts what outlier detection counts: answers from 500 on, and failed or late ones.
func ClusterLines(c *cluster.Cluster) iter.Seq[string] {
	return func(yield func(string) bool) {
		of := c.Name()
		line := func(format string, args ...any) bool { return yield(of + "::" + fmt.Sprintf(format, args...)) }
		if !line("observability_name::%s", of) {
			return
		}
		for _, p := range []struct {
			name string
			b    *cluster.Breakers
		}{{"default_priority", c.Breakers(cluster.Default)}, {"high_priority", c.Breakers(cluster.High)}} {
			cx, pending, rq, retries := p.b.Limits()
			if !line("%s::max_connections::%d", p.name, cx) || !line("%s::max_pending_requests::%d", p.name, pending) ||
				!line("%s::max_requests::%d", p.name, rq) || !line("%s::max_retries::%d", p.name, retries) {
				return
			}
		}
		if !line("added_via_api::true") {
			return
		}
		for s := range c.Status {
			for _, text := range hostLines(s) {
				if !line("%s", text) {
					return
				}
			}
		}
	}
}

func hostLines(s cluster.HostStatus) []string {
	e := s.Endpoint
	at := e.Addr.String()
	if !e.Addr.IsValid() {
		at = e.Hostname
	}
	var out []string
	add := func(name string, v any) { out = append(out, fmt.Sprintf("%s::%s::%v", at, name, v)) }
	add("cx_active", s.Connections)
	add("cx_connect_fail", s.NotMade)
	add("cx_total", s.Made)
	add("rq_active", s.Active)
	add("rq_error", s.Failures)
	add("rq_success", s.Successes)
	add("rq_timeout", s.Late)
	add("rq_total", s.Requests)
	add("hostname", e.Hostname)
	add("health_flags", healthFlags(s))
	add("weight", max(e.Weight, 1))
	add("region", e.Locality.Region)
	add("zone", e.Locality.Zone)
	add("sub_zone", e.Locality.SubZone)
	add("canary", false)
	add("priority", e.Priority)
	add("success_rate", -1)
	add("local_origin_success_rate", -1)
	return out
}

func healthFlags(s cluster.HostStatus) string {
	out := ""
	if s.Ejected {
		out += "/failed_outlier_check"
	}
	if !s.Endpoint.Healthy {
		out += "/failed_eds_health"
	}
	if out == "" {
		return "healthy"
	}
	return out
}
