package proxy

import (
	"net/netip"
	"slices"

	"github.com/undermesh/undermesh/controller/policy"
	"github.com/undermesh/undermesh/ztunnel/cluster"
	"github.com/undermesh/undermesh/ztunnel/http"
)

// PodStatus is one pod as the admin endpoints show it.
type PodStatus struct {
	UID            string       `json:"uid"`
	Name           string       `json:"name"`
	Namespace      string       `json:"namespace"`
	ServiceAccount string       `json:"serviceAccount"`
	Addresses      []netip.Addr `json:"addresses"`
	Listeners      []string     `json:"listeners"`   // kinds, unsorted
	Connections    int64        `json:"connections"` // open ones, streams of tunnels included
}

// Status describes the pod at this moment.
func (pod *Pod) Status() PodStatus {
	s := PodStatus{
		UID: pod.cfg.UID, Name: pod.cfg.Name, Namespace: pod.cfg.Namespace, ServiceAccount: pod.cfg.ServiceAccount,
		Addresses: pod.cfg.Addrs, Connections: pod.conns.Load(),
	}
	pod.mu.Lock()
	defer pod.mu.Unlock()
	for _, l := range pod.listeners {
		s.Listeners = append(s.Listeners, l.kind.String())
	}
	return s
}

// Pod returns the pod of that name that is served here, nil when there is none.
func (p *Proxy) Pod(namespace, name string) *Pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pods[podName{namespace, name}]
}

// Clusters returns the clusters that the pod's calls went to, and those of the ports on which it was called, in no order.
func (pod *Pod) Clusters() []*cluster.Cluster { return slices.Collect(pod.calls.Clusters) }

// Tenant is the pod to the engine of HTTP: what it has under way.
func (pod *Pod) Tenant() *http.Tenant { return pod.tenant }

// Caller is the workload and the snapshot that the pod's requests go by now; false when no snapshot knew the pod.
func (pod *Pod) Caller() (policy.Caller, bool) { return pod.caller() }

// Drain has new connections to the pod refused, which its clients' proxies take for a failure to connect, or let in again (LB-12).
// Those that are there go on, and so do the kubelet's probes.
func (pod *Pod) Drain(on bool) { pod.drained.Store(on) }
