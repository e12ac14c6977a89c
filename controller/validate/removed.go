package validate

import (
	"strings"

	kschema "k8s.io/apimachinery/pkg/runtime/schema"
)

// removed says what became of a kind.
type removed struct{ message, instead string }

// removedKinds are kinds of removed API versions, by GROUP/VERSION KIND, GROUP/VERSION or GROUP.
var removedKinds = map[string]removed{
	"config.istio.io": {"was removed in Istio 1.6 with Mixer", "write an AuthorizationPolicy for checks and a Telemetry for reports"},
	"authentication.istio.io/v1alpha1 MeshPolicy": {"was removed in Istio 1.6",
		"write a security.istio.io/v1 PeerAuthentication named default in the root namespace, with spec.mtls.mode"},
	"authentication.istio.io": {"was removed in Istio 1.6",
		"peers: write a security.istio.io/v1 PeerAuthentication (spec.mtls.mode, portLevelMtls for one port); origins: a RequestAuthentication with an AuthorizationPolicy"},
	"rbac.istio.io/v1alpha1 RbacConfig": {"was removed in Istio 1.6",
		"write a security.istio.io/v1 AuthorizationPolicy with an empty spec in each namespace that it named: it refuses what no other policy allows"},
	"rbac.istio.io/v1alpha1 ClusterRbacConfig": {"was removed in Istio 1.6",
		"write a security.istio.io/v1 AuthorizationPolicy with an empty spec in the root namespace"},
	"rbac.istio.io": {"was removed in Istio 1.6",
		"write a security.istio.io/v1 AuthorizationPolicy: services become its selector, methods and paths to.operation, subjects from.source"},
	"networking.x-k8s.io": {"was replaced by gateway.networking.k8s.io/v1",
		"controller is controllerName, routes is allowedRoutes, gateways is parentRefs, forwardTo is backendRefs, Prefix is PathPrefix, and add is a list of name and value"},
	"networking.k8s.io/v1beta1 Ingress": {"was removed in Kubernetes 1.22",
		"write networking.k8s.io/v1: serviceName is service.name, servicePort is service.port.number, and pathType is required"},
	"networking.k8s.io/v1beta1 IngressClass": {"was removed in Kubernetes 1.22", "write networking.k8s.io/v1"},
	"extensions/v1beta1":                     {"was removed in Kubernetes 1.22", "write networking.k8s.io/v1 for Ingress and NetworkPolicy, apps/v1 for workloads"},
	"apps/v1beta1":                           {"was removed in Kubernetes 1.16", "write apps/v1"},
	"apps/v1beta2":                           {"was removed in Kubernetes 1.16", "write apps/v1"},
	"policy/v1beta1":                         {"was removed in Kubernetes 1.25", "write policy/v1"},
	"batch/v1beta1":                          {"was removed in Kubernetes 1.25", "write batch/v1"},
	"autoscaling/v2beta1":                    {"was removed in Kubernetes 1.25", "write autoscaling/v2"},
	"autoscaling/v2beta2":                    {"was removed in Kubernetes 1.26", "write autoscaling/v2"},
	"rbac.authorization.k8s.io/v1beta1":      {"was removed in Kubernetes 1.22", "write rbac.authorization.k8s.io/v1"},
	"apiextensions.k8s.io/v1beta1":           {"was removed in Kubernetes 1.22", "write apiextensions.k8s.io/v1"},
}

// removedKind says what became of a kind; false when nothing happened to it.
func removedKind(gvk kschema.GroupVersionKind) (removed, bool) {
	version := strings.TrimPrefix(gvk.GroupVersion().String(), "/")
	for _, key := range []string{version + " " + gvk.Kind, version, gvk.Group} {
		if r, ok := removedKinds[key]; ok && key != "" {
			return r, true
		}
	}
	return removed{}, false
}

// removedValues are values that a cluster does not take any more, wherever they are written.
var removedValues = map[string]string{
	"kubernetes.io/legacy-unknown": "cannot sign with certificates.k8s.io/v1: it was removed in Kubernetes 1.22",
}
