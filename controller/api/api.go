// Package api is the contract between the controller, the nodes and the user: resource types and their names, labels,
// annotations, ports and identities. It is a leaf: everything may import it, it imports nothing of ours but its own
// sub-packages (generated protobuf and the reason registry).
package api

// Resource types of the delta ADS stream.
const (
	AddressType          = "type.googleapis.com/istio.workload.Address"
	AuthorizationType    = "type.googleapis.com/istio.security.Authorization"
	MeshSettingsType     = "type.googleapis.com/undermesh.v1.MeshSettings"
	WorkloadSettingsType = "type.googleapis.com/undermesh.v1.WorkloadSettings"
	CallRuleType         = "type.googleapis.com/undermesh.v1.CallRule"
	ScopeType            = "type.googleapis.com/undermesh.v1.Scope"
	RouteRuleType        = "type.googleapis.com/undermesh.v1.RouteRule"
	JWKSType             = "type.googleapis.com/undermesh.v1.JsonWebKeySet"
)

// Names under which our messages ride in the Extension lists of istio.workload resources.
const (
	WorkloadSettingsExtension = "undermesh.v1.WorkloadSettings" // Any of settings.SettingsRef
	WorkloadStateExtension    = "undermesh.v1.WorkloadState"    // Any of settings.WorkloadState
	ServiceSettingsExtension  = "undermesh.v1.ServiceSettings"  // Any of settings.ServiceSettings
)

// MeshSettingsName is the name of the one MeshSettings resource.
const MeshSettingsName = "mesh"

// StrictPolicyName is the policy that PeerAuthentication STRICT compiles to: it denies whoever has no principal.
const StrictPolicyName = "istio_converted_static_strict"

// Labels and annotations (capabilities SI-01…06, CN-07).
const (
	LabelInjection     = "istio-injection"         // namespace: enabled, disabled
	LabelPodInject     = "sidecar.istio.io/inject" // pod: "true", "false"
	LabelRevision      = "istio.io/rev"
	LabelDataplaneMode = "istio.io/dataplane-mode" // namespace or pod: ambient, none

	// AnnotationRedirection is written by the node agent when a pod's capture is complete; the controller derives the
	// tunnel protocol of a workload from it and from nothing else.
	AnnotationRedirection = "ambient.istio.io/redirection"
	RedirectionEnabled    = "enabled"

	AnnotationIncludeOutboundIPRanges = "traffic.sidecar.istio.io/includeOutboundIPRanges"
	AnnotationExcludeOutboundIPRanges = "traffic.sidecar.istio.io/excludeOutboundIPRanges"
	AnnotationIncludeOutboundPorts    = "traffic.sidecar.istio.io/includeOutboundPorts"
	AnnotationExcludeOutboundPorts    = "traffic.sidecar.istio.io/excludeOutboundPorts"
	AnnotationIncludeInboundPorts     = "traffic.sidecar.istio.io/includeInboundPorts"
	AnnotationExcludeInboundPorts     = "traffic.sidecar.istio.io/excludeInboundPorts"

	LabelCanonicalName     = "service.istio.io/canonical-name"
	LabelCanonicalRevision = "service.istio.io/canonical-revision"
	// LabelLocality of a pod says where it stands, "region.zone.subzone", instead of its node.
	LabelLocality = "istio-locality"
)

// Ports, as Istio's documents name them.
const (
	PortOutbound  = 15001 // in the pod
	PortInbound   = 15006 // in the pod
	PortTunnel    = 15008 // in the pod; HBONE
	PortAdmin     = 15000 // ztunnel, localhost
	PortStats     = 15020 // ztunnel: /metrics, /stats/prometheus
	PortReadiness = 15021 // ztunnel: /healthz/ready
	PortXDSPlain  = 15010 // controller, tests only
	PortXDS       = 15012 // controller: delta ADS and the CA over TLS
	PortDebug     = 15004 // controller, localhost: /debug
	PortMonitor   = 15014 // controller: metrics
	PortWebhook   = 15017 // controller: admission
)

// What our controller says in control_plane.identifier of a discovery response. A client that knows them publishes a state
// only with DiscoveryWhole, so that what changed together takes effect together; other controllers say something else.
const (
	DiscoveryWhole = "undermesh/whole" // the client holds one consistent state of the types that it subscribed to
	DiscoveryPart  = "undermesh/part"  // more follows that belongs to it
)

// DiscoveryParts in a client's Node.client_features says that it knows DiscoveryPart: only then a type's first answer may
// come in several responses. Other clients, Istio's ztunnel among them, take the first one for everything.
const DiscoveryParts = "undermesh/parts"

// DiscoveryShort in a client's Node.client_features says that it knows package short: resources that it follows by wildcard
// come without aliases and type URL, and without what their names say already.
const DiscoveryShort = "undermesh/short"

// DiscoverySeen in a client's Node.client_features says that it gives back what it has seen: control_plane.identifier of a
// response is then DiscoveryWhole or DiscoveryPart, a space, and a text of the controller's. The client repeats the newest of
// these texts in its Node.metadata under SeenMetadata when it connects again, to whichever replica.
const (
	DiscoverySeen = "undermesh/seen"
	SeenMetadata  = "UNDERMESH_SEEN"
)

// Names in the cluster that the documents' commands rely on (DESIGN §5).
const (
	DefaultRootNamespace = "istio-system"
	DefaultTrustDomain   = "cluster.local"
	DefaultClusterDomain = "cluster.local"
	DefaultClusterID     = "Kubernetes"
	ControllerName       = "istiod"
	AgentName            = "istio-cni-node"
	ZtunnelName          = "ztunnel"
	MeshConfigMap        = "istio"
	CASecret             = "istio-ca-secret"
	CAConfigMap          = "istio-ca-root-cert"
	TokenAudience        = "istio-ca"
)
