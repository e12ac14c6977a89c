package policy

import (
	"net/netip"
	"slices"
	"strconv"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/api/credential"
	"github.com/undermesh/undermesh/controller/api/reason"
	"github.com/undermesh/undermesh/controller/api/settings"
	"github.com/undermesh/undermesh/controller/api/workloadapi"
	"github.com/undermesh/undermesh/controller/client"
)

// Kind is how a connection travels (DESIGN §2, Paths).
type Kind int

// The zero Kind is Reject, so that a Path nobody decided refuses.
const (
	Reject      Kind = iota // refused; Path.Refused says why
	Direct                  // kernel to kernel on one node; no decision of this build is Direct
	Proxied                 // one pass through the node's ztunnel, no TLS: the kernel attests the source
	Tunnel                  // HBONE: mutual TLS to the destination's tunnel port
	Passthrough             // plain TCP to the address that was dialled
)

// String is the name that logs and explain use.
func (k Kind) String() string {
	switch k {
	case Reject:
		return "reject"
	case Direct:
		return "direct"
	case Proxied:
		return "proxied"
	case Tunnel:
		return "tunnel"
	case Passthrough:
		return "passthrough"
	}
	return "kind_" + strconv.Itoa(int(k))
}

// Path is the outcome of PathFor.
type Path struct {
	Kind        Kind
	Reason      string        // why this kind, for explain and the connection log
	Refused     reason.Reason // set when Kind is Reject
	Destination *client.Workload
	Port        uint16 // of the destination
	TunnelPort  uint16 // set when Kind is Tunnel
	// ServerIdentities are those that the server may prove, set when Kind is Tunnel: the destination's own and the same
	// in each alias of the mesh's trust domain.
	ServerIdentities []api.Identity
	// Anonymous: the caller's DestinationRule wants plain text, so that the server may not learn who calls, however the
	// connection gets to it.
	Anonymous bool
	// Originate is the TLS that the caller's proxy speaks to the server, since the caller's DestinationRule says SIMPLE or MUTUAL; nil:
	// none. It is set on a path that is Passthrough only, as is Called, the service whose rule that is.
	Originate *settings.ClientTls
	Called    *client.Service
	Rule      string // namespace/name of the DestinationRule that had a say in the kind
}

// PathQuery is what PathFor decides on.
type PathQuery struct {
	Snapshot            *client.Snapshot
	Source, Destination *client.Workload // nil: not known to the mesh
	Service             *client.Service  // the service that was dialled; nil for an address of a pod
	ServicePort         uint16           // the port of Service that was dialled
	Subset              string           // of Service, or of Behind, that a rule leads to; "" for none
	// Behind is the headless service by which a pod's address was dialled, whatever snapshot it is of; nil: any that the pod is behind.
	Behind  *client.Service
	Address netip.AddrPort // of the destination, after Pick
	Local   bool           // the destination pod is served by this node's ztunnel
	// Captured: the source is served by this node's ztunnel, so that it is enrolled whatever the control plane says of it at
	// the moment. A pod's first connections come before its annotation has made the round.
	Captured bool
}

// PathFor decides how the source's ztunnel carries one connection, or those that it makes for requests.
func PathFor(q PathQuery) Path {
	p := Path{Destination: q.Destination, Port: q.Address.Port()}
	reject := func(r reason.Reason, why string) Path {
		p.Kind, p.Refused, p.Reason, p.Originate, p.Called = Reject, r, why, nil, nil
		return p
	}
	as := func(k Kind, why string) Path {
		p.Kind, p.Reason = k, why
		return p
	}
	dst := q.Destination
	if q.Snapshot == nil {
		return reject(reason.NotReady, "no snapshot of the mesh yet")
	}
	svc, port := called(q)
	tls, rule := CallTLS(q.Snapshot, q.Source, svc, port, q.Subset)
	if tls.GetMode() != settings.ClientTls_MODE_AUTO {
		p.Rule = rule
	}
	want := tls.GetMode()
	originates := want == settings.ClientTls_MODE_SIMPLE || want == settings.ClientTls_MODE_MUTUAL
	if originates {
		p.Originate, p.Called = tls, svc
		if why := cannotOriginate(q, tls); why != "" {
			return reject(reason.ClientTLS, "DestinationRule "+rule+": trafficPolicy.tls."+why)
		}
	}
	switch {
	case want == settings.ClientTls_MODE_ISTIO_MUTUAL && !takesTunnel(q) && !outboundBlocked(q):
		return reject(reason.ClientTLS, "the DestinationRule asks for mutual TLS of the mesh, which the server has not")
	case dst == nil && q.Service != nil:
		return as(Passthrough, "the service's connections go where they were dialled")
	case outboundBlocked(q):
		return reject(reason.OutboundBlocked, "the destination is in no registry, or not seen from here, and the outbound policy is REGISTRY_ONLY")
	case dst == nil:
		return as(Passthrough, "the destination is not known to the mesh")
	case dst.GetTunnelProtocol() != workloadapi.TunnelProtocol_HBONE:
		return as(Passthrough, "the destination is not enrolled")
	case dst.GetWaypoint() != nil || q.Service != nil && q.Service.GetWaypoint() != nil:
		return reject(reason.PolicyUnenforceable, "the destination asks for a waypoint, whose policies this build cannot apply")
	case q.Source == nil || !q.Captured && q.Source.GetTunnelProtocol() != workloadapi.TunnelProtocol_HBONE:
		return as(Passthrough, "the source is not enrolled")
	case q.Source.GetNetwork() != dst.GetNetwork():
		return reject(reason.NoEndpoint, "the destination is in another network")
	case meshPort(dst, p.Port):
		return reject(reason.MeshPort, "the port belongs to the mesh")
	case want == settings.ClientTls_MODE_DISABLE:
		p.Anonymous = true
		return as(Passthrough, "the DestinationRule wants plain text")
	case originates:
		p.Anonymous = true
		return as(Passthrough, "the DestinationRule asks for TLS to the server itself")
	case svc != nil && !mayServe(q.Snapshot.Mesh(), svc, tls, dst.Identity):
		return reject(reason.PeerIdentity, "the destination's identity may not run the service")
	}
	mode := MtlsMode(dst, p.Port)
	if mode == settings.MtlsMode_MTLS_DISABLE {
		return as(Passthrough, "mutual TLS is disabled for the port")
	}
	if !q.Local {
		return tunnel(q, p, "the destination is on another node")
	}
	switch sameNode(q) {
	case settings.SameNode_SAME_NODE_TUNNEL:
		return tunnel(q, p, "same node, sameNode is tunnel")
	case settings.SameNode_SAME_NODE_PROXIED:
		return as(Proxied, "same node, sameNode is proxied")
	case settings.SameNode_SAME_NODE_DIRECT:
		return as(Proxied, "same node, sameNode is direct, which this build carries proxied")
	}
	if mode == settings.MtlsMode_MTLS_STRICT {
		return tunnel(q, p, "same node, the port is STRICT")
	}
	if want == settings.ClientTls_MODE_ISTIO_MUTUAL {
		return tunnel(q, p, "same node, the DestinationRule asks for mutual TLS")
	}
	return as(Proxied, "same node")
}

// cannotOriginate says which field of tls keeps a node from doing as it says, and why; "" for none.
func cannotOriginate(q PathQuery, tls *settings.ClientTls) string {
	if field := credential.File(tls); field != "" {
		return field + " is a file of the workload, which nodes do not read"
	}
	svc, _ := called(q)
	_, needed, err := credential.Of(q.Source.GetNamespace(), tls)
	switch {
	case err != nil:
		return "credentialName: " + err.Error()
	case needed && !selected(q.Snapshot.CallRules(q.Source, svc.GetNamespace(), svc.GetHostname())):
		return "credentialName is for the workloads that a workloadSelector selects, and there is none"
	}
	return ""
}

// selected reports whether the rule that counts alone is for its workloads only: it is of their namespace then.
func selected(all []*client.CallRule) bool { return len(all) > 0 && all[0].GetSelective() }

// outboundPolicy is that of the source's Sidecar, else the mesh's. A scope that has not arrived allows nothing.
func outboundPolicy(q PathQuery) settings.OutboundPolicy {
	scope, ok := q.Snapshot.ScopeOf(q.Source)
	if !ok {
		return settings.OutboundPolicy_REGISTRY_ONLY
	}
	return View{Scope: scope}.OutboundPolicy(q.Snapshot.Mesh())
}

// outboundBlocked reports whether the destination is in no registry, or not seen, and may not be reached for that.
func outboundBlocked(q PathQuery) bool {
	return q.Destination == nil && q.Service == nil && outboundPolicy(q) == settings.OutboundPolicy_REGISTRY_ONLY
}

// takesTunnel reports whether mutual TLS of the mesh, or what stands for it on one node, ends at the destination's port.
func takesTunnel(q PathQuery) bool {
	dst := q.Destination
	return dst != nil && (q.Local || dst.GetTunnelProtocol() == workloadapi.TunnelProtocol_HBONE) &&
		MtlsMode(dst, q.Address.Port()) != settings.MtlsMode_MTLS_DISABLE
}

func tunnel(q PathQuery, p Path, why string) Path {
	p.Kind, p.Reason, p.TunnelPort = Tunnel, why, TunnelPort(p.Destination)
	p.ServerIdentities = serverIdentities(q.Snapshot.Mesh(), p.Destination.Identity)
	return p
}

// TunnelPort is the port of a workload's in-pod tunnel listener.
func TunnelPort(w *client.Workload) uint16 {
	if p := w.Settings.GetTunnelPort(); p != 0 {
		return uint16(p)
	}
	return api.PortTunnel
}

// MtlsMode is the PeerAuthentication mode of one port of a workload.
func MtlsMode(w *client.Workload, port uint16) settings.MtlsMode {
	if m, ok := w.Settings.GetPortMtls()[uint32(port)]; ok {
		return m
	}
	return w.Settings.GetMtls()
}

// meshPort reports whether the port is one of the listeners that the mesh keeps in an enrolled pod.
func meshPort(w *client.Workload, port uint16) bool {
	return port == api.PortOutbound || port == api.PortInbound || port == api.PortTunnel || port == TunnelPort(w)
}

// sameNode takes the destination's setting, else the source's, else the mesh's.
func sameNode(q PathQuery) settings.SameNode {
	for _, s := range []settings.SameNode{
		q.Destination.Settings.GetSameNode(), q.Source.Settings.GetSameNode(), q.Snapshot.Mesh().GetSameNode(),
	} {
		if s != settings.SameNode_SAME_NODE_AUTO {
			return s
		}
	}
	return settings.SameNode_SAME_NODE_AUTO
}

// SameAccount reports whether two identities are one account: equal, or differing in the trust domain only, where both are
// the mesh's own or an alias of it. While a trust domain changes peers hear of it one after the other (MT-23).
func SameAccount(mesh *settings.MeshSettings, a, b api.Identity) bool {
	return slices.Contains(serverIdentities(mesh, a), b)
}

func serverIdentities(mesh *settings.MeshSettings, id api.Identity) []api.Identity {
	out := []api.Identity{id}
	bundle := append([]string{mesh.GetTrustDomain()}, mesh.GetTrustDomainAliases()...)
	if !slices.Contains(bundle, id.TrustDomain) {
		return out
	}
	for _, td := range bundle {
		alias := id
		alias.TrustDomain = td
		if !slices.Contains(out, alias) {
			out = append(out, alias)
		}
	}
	return out
}
