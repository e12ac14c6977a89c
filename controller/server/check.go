package server

import (
	"encoding/json"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/validate"
)

// newCheck returns what "undermesh validate" finds in an object, for statuses. Only the leader asks, beside the serving.
func newCheck() (func(kind string, object metav1.Object) []validate.Finding, error) {
	catalogue, err := validate.NewCatalogue()
	if err != nil {
		return nil, fmt.Errorf("make checks of objects: %w", err)
	}
	return func(kind string, object metav1.Object) []validate.Finding {
		r, ok := model.ResourceOf(model.Kind(kind))
		if !ok {
			return nil
		}
		data, err := document(r, object)
		if err != nil {
			return []validate.Finding{{Severity: validate.Error, Kind: kind, Namespace: object.GetNamespace(), Name: object.GetName(),
				Message: err.Error()}}
		}
		return catalogue.Object(data)
	}, nil
}

// document is the object as a user would write it.
func document(r model.Resource, object metav1.Object) ([]byte, error) {
	data, err := json.Marshal(object)
	if err != nil {
		return nil, fmt.Errorf("encode object: %w", err)
	}
	var o map[string]any
	if err := json.Unmarshal(data, &o); err != nil {
		return nil, fmt.Errorf("encode object: %w", err)
	}
	meta := map[string]any{"name": object.GetName(), "labels": object.GetLabels(), "annotations": object.GetAnnotations()}
	if object.GetNamespace() != "" {
		meta["namespace"] = object.GetNamespace()
	}
	out := map[string]any{"apiVersion": r.Group + "/" + r.Versions[0], "kind": r.APIKind, "metadata": meta}
	if spec, ok := o["spec"]; ok {
		out["spec"] = spec
	}
	return json.Marshal(out)
}
