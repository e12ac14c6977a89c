package status

import (
	"context"
	"encoding/json"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/undermesh/undermesh/controller/configdir"
	"github.com/undermesh/undermesh/controller/model"
)

// addressWriterName tells the overlays with addresses from those with conditions.
const addressWriterName = "addresses"

func (a Assignment) list() []any {
	list := []any{} // not null: that is how the last one is taken away
	for _, h := range a.Addresses {
		list = append(list, map[string]any{"host": h.Host, "value": h.IP.String()})
	}
	return list
}

// WriteAddresses implements the Allocator's writer.
func (d Directory) WriteAddresses(_ context.Context, a Assignment) error {
	k := configdir.Key{Group: model.GroupNetworking, Kind: string(model.KindServiceEntry), Namespace: a.Name.Namespace, Name: a.Name.Name}
	if a.Gone || len(a.Addresses) == 0 {
		return configdir.RemoveOverlay(d.Dir, addressWriterName, k)
	}
	return configdir.WriteOverlay(d.Dir, addressWriterName, configdir.Overlay{APIVersion: model.GroupNetworking + "/v1", Key: k,
		Status: map[string]any{"addresses": a.list()}})
}

// WriteAddresses implements the Allocator's writer. The API server refuses it for another object of the same name.
func (k Kubernetes) WriteAddresses(ctx context.Context, a Assignment) error {
	if a.Gone {
		return nil
	}
	patch := map[string]any{"status": map[string]any{"addresses": a.list()}}
	if a.UID != "" {
		patch["metadata"] = map[string]any{"uid": a.UID}
	}
	data, err := json.Marshal(patch)
	if err != nil {
		return fmt.Errorf("encode addresses of %s: %w", a.Name, err)
	}
	r, _ := model.ResourceOf(model.KindServiceEntry)
	for _, version := range r.Versions {
		gvr := schema.GroupVersionResource{Group: r.Group, Version: version, Resource: r.Plural}
		_, err = k.Client.Resource(gvr).Namespace(a.Name.Namespace).Patch(ctx, a.Name.Name, types.MergePatchType, data,
			metav1.PatchOptions{FieldManager: "istiod"}, "status")
		if !apierrors.IsNotFound(err) { // also when the API server does not serve the version
			break
		}
	}
	switch {
	case apierrors.IsNotFound(err), apierrors.IsConflict(err) && a.UID != "": // removed since, or made anew
		return nil
	case err != nil:
		return fmt.Errorf("write addresses of %s: %w", a.Name, err)
	}
	return nil
}
