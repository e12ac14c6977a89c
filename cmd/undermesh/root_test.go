package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestKubeconfigIsNamed: who set KUBECONFIG wrongly sees to what.
func TestKubeconfigIsNamed(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const absent = "/nonexistent/kubeconfig"
	for _, tc := range []struct {
		env  string
		args []string
		want []string
	}{
		{absent, []string{"pods"}, []string{absent, "no such file"}},
		{absent + string(filepath.ListSeparator) + empty, []string{"pods"}, []string{absent, empty + ": names no cluster"}},
		{"", []string{"pods", "--kubeconfig", absent}, []string{absent}},
		{empty, []string{"pods", "--context", "nosuch"}, []string{"nosuch"}},
	} {
		t.Setenv("KUBECONFIG", tc.env)
		var out, errw strings.Builder
		root := newRoot("undermesh", strings.NewReader(""), &out, &errw)
		root.SetArgs(tc.args)
		err := root.Execute()
		for _, want := range tc.want {
			if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "KUBERNETES_MASTER") {
				t.Errorf("KUBECONFIG=%s %v: got %v, want an error that names %s", tc.env, tc.args, err, want)
			}
		}
	}
}

// TestOutputIsCheckedFirst: a wrong format is told before the cluster is looked for.
func TestOutputIsCheckedFirst(t *testing.T) {
	t.Setenv("KUBECONFIG", "/nonexistent/kubeconfig")
	for _, verb := range []string{"pods", "version", "precheck"} {
		var out, errw strings.Builder
		root := newRoot("undermesh", strings.NewReader(""), &out, &errw)
		root.SetArgs([]string{verb, "-o", "foo"})
		if err := root.Execute(); err == nil || !strings.HasPrefix(err.Error(), `flag -o: "foo"`) || out.String() != "" {
			t.Errorf("%s -o foo: %v, printed %q", verb, err, out.String())
		}
	}
}
