package api

import (
	"strconv"
	"strings"
)

// Further resource types of the delta ADS stream, served on demand: a client that does not subscribe to them pays nothing.
const (
	ClusterType = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	RouteType   = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	ScopeType   = "type.googleapis.com/undermesh.v1.Scope"
)

// Where a route or a cluster says which rule of the user it is of: the same place as Istio's.
const (
	RuleMetadata = "istio"  // key of filter_metadata
	RuleField    = "config" // in it, as RulePath writes it
)

const rulePath = "/apis/networking.istio.io/v1/namespaces/"

// RulePath names an object of the networking API; kind is "virtual-service" or "destination-rule".
func RulePath(namespace, kind, name string) string {
	return rulePath + namespace + "/" + kind + "/" + name
}

// RuleOf reads what RulePath wrote; ok is false for another text or kind.
func RuleOf(path, kind string) (namespace, name string, ok bool) {
	rest, ok := strings.CutPrefix(path, rulePath)
	namespace, name, is := strings.Cut(rest, "/"+kind+"/")
	return namespace, name, ok && is
}

// Clusters that stand for no service, by Istio's names.
const (
	PassthroughCluster = "PassthroughCluster" // to the address that was dialled
	BlackHoleCluster   = "BlackHoleCluster"   // nowhere
)

// ClusterName is Istio's name of the cluster of a service's port; subset is "" for all of its endpoints.
func ClusterName(port uint32, subset, host string) string {
	return "outbound|" + strconv.Itoa(int(port)) + "|" + subset + "|" + host
}

// ClusterKey names the resource of a cluster: its name, and in front of it the namespace where the host does not tell it,
// because several namespaces may declare one external host.
func ClusterKey(namespace string, port uint32, subset, host string) string {
	if tellsNamespace(namespace, host) {
		return ClusterName(port, subset, host)
	}
	return namespace + "/" + ClusterName(port, subset, host)
}

// RouteKey names the shared RouteConfiguration of a port of a service of the namespace; the host is in full.
func RouteKey(namespace string, port uint32, host string) string {
	if !tellsNamespace(namespace, host) {
		host = namespace + "/" + host
	}
	return strconv.Itoa(int(port)) + "/" + host
}

// tellsNamespace reports whether the host is of the form of a Kubernetes service of the namespace.
func tellsNamespace(namespace, host string) bool {
	_, rest, _ := strings.Cut(host, ".")
	return strings.HasPrefix(rest, namespace+".svc.")
}
