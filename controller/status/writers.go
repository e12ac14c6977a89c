package status

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

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
	group      = "security.istio.io"
	apiVersion = group + "/v1"
	writerName = "controller"
)

// Directory writes statuses into the overlay directory below Dir.
type Directory struct{ Dir string }

// Write implements the Manager's writer.
func (d Directory) Write(_ context.Context, s validate.Status) error {
	k := configdir.Key{Group: group, Kind: s.Kind, Namespace: s.Namespace, Name: s.Name}
	if s.Gone {
		return configdir.RemoveOverlay(d.Dir, writerName, k)
	}
	var list []any
	for _, c := range conditionsOf(s) {
		list = append(list, map[string]any{"type": c.name, "status": c.status, "reason": c.reason, "message": c.message})
	}
	return configdir.WriteOverlay(d.Dir, writerName, configdir.Overlay{APIVersion: apiVersion, Key: k,
		Status: map[string]any{"conditions": list}})
}

// Kubernetes writes the status subresource of the objects.
type Kubernetes struct {
	Client dynamic.Interface
	Clock  clock.Clock
}

var resources = map[string]string{
	string(model.KindPeerAuthentication):  "peerauthentications",
	string(model.KindAuthorizationPolicy): "authorizationpolicies",
}

// Write implements the Manager's writer. Conditions of other types are kept.
func (k Kubernetes) Write(ctx context.Context, s validate.Status) error {
	if s.Gone {
		return nil
	}
	gvr := schema.GroupVersionResource{Group: group, Version: "v1", Resource: resources[s.Kind]}
	client := k.Client.Resource(gvr).Namespace(s.Namespace)
	now, err := client.Get(ctx, s.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", s.Key(), err)
	}
	list, changed := k.merge(now, s)
	if !changed {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"status": map[string]any{
		"conditions": list, "observedGeneration": s.Generation}})
	if err != nil {
		return fmt.Errorf("encode status of %s: %w", s.Key(), err)
	}
	_, err = client.Patch(ctx, s.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: "istiod"}, "status")
	if apierrors.IsNotFound(err) { // removed since
		return nil
	}
	if err != nil {
		return fmt.Errorf("write status of %s: %w", s.Key(), err)
	}
	return nil
}

// merge returns the list of conditions as it should be and whether it differs from what the object has.
func (k Kubernetes) merge(u *unstructured.Unstructured, s validate.Status) (list []any, changed bool) {
	old, _, err := unstructured.NestedSlice(u.Object, "status", "conditions")
	if err != nil {
		old = nil // of a shape that is not ours: replaced
	}
	had := map[string]map[string]any{}
	for _, o := range old {
		m, ok := o.(map[string]any)
		name, _ := m["type"].(string)
		if !ok {
			continue
		}
		had[name] = m
		if name != ConditionAccepted && name != ConditionEnforced {
			list = append(list, m)
		}
	}
	for _, c := range conditionsOf(s) {
		m := map[string]any{"type": c.name, "status": c.status, "reason": c.reason, "message": c.message,
			"observedGeneration": s.Generation}
		before := had[c.name]
		m["lastTransitionTime"] = before["lastTransitionTime"]
		if before["status"] != c.status || m["lastTransitionTime"] == nil {
			m["lastTransitionTime"] = k.Clock.Now().UTC().Format(time.RFC3339)
		}
		for _, field := range []string{"status", "reason", "message", "observedGeneration"} {
			if fmt.Sprint(before[field]) != fmt.Sprint(m[field]) {
				changed = true
			}
		}
		list = append(list, m)
	}
	return list, changed
}
