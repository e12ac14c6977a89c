package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/deploy"
)

// meshConfigKey is the key of the mesh's ConfigMap.
const meshConfigKey = "mesh"

// checkMeshConfig reads the rendered mesh configuration as the controller will, which would go on with the old one, or not
// start, if it were bad. Fields that MeshConfig does not have are errors here: the controller ignores them.
func checkMeshConfig(components []deploy.Component, namespace string) error {
	for _, comp := range components {
		for _, o := range comp.Objects {
			if o.GetKind() != "ConfigMap" || o.GetName() != api.MeshConfigMap || o.GetNamespace() != namespace {
				continue
			}
			cm := &corev1.ConfigMap{}
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, cm); err != nil {
				return fmt.Errorf("read rendered %s: %w", describe("ConfigMap", o), err)
			}
			if _, _, err := model.ParseMesh(cm, model.Mesh{TrustDomain: api.DefaultTrustDomain, RootNamespace: namespace}); err != nil {
				return fmt.Errorf("%s", strings.Replace(err.Error(), "data."+meshConfigKey, "meshConfig", 1))
			}
			fields := map[string]any{}
			if err := yaml.Unmarshal([]byte(cm.Data[meshConfigKey]), &fields); err != nil {
				return fmt.Errorf("meshConfig: %w", err)
			}
			return unknownField("meshConfig", fields, (*meshv1alpha1.MeshConfig)(nil).ProtoReflect().Descriptor())
		}
	}
	return nil
}

// unknownField returns an error that names a field, at any depth, that the message does not have.
func unknownField(at string, fields map[string]any, message protoreflect.MessageDescriptor) error {
	if strings.HasPrefix(string(message.FullName()), "google.protobuf.") { // their JSON form is not their fields
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		path := at + "." + name
		field := message.Fields().ByJSONName(name)
		if field == nil {
			field = message.Fields().ByTextName(name)
		}
		if field == nil {
			return fmt.Errorf("%s: unknown field: %s does not have it", path, message.Name())
		}
		if field.IsMap() || field.Message() == nil {
			continue
		}
		values, ok := fields[name].([]any)
		if !ok {
			values = []any{fields[name]}
		}
		for i, v := range values {
			inner, ok := v.(map[string]any)
			if !ok {
				continue
			}
			where := path
			if field.IsList() {
				where = fmt.Sprintf("%s[%d]", path, i)
			}
			if err := unknownField(where, inner, field.Message()); err != nil {
				return err
			}
		}
	}
	return nil
}
