package watch

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	extensionsv1alpha1 "istio.io/client-go/pkg/apis/extensions/v1alpha1"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	networkingv1alpha3 "istio.io/client-go/pkg/apis/networking/v1alpha3"
	networkingv1beta1 "istio.io/client-go/pkg/apis/networking/v1beta1"
	securityv1 "istio.io/client-go/pkg/apis/security/v1"
	telemetryv1 "istio.io/client-go/pkg/apis/telemetry/v1"
	ingressv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiwatch "k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/undermesh/undermesh/controller/configdir"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/validate"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

// empties make the typed objects of the kinds that may be missing at an API server.
var empties = map[model.Kind]func() metav1.Object{
	model.KindVirtualService:        func() metav1.Object { return &networkingv1.VirtualService{} },
	model.KindDestinationRule:       func() metav1.Object { return &networkingv1.DestinationRule{} },
	model.KindGateway:               func() metav1.Object { return &networkingv1.Gateway{} },
	model.KindServiceEntry:          func() metav1.Object { return &networkingv1.ServiceEntry{} },
	model.KindWorkloadEntry:         func() metav1.Object { return &networkingv1.WorkloadEntry{} },
	model.KindWorkloadGroup:         func() metav1.Object { return &networkingv1.WorkloadGroup{} },
	model.KindSidecar:               func() metav1.Object { return &networkingv1.Sidecar{} },
	model.KindEnvoyFilter:           func() metav1.Object { return &networkingv1alpha3.EnvoyFilter{} },
	model.KindProxyConfig:           func() metav1.Object { return &networkingv1beta1.ProxyConfig{} },
	model.KindPeerAuthentication:    func() metav1.Object { return &securityv1.PeerAuthentication{} },
	model.KindRequestAuthentication: func() metav1.Object { return &securityv1.RequestAuthentication{} },
	model.KindAuthorizationPolicy:   func() metav1.Object { return &securityv1.AuthorizationPolicy{} },
	model.KindTelemetry:             func() metav1.Object { return &telemetryv1.Telemetry{} },
	model.KindWasmPlugin:            func() metav1.Object { return &extensionsv1alpha1.WasmPlugin{} },
	model.KindTrafficExtension:      func() metav1.Object { return &extensionsv1alpha1.TrafficExtension{} },
	model.KindGatewayClass:          func() metav1.Object { return &gatewayv1.GatewayClass{} },
	model.KindKubeGateway:           func() metav1.Object { return &gatewayv1.Gateway{} },
	model.KindListenerSet:           func() metav1.Object { return &gatewayv1.ListenerSet{} },
	model.KindHTTPRoute:             func() metav1.Object { return &gatewayv1.HTTPRoute{} },
	model.KindGRPCRoute:             func() metav1.Object { return &gatewayv1.GRPCRoute{} },
	model.KindTCPRoute:              func() metav1.Object { return &gatewayv1.TCPRoute{} },
	model.KindTLSRoute:              func() metav1.Object { return &gatewayv1.TLSRoute{} },
	model.KindUDPRoute:              func() metav1.Object { return &gatewayv1.UDPRoute{} },
	model.KindReferenceGrant:        func() metav1.Object { return &gatewayv1.ReferenceGrant{} },
	model.KindBackendTLSPolicy:      func() metav1.Object { return &gatewayv1.BackendTLSPolicy{} },
	model.KindIngress:               func() metav1.Object { return &ingressv1.Ingress{} },
	model.KindIngressClass:          func() metav1.Object { return &ingressv1.IngressClass{} },
}

// kindOfMesh maps an object of the mesh's APIs to its kind.
func kindOfMesh(o any) (kind model.Kind, ok bool) {
	switch o.(type) {
	case *networkingv1.VirtualService:
		return model.KindVirtualService, true
	case *networkingv1.DestinationRule:
		return model.KindDestinationRule, true
	case *networkingv1.Gateway:
		return model.KindGateway, true
	case *networkingv1.ServiceEntry:
		return model.KindServiceEntry, true
	case *networkingv1.WorkloadEntry:
		return model.KindWorkloadEntry, true
	case *networkingv1.WorkloadGroup:
		return model.KindWorkloadGroup, true
	case *networkingv1.Sidecar:
		return model.KindSidecar, true
	case *networkingv1alpha3.EnvoyFilter:
		return model.KindEnvoyFilter, true
	case *networkingv1beta1.ProxyConfig:
		return model.KindProxyConfig, true
	case *securityv1.PeerAuthentication:
		return model.KindPeerAuthentication, true
	case *securityv1.RequestAuthentication:
		return model.KindRequestAuthentication, true
	case *securityv1.AuthorizationPolicy:
		return model.KindAuthorizationPolicy, true
	case *telemetryv1.Telemetry:
		return model.KindTelemetry, true
	case *extensionsv1alpha1.WasmPlugin:
		return model.KindWasmPlugin, true
	case *extensionsv1alpha1.TrafficExtension:
		return model.KindTrafficExtension, true
	case *gatewayv1.GatewayClass:
		return model.KindGatewayClass, true
	case *gatewayv1.Gateway:
		return model.KindKubeGateway, true
	case *gatewayv1.ListenerSet:
		return model.KindListenerSet, true
	case *gatewayv1.HTTPRoute:
		return model.KindHTTPRoute, true
	case *gatewayv1.GRPCRoute:
		return model.KindGRPCRoute, true
	case *gatewayv1.TCPRoute:
		return model.KindTCPRoute, true
	case *gatewayv1.TLSRoute:
		return model.KindTLSRoute, true
	case *gatewayv1.UDPRoute:
		return model.KindUDPRoute, true
	case *gatewayv1.ReferenceGrant:
		return model.KindReferenceGrant, true
	case *gatewayv1.BackendTLSPolicy:
		return model.KindBackendTLSPolicy, true
	case *ingressv1.Ingress:
		return model.KindIngress, true
	case *ingressv1.IngressClass:
		return model.KindIngressClass, true
	}
	return "", false
}

// runKinds follows each kind once the API server serves it. The returned wait ends when every kind is
// absent or listed, or when ctx ends.
func (k *Kubernetes) runKinds(ctx context.Context, g *errgroup.Group) (wait func()) {
	known := make(chan struct{})
	g.Go(func() error {
		tell := sync.OnceFunc(func() { close(known) })
		defer tell()
		missing := model.Resources()
		for {
			served, err := k.discover(missing)
			if err != nil {
				k.cfg.Log.Warn("ask API server for kinds", "err", err)
			}
			var listed sync.WaitGroup
			for kind, gvr := range served {
				missing = slices.DeleteFunc(missing, func(r model.Resource) bool { return r.Kind == kind })
				listed.Add(1)
				k.runKind(ctx, g, kind, gvr, listed.Done)
			}
			if err == nil {
				listed.Wait()
				tell()
			}
			if len(missing) == 0 || !clock.Pause(ctx, k.cfg.Clock, k.cfg.CRDPoll) {
				return nil
			}
		}
	})
	return func() {
		select {
		case <-known:
		case <-ctx.Done():
		}
	}
}

// discover returns, of the wanted kinds, those that the API server serves, each in the best version. Kinds that were found
// before an error are returned with it.
func (k *Kubernetes) discover(wanted []model.Resource) (map[model.Kind]schema.GroupVersionResource, error) {
	groups, err := k.cfg.Client.Discovery().ServerGroups()
	if err != nil {
		return nil, fmt.Errorf("list API groups: %w", err)
	}
	lists := map[schema.GroupVersion]map[string]bool{} // of the versions that are served
	for _, group := range groups.Groups {
		for _, v := range group.Versions {
			lists[schema.GroupVersion{Group: group.Name, Version: v.Version}] = nil
		}
	}
	found := map[model.Kind]schema.GroupVersionResource{}
	for _, r := range wanted {
		for _, v := range r.Versions {
			gv := schema.GroupVersion{Group: r.Group, Version: v}
			names, served := lists[gv]
			if !served {
				continue
			}
			if names == nil {
				if names, err = k.resourcesOf(gv); err != nil {
					return found, err
				}
				lists[gv] = names
			}
			if names[r.Plural] {
				found[r.Kind] = gv.WithResource(r.Plural)
				break
			}
		}
	}
	return found, nil
}

func (k *Kubernetes) resourcesOf(gv schema.GroupVersion) (map[string]bool, error) {
	names := map[string]bool{}
	list, err := k.cfg.Client.Discovery().ServerResourcesForGroupVersion(gv.String())
	if apierrors.IsNotFound(err) { // it went since
		return names, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list resources of %s: %w", gv, err)
	}
	for _, r := range list.APIResources {
		names[r.Name] = true
	}
	return names, nil
}

// runKind lists and watches one kind until ctx ends. listed is called once the first list was taken in.
func (k *Kubernetes) runKind(ctx context.Context, g *errgroup.Group, kind model.Kind, gvr schema.GroupVersionResource, listed func()) {
	f := k.newFollow(kind, k.cfg.Dynamic, readAny(k.cfg.Dynamic.Resource(gvr)), nil, strip,
		func(o any) (model.Event, bool) {
			u, ok := o.(*unstructured.Unstructured)
			if !ok {
				return model.Event{}, false
			}
			return meshEvent(kind, u), true
		})
	k.start(ctx, g, f)
	g.Go(func() error {
		defer listed()
		select {
		case <-f.listed:
			k.cfg.Log.Debug("kind is watched", "kind", string(kind), "version", gvr.Version)
		case <-ctx.Done():
		}
		return nil
	})
}

// readAny lists and watches a kind of any type.
func readAny(c dynamic.ResourceInterface) reader {
	return reader{
		list:  func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return c.List(ctx, o) },
		watch: func(ctx context.Context, o metav1.ListOptions) (apiwatch.Interface, error) { return c.Watch(ctx, o) },
	}
}

// meshEvent decodes strictly: the API server may store fields that this build does not know, and a policy must not be
// enforced without them. What cannot be decoded is an object without a spec, with the reason.
func meshEvent(kind model.Kind, u *unstructured.Unstructured) model.Event {
	e := model.Event{Kind: kind, Name: nameOf(u.GetNamespace(), u.GetName())}
	if status, ok := u.Object["status"].(map[string]any); ok {
		e.Status = status
	}
	o := empties[kind]()
	if r, _ := model.ResourceOf(kind); r.Group == model.GroupGatewayAPI || r.Group == model.GroupIngress {
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, o); err != nil {
			o = empties[kind]()
			e.Issues = []validate.Field{{Path: "spec", Message: err.Error()}}
		}
	} else {
		raw := map[string]any{"apiVersion": u.GetAPIVersion(), "kind": u.GetKind(), "spec": u.Object["spec"], "status": u.Object["status"],
			"metadata": map[string]any{"name": u.GetName(), "namespace": u.GetNamespace()}}
		if entry, err := configdir.Decode(raw); err != nil {
			e.Issues = []validate.Field{{Path: "spec", Message: err.Error()}}
		} else {
			o, e.Issues = entry.Object, fieldsOf(entry.Issues)
		}
	}
	setMeta(o, u)
	e.Object = o
	return e
}

// setMeta copies what the mesh reads of the metadata.
func setMeta(o metav1.Object, u *unstructured.Unstructured) {
	o.SetName(u.GetName())
	o.SetNamespace(u.GetNamespace())
	o.SetUID(u.GetUID())
	o.SetLabels(u.GetLabels())
	o.SetAnnotations(u.GetAnnotations())
	o.SetGeneration(u.GetGeneration())
	o.SetCreationTimestamp(u.GetCreationTimestamp())
	o.SetManagedFields(nil)
}

// pollPeriod is how often the API server is asked for kinds that it does not serve yet.
const pollPeriod = 2 * time.Second
