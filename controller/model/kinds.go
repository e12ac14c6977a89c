package model

import "slices"

// Kinds of the mesh's APIs. A kind that two API groups have carries its group's name.
const (
	KindVirtualService        Kind = "VirtualService"
	KindDestinationRule       Kind = "DestinationRule"
	KindGateway               Kind = "Gateway" // networking.istio.io
	KindServiceEntry          Kind = "ServiceEntry"
	KindWorkloadEntry         Kind = "WorkloadEntry"
	KindWorkloadGroup         Kind = "WorkloadGroup"
	KindSidecar               Kind = "Sidecar"
	KindEnvoyFilter           Kind = "EnvoyFilter"
	KindProxyConfig           Kind = "ProxyConfig"
	KindRequestAuthentication Kind = "RequestAuthentication"
	KindTelemetry             Kind = "Telemetry"
	KindWasmPlugin            Kind = "WasmPlugin"
	KindTrafficExtension      Kind = "TrafficExtension"

	KindGatewayClass     Kind = "GatewayClass"
	KindKubeGateway      Kind = "Gateway.gateway.networking.k8s.io"
	KindListenerSet      Kind = "ListenerSet"
	KindHTTPRoute        Kind = "HTTPRoute"
	KindGRPCRoute        Kind = "GRPCRoute"
	KindTCPRoute         Kind = "TCPRoute"
	KindTLSRoute         Kind = "TLSRoute"
	KindUDPRoute         Kind = "UDPRoute"
	KindReferenceGrant   Kind = "ReferenceGrant"
	KindBackendTLSPolicy Kind = "BackendTLSPolicy"
	KindIngress          Kind = "Ingress"
	KindIngressClass     Kind = "IngressClass"
)

// API groups of the mesh's kinds.
const (
	GroupNetworking = "networking.istio.io"
	GroupSecurity   = "security.istio.io"
	GroupTelemetry  = "telemetry.istio.io"
	GroupExtensions = "extensions.istio.io"
	GroupGatewayAPI = "gateway.networking.k8s.io"
	GroupIngress    = "networking.k8s.io"
)

// Resource says how an API server names a kind.
type Resource struct {
	Kind     Kind
	Group    string
	APIKind  string   // as objects write it
	Plural   string   // in URLs
	Versions []string // that are understood, the preferred one first
	Cluster  bool     // its objects have no namespace
}

// Resources returns the kinds that an API server may or may not serve, because somebody has to install their definitions.
func Resources() []Resource { return slices.Clone(resources) }

// ResourceOf finds the resource of a kind; ok is false for kinds that every API server has.
func ResourceOf(k Kind) (r Resource, ok bool) {
	i := slices.IndexFunc(resources, func(r Resource) bool { return r.Kind == k })
	if i < 0 {
		return Resource{}, false
	}
	return resources[i], true
}

var (
	threeVersions = []string{"v1", "v1beta1", "v1alpha3"}
	twoVersions   = []string{"v1", "v1beta1"}
	routeVersions = []string{"v1", "v1alpha3", "v1alpha2"}

	resources = []Resource{
		{KindVirtualService, GroupNetworking, "VirtualService", "virtualservices", threeVersions, false},
		{KindDestinationRule, GroupNetworking, "DestinationRule", "destinationrules", threeVersions, false},
		{KindGateway, GroupNetworking, "Gateway", "gateways", threeVersions, false},
		{KindServiceEntry, GroupNetworking, "ServiceEntry", "serviceentries", threeVersions, false},
		{KindWorkloadEntry, GroupNetworking, "WorkloadEntry", "workloadentries", threeVersions, false},
		{KindWorkloadGroup, GroupNetworking, "WorkloadGroup", "workloadgroups", threeVersions, false},
		{KindSidecar, GroupNetworking, "Sidecar", "sidecars", threeVersions, false},
		{KindEnvoyFilter, GroupNetworking, "EnvoyFilter", "envoyfilters", []string{"v1alpha3"}, false},
		{KindProxyConfig, GroupNetworking, "ProxyConfig", "proxyconfigs", []string{"v1beta1"}, false},
		{KindPeerAuthentication, GroupSecurity, "PeerAuthentication", "peerauthentications", twoVersions, false},
		{KindRequestAuthentication, GroupSecurity, "RequestAuthentication", "requestauthentications", twoVersions, false},
		{KindAuthorizationPolicy, GroupSecurity, "AuthorizationPolicy", "authorizationpolicies", twoVersions, false},
		{KindTelemetry, GroupTelemetry, "Telemetry", "telemetries", []string{"v1", "v1alpha1"}, false},
		{KindWasmPlugin, GroupExtensions, "WasmPlugin", "wasmplugins", []string{"v1alpha1"}, false},
		{KindTrafficExtension, GroupExtensions, "TrafficExtension", "trafficextensions", []string{"v1alpha1"}, false},
		{KindGatewayClass, GroupGatewayAPI, "GatewayClass", "gatewayclasses", twoVersions, true},
		{KindKubeGateway, GroupGatewayAPI, "Gateway", "gateways", twoVersions, false},
		{KindListenerSet, GroupGatewayAPI, "ListenerSet", "listenersets", []string{"v1"}, false},
		{KindHTTPRoute, GroupGatewayAPI, "HTTPRoute", "httproutes", twoVersions, false},
		{KindGRPCRoute, GroupGatewayAPI, "GRPCRoute", "grpcroutes", routeVersions, false},
		{KindTCPRoute, GroupGatewayAPI, "TCPRoute", "tcproutes", routeVersions, false},
		{KindTLSRoute, GroupGatewayAPI, "TLSRoute", "tlsroutes", routeVersions, false},
		{KindUDPRoute, GroupGatewayAPI, "UDPRoute", "udproutes", routeVersions, false},
		{KindReferenceGrant, GroupGatewayAPI, "ReferenceGrant", "referencegrants", twoVersions, false},
		{KindBackendTLSPolicy, GroupGatewayAPI, "BackendTLSPolicy", "backendtlspolicies", []string{"v1", "v1alpha3"}, false},
		{KindIngress, GroupIngress, "Ingress", "ingresses", []string{"v1"}, false},
		{KindIngressClass, GroupIngress, "IngressClass", "ingressclasses", []string{"v1"}, true},
	}
)

// GatewayController is what a GatewayClass names to be the mesh's.
const GatewayController = "istio.io/gateway-controller"
