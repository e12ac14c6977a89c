package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const misspelt = `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: reviews
  namespace: shop
spec:
  hosts: [reviews]
  http:
  - route:
    - destination:
        host: reviews
        weight: 10
`

// run calls the command tree as the program does.
func runValidate(t *testing.T, name, in string, args ...string) (out, errs string, err error) {
	t.Helper()
	var o, e bytes.Buffer
	root := newRoot(name, strings.NewReader(in), &o, &e)
	root.SetArgs(append([]string{"validate"}, args...))
	err = root.Execute()
	return o.String(), e.String(), err
}

func TestValidateFindings(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sub", "vs.yaml")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(misspelt), 0o600); err != nil {
		t.Fatal(err)
	}
	const want = ":12: error VirtualService shop/reviews spec.http[0].route[0].destination.weight: unknown field " +
		"(it is a field of spec.http[0].route[0]: the indentation is probably wrong)\n"
	for _, args := range [][]string{{"-f", path}, {"-f", dir}, {dir}} {
		out, errs, err := runValidate(t, "istioctl", "", args...)
		if err == nil || !strings.Contains(out, path+want) || !strings.Contains(errs, "1 files, 1 objects: 1 errors") {
			t.Errorf("%v: %v\n%s%s", args, err, out, errs)
		}
	}
	out, _, err := runValidate(t, "undermesh", misspelt, "-f", "-")
	if err == nil || !strings.Contains(out, "-"+want) {
		t.Errorf("standard input: %v\n%s", err, out)
	}
	out, _, err = runValidate(t, "undermesh", misspelt, "-f", "-", "-o", "json")
	var sum checked
	if jsonErr := json.Unmarshal([]byte(out), &sum); jsonErr != nil || err == nil || sum.Objects != 1 || sum.Findings[1].Line != 12 || sum.Findings[1].Code != "IST0106" {
		t.Errorf("json: %v, %v, %+v", err, jsonErr, sum)
	}
}

func TestValidateExitCodes(t *testing.T) {
	const namespace, foreign = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n", "apiVersion: example.com/v1\nkind: Thing\nmetadata:\n  name: a\n"
	const doubtful = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\ndata:\n  a: <VALUE>\n"
	for _, c := range []struct {
		in   string
		args []string
		bad  bool
		out  string
	}{
		{namespace, []string{"-f", "-"}, false, ""},
		{foreign, []string{"-f", "-"}, false, "not checked: example.com/v1 Thing"},
		{doubtful, []string{"-f", "-"}, false, "placeholder"},
		{doubtful, []string{"-f", "-", "--fail-on=warning"}, true, "placeholder"},
		{namespace, []string{"-f", "-", "--fail-on=info"}, true, ""},
		{namespace, []string{"-f", "-", "-o", "xml"}, true, ""},
		{"", []string{"-f", t.TempDir()}, true, ""},
		{"---\n", []string{"-f", "-"}, true, ""},
		{"", []string{"-f", "/nonexistent"}, true, ""},
		{"", nil, true, ""},
	} {
		out, _, err := runValidate(t, "undermesh", c.in, c.args...)
		if (err != nil) != c.bad || !strings.Contains(out, c.out) || (c.out == "" && out != "") {
			t.Errorf("%v: %v, %q", c.args, err, out)
		}
	}
}

// TestValidateStop: a signal ends checking, as it ends the context; no result is printed that would look complete.
func TestValidateStop(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, args := range [][]string{{"validate", "-f", "-"}, {"analyze", "--use-kube=false", "-"}} {
		var out, errs bytes.Buffer
		cmd := newRoot("undermesh", strings.NewReader("apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n"), &out, &errs)
		cmd.SetArgs(args)
		if err := cmd.ExecuteContext(ctx); !errors.Is(err, context.Canceled) || out.Len() > 0 {
			t.Errorf("%v: %v, %q", args, err, out.String())
		}
	}
}
