package api

import "strconv"

// Further resource types of the delta ADS stream, served on demand: a client that does not subscribe to them pays nothing.
const (
	ClusterType = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	RouteType   = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	ScopeType   = "type.googleapis.com/undermesh.v1.Scope"
)

// Clusters that stand for no service, by Istio's names.
const (
	PassthroughCluster = "PassthroughCluster" // to the address that was dialled
	BlackHoleCluster   = "BlackHoleCluster"   // nowhere
)

// ClusterName is Istio's name of the cluster of a service's port; subset is "" for all of its endpoints.
func ClusterName(port uint32, subset, host string) string {
	return "outbound|" + strconv.Itoa(int(port)) + "|" + subset + "|" + host
}

// RouteName names the shared RouteConfiguration of a host, which is in full, and a port.
func RouteName(port uint32, host string) string { return strconv.Itoa(int(port)) + "/" + host }
