package proxy

import (
	"net/netip"
	"strings"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/client"
	"github.com/undermesh/undermesh/ztunnel/telemetry"
)

// peerOf is how metrics name w; principal only when it was proved.
func (p *Proxy) peerOf(w *client.Workload, principal api.Identity) telemetry.Peer {
	peer := telemetry.Peer{Principal: principal.String(), Namespace: principal.Namespace}
	if w == nil {
		return peer
	}
	cluster := w.GetClusterId()
	if cluster == "" {
		cluster = p.cfg.ClusterID
	}
	peer.Workload, peer.Namespace = w.GetWorkloadName(), w.GetNamespace()
	peer.App, peer.Version = w.GetCanonicalName(), w.GetCanonicalRevision()
	peer.CanonicalService, peer.CanonicalRevision = w.GetCanonicalName(), w.GetCanonicalRevision()
	peer.Cluster = cluster
	peer.Region, peer.Zone = w.GetLocality().GetRegion(), w.GetLocality().GetZone()
	return peer
}

func serviceOf(svc *client.Service) telemetry.Service {
	if svc == nil {
		return telemetry.Service{}
	}
	return telemetry.Service{Host: svc.GetHostname(), Name: svc.GetName(), Namespace: svc.GetNamespace()}
}

// serviceByMember finds the service of that hostname that w is a member of, nil when it is none: the name may come from
// a peer.
func serviceByMember(snap *client.Snapshot, w *client.Workload, host string) *client.Service {
	if host == "" || w == nil {
		return nil
	}
	for key := range w.GetServices() {
		if ns, name, _ := strings.Cut(key, "/"); name == host {
			return snap.ServiceByHost(ns, host)
		}
	}
	return nil
}

// source and destination fill in what the connection's record says of the two sides.
func (s *session) source(w *client.Workload, id api.Identity) {
	if w != nil {
		s.line.SrcWorkload, s.line.SrcNamespace = w.GetName(), w.GetNamespace()
	}
	s.line.SrcID = id.String()
}

func (s *session) destination(w *client.Workload, id api.Identity, svc *client.Service) {
	if w != nil {
		s.line.DstWorkload, s.line.DstNamespace = w.GetName(), w.GetNamespace()
	}
	s.line.DstID = id.String()
	if svc != nil {
		s.line.DstService = svc.GetHostname()
	}
}

// addrOf returns the address of w to use for a connection that was made to like: of the same family if there is one.
func addrOf(w *client.Workload, like netip.Addr) netip.Addr {
	for _, a := range w.Addrs {
		if a.Is4() == like.Is4() {
			return a
		}
	}
	if len(w.Addrs) > 0 {
		return w.Addrs[0]
	}
	return netip.Addr{}
}

// network is the network that w's peers are looked up in.
func (p *Proxy) network(w *client.Workload) string {
	if w == nil {
		return p.cfg.Network
	}
	return w.GetNetwork()
}
