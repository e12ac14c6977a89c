package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestMT20DocumentsOperatorFile renders the documents' file: the variables arrive, the rights are there, patches are warned about.
func TestMT20DocumentsOperatorFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "istio.yaml")
	text := `apiVersion: install.istio.io/v1alpha1
kind: IstioOperator
spec:
  components:
    pilot:
      k8s:
        env:
        - name: EXTERNAL_CA
          value: ISTIOD_RA_KUBERNETES_API
        - name: K8S_SIGNER
          value: example.com/foo
        overlays:
        - kind: ClusterRole
          name: istiod-clusterrole-istio-system
          patches: [{path: "rules[-1]", value: {}}]
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	generate := func(args ...string) (string, string) {
		t.Helper()
		var out, warn bytes.Buffer
		root := newRoot("undermesh", strings.NewReader(""), &out, &warn)
		root.SetArgs(append([]string{"manifest", "generate"}, args...))
		if err := root.Execute(); err != nil {
			t.Fatal(err)
		}
		return out.String(), warn.String()
	}
	with, warning := generate("-f", file)
	without, none := generate()
	for _, want := range []string{"value: ISTIOD_RA_KUBERNETES_API", "- certificatesigningrequests/approval", "- example.com/foo\n  resources:\n  - signers", "- external-ca-cert"} {
		if !strings.Contains(with, want) || strings.Contains(without, want) {
			t.Errorf("%q: with the file %v, without %v", want, strings.Contains(with, want), strings.Contains(without, want))
		}
	}
	if !strings.Contains(warning, "overlays: 1 patches") || none != "" {
		t.Errorf("warnings %q and %q", warning, none)
	}
}
