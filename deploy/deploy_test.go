package deploy

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"

	sigsyaml "sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestRenderGolden holds what each profile installs against testdata, the generated definitions apart.
func TestRenderGolden(t *testing.T) {
	for _, name := range Profiles() {
		t.Run(name, func(t *testing.T) {
			p, err := LoadProfile(name)
			if err != nil {
				t.Fatal(err)
			}
			components, err := Render(p.Components, "istio-system", "", p.Values)
			if err != nil {
				t.Fatal(err)
			}
			var buf bytes.Buffer
			for _, c := range components {
				for _, o := range c.Objects {
					if o.GetKind() == "CustomResourceDefinition" {
						continue
					}
					b, err := sigsyaml.Marshal(o.Object)
					if err != nil {
						t.Fatal(err)
					}
					buf.WriteString("---\n")
					buf.Write(b)
				}
			}
			file := "testdata/" + name + ".golden.yaml"
			if *update {
				if err := os.WriteFile(file, buf.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(buf.Bytes(), want) {
				t.Errorf("profile %s renders differently from %s (go test ./deploy -update, and read the difference)", name, file)
			}
		})
	}
}

func TestRenderRefuses(t *testing.T) {
	for _, tc := range []struct {
		values map[string]any
		want   string
	}{
		{map[string]any{"pilot": map[string]any{"replicaCont": 2}}, "pilot.replicaCont"},
		{map[string]any{"nosuch": true}, "nosuch"},
		{map[string]any{"pilot": 3}, `value "pilot"`},
		{map[string]any{"cni": map[string]any{"cniBinDir": map[string]any{}}}, "cni.cniBinDir"},
	} {
		_, err := Render([]string{"istiod", "cni"}, "istio-system", "", tc.values)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%v: got %v, want an error that names %s", tc.values, err, tc.want)
		}
	}
	if _, err := LoadProfile("nosuch"); err == nil || !strings.Contains(err.Error(), "demo") {
		t.Errorf("unknown profile: got %v, want an error that lists the known ones", err)
	}
}

// TestIN18Category checks what "kubectl get istio-io" and the documents' API versions need of every definition.
func TestIN18Category(t *testing.T) {
	components, err := Render([]string{"base"}, "istio-system", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	served := map[string]bool{}
	for _, o := range components[0].Objects {
		spec := o.Object["spec"].(map[string]any)
		names := spec["names"].(map[string]any)
		if names["kind"] == "IstioOperator" {
			continue // a record of install, no configuration of the mesh
		}
		categories := names["categories"].([]any)
		if len(categories) == 0 || categories[0] != "istio-io" {
			t.Errorf("%s: categories %v", o.GetName(), categories)
		}
		stored := 0
		for _, v := range spec["versions"].([]any) {
			v := v.(map[string]any)
			served[spec["group"].(string)+"/"+v["name"].(string)+" "+names["kind"].(string)] = v["served"] == true
			if v["storage"] == true {
				stored++
			}
		}
		if stored != 1 {
			t.Errorf("%s: %d stored versions", o.GetName(), stored)
		}
	}
	for _, want := range []string{
		"networking.istio.io/v1alpha3 VirtualService", "networking.istio.io/v1beta1 VirtualService", "networking.istio.io/v1 VirtualService",
		"networking.istio.io/v1alpha3 EnvoyFilter", "security.istio.io/v1beta1 AuthorizationPolicy", "security.istio.io/v1 PeerAuthentication",
		"security.istio.io/v1beta1 RequestAuthentication", "telemetry.istio.io/v1alpha1 Telemetry", "networking.istio.io/v1alpha3 ServiceEntry",
	} {
		if !served[want] {
			t.Errorf("%s is not served", want)
		}
	}
}
