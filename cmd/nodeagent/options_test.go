package main

import (
	"slices"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	env := func(k string) string { return map[string]string{"NODE_NAME": "n7"}[k] }
	o, err := parse([]string{"--cni-socket=/run/x/a.sock", "--exclude-namespaces= a ,,b", "--log-level=debug"}, env)
	if err != nil || o.nodeName != "n7" || o.cniDigest != "/run/x/digest.json" || !slices.Equal(o.excluded, []string{"a", "b"}) || o.logLevel.String() != "DEBUG" {
		t.Errorf("%+v %v", o, err)
	}
	for args, want := range map[string]string{
		"--node-name=":              "--node-name",
		"extra":                     `"extra"`,
		"--cni-bin-dir=/a":          "--cni-conf-dir",
		"--kubelet-port=70000":      "70000",
		"--unknown":                 "unknown",
		"--log-level=loud":          "loud",
		"--kubeconfig=a --config=b": "--kubeconfig",
	} {
		if _, err := parse(strings.Fields(args), env); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", args, err)
		}
	}
}
