package deploy

import (
	"encoding/json"
	"reflect"
	"testing"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apimachinery/pkg/runtime"
	sigsyaml "sigs.k8s.io/yaml"
)

// structural returns the schemas of a kind by version, as the API server reads them.
func structural(t *testing.T, kind string) map[string]*schema.Structural {
	t.Helper()
	components, err := Render([]string{"base"}, "istio-system", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]*schema.Structural{}
	for _, o := range components[0].Objects {
		var crd apiextensionsv1.CustomResourceDefinition
		b, err := json.Marshal(o.Object)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, &crd); err != nil {
			t.Fatal(err)
		}
		if crd.Spec.Names.Kind != kind {
			continue
		}
		for _, v := range crd.Spec.Versions {
			var props apiextensions.JSONSchemaProps
			if err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(v.Schema.OpenAPIV3Schema, &props, nil); err != nil {
				t.Fatal(err)
			}
			s, err := schema.NewStructural(&props)
			if err != nil {
				t.Fatalf("%s %s: %v", kind, v.Name, err)
			}
			if errs := schema.ValidateStructural(nil, s); len(errs) > 0 {
				t.Errorf("%s %s is not structural: %v", kind, v.Name, errs.ToAggregate())
			}
			out[v.Name] = s
		}
	}
	if len(out) == 0 {
		t.Fatalf("kind %s has no definition", kind)
	}
	return out
}

// TestSecurityKindsKeepUnknownFields prunes as the API server does before it stores: what a policy says in a field that
// nobody knows must reach the controller, which refuses it.
func TestSecurityKindsKeepUnknownFields(t *testing.T) {
	for _, tc := range []struct{ kind, spec string }{
		{"AuthorizationPolicy", `{rules: [{form: [{source: {principals: [a]}}]}]}`},
		{"AuthorizationPolicy", `{rules: [{from: [{source: {principalz: [a]}}]}]}`},
		{"AuthorizationPolicy", `{rules: [{from: [{sauce: {principals: [a]}}]}]}`},
		{"AuthorizationPolicy", `{rules: [{to: [{operation: {port: ["9000"]}}]}]}`},
		{"AuthorizationPolicy", `{rules: [{when: [{key: source.ip, valuez: [a]}]}]}`},
		{"AuthorizationPolicy", `{selektor: {matchLabels: {app: a}}}`},
		{"AuthorizationPolicy", `{selector: {matchLabel: {app: a}}}`},
		{"AuthorizationPolicy", `{targetRefs: [{kind: Service, name: a, group: "", sort: b}]}`},
		{"AuthorizationPolicy", `{action: CUSTOM, provider: {nam: a}}`},
		{"PeerAuthentication", `{mtls: {mod: STRICT}}`},
		{"PeerAuthentication", `{mtl: {mode: STRICT}}`},
		{"PeerAuthentication", `{portLevelMtls: {"8080": {mod: STRICT}}}`},
		{"RequestAuthentication", `{jwtRules: [{issuer: a, fromHeaders: [{name: b, prefiks: c}]}]}`},
		{"RequestAuthentication", `{jwtRules: [{isuer: a}]}`},
	} {
		for version, s := range structural(t, tc.kind) {
			var spec map[string]any
			if err := sigsyaml.Unmarshal([]byte(tc.spec), &spec); err != nil {
				t.Fatal(err)
			}
			in := map[string]any{"apiVersion": "security.istio.io/" + version, "kind": tc.kind, "metadata": map[string]any{"name": "x"}, "spec": spec}
			stored := runtime.DeepCopyJSON(in)
			pruning.Prune(stored, s, true)
			if !reflect.DeepEqual(stored, in) {
				t.Errorf("%s %s: %s is stored as %v", tc.kind, version, tc.spec, stored["spec"])
			}
		}
	}
}

// TestSecurityKindsKeepUnknownFieldsEverywhere looks at every object below spec: pruning begins again at each.
func TestSecurityKindsKeepUnknownFieldsEverywhere(t *testing.T) {
	for _, kind := range []string{"AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication"} {
		for version, s := range structural(t, kind) {
			spec, ok := s.Properties["spec"]
			if !ok {
				t.Fatalf("%s %s has no spec", kind, version)
			}
			wantKept(t, kind+" "+version+" spec", &spec)
		}
	}
}

func wantKept(t *testing.T, at string, s *schema.Structural) {
	if s.Type == "object" && s.AdditionalProperties == nil && !s.XPreserveUnknownFields {
		t.Errorf("%s: unknown fields are dropped", at)
	}
	for name := range s.Properties {
		child := s.Properties[name]
		wantKept(t, at+"."+name, &child)
	}
	if s.Items != nil {
		wantKept(t, at+"[]", s.Items)
	}
	if s.AdditionalProperties != nil && s.AdditionalProperties.Structural != nil {
		wantKept(t, at+"{}", s.AdditionalProperties.Structural)
	}
}
