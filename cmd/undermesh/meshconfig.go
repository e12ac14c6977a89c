package main

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/undermesh/undermesh/controller/api"
	"github.com/undermesh/undermesh/controller/model"
	"github.com/undermesh/undermesh/controller/validate"
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
			_, found := model.ParseMesh(cm, model.Mesh{TrustDomain: api.DefaultTrustDomain, RootNamespace: namespace})
			for _, f := range found {
				field := strings.Replace(f.Field, "data."+meshConfigKey, "meshConfig", 1)
				text, ignored := strings.CutSuffix(f.Message, ": it is ignored")
				if f.Severity != validate.Error && !ignored {
					continue
				}
				if f.Hint != "" {
					text += " (" + f.Hint + ")"
				}
				return fmt.Errorf("%s: %s", field, text)
			}
			return nil
		}
	}
	return nil
}
