package api

import (
	"strconv"
	"strings"
)

// Resource types that nodes compose for themselves; over the delta ADS stream they go to a real Envoy alone.
const (
	ClusterType = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	RouteType   = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
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

// Framing reports whether a field of HTTP, in lower case, is about the connection or the end of the body (RFC 9110 §7.6.1): rules
// cannot change one, for it would not say what is sent, and the next reader would take the body for another message.
func Framing(field string) bool {
	switch field {
	case "content-length", "transfer-encoding", "connection", "upgrade", "keep-alive", "proxy-connection", "te", "trailer", "http2-settings":
		return true
	}
	return false
}

// ClusterName is Istio's name of the cluster of a service's port; subset is "" for all of its endpoints.
func ClusterName(port uint32, subset, host string) string {
	return "outbound|" + strconv.Itoa(int(port)) + "|" + subset + "|" + host
}
