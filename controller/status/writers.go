package status

import (
	"context"
	"encoding/json"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/undermesh/undermesh/controller/configdir"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/validate"
	"github.com/undermesh/undermesh/ztunnel/clock"
)

const (
	writerName = "controller"
	// fieldManager owns what this package writes: other managers' fields of a status are not touched.
	fieldManager = "istiod-status"
)

// Directory writes statuses into the overlay directory below Dir.
type Directory struct{ Dir string }

// Write implements Writer.
func (d Directory) Write(_ context.Context, s validate.Status, _ map[string]any) (bool, error) {
	r, ok := model.ResourceOf(model.Kind(s.Kind))
	if !ok {
		return false, fmt.Errorf("write status of %s: not a kind of the mesh", s.Key())
	}
	k := configdir.Key{Group: r.Group, Kind: r.APIKind, Namespace: s.Namespace, Name: s.Name}
	if s.Gone {
		return true, configdir.RemoveOverlay(d.Dir, writerName, k)
	}
	var list []any
	for _, c := range conditionsOf(s) {
		list = append(list, map[string]any{"type": c.name, "status": c.status, "reason": c.reason, "message": c.message})
	}
	return true, configdir.WriteOverlay(d.Dir, writerName, configdir.Overlay{APIVersion: r.Group + "/" + r.Versions[0], Key: k,
		Status: map[string]any{"conditions": list}})
}

// Kubernetes writes the status subresource of the objects.
type Kubernetes struct {
	Client dynamic.Interface
	Clock  clock.Clock
}

// Write implements Writer.
func (k Kubernetes) Write(ctx context.Context, s validate.Status, now map[string]any) (bool, error) {
	r, ok := model.ResourceOf(model.Kind(s.Kind))
	switch {
	case !ok:
		return false, fmt.Errorf("write status of %s: not a kind of the mesh", s.Key())
	case s.Gone:
		return false, nil
	case isRoute(r.Kind):
		return k.route(ctx, r, s, now)
	}
	list, changed := render(s, byType(now["conditions"]), k.Clock.Now())
	if !changed {
		return false, nil
	}
	status := map[string]any{"conditions": list}
	if r.Group != model.GroupGatewayAPI {
		status["observedGeneration"] = s.Generation
		if messages := validationMessages(s); messages != nil {
			status["validationMessages"] = messages
		}
	}
	return true, k.each(r, s, func(client dynamic.ResourceInterface, version string) error {
		meta := map[string]any{"name": s.Name}
		if !r.Cluster {
			meta["namespace"] = s.Namespace
		}
		o := &unstructured.Unstructured{Object: map[string]any{"apiVersion": r.Group + "/" + version, "kind": r.APIKind,
			"metadata": meta, "status": status}}
		_, err := client.ApplyStatus(ctx, s.Name, o, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
		return err
	})
}

func isRoute(k model.Kind) bool {
	switch k {
	case model.KindHTTPRoute, model.KindGRPCRoute, model.KindTCPRoute, model.KindTLSRoute, model.KindUDPRoute:
		return true
	}
	return false
}

// each calls f for the versions of the kind until one is served. An object that is gone is no error.
func (k Kubernetes) each(r model.Resource, s validate.Status, f func(dynamic.ResourceInterface, string) error) error {
	for _, v := range r.Versions {
		client := k.Client.Resource(schema.GroupVersionResource{Group: r.Group, Version: v, Resource: r.Plural})
		err := error(nil)
		if r.Cluster {
			err = f(client, v)
		} else {
			err = f(client.Namespace(s.Namespace), v)
		}
		if apierrors.IsNotFound(err) { // the version, or the object
			continue
		}
		if err != nil {
			return fmt.Errorf("write status of %s: %w", s.Key(), err)
		}
		return nil
	}
	return nil
}

// route writes under the parents of a route. Their list has several writers and no owner of single items: it is read before
// it is written, and written only if nobody else did meanwhile.
func (k Kubernetes) route(ctx context.Context, r model.Resource, s validate.Status, now map[string]any) (bool, error) {
	if _, changed, err := routeParents(s, now, k.Clock.Now()); err != nil || !changed {
		return false, err
	}
	return true, k.each(r, s, func(client dynamic.ResourceInterface, _ string) error {
		u, err := client.Get(ctx, s.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		status, _ := u.Object["status"].(map[string]any)
		list, changed, err := routeParents(s, status, k.Clock.Now())
		if err != nil || !changed {
			return err
		}
		if list == nil {
			list = []any{}
		}
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"resourceVersion": u.GetResourceVersion()},
			"status": map[string]any{"parents": list}})
		if err != nil {
			return err
		}
		_, err = client.Patch(ctx, s.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: fieldManager}, "status")
		return err
	})
}
