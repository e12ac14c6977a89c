// Package reason is the registry of why the mesh refused, dropped or ended a connection. Every denial site names one of
// these; the same number appears in the kernel's decision records, the connection log, metric labels and explain.
// Numbers are stable: never reuse one.
package reason

import "strconv"

// Reason identifies one cause. Kernel reasons are below 64 and equal enum mesh_reason of bpf/include/mesh.h.
type Reason uint16

// Kernel reasons (layer "kernel").
const (
	None             Reason = 0  // nothing was refused
	ListenerMissing  Reason = 1  // no process serves the pod's listener
	ConfigMissing    Reason = 2  // the pod's configuration is not there
	LoopPort         Reason = 3  // a connection to one of the mesh's own in-pod ports
	AssignFailed     Reason = 4  // the kernel refused to hand the connection to the listener
	FlowBudget       Reason = 5  // the pod has too many handshakes under way
	StorageExhausted Reason = 6  // no memory for the socket's note
	MarkFailed       Reason = 7  // the capture mark could not be set or cleared
	BoundDevice      Reason = 8  // bound to a device, and this kernel cannot undo that
	FlowTableFull    Reason = 9  // the node has too many handshakes under way
	ProbePayload     Reason = 10 // kubelet sent to a probe's port what no declared probe sends
)

// Proxy reasons (layer "proxy").
const (
	PolicyDenied        Reason = 64 // a DENY policy matched
	PolicyNotAllowed    Reason = 65 // ALLOW policies exist and none matched
	PolicyUnenforceable Reason = 66 // a policy that this build cannot enforce
	StrictMTLS          Reason = 67 // plain text to a STRICT port
	NotReady            Reason = 68 // no snapshot of the mesh yet
	NoIdentity          Reason = 69 // no certificate for the workload within the time limit
	PeerIdentity        Reason = 70 // the peer's certificate names an unexpected identity
	TLSHandshake        Reason = 71 // the handshake with the peer failed
	NoEndpoint          Reason = 72 // the service has no usable endpoint
	UpstreamConnect     Reason = 73 // the destination refused, or did not answer
	UpstreamReset       Reason = 74 // the destination reset the connection
	DownstreamReset     Reason = 75 // the client reset the connection
	UnknownPod          Reason = 76 // the destination is not a pod of this node
	AuthorityMismatch   Reason = 77 // CONNECT to an address that is not this pod's
	BadRequest          Reason = 78 // not a CONNECT, or a malformed one
	MeshPort            Reason = 79 // a connection to one of the mesh's own ports
	ProbeNotDeclared    Reason = 80 // kubelet asked for what the pod spec does not declare
	PolicyChanged       Reason = 81 // a live connection is no longer allowed
	PodRemoved          Reason = 82 // the pod left the mesh or the node
	Draining            Reason = 83 // the proxy shut down
	OutboundBlocked     Reason = 84 // REGISTRY_ONLY and the destination is in no registry
	TunnelRejected      Reason = 85 // the destination's proxy answered CONNECT with an error
	Overload            Reason = 86 // a limit of this node was reached
	Internal            Reason = 87 // a defect of ours; the connection was closed
	Loop                Reason = 88 // the proxy was given a connection that it had made itself
	ClientTLS           Reason = 89 // the caller's DestinationRule asks for TLS that cannot be had
	ConnectionAge       Reason = 90 // the caller's DestinationRule lets no connection last longer
	ConnectionIdle      Reason = 91 // nothing was carried for as long as the caller's DestinationRule waits
)

type entry struct{ name, flag string }

var registry = map[Reason]entry{
	None:                {"none", "-"},
	ListenerMissing:     {"listener_missing", "NETWORK_POLICY"},
	ConfigMissing:       {"config_missing", "NETWORK_POLICY"},
	LoopPort:            {"loop_port", "DENY"},
	AssignFailed:        {"assign_failed", "NETWORK_POLICY"},
	FlowBudget:          {"flow_budget", "-"},
	StorageExhausted:    {"storage_exhausted", "DENY"},
	MarkFailed:          {"mark_failed", "DENY"},
	BoundDevice:         {"bound_device", "DENY"},
	FlowTableFull:       {"flow_table_full", "-"},
	ProbePayload:        {"probe_payload", "DENY"},
	PolicyDenied:        {"policy_denied", "DENY"},
	PolicyNotAllowed:    {"policy_not_allowed", "DENY"},
	PolicyUnenforceable: {"policy_unenforceable", "DENY"},
	StrictMTLS:          {"strict_mtls", "DENY"},
	NotReady:            {"not_ready", "DENY"},
	NoIdentity:          {"no_identity", "IDENTITY_ERROR"},
	PeerIdentity:        {"peer_identity", "TLS_FAILURE"},
	TLSHandshake:        {"tls_handshake", "TLS_FAILURE"},
	NoEndpoint:          {"no_endpoint", "CONNECT"},
	UpstreamConnect:     {"upstream_connect", "CONNECT"},
	UpstreamReset:       {"upstream_reset", "-"},
	DownstreamReset:     {"downstream_reset", "-"},
	UnknownPod:          {"unknown_pod", "DENY"},
	AuthorityMismatch:   {"authority_mismatch", "DENY"},
	BadRequest:          {"bad_request", "DENY"},
	MeshPort:            {"mesh_port", "DENY"},
	ProbeNotDeclared:    {"probe_not_declared", "DENY"},
	PolicyChanged:       {"policy_changed", "DENY"},
	PodRemoved:          {"pod_removed", "-"},
	Draining:            {"draining", "-"},
	OutboundBlocked:     {"outbound_blocked", "DENY"},
	TunnelRejected:      {"tunnel_rejected", "H2_HANDSHAKE_FAILURE"},
	Overload:            {"overload", "DENY"},
	Internal:            {"internal", "-"},
	Loop:                {"loop", "DENY"},
	ClientTLS:           {"client_tls", "TLS_FAILURE"},
	ConnectionAge:       {"connection_age", "-"},
	ConnectionIdle:      {"connection_idle", "-"},
}

// String is the name used in logs, metric labels and explain; "reason_N" for a number that this build does not know.
func (r Reason) String() string {
	if e, ok := registry[r]; ok {
		return e.name
	}
	return "reason_" + strconv.Itoa(int(r))
}

// Flag is the value of the metric label response_flags, as Istio's ztunnel spells it; "-" when there is none.
func (r Reason) Flag() string {
	if e, ok := registry[r]; ok {
		return e.flag
	}
	return "-"
}

// Kernel reports whether the kernel side records this reason.
func (r Reason) Kernel() bool { return r != None && r < 64 }

// All lists every registered reason, in no order.
func All() []Reason {
	all := make([]Reason, 0, len(registry))
	for r := range registry {
		all = append(all, r)
	}
	return all
}
