package proxy

import "net/netip"

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
