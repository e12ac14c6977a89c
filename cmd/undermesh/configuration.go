package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/undermesh/undermesh/controller/api"
)

// configurationKinds are what the mesh reads of a cluster, by API group.
var configurationKinds = map[string][]string{
	"":                          {"Service", "Pod", "Namespace"},
	"apps":                      {"Deployment", "StatefulSet", "DaemonSet"},
	"networking.k8s.io":         {"Ingress", "IngressClass"},
	"networking.istio.io":       {"VirtualService", "DestinationRule", "Gateway", "ServiceEntry", "Sidecar", "WorkloadEntry", "WorkloadGroup", "EnvoyFilter", "ProxyConfig"},
	"security.istio.io":         {"AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication"},
	"telemetry.istio.io":        {"Telemetry"},
	"extensions.istio.io":       {"WasmPlugin", "TrafficExtension"},
	"gateway.networking.k8s.io": {"GatewayClass", "Gateway", "ListenerSet", "HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute", "UDPRoute", "ReferenceGrant", "BackendTLSPolicy"},
}

// page is how many objects are asked for at once.
const page = 500

// configuration lists the objects of all namespaces that the mesh reads, as JSON. Kinds that the cluster does not serve have
// none; those that may not be listed are in unread, as validate.SetConfig has them.
func (c *cluster) configuration(ctx context.Context, root string) (objects [][]byte, unread []string, err error) {
	for _, group := range slices.Sorted(maps.Keys(configurationKinds)) {
		for _, kind := range configurationKinds[group] {
			m, err := c.mapper.RESTMapping(schema.GroupKind{Group: group, Kind: kind})
			if meta.IsNoMatchError(err) {
				continue
			}
			if err != nil {
				return nil, nil, fmt.Errorf("ask API server for kind %s: %w", kind, err)
			}
			more, err := c.listed(ctx, m.Resource)
			switch {
			case apierrors.IsForbidden(err):
				unread = append(unread, strings.TrimPrefix(group+"/"+kind, "/"))
			case err != nil:
				return nil, nil, fmt.Errorf("list %s: %w", m.Resource.Resource, err)
			}
			objects = append(objects, more...)
		}
	}
	secrets, err := c.secretNames(ctx)
	switch {
	case apierrors.IsForbidden(err):
		unread = append(unread, "Secret")
	case err != nil:
		return nil, nil, fmt.Errorf("list secrets: %w", err)
	}
	own, err := c.listedWith(ctx, corev1.SchemeGroupVersion.WithResource("configmaps"), root,
		metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, api.MeshConfigMap).String()})
	if err != nil && !apierrors.IsForbidden(err) {
		return nil, nil, fmt.Errorf("read config map %s/%s: %w", root, api.MeshConfigMap, err)
	}
	return slices.Concat(objects, secrets, own), unread, nil
}

func (c *cluster) listed(ctx context.Context, r schema.GroupVersionResource) ([][]byte, error) {
	return c.listedWith(ctx, r, metav1.NamespaceAll, metav1.ListOptions{})
}

func (c *cluster) listedWith(ctx context.Context, r schema.GroupVersionResource, namespace string, opts metav1.ListOptions) ([][]byte, error) {
	var out [][]byte
	for opts.Limit = page; ; {
		list, err := c.dynamic.Resource(r).Namespace(namespace).List(ctx, opts)
		if err != nil {
			return nil, err
		}
		for i := range list.Items {
			text, err := stripped(list.Items[i].Object)
			if err != nil {
				return nil, err
			}
			out = append(out, text)
		}
		if opts.Continue = list.GetContinue(); opts.Continue == "" {
			return out, nil
		}
	}
}

// secretNames lists secrets without asking for their content.
func (c *cluster) secretNames(ctx context.Context) ([][]byte, error) {
	var out [][]byte
	for opts := (metav1.ListOptions{Limit: page}); ; {
		list, err := c.names.Resource(corev1.SchemeGroupVersion.WithResource("secrets")).Namespace(metav1.NamespaceAll).List(ctx, opts)
		if err != nil {
			return nil, err
		}
		for i := range list.Items {
			text, err := stripped(map[string]any{"apiVersion": "v1", "kind": "Secret",
				"metadata": map[string]any{"name": list.Items[i].Name, "namespace": list.Items[i].Namespace}})
			if err != nil {
				return nil, err
			}
			out = append(out, text)
		}
		if opts.Continue = list.GetContinue(); opts.Continue == "" {
			return out, nil
		}
	}
}
