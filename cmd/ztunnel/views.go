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
	for l := range v.Tenant().Listeners {
		for s := range admin.ListenerStats(l) {
			if !yield(s) {
				return
			}
		}
	}
}

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
