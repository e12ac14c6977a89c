package main

import (
	"github.com/undermesh/undermesh/ztunnel/admin"
	"github.com/undermesh/undermesh/ztunnel/explain"
	"github.com/undermesh/undermesh/ztunnel/proxy"
)

// podView shows a pod that is served here.
type podView struct{ *proxy.Pod }

// podNamed is admin.Config.Pod.
func (p *pods) podNamed(namespace, name string) admin.Pod {
	pod := p.proxy.Pod(namespace, name)
	if pod == nil {
		return nil
	}
	return podView{pod}
}

// Stats implements admin.Pod.
func (v podView) Stats(yield func(admin.Stat) bool) {
	for _, c := range v.Pod.Clusters() {
		for s := range admin.ClusterStats(c) {
			if !yield(s) {
				return
			}
		}
	}
	t := v.Tenant().Stats()
	for _, s := range []admin.Stat{
		{Name: "downstream_cx_total", Value: t.Connections}, {Name: "downstream_cx_active", Value: uint64(max(0, t.ActiveConnections)), Gauge: true},
		{Name: "downstream_cx_overload_reject", Value: t.ConnectionsRefused}, {Name: "downstream_rq_total", Value: t.Requests},
		{Name: "downstream_rq_active", Value: uint64(max(0, t.ActiveRequests)), Gauge: true},
		{Name: "downstream_rq_overload_close", Value: t.RequestsRefused},
	} {
		s.Scope, s.Of = admin.ScopeHTTP, httpPrefix
		if !yield(s) {
			return
		}
	}
}

// httpPrefix is the stat prefix of all of a pod's connections of HTTP, to it and from it.
const httpPrefix = "pod"

// Clusters implements admin.Pod.
func (v podView) Clusters(yield func(string) bool) {
	for _, c := range v.Pod.Clusters() {
		for line := range admin.ClusterLines(c) {
			if !yield(line) {
				return
			}
		}
	}
}

// World implements admin.Pod.
func (v podView) World() explain.World {
	caller, ok := v.Caller()
	if !ok {
		return explain.World{}
	}
	w := explain.World{Snapshot: caller.Snapshot, Ejected: map[string][]string{}}
	for _, c := range v.Pod.Clusters() {
		for s := range c.Status {
			if s.Ejected {
				w.Ejected[c.Name()] = append(w.Ejected[c.Name()], s.Endpoint.Key)
			}
		}
	}
	return w
}
